"""Calibration statistics of training users: the server's query, and the answer of one clip.

After the last round the server asks every training device once how well calibrated the final model
is on clips that the model was not trained on. Each clip contributes two parts of bounded norm:

- gradient and curvature (Fisher information) of its loss with respect to the log temperature of the
  reference head; summed over all clips they give the Newton step to the users' mean temperature;
- a one-hot vector of the histogram bin of its nonconformity score, from which the public speakers'
  shares are subtracted where a user's clips are bounded together; summed, it is a histogram of the
  users' scores.

A device's own clips were trained on, so their loss is too low. The device therefore first subtracts
part of its own contribution from the weights (:func:`subtract_own_contribution`).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration import CalibrationHead, calibrate_logits, conformal
from sottovoce.shared.errors import MessageError

SCORE_QUANTILES: Final = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97)
"""Quantiles of public speakers' scores at which bins end: fine around the default coverage."""

STATISTICS_SIZE: Final = 2 + len(SCORE_QUANTILES) + 1
"""Number of values that a device releases."""

_NEWTON_UNIT: Final = 3.0
"""Unit of gradient and curvature; their joint L2 norm is bounded by one unit."""

_HISTOGRAM_BOUND: Final = 1.1
"""L2 bound on the second part: a one-hot vector has norm 1, less the public shares rarely more."""

SENSITIVITY: Final = (1.0 + _HISTOGRAM_BOUND**2) ** 0.5
"""L2 bound on the contribution of one clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRelease:
    """Settings of the statistics that devices release for calibration.

    Attributes:
        noise_multiplier: Standard deviation of the noise over ``SENSITIVITY``, 0 for no privacy of
            utterances.
        subtracted_share: Share of a device's own contribution to the weights that is subtracted
            before its clips are evaluated, in [0, 1]. All of it would be too much: other users
            would have taught the model part of the same.
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
    """Server's query for calibration statistics, fitted on public speakers only.

    Attributes:
        log_temperature: Log temperature of the reference head, which has no biases.
        curvature: Mean Fisher information of one clip for the log temperature.
        edges: Scores between bins, ascending, shape (bins - 1,), float32.
        shares: Subtracted from every clip's one-hot vector, shape (bins,), float32. Either public
            speakers' share of each bin, summing to 1, which keeps norms small where one bound
            covers a whole user; or zeros, so that bins add up to the number of clips.

    Raises:
        MessageError: Values that this release's server never sends.
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
    """Subtract part of one user's own contribution from the final weights.

    With plain averaging the weights are the initial ones plus the sum of all updates, each with its
    weight. Subtracting all of the own updates would overcorrect: other users' updates would have
    made up for part of them.


    Args:
        weights: The final ones, shape (params,).
        own_contribution: The user's own updates as the server used them, summed, shape (params,).
        share: How much of that is subtracted, in [0, 1].

    Returns:
        Shape (params,), float32.

    Example:
        >>> subtract_own_contribution(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), share=0.5)
        tensor([0.7500, 2.0000])
    """
    return (weights.double() - share * own_contribution.double()).float()


def compute_statistics(logits: Tensor, labels: Tensor, query: CalibrationQuery) -> Tensor:
    """Compute the contribution of each clip to a device's statistics.

    Args:
        logits: Logits under weights not trained on the clip, shape (clips, classes).
        labels: True classes, shape (clips,), integer.
        query: The server's query.

    Returns:
        Gradient, curvature less the query's, and bins less the query's shares; shape
        (clips, STATISTICS_SIZE), float64.

    Guarantees:
        - A clip's row depends on no other clip, and its norm is at most ``SENSITIVITY``, whatever
          the logits and the query are.
        - A clip whose logits hold a NaN or an infinity adds zeros.

    Example:
        >>> edges = torch.linspace(0.2, 0.9, len(SCORE_QUANTILES))
        >>> shares = torch.zeros(len(SCORE_QUANTILES) + 1)
        >>> query = CalibrationQuery(log_temperature=0.0, curvature=0.0, edges=edges, shares=shares)
        >>> logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
        >>> rows = compute_statistics(logits, torch.tensor([0, 0]), query)
        >>> rows.shape, bool(rows[1].any())
        (torch.Size([2, 9]), False)
    """
    reference_head = CalibrationHead(
        log_temperature=query.log_temperature, bias=torch.zeros(logits.shape[1])
    )
    scaled = calibrate_logits(reference_head, logits.double())
    probabilities = torch.softmax(scaled, 1)
    terms = _newton_terms(scaled, probabilities, labels, query.curvature) / _NEWTON_UNIT
    bins = _score_histogram(probabilities, labels, query)
    # Clipped apart: a sure error, whose gradient is large, must not shrink its bin to nothing.
    bounded = torch.cat([_clip_rows(terms, 1.0), _clip_rows(bins, _HISTOGRAM_BOUND)], 1)
    # Zeros rather than an error: whether a clip was broken must not show in the release.
    return torch.where(logits.isfinite().all(1, keepdim=True), bounded, 0.0)


def newton_terms(summed: Tensor) -> Tensor:
    """Recover gradient and curvature from summed statistics, shape (2,), in units of the loss.

    Example:
        >>> newton_terms(torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
        tensor([6., 3.])
    """
    return summed[:2] * _NEWTON_UNIT


def mean_curvature(logits: Tensor, log_temperature: float) -> float:
    """Compute the mean Fisher information of a clip for the log temperature; needs no labels.

    Example:
        >>> round(mean_curvature(torch.tensor([[2.0, -2.0], [0.0, 0.0]]), log_temperature=0.0), 4)
        0.1413
    """
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
    # The floor only keeps a row of zeros from becoming 0 / 0.
    bounded: Tensor = sane * (max_norm / norm.clamp(min=1e-300)).clamp(max=1.0)
    return bounded
