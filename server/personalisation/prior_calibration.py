"""Prior of users' heads and sets, calibrated by the head statistics of training users.

Public speakers are another corpus: how sure a model should be of users, and how nonconforming they
are, they only tell roughly. Users' answers say it of the users themselves, as one noised sum
(:mod:`sottovoce.shared.calibration.head_statistics`). Two things are made of it, both
post-processing:

- **the mean temperature**: one Newton step from the public one, shrunk by its own standard error,
  so that noise alone moves nothing far;
- **scores**: the users' distribution is the public one, shifted. In each range between public
  quantiles x the users' share is Phi(x' + s(x')), x' the normal quantile and s a Gaussian process
  that is smooth where little is known (a Brownian path around an unknown level). It is fitted to
  the noised ranges, each as far as its noise and its sampling allow. A threshold is then a public
  quantile at another level, so what is learned stays a distribution, however noisy the sum was.

Thresholds are predictive: where the shift is uncertain by a standard error e, a share c is covered
on average at sqrt(1 + e^2) times its normal quantile, which is what is asked for. So noise widens
sets rather than breaking their promise. It is kept on average over noise and over the users who
came, for each population by itself, as far as the shift is not drawn to where public speakers are:
so the level is all but free (a prior of standard deviation 2, three times what corpora differ by).

The noised number of clips is uncertain too. Ranges that are sent as they are add up to it once
more, with less noise; what is left of the uncertainty counts as the rest does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sottovoce.server.personalisation.prior_estimation import CORPUS_SHIFT, speaker_nonconformity
from sottovoce.shared.calibration import HeadPrior, conformal_fit
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    CalibrationQuery,
    mean_curvature,
    newton_terms,
)
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.printable import get_logger

_LEVEL_SD: Final = 2.0
"""How far, in normal quantiles, all levels of users may lie from those of public speakers."""

_SLOPE_SD: Final = 0.5
"""How much wider or narrower users' scores lie, in the normal quantile of every level."""

_PATH_SD: Final = 0.2
"""How much farther from one level to the next, beside that, a step of one normal quantile."""

_USER_SD: Final = 0.3
"""How far users' own log temperatures lie apart: the default prior's width."""

_INTRACLASS_CORRELATION: Final = 0.1
"""Users' own distributions differ about as if a clip in ten of a user's were worth one user."""

_MIN_CURVATURE_SHARE: Final = 0.3
"""The summed curvature is at least this share of what public speakers say: it divides."""

_MAX_STEP: Final = 0.6
"""No step of the log temperature is longer."""

_STEPS: Final = 30
_MIN_SLOPE: Final = 0.2
_TAIL: Final = 9.0

LOG = get_logger("sottovoce.server")

_SINGULAR: Final[type[Exception]] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""Error of torch for a matrix that cannot be inverted."""

SpeakerLogits = Sequence[tuple[Tensor, Tensor]]
"""Logits, shape (utterances, classes), and labels of each public speaker."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadStatistics:
    """Noised sum of the clips' head statistics.

    Attributes:
        total: Shape (STATISTICS_SIZE,), float64.
        noise_std: Standard deviation of the noise in each number.
        total_weight: What the parts of it add up to, above 0: clips, by noised counts, or users
            where each sent a mean.
        utterances: How many clips there are about, above 0.
        users: How many users, at least 1.
        weight_noise_std: Standard deviation of the noise in ``total_weight``.
    """

    total: Tensor
    noise_std: float
    total_weight: float
    utterances: float
    users: int
    weight_noise_std: float = 0.0


def build_query(
    prior: HeadPrior, speakers: SpeakerLogits, *, subtract_public_shares: bool
) -> CalibrationQuery:
    """Build the query to users, from public speakers behind the prior's mean head.

    Args:
        prior: From public speakers.
        speakers: The same ones, under the final model.
        subtract_public_shares: Whether answers are sent less the public shares: a user's clips are
            bounded together.
    """
    temperature = prior.mean.log_temperature
    speaker_scores = speaker_nonconformity(prior.mean, speakers)
    atoms = torch.tensor(
        conformal_fit.fit_population_scores(speaker_scores).atoms, dtype=torch.float64
    )
    indices = [max(1, round(level * len(atoms))) - 1 for level in SCORE_QUANTILES]
    edges = atoms[indices].float()
    shares = _public_shares(speaker_scores, edges).float()
    curvature = mean_curvature(torch.cat([logits for logits, _ in speakers]), temperature)
    return CalibrationQuery(
        log_temperature=temperature,
        curvature=curvature,
        edges=edges,
        shares=shares if subtract_public_shares else torch.zeros_like(shares),
    )


