"""Direction of neutral speech from a speaker's mean, as the shared model sees it.

Public corpora say how their own neutral speech differs; how much of that holds for other people's
recordings they cannot say. The shared model has learned from the users themselves. A linear
discriminant's weights for neutral are the offset of neutral speech behind the inverse of the
variance within speakers (Fisher 1936); so how utterances vary together with what the model says of
their being neutral points where neutral speech lies. The utterances may be anybody's: here they are
those of public speakers, so it costs no privacy.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError

NEUTRAL_LABELS: Final = ("neutral", "calm")
"""The emotions of everyday speech, under the names that corpora give them."""

_NORM_TOLERANCE: Final = 1e-4
"""How far a unit vector's norm may be from 1."""


def neutral_mask(labels: Sequence[str]) -> Tensor:
    """Which of these are neutral speech, shape (labels,), bool."""
    return torch.tensor([label in NEUTRAL_LABELS for label in labels], dtype=torch.bool)


def estimate_direction(
    speakers: Sequence[tuple[Tensor, Tensor]], labels: Sequence[str]
) -> Tensor | None:
    """Estimate the direction in which neutral speech lies from other speech.

    Args:
        speakers: What the model reads of each speaker's utterances, shape (utterances, inputs), and
            its logits, (utterances, classes).
        labels: Emotions in the order of the classes.

    Returns:
        A unit vector, shape (inputs,), float32; None without speakers, where the model reads
        frames, knows no neutral class or no other, or sees no difference.
    """
    is_neutral = neutral_mask(labels)
    if not speakers or speakers[0][0].dim() != 2 or not is_neutral.any() or is_neutral.all():
        return None
    offset = torch.zeros(speakers[0][0].shape[1], dtype=torch.float64)
    for inputs, logits in speakers:
        score = (logits[:, is_neutral].mean(1) - logits.mean(1)).double()
        own = inputs.double()
        offset += (own - own.mean(0)).T @ (score - score.mean())
    norm = float(torch.linalg.vector_norm(offset))
    return (offset / norm).float() if math.isfinite(norm) and norm > 0 else None


def validate_direction(direction: Tensor | None, inputs: int) -> None:
    """Refuse a direction that is no unit vector.

    Raises:
        ModelError: It is not None, and no unit vector of shape (inputs,).
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
