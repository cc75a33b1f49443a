"""Statistics of training users for heads and prediction sets: the query, and one clip's answer.

After the last round the server asks every training device once how right the final model is on
clips it did not learn from. Each clip answers with two parts, each of bounded norm:

- gradient and curvature (Fisher information) of its loss with respect to the log temperature of the
  reference head: summed over all clips they give the Newton step to the users' mean temperature;
- into which of a few bins its conformal score falls, where a user's clips are bounded together
  less the shares that public speakers have there: summed, a histogram of the users' scores.

A device's own clips were trained on, and look too easy to the model. So the device first subtracts
part of its own contribution (:func:`subtract_own_contribution`).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration import CalibrationHead, calibrate_logits, conformal
from sottovoce.shared.errors import MessageError

SCORE_QUANTILES: Final = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97)
"""Shares of public speakers' scores at which bins end: fine around the default coverage."""

STATISTICS_SIZE: Final = 2 + len(SCORE_QUANTILES) + 1
"""How many numbers a device releases."""

_NEWTON_UNIT: Final = 3.0
"""Unit of gradient and curvature; the two together are bounded by one of it."""

_HISTOGRAM_BOUND: Final = 1.1
"""L2 bound on the second part; a bin has norm 1, and less the public shares hardly ever more."""

