"""Direction of neutral speech from a speaker's mean, estimated with the shared model.

Public corpora show how their own neutral speech differs, but not how much of that holds for other
recordings. The shared model was trained on the users themselves. The weights of a linear
discriminant for neutral speech are its offset times the inverse covariance within speakers
(Fisher 1936). So the covariance of utterances with the model's neutral score is proportional to
the offset of neutral speech. Any utterances will do: here they are those of public speakers, so
the direction costs no privacy.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError

NEUTRAL_LABELS: Final = ("neutral", "calm")
"""Labels of everyday speech, under the names that corpora use."""

_NORM_TOLERANCE: Final = 1e-4
"""Largest deviation of a unit vector's norm from 1."""


def neutral_mask(labels: Sequence[str]) -> Tensor:
    """Mask of the labels that mean neutral speech, shape (labels,), bool.

    Example:
        >>> neutral_mask(["angry", "calm", "neutral"])
        tensor([False,  True,  True])
    """
    return torch.tensor([label in NEUTRAL_LABELS for label in labels], dtype=torch.bool)


def estimate_direction(
    speakers: Sequence[tuple[Tensor, Tensor]], labels: Sequence[str]
) -> Tensor | None:
    """Estimate the direction from a speaker's mean to neutral speech.

    Args:
        speakers: The model's inputs for each speaker's utterances, shape (utterances, inputs), and
            its logits, shape (utterances, classes).
        labels: Emotions in the order of the classes.

    Returns:
        A unit vector, shape (inputs,), float32. None without speakers, or if the model reads
        frames, has only neutral or no neutral classes, or shows no difference.

    Example:
        >>> inputs = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])  # the first sounds neutral
        >>> estimate_direction([(inputs, logits)], ["neutral", "angry"])
        tensor([1., 0.])
    """
    is_neutral = neutral_mask(labels)
    if not speakers or speakers[0][0].dim() != 2 or not is_neutral.any() or is_neutral.all():
        return None
    offset = torch.zeros(speakers[0][0].shape[1], dtype=torch.float64)
    for inputs, logits in speakers:
        score = (logits[:, is_neutral].mean(1) - logits.mean(1)).double()
        own = inputs.double()
        # Centred speaker by speaker: differences between speakers are not the offset sought.
        offset += (own - own.mean(0)).T @ (score - score.mean())
    norm = float(torch.linalg.vector_norm(offset))
    return (offset / norm).float() if math.isfinite(norm) and norm > 0 else None


def validate_direction(direction: Tensor | None, inputs: int) -> None:
    """Refuse a direction that is not a unit vector.

    Raises:
        ModelError: It is not None, and no unit vector of shape (inputs,).

    Example:
        >>> validate_direction(torch.tensor([0.6, 0.8]), inputs=2)
        >>> validate_direction(torch.tensor([3.0, 4.0]), inputs=2)
        Traceback (most recent call last):
        sottovoce.shared.errors.ModelError: the direction of neutral speech has ...
    """
    if direction is None:
        return
    if (
        direction.shape != (inputs,)
        # Written so that a norm of NaN fails.
        or not abs(float(torch.linalg.vector_norm(direction)) - 1) <= _NORM_TOLERANCE
    ):
        raise ModelError(
            f"the direction of neutral speech has shape {tuple(direction.shape)} and norm "
            f"{float(torch.linalg.vector_norm(direction)):.4g}; needed: ({inputs},) and 1"
        )
