"""Which way neutral speech lies from a speaker's mean, as the shared model hears it.

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

NEUTRAL: Final = ("neutral", "calm")
"""The emotions of everyday speech, under the names that corpora give them."""

_UNIT: Final = 1e-4
"""How far a unit vector's length may be from 1."""


def classes(labels: Sequence[str]) -> Tensor:
    """Which of these are neutral speech, shape (labels,), bool."""
    return torch.tensor([label in NEUTRAL for label in labels], dtype=torch.bool)


def direction(speakers: Sequence[tuple[Tensor, Tensor]], labels: Sequence[str]) -> Tensor | None:
    """Where neutral speech lies from other speech.

    Args:
        speakers: What the model reads of each speaker's utterances, shape (utterances, inputs), and
            its logits, (utterances, classes).
        labels: Emotions in the order of the classes.

    Returns:
        A unit vector, shape (inputs,), float32; None without speakers, where the model reads
        frames, knows no neutral class or no other, or hears no difference.
    """
    calm = classes(labels)
    if not speakers or speakers[0][0].dim() != 2 or not calm.any() or calm.all():
        return None
    offset = torch.zeros(speakers[0][0].shape[1], dtype=torch.float64)
    for inputs, logits in speakers:
        score = (logits[:, calm].mean(1) - logits.mean(1)).double()
        own = inputs.double()
        offset += (own - own.mean(0)).T @ (score - score.mean())
    size = float(torch.linalg.vector_norm(offset))
    return (offset / size).float() if math.isfinite(size) and size > 0 else None


def check(found: Tensor | None, inputs: int) -> None:
    """Refuse what is no such direction.

    Raises:
        ModelError: It is not None, and no unit vector of shape (inputs,).
    """
    if found is None:
        return
    if found.shape != (inputs,) or not abs(float(torch.linalg.vector_norm(found)) - 1) <= _UNIT:
        raise ModelError(
            f"the direction of neutral speech has shape {tuple(found.shape)} and length "
            f"{float(torch.linalg.vector_norm(found)):.4g}; needed: ({inputs},) and 1"
        )