SENSITIVITY: Final = (1.0 + _HISTOGRAM_BOUND**2) ** 0.5
"""L2 bound on what one clip adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRelease:
    """Settings of the statistics that devices release for calibration.

    Attributes:
        noise_multiplier: Standard deviation of the noise over ``SENSITIVITY``, 0 for no privacy of
            utterances.
        subtracted_share: Share of a device's own contributions to the weights that is subtracted
            before its clips are judged, in [0, 1]. All of it would be too much: what a user taught,
            others would have taught in part.
    """

    noise_multiplier: float
    subtracted_share: float

    def __post_init__(self) -> None:
        validation.require_non_negative(
            noise_multiplier=self.noise_multiplier, subtracted_share=self.subtracted_share
        )
        if not self.subtracted_share <= 1:
            validation.require_rate(subtracted_share=self.subtracted_share)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibrationQuery:
    """What the server asks of clips; learned from public speakers alone.

    Attributes:
        log_temperature: Of the reference head, which changes nothing else.
        curvature: Mean Fisher information of one clip for it.
        edges: Scores between bins, rising, shape (bins - 1,), float32.
        shares: What is subtracted from every clip's bins, shape (bins,), float32: public speakers'
            share in each, together 1, which makes norms small where one bound covers a user; or
            zeros, so that bins add up to the number of clips.

    Raises:
        MessageError: Values that no server of ours sends.
    """

    log_temperature: float
    curvature: float
    edges: Tensor
    shares: Tensor

    def __post_init__(self) -> None:
        edges, shares = self.edges.double(), self.shares.double()
        shapes = (tuple(edges.shape), tuple(shares.shape))
        if shapes != ((len(SCORE_QUANTILES),), (len(SCORE_QUANTILES) + 1,)):
            raise MessageError(
                f"edges and shares of shapes {shapes}; needed: {len(SCORE_QUANTILES)} and 1 more"
            )
        rising = bool((edges.diff() >= 0).all()) and bool(((edges >= 0) & (edges <= 1)).all())
        parts = bool((shares >= 0).all()) and abs(float(shares.sum()) - 1) < 1e-4
        whole = parts or not bool(shares.any())
        if not (rising and whole and abs(self.log_temperature) <= 10 and 0 <= self.curvature < 1e6):
            raise MessageError(
                "edges must rise within [0, 1], shares be parts of 1 or all 0, and temperature and "
                "curvature be in range; nothing was released"
            )


def subtract_own_contribution(weights: Tensor, own_contribution: Tensor, share: float) -> Tensor:
    """The final weights, less part of one user's own contribution.

    With plain averaging the weights are the start plus the sum of all updates, each in its share.
    Subtracting all of the own ones judges too hard: the others' would have made up for part.

    Args:
        weights: The final ones, shape (params,).
        own_contribution: The user's own updates as the server used them, summed, shape (params,).
        share: How much of that is subtracted, in [0, 1].

    Returns:
        Shape (params,), float32.
    """
    return (weights.double() - share * own_contribution.double()).float()


def compute_statistics(logits: Tensor, labels: Tensor, query: CalibrationQuery) -> Tensor:
    """Compute what each clip adds to a device's statistics.

    Args:
        logits: Of weights that did not learn from the clip, shape (clips, classes).
        labels: True classes, shape (clips,), integer.
        query: What is asked.

    Returns:
        Gradient, curvature less the query's, and bins less the query's shares; shape
        (clips, STATISTICS_SIZE), float64.

    Guarantees:
        - A clip's row depends on no other clip, and its norm is at most ``SENSITIVITY``, whatever
          the logits and the query are.
        - A clip whose logits hold a NaN or an infinity adds zeros.
    """
    reference_head = CalibrationHead(
        log_temperature=query.log_temperature, bias=torch.zeros(logits.shape[1])
    )
    scaled = calibrate_logits(reference_head, logits.double())
    probabilities = torch.softmax(scaled, 1)
    terms = _newton_terms(scaled, probabilities, labels, query.curvature) / _NEWTON_UNIT
    bins = _score_histogram(probabilities, labels, query)
    bounded = torch.cat([_clip_rows(terms, 1.0), _clip_rows(bins, _HISTOGRAM_BOUND)], 1)
    return torch.where(logits.isfinite().all(1, keepdim=True), bounded, 0.0)


def newton_terms(summed: Tensor) -> Tensor:
    """Gradient and curvature out of summed statistics, shape (2,), in the units of the loss."""
    return summed[:2] * _NEWTON_UNIT


def mean_curvature(logits: Tensor, log_temperature: float) -> float:
    """Mean Fisher information of a clip for the log temperature; no label is needed."""
    reference_head = CalibrationHead(
        log_temperature=log_temperature, bias=torch.zeros(logits.shape[1])
    )
    scaled = calibrate_logits(reference_head, logits.double())
    return float(_curvature(scaled, torch.softmax(scaled, 1)).mean())


def _newton_terms(
    scaled: Tensor, probabilities: Tensor, labels: Tensor, curvature: float
) -> Tensor:
    """Gradient of the loss in the log temperature, curvature less the query's; (clips, 2)."""
    true = scaled.gather(1, labels.long()[:, None])[:, 0]
    gradient = true - (probabilities * scaled).sum(1)
    return torch.stack([gradient, _curvature(scaled, probabilities) - curvature], 1)


def _curvature(scaled: Tensor, probabilities: Tensor) -> Tensor:
    """Variance of the logits under the probabilities, shape (clips,)."""
    mean = (probabilities * scaled).sum(1, keepdim=True)
    return (probabilities * (scaled - mean).square()).sum(1)


def _score_histogram(probabilities: Tensor, labels: Tensor, query: CalibrationQuery) -> Tensor:
    """1 for the bin of a clip's score, less the query's shares, shape (clips, bins)."""
    scores = conformal.nonconformity(probabilities, labels)
    bin_index = torch.searchsorted(query.edges.double(), scores)
    return torch.nn.functional.one_hot(bin_index, len(SCORE_QUANTILES) + 1) - query.shares.double()


def _clip_rows(rows: Tensor, max_norm: float) -> Tensor:
    """Rows clipped to a norm; those that are not finite become zeros."""
    sane = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0)
    norm = torch.linalg.vector_norm(sane, dim=1, keepdim=True)
    bounded: Tensor = sane * (max_norm / norm.clamp(min=1e-300)).clamp(max=1.0)
    return bounded