def calibrate_prior(
    prior: HeadPrior, speakers: SpeakerLogits, query: CalibrationQuery, statistics: HeadStatistics
) -> HeadPrior:
    """Calibrate the prior to the users' own temperature and scores.

    Args:
        prior: From public speakers.
        speakers: The same ones, under the final model.
        query: What was asked.
        statistics: What came back, summed.

    Returns:
        The prior; without users' clips in the sum it stays near the public one. Where the sum makes
        no sense, as one lying device can bring about, it is the public one.
    """
    try:
        found = _calibrated_prior(prior, speakers, query, statistics)
    # A lie of one device can make any of these fail; it must not stop the run.
    except (_SINGULAR, SettingError, ModelError) as error:
        LOG.warning("the devices' head statistics make no sense, and are left out: %s", error)
        return prior
    if not math.isfinite(found.mean.log_temperature):
        LOG.warning("the devices' head statistics give no temperature, and are left out")
        return prior
    return found


def _calibrated_prior(
    prior: HeadPrior, speakers: SpeakerLogits, query: CalibrationQuery, statistics: HeadStatistics
) -> HeadPrior:
    """See :func:`calibrate_prior`; raises where the sum makes no sense."""
    _require_finite(statistics.total, "sum")
    usual = replace(prior.mean, log_temperature=query.log_temperature)
    shares = _public_shares(speaker_nonconformity(usual, speakers), query.edges)
    statistics = _with_refined_weight(query, statistics)
    temperature = query.log_temperature + _temperature_step(query, statistics)
    settled = replace(prior, mean=replace(prior.mean, log_temperature=temperature))
    public = conformal_fit.fit_population_scores(speaker_nonconformity(settled.mean, speakers))
    levels, shift, doubt = _posterior_shift(query, shares, statistics)
    # Probit approximation: averaging Phi over a normal shift divides the quantile by sqrt(1 + e^2).
    predictive = (levels + shift) / (1 + doubt.square()).sqrt()
    # A rank of NaN would become the first one: the emptiest sets, with a promise.
    _require_finite(predictive, "shift of the scores")
    scores = _shifted_scores(public, levels, predictive)
    return replace(settled, scores=replace(scores, tail_mass=1 / (1 + statistics.utterances)))


def _require_finite(numbers: Tensor, name: str) -> None:
    """Refuse a NaN or an infinity."""
    if not bool(numbers.isfinite().all()):
        raise ModelError(f"the {name} holds NaN or infinite numbers")


def _public_shares(speaker_scores: Sequence[Tensor], edges: Tensor) -> Tensor:
    """Share of public speakers in each range, all of equal weight, (ranges,), float64."""
    ranges = [torch.searchsorted(edges.double(), one) for one in speaker_scores if len(one)]
    counted = [torch.bincount(one, minlength=len(SCORE_QUANTILES) + 1).double() for one in ranges]
    return torch.stack([one / one.sum() for one in counted]).mean(0)


def _with_refined_weight(query: CalibrationQuery, statistics: HeadStatistics) -> HeadStatistics:
    """Refine the weight by what ranges add up to, where they are sent as they are."""
    # Public shares were subtracted: then the ranges no longer add up to the weight.
    if query.shares.any():
        return statistics
    ranges = statistics.total[2:]
    noise, doubt = len(ranges) * statistics.noise_std**2, statistics.weight_noise_std**2
    if not noise + doubt:
        return statistics
    weight = statistics.total_weight + (float(ranges.sum()) - statistics.total_weight) * doubt / (
        noise + doubt
    )
    weight = max(weight, float(statistics.users))
    weight_noise_std = math.sqrt(noise * doubt / (noise + doubt))
    return replace(
        statistics, total_weight=weight, utterances=weight, weight_noise_std=weight_noise_std
    )


def _temperature_step(query: CalibrationQuery, statistics: HeadStatistics) -> float:
    """Step from the public log temperature to the users', shrunk by its uncertainty."""
    gradient, curvature = newton_terms(statistics.total).tolist()
    noise = float(newton_terms(torch.full((2,), statistics.noise_std))[0])
    public_curvature = query.curvature * statistics.total_weight
    # The floor keeps noise from making the divisor small or negative, and the step huge.
    total = max(curvature + public_curvature, _MIN_CURVATURE_SHARE * public_curvature, 1e-9)
    of_clips = statistics.total_weight / total / statistics.utterances
    error = of_clips + _USER_SD**2 / statistics.users + (noise / total) ** 2
    trust = CORPUS_SHIFT**2 / (CORPUS_SHIFT**2 + error)
    step: float = -trust * gradient / total
    return min(max(step, -_MAX_STEP), _MAX_STEP)


