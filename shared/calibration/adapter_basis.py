"""Directions in which a user's head may change the model's last layer.

The last layer reads one vector an utterance. Of its width a few directions are left, those in which
public speakers' vectors vary most, each scaled to unit variance there. They are public, the same
for every user, and frozen: a user's adapter is a small matrix behind them, so that the last layer's
weights change by a product of low rank whose right factor nobody trains (LoRA, Hu et al., ICLR
2022, https://arxiv.org/abs/2106.09685; frozen like this in LoRA-FA, Zhang et al. 2023,
https://arxiv.org/abs/2308.03303). Its fit is convex for that, and takes milliseconds.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError

MAX_RANK: Final = 32
_MAX_BYTES, _BYTES_PER_CLASS, _BYTES_PER_WEIGHT = 1920, 28, 4
"""Bytes: what a stored head has for its classes, what each takes beside its weights, and a weight.
All of it fits into 2 KiB once sealed, so that heads with and without adapters look the same."""

TAG_BYTES: Final = 8

_MAX_COORDINATE: Final = 4.0
"""No coordinate is farther out, in public standard deviations: a strange recording is not to swing
a prediction by more than any recording that the adapter was fitted on could."""

_UTTERANCES_PER_DIRECTION: Final = 4
_MIN_SINGULAR_RATIO: Final = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterBasis:
    """A projection of what the last layer reads.

    Attributes:
        centre: Taken off first, shape (width,), float32.
        matrix: Shape (rank, width), float32.

    Raises:
        ModelError: Shapes that do not fit, a rank of 0 or above ``MAX_RANK``, or numbers that are
            not finite.
    """

    centre: Tensor
    matrix: Tensor

    def __post_init__(self) -> None:
        for name in ("centre", "matrix"):
            value = getattr(self, name).detach().to("cpu", torch.float32).contiguous()
            object.__setattr__(self, name, value)
        shapes = tuple(self.matrix.shape), tuple(self.centre.shape)
        if self.matrix.dim() != 2 or self.centre.shape != self.matrix.shape[1:]:
            raise ModelError(
                f"a basis of matrix {shapes[0]} and centre {shapes[1]} does not fit together; "
                "needed: (rank, width) and (width,)"
            )
        if not 1 <= self.rank <= MAX_RANK:
            raise ModelError(f"a basis has rank {self.rank}; it must be from 1 to {MAX_RANK}")
        if not (self.centre.isfinite().all() and self.matrix.isfinite().all()):
            raise ModelError("the basis of the heads holds a NaN or an infinity; get a new one")

    @property
    def width(self) -> int:
        """How many numbers the last layer reads."""
        return len(self.centre)

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return int(self.matrix.shape[0])

    @cached_property
    def tag(self) -> bytes:
        """Eight bytes that tell this basis from others: adapters are bound to it."""
        sha = hashlib.sha256(repr(tuple(self.matrix.shape)).encode())
        for tensor in (self.centre, self.matrix):
            sha.update(tensor.numpy().tobytes())
        return sha.digest()[:TAG_BYTES]

    def project_vectors(self, vectors: Tensor) -> Tensor:
        """Coordinates of utterances, within 4 public standard deviations.

        Args:
            vectors: What the last layer reads, shape (utterances, width).

        Returns:
            Shape (utterances, rank), float64; NaN stays NaN.

        Raises:
            ModelError: Vectors of another width.
        """
        if vectors.shape[-1] != self.width:
            raise ModelError(
                f"the last layer reads {vectors.shape[-1]} numbers, the basis of the heads is for "
                f"{self.width}: they belong to different models"
            )
        coordinates = (vectors.double() - self.centre.double()) @ self.matrix.double().mT
        return coordinates.clamp(-_MAX_COORDINATE, _MAX_COORDINATE)


def max_rank_for(classes: int) -> int:
    """The highest rank that a stored head of so many classes has room for; 0 and below for none."""
    return (_MAX_BYTES - _BYTES_PER_CLASS * classes) // (_BYTES_PER_WEIGHT * classes)


def fit_basis(vectors: Tensor, classes: int) -> AdapterBasis | None:
    """Fit the basis on public speakers.

    Args:
        vectors: What the last layer reads of their utterances, shape (utterances, width).
        classes: How many emotions the model tells apart.

    Returns:
        Of rank ``MAX_RANK``, or what the width, four utterances a direction and a stored head's
        length allow (8 for 32 emotions); None where that is none.
    """
    rank = min(MAX_RANK, max_rank_for(classes), len(vectors) // _UTTERANCES_PER_DIRECTION)
    if rank < 1:
        return None
    centre = vectors.double().mean(0)
    _, singular, directions = torch.linalg.svd(vectors.double() - centre, full_matrices=False)
    rank = min(rank, int((singular > _MIN_SINGULAR_RATIO * singular[0]).sum()))
    if rank < 1:
        return None
    leading = directions[:rank]
    # A direction has no sign of its own; one is chosen, so that every machine finds the same.
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    deviations = singular[:rank, None] / len(vectors) ** 0.5
    return AdapterBasis(centre=centre, matrix=leading * largest.sign() / deviations)
