"""Losses that know which emotions are near each other, by valence and arousal.

An emotion lies in the plane of Russell's circumplex (1980): how pleasant it is, and how roused.
``ordinal`` charges for the way from the wrong emotion to the right one along each of the two axes;
``hierarchical`` asks for the right half and quarter of the plane before the right emotion.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared.errors import SettingError
from sottovoce.shared.identity import find_name
from sottovoce.shared.speaker.emotions import VALENCE_AROUSAL

Coordinates = tuple[tuple[float, float], ...]
"""Valence and arousal of each class, in [-1, 1]."""

_NEUTRAL_VALENCE: Final = 0.15
"""Valence within which an emotion is neither pleasant nor unpleasant."""


def locate_classes(labels: Sequence[str]) -> Coordinates:
    """Look up valence and arousal of a run's classes.

    Args:
        labels: Emotions, in the order of the classes.

    Raises:
        SettingError: An emotion that the table does not have.

    Example:
        >>> locate_classes(["sad", "angry"])
        ((-0.6, -0.3), (-0.5, 0.6))
    """
    found = [find_name(label, tuple(VALENCE_AROUSAL)) for label in labels]
    unknown = [label for label, name in zip(labels, found, strict=True) if name is None]
    if unknown:
        raise SettingError(
            f"no valence and arousal is known of {', '.join(unknown)}; the losses ordinal and "
            f"hierarchical know {', '.join(VALENCE_AROUSAL)}: choose another loss, or rename the "
            "labels by a label map"
        )
    return tuple(VALENCE_AROUSAL[name] for name in found if name is not None)


def compute_axis_distance(logits: Tensor, labels: Tensor, coordinates: Coordinates) -> Tensor:
    """Compute the squared earth mover's distance to the target along both axes, added.

    From Hou, Yu & Samaras 2016 (arXiv:1611.05916), with the gaps between classes as lengths. A
    proper scoring rule, as the ranked probability score is.

    Args:
        logits: Shape (utterances, classes), float32.
        labels: Shape (utterances,), int64; or soft targets, shape (utterances, classes).
        coordinates: Valence and arousal of each class.

    Returns:
        Shape (utterances,), from 0 to 4.

    Example:
        >>> sure = torch.tensor([[9.0, 0.0, 0.0]])
        >>> plane = locate_classes(["angry", "fearful", "calm"])
        >>> near = compute_axis_distance(sure, torch.tensor([1]), plane)
        >>> bool(near < compute_axis_distance(sure, torch.tensor([2]), plane))
        True
    """
    excess = torch.softmax(logits, 1) - _shares(logits, labels)
    distance = torch.zeros_like(excess[:, 0])
    for axis in zip(*coordinates, strict=True):
        places, order = torch.tensor(axis).sort()
        # What is on the wrong side of each gap has to cross it.
        crossing = excess[:, order].cumsum(1)[:, :-1]
        distance = distance + (crossing.square() * places.diff()).sum(1)
    return distance


def compute_group_surprise(logits: Tensor, labels: Tensor, coordinates: Coordinates) -> Tensor:
    """Compute ``-log p`` of the target's branch at both levels of a tree of emotions, added.

    From Bertinetto et al. 2020 (arXiv:1912.09393). The root parts roused emotions from quiet ones;
    each half parts into pleasant, neutral and unpleasant ones, and those into emotions.

    Args:
        logits: Shape (utterances, classes), float32.
        labels: As in :func:`compute_axis_distance`.
        coordinates: Likewise.

    Returns:
        Shape (utterances,), in nats.

    Example:
        >>> sure = torch.tensor([[9.0, 0.0, 0.0]])
        >>> plane = locate_classes(["angry", "fearful", "calm"])
        >>> compute_group_surprise(sure, torch.tensor([1]), plane).round(decimals=2)
        tensor([0.])
    """
    logs, shares = torch.log_softmax(logits, 1), _shares(logits, labels)
    total = torch.zeros_like(logs[:, 0])
    for branches in _tree(coordinates):
        for branch in sorted(set(branches)):
            inside = [index for index, one in enumerate(branches) if one == branch]
            # Only this utterance's row goes into each entry: nothing couples utterances.
            total = total - shares[:, inside].sum(1) * torch.logsumexp(logs[:, inside], 1)
    return total


def _tree(coordinates: Coordinates) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The branch of each class at both levels."""
    halves: list[tuple[int, ...]] = [(int(arousal > 0),) for _, arousal in coordinates]
    signs = [
        int(valence > _NEUTRAL_VALENCE) - int(valence < -_NEUTRAL_VALENCE)
        for valence, _ in coordinates
    ]
    return halves, [(*half, sign) for half, sign in zip(halves, signs, strict=True)]


def _shares(logits: Tensor, labels: Tensor) -> Tensor:
    """Targets as shares of the classes."""
    if labels.dim() == 2:
        return labels
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)
