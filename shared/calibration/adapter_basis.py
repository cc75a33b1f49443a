"""Directions in which a user's head may change the model's last layer.

The last layer reads one vector per utterance. The basis keeps the few directions in which public
speakers' vectors vary most, each scaled to unit variance. It is public, the same for every user,
and frozen. A user's adapter is a small matrix applied to the coordinates in this basis, so the
weights of the last layer change by a product of low rank whose right factor is never trained
(LoRA, Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685; with a frozen factor: LoRA-FA,
Zhang et al. 2023, https://arxiv.org/abs/2308.03303). That makes the fit convex and fast.
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
"""Bytes that a stored head has for all classes, that a class takes without its weights, and that a
weight takes. All heads fit into 2 KiB once sealed, so their size does not reveal an adapter."""

TAG_BYTES: Final = 8

MAX_COORDINATE: Final = 4.0
"""Bound on a coordinate, in public standard deviations: an unusual recording must not move a
prediction further than any recording that the adapter was fitted on."""

_UTTERANCES_PER_DIRECTION: Final = 4
_MIN_SINGULAR_RATIO: Final = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterBasis:
    """Affine projection of the last layer's input onto a few public directions.

    Attributes:
        centre: Subtracted first, shape (width,), float32.
        matrix: One direction in each row, shape (rank, width), float32.

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
        # A basis comes from a server: a NaN in it would make every logit NaN.
        if not (self.centre.isfinite().all() and self.matrix.isfinite().all()):
            raise ModelError("the basis of the heads holds a NaN or an infinity; get a new one")

    @property
    def width(self) -> int:
        """Width of the last layer's input."""
        return len(self.centre)

    @property
    def rank(self) -> int:
        """Number of directions in the basis.

        Example:
            >>> AdapterBasis(centre=torch.zeros(5), matrix=torch.ones(2, 5)).rank
            2
        """
        return int(self.matrix.shape[0])

    @cached_property
    def tag(self) -> bytes:
        """Identifier of this basis, eight bytes; adapters are bound to their basis by its tag."""
        # The shape is hashed too: the same numbers in rows of another length are another basis.
        sha = hashlib.sha256(repr(tuple(self.matrix.shape)).encode())
        for tensor in (self.centre, self.matrix):
            sha.update(tensor.numpy().tobytes())
        return sha.digest()[:TAG_BYTES]

    def project_vectors(self, vectors: Tensor) -> Tensor:
        """Project utterances onto the basis, clamped to 4 public standard deviations.

        Args:
            vectors: Inputs of the last layer, shape (utterances, width).

        Returns:
            Shape (utterances, rank), float64; NaN stays NaN.

        Raises:
            ModelError: Vectors of another width.

        Example:
            >>> basis = AdapterBasis(centre=torch.zeros(2), matrix=torch.tensor([[1.0, 0.0]]))
            >>> basis.project_vectors(torch.tensor([[3.0, 7.0], [9.0, 0.0]])).tolist()
            [[3.0], [4.0]]
        """
        if vectors.shape[-1] != self.width:
            raise ModelError(
                f"the last layer reads {vectors.shape[-1]} numbers, the basis of the heads is for "
                f"{self.width}: they belong to different models"
            )
        coordinates = (vectors.double() - self.centre.double()) @ self.matrix.double().mT
        return coordinates.clamp(-MAX_COORDINATE, MAX_COORDINATE)


def max_rank_for(classes: int) -> int:
    """Highest rank for which a stored head of this many classes has room; below 1 if none has.

    Example:
        >>> max_rank_for(8), max_rank_for(32)
        (53, 8)
    """
    return (_MAX_BYTES - _BYTES_PER_CLASS * classes) // (_BYTES_PER_WEIGHT * classes)


def fit_basis(vectors: Tensor, classes: int) -> AdapterBasis | None:
    """Fit the basis on public speakers.

    Args:
        vectors: Inputs of the last layer for their utterances, shape (utterances, width).
        classes: Number of emotions.

    Returns:
        The basis, of rank ``MAX_RANK`` or as high a rank as the width, four utterances per
        direction and the length of a stored head allow (8 for 32 emotions); None if that is 0.

    Example:
        >>> vectors = torch.eye(3).repeat(4, 1)  # three points: they span a plane
        >>> fit_basis(vectors, classes=4).rank
        2
        >>> fit_basis(vectors[:2], classes=4) is None  # too few utterances for one direction
        True
    """
    rank = min(MAX_RANK, max_rank_for(classes), len(vectors) // _UTTERANCES_PER_DIRECTION)
    if rank < 1:
        return None
    centre = vectors.double().mean(0)
    _, singular, directions = torch.linalg.svd(vectors.double() - centre, full_matrices=False)
    # Directions without variance would be scaled by nearly infinite factors.
    rank = min(rank, int((singular > _MIN_SINGULAR_RATIO * singular[0]).sum()))
    if rank < 1:
        return None
    leading = directions[:rank]
    # A direction has no sign of its own; one is chosen, so that every machine finds the same.
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    # Singular values of centred data are standard deviations times the root of their number.
    deviations = singular[:rank, None] / len(vectors) ** 0.5
    return AdapterBasis(centre=centre, matrix=leading * largest.sign() / deviations)
