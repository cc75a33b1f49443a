"""What training users teach of heads and sets: the question, and one clip's answer to it.

After the last round the server asks every training device once how right the final model is on
clips it did not learn from. Each clip answers with two parts, each of bounded length:

- how strongly it pulls on the temperature of the usual head (derivative of its loss), and how
  sharply its loss bends there (Fisher information): summed over all clips they give the Newton step
  to the users' own usual temperature;
- into which of a few ranges its conformal score falls, where a user's clips are bounded together
  less the shares that public speakers have there: summed, how the users' scores lie.

A device's own clips were trained on, and look too easy to the model. So the device first takes back
part of what it gave itself (:func:`taken_back`).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import check, conformal
from sottovoce.shared.errors import MessageError
from sottovoce.shared.heads import Head, apply

LEVELS: Final = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97)
"""Shares of public speakers' scores at which ranges end: fine around the usual coverage."""

WIDTH: Final = 2 + len(LEVELS) + 1
"""How many numbers a device tells."""

_HEAD_UNIT: Final = 3.0
"""Pull and bend are told in this unit, and together bounded by one of it."""

_RANGE_BOUND: Final = 1.1
"""L2 bound on the second part; a range is 1 long, and less the public shares hardly ever longer."""

SENSITIVITY: Final = (1.0 + _RANGE_BOUND**2) ** 0.5
"""L2 bound on what one clip adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRelease:
    """Settings of what devices tell of calibration.

    Attributes:
        noise_multiplier: Standard deviation of the noise over ``SENSITIVITY``, 0 for no privacy of
            utterances.
        taken_back: Share of a device's own contributions to the weights that is taken off before
            its clips are judged, in [0, 1]. All of it would be too much: what a user taught, others
            would have taught in part.
    """

    noise_multiplier: float
    taken_back: float

    def __post_init__(self) -> None:
        check.not_negative(noise_multiplier=self.noise_multiplier, taken_back=self.taken_back)
        if not self.taken_back <= 1:
            check.rate(taken_back=self.taken_back)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """What the server asks of clips; learned from public speakers alone.

    Attributes:
        log_temperature: Of the usual head, which changes nothing else.
        bend: Usual Fisher information of one clip for it.
        edges: Scores between ranges, rising, shape (ranges - 1,), float32.
        shares: What every clip's range is told less of, shape (ranges,), float32: public speakers'
            share in each, together 1, which makes answers short where few numbers bound a user; or
            zeros, so that ranges add up to how many clips there are.

    Raises:
        MessageError: Values that no server of ours asks.
    """

    log_temperature: float
    bend: float
    edges: Tensor
    shares: Tensor

    def __post_init__(self) -> None:
        edges, shares = self.edges.double(), self.shares.double()
        shapes = (tuple(edges.shape), tuple(shares.shape))
        if shapes != ((len(LEVELS),), (len(LEVELS) + 1,)):
            raise MessageError(
                f"edges and shares of shapes {shapes}; needed: {len(LEVELS)} and 1 more"
            )
        rising = bool((edges.diff() >= 0).all()) and bool(((edges >= 0) & (edges <= 1)).all())
        parts = bool((shares >= 0).all()) and abs(float(shares.sum()) - 1) < 1e-4
        whole = parts or not bool(shares.any())
        if not (rising and whole and abs(self.log_temperature) <= 10 and 0 <= self.bend < 1e6):
            raise MessageError(
                "edges must rise within [0, 1], shares be parts of 1 or all 0, and the "
                "usual head be one; nothing was told"
            )


def taken_back(weights: Tensor, given: Tensor, share: float) -> Tensor:
    """The final weights, less part of what one user put into them.

    With plain averaging the weights are the start plus the sum of all updates, each in its share.
    Taking all of the own ones off judges too hard: the others' updates would have made up for part.

    Args:
        weights: The final ones, shape (params,).
        given: The user's own updates as the server used them, summed, shape (params,).
        share: How much of that is taken off, in [0, 1].

    Returns:
        Shape (params,), float32.
    """
    return (weights.double() - share * given.double()).float()


def answers(logits: Tensor, labels: Tensor, question: Question) -> Tensor:
    """What each clip adds to a device's answer.

    Args:
        logits: Of weights that did not learn from the clip, shape (clips, classes).
        labels: True classes, shape (clips,), integer.
        question: What is asked.

    Returns:
        Pull, bend less the usual bend, and ranges less the question's shares; (clips, WIDTH),
        float64.

    Guarantees:
        - A clip's row depends on no other clip, and is at most ``SENSITIVITY`` long, whatever the
          logits and the question are.
        - A clip whose logits hold a NaN or an infinity adds zeros.
    """
    usual = Head(log_temperature=question.log_temperature, bias=torch.zeros(logits.shape[1]))
    scaled = apply(usual, logits.double())
    chances = torch.softmax(scaled, 1)
    told = torch.cat(
        [
            _bounded(_slopes(scaled, chances, labels, question.bend) / _HEAD_UNIT, 1.0),
            _bounded(_ranges(chances, labels, question), _RANGE_BOUND),
        ],
        1,
    )
    return torch.where(logits.isfinite().all(1, keepdim=True), told, 0.0)


def slopes_of(told: Tensor) -> Tensor:
    """Pull and bend out of summed answers, shape (2,), in the units of the loss."""
    return told[:2] * _HEAD_UNIT


def usual_bend(logits: Tensor, log_temperature: float) -> float:
    """Mean Fisher information of a clip for the log temperature; no label is needed."""
    usual = Head(log_temperature=log_temperature, bias=torch.zeros(logits.shape[1]))
    scaled = apply(usual, logits.double())
    return float(_bend(scaled, torch.softmax(scaled, 1)).mean())


def _slopes(scaled: Tensor, chances: Tensor, labels: Tensor, bend: float) -> Tensor:
    """Derivative of the loss by the log temperature, and its bend less the usual; (clips, 2)."""
    true = scaled.gather(1, labels.long()[:, None])[:, 0]
    pull = true - (chances * scaled).sum(1)
    return torch.stack([pull, _bend(scaled, chances) - bend], 1)


def _bend(scaled: Tensor, chances: Tensor) -> Tensor:
    """Variance of the logits under the chances, shape (clips,)."""
    mean = (chances * scaled).sum(1, keepdim=True)
    return (chances * (scaled - mean).square()).sum(1)


def _ranges(chances: Tensor, labels: Tensor, question: Question) -> Tensor:
    """1 for the range of a clip's score, less what is asked, shape (clips, ranges)."""
    scores = conformal.scores(chances, labels)
    place = torch.searchsorted(question.edges.double(), scores)
    return torch.nn.functional.one_hot(place, len(LEVELS) + 1) - question.shares.double()


def _bounded(rows: Tensor, most: float) -> Tensor:
    """Rows brought within a length; broken ones become zeros."""
    sane = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0)
    length = torch.linalg.vector_norm(sane, dim=1, keepdim=True)
    bounded: Tensor = sane * (most / length.clamp(min=1e-300)).clamp(max=1.0)
    return bounded
