"""How far a recording lies from the speech that a model knows.

A classifier is as sure of a fan, or of a voice through another world's telephone, as it is of the
speech that it was trained on: softmax has no class for "none of these" (Hendrycks and Gimpel,
2017). So a model carries the mean and the deviation of *public* speech behind its projection, and
what distance public speakers have from the rest of public speech. They cost no privacy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.speaker.familiarity import measure_unfamiliarity, standard_distances

LIMIT_QUANTILE = 0.99
"""Share of public speech, each speaker measured by the others, that lies within the limit."""

MIN_UTTERANCES = 20
"""Fewest public utterances that tell what is familiar."""

_GROUPS = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FamiliarSpeech:
    """Mean and deviation of public speech in projected space, and the limit of what is familiar.

    Attributes:
        mean: Shape (inputs,), float32.
        scale: Deviation of each input, shape (inputs,), float32, above 0.
        limit: Distance within which ``LIMIT_QUANTILE`` of held-out public speech lies, shape (1,),
            float32, above 0.
    """

    mean: Tensor
    scale: Tensor
    limit: Tensor

    def __post_init__(self) -> None:
        fits = self.mean.dim() == 1 and self.scale.shape == self.mean.shape
        positive = bool((self.scale > 0).all()) and bool((self.limit > 0).all())
        finite = all(bool(part.isfinite().all()) for part in (self.mean, self.scale, self.limit))
        if not (fits and self.limit.shape == (1,) and positive and finite):
            parts = self.to_tensors().items()
            shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts)
            raise ModelError(
                f"familiar speech has {shapes}; needed: finite (inputs,), (inputs,) and (1,), "
                "scale and limit above 0"
            )

    def measure_unfamiliarity(self, row: Tensor, user_mean: Tensor | None = None) -> float:
        """Measure how far a recording lies from familiar speech, in units of the limit.

        The distance is the root mean square of standardised inputs, each at most ten deviations,
        from the public mean or from the mean of the training users (or of this user), whichever is
        nearer: who trained or enrolled through another microphone is familiar.

        Args:
            row: Projected features averaged over frames, shape (inputs,).
            user_mean: Mean of the users that the model was trained on, or of its user, shape
                (inputs,); None has none.

        Returns:
            At least 0; above 1 the recording is unlike what the model knows.

        Example:
            >>> zeros, ones = torch.zeros(2), torch.ones(2)
            >>> known = FamiliarSpeech(mean=zeros, scale=ones, limit=torch.tensor([2.0]))
            >>> known.measure_unfamiliarity(torch.tensor([3.0, 3.0]))
            1.5
            >>> known.measure_unfamiliarity(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 2.0]))
            0.5
        """
        references = [self.mean] if user_mean is None else [self.mean, user_mean]
        return measure_unfamiliarity(row, references, scale=self.scale, limit=float(self.limit))

    def to_tensors(self) -> dict[str, Tensor]:
        """Convert to tensors by name, for a file.

        Example:
            >>> one = torch.ones(1)
            >>> sorted(FamiliarSpeech(mean=one, scale=one, limit=one).to_tensors())
            ['limit', 'mean', 'scale']
        """
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FamiliarSpeech | None":
        """Rebuild from :meth:`to_tensors`; None where there are none, as in earlier releases.

        Raises:
            ModelError: One of them is missing, or they do not fit each other.
        """
        if not tensors:
            return None
        missing = cls.__dataclass_fields__.keys() - tensors.keys()
        if missing:
            raise ModelError(f"familiar speech lacks {', '.join(sorted(missing))}")
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__})


def fit_familiar_speech(rows: Tensor, speakers: Tensor) -> FamiliarSpeech | None:
    """Fit what is familiar on public speech.

    The limit comes from distances of speakers that the mean and deviations have not seen: a fifth
    of the speakers at a time is measured by the others.

    Args:
        rows: Projected features of public utterances, shape (utterances, inputs).
        speakers: Shape (utterances,), int64, from 0.

    Returns:
        None for fewer than ``MIN_UTTERANCES`` utterances, or a single speaker.

    Example:
        >>> rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> known = fit_familiar_speech(rows, torch.arange(200) % 10)
        >>> known.measure_unfamiliarity(torch.zeros(4)) < 1 < known.measure_unfamiliarity(
        ...     torch.full((4,), 5.0)
        ... )
        True
    """
    groups = speakers % _GROUPS
    present = torch.unique(groups).tolist()
    if len(rows) < MIN_UTTERANCES or len(present) < 2:
        return None
    wide = rows.double()
    held_out = []
    for group in present:
        own, others = wide[groups == group], wide[groups != group]
        held_out.append(standard_distances(own, others.mean(0), _deviation(others)))
    limit = max(float(np.quantile(np.concatenate(held_out), LIMIT_QUANTILE)), 1e-6)
    return FamiliarSpeech(
        mean=wide.mean(0).float(), scale=_deviation(wide).float(), limit=torch.tensor([limit])
    )


def _deviation(rows: Tensor) -> Tensor:
    return rows.std(0, unbiased=False).clamp(min=1e-6)