def _posterior_shift(
    query: CalibrationQuery, shares: Tensor, statistics: HeadStatistics
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute normal quantiles of public levels, the users' shift, and its standard errors."""
    less = query.shares.double()
    expected = less + (1 - less.sum()) / len(less)
    seen = (
        expected + (statistics.total[2:] - statistics.total[2:].mean()) / statistics.total_weight
    )  # adds up to 1
    levels = _normal_quantile(shares.cumsum(0)[:-1])
    precision = torch.linalg.inv(_share_covariance(seen, expected, statistics))
    prior = torch.linalg.inv(_prior_covariance(levels))
    shift = torch.zeros_like(levels)
    curvature = prior
    for _ in range(_STEPS):
        shifted = levels + shift
        bound = torch.cat([shifted.new_zeros(1), torch.special.ndtr(shifted), shifted.new_ones(1)])
        density = torch.diag(torch.exp(-shifted.square() / 2) / math.sqrt(2 * math.pi))
        none = shifted.new_zeros(1, len(shifted))
        jacobian = torch.cat([density, none]) - torch.cat([none, density])
        curvature = jacobian.T @ precision @ jacobian + prior
        gradient = jacobian.T @ precision @ (seen - bound.diff()) - prior @ shift
        # Clamped Newton steps: the likelihood is flat far from the mode.
        shift = shift + torch.linalg.solve(curvature, gradient).clamp(-0.5, 0.5)
    return levels, shift, torch.linalg.inv(curvature).diagonal().sqrt()


def _prior_covariance(levels: Tensor) -> Tensor:
    """Prior covariance of the shift at all levels."""
    far = levels - levels[len(levels) // 2]
    path = (far.abs()[:, None] + far.abs()[None] - (far[:, None] - far[None]).abs()) / 2
    # A little on the diagonal keeps the covariance invertible where levels coincide.
    tiny = 1e-4 * torch.eye(len(levels), dtype=torch.float64)
    return _LEVEL_SD**2 + _SLOPE_SD**2 * torch.outer(far, far) + _PATH_SD**2 * path + tiny


def _share_covariance(seen: Tensor, expected: Tensor, statistics: HeadStatistics) -> Tensor:
    """Covariance of the seen shares: sampling of clips and of users, noise in sums and weight.

    A weight that is off by a part moves what was seen towards the ``expected`` by that part.
    """
    likely = seen.clamp(min=0.01)
    likely = likely / likely.sum()
    sampled = torch.diag(likely) - torch.outer(likely, likely)
    sampling = 1 / statistics.utterances + _INTRACLASS_CORRELATION / statistics.users
    noise = (statistics.noise_std / statistics.total_weight) ** 2 + 1e-9
    off = (statistics.weight_noise_std / statistics.total_weight) * (seen - expected)
    eye = torch.eye(len(seen), dtype=torch.float64)
    return sampled * sampling + noise * eye + torch.outer(off, off)


def _shifted_scores(
    public: NonconformityScores, levels: Tensor, users: Tensor
) -> NonconformityScores:
    """Shift public scores: where they have ``levels``, users have ``users``."""
    atoms = torch.tensor(public.atoms, dtype=torch.float64)
    ordered = users.clone()
    for one in range(1, len(ordered)):  # a distribution rises
        least = ordered[one - 1] + _MIN_SLOPE * (levels[one] - levels[one - 1])
        ordered[one] = torch.maximum(ordered[one], least)
    # Far ends, so that every wanted quantile lies between two points.
    ends = torch.tensor([-_TAIL, _TAIL], dtype=torch.float64)
    grid = torch.cat([levels[:1] + ends[:1], levels, levels[-1:] + ends[1:]])
    at = torch.cat([ordered[:1] + ends[:1], ordered, ordered[-1:] + ends[1:]])
    wanted = _normal_quantile(torch.arange(1, len(atoms) + 1, dtype=torch.float64) / len(atoms))
    known = torch.special.ndtr(_interpolate(wanted, at, grid)) * len(atoms)
    # 1e-6 undoes rounding: an exact rank must not become the next one.
    chosen = (torch.ceil(known - 1e-6).long() - 1).clamp(0, len(atoms) - 1)
    return replace(public, atoms=tuple(atoms[chosen].tolist()))


def _interpolate(wanted: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Interpolate linearly between the points ``at``."""
    index = torch.searchsorted(at, wanted).clamp(1, len(at) - 1)
    left, right = at[index - 1], at[index]
    share = ((wanted - left) / (right - left).clamp(min=1e-12)).clamp(0, 1)
    return values[index - 1] + share * (values[index] - values[index - 1])


def _normal_quantile(shares: Tensor) -> Tensor:
    """Normal quantiles of shares, within some five of 0."""
    found: Tensor = torch.special.ndtri(shares.double().clamp(1e-6, 1 - 1e-6))
    return found
