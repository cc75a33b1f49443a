"""Estimate of the user's mean from unlabelled speech with an unknown mix of emotions.

Most everyday speech is neutral. Its mean is not the user's mean over all emotions but lies towards
the user's neutral voice; once it is subtracted, neutral speech no longer looks neutral. So two
models of the mix are compared by the likelihood of the shared model's predictions:

- an *even* mix, as in training, whose mean is the user's mean;
- a *mostly neutral* mix, in which each utterance counts as neutral by its predicted probability,
  and neutral speech is offset from the user's mean as public corpora and the shared model suggest.

The estimate is the average of both, with posterior probabilities as weights.

Both models start from a prior: the population, or the user's neutral enrolment clips. So a user
without clips, with neutral clips, or with unlabelled speech is served by one estimator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.neutral_direction import neutral_mask
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

_NEUTRAL_SHARES = (0.7, 0.8, 0.9)
"""Shares of neutral speech in a mostly neutral mix; each has the same prior probability."""

_EVEN_MIX_PRIOR = 0.5
"""Prior probability of an even mix."""

BETWEEN_VARIANCE_FACTOR = 2.0
"""Ratio of users' variance to that of public speakers, who were recorded under one condition."""

_OFFSET_VARIANCE_FACTOR = 0.5
"""Variance of the offset between corpora, in units of the squared offset."""

_MIN_VALUE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeanPosterior:
    """Gaussian posterior of a user's mean, relative to the population's centre.

    Attributes:
        mean: Shape (inputs,), float32.
        variance: Variance of the error of ``mean``, shape (inputs,), float32.
    """

    mean: Tensor
    variance: Tensor


def initial_posterior(
    neutral_rows: Tensor, speaker_statistics: SpeakerStatistics, direction: Tensor | None = None
) -> MeanPosterior:
    """Estimate a user's mean before any unlabelled speech, with its uncertainty.

    Args:
        neutral_rows: Clips known to be neutral, shape (utterances, inputs), with the population's
            centre subtracted; without clips, the estimate is the population's.
        speaker_statistics: Public statistics.
        direction: Direction of neutral speech, from ``neutral_direction.estimate_direction``.

    Example:
        >>> statistics = normalisation.default_statistics(2)
        >>> nobody = initial_posterior(torch.zeros(0, 2), statistics)
        >>> enrolled = initial_posterior(torch.ones(4, 2), statistics)
        >>> nobody.variance, enrolled.variance
        (tensor([2., 2.]), tensor([0.2222, 0.2222]))
    """
    between = BETWEEN_VARIANCE_FACTOR * speaker_statistics.between
    variance = between
    if len(neutral_rows):
        error_variance = (
            speaker_statistics.neutral_within / len(neutral_rows)
            + speaker_statistics.offset_variance
        )
        variance = between * error_variance / (between + error_variance).clamp(min=_MIN_VALUE)
    mean = normalisation.estimate_mean(
        neutral_rows, speaker_statistics, is_neutral=True, direction=direction
    )
    return MeanPosterior(mean=mean, variance=variance.clamp(min=_MIN_VALUE))


def uniform_neutral_share(labels: Sequence[str]) -> float:
    """Compute the share of neutral speech if all classes of a model are equally frequent.

    Example:
        >>> uniform_neutral_share(["angry", "calm", "neutral", "sad"])
        0.5
    """
    return int(neutral_mask(labels).sum()) / len(labels)


def adapt_mean(
    rows: Tensor,
    neutral_probability: Tensor,
    posterior: MeanPosterior,
    speaker_statistics: SpeakerStatistics,
    *,
    uniform_share: float,
    direction: Tensor | None = None,
) -> Tensor:
    """Estimate the user's mean from unlabelled speech.

    Args:
        rows: Shape (utterances, inputs), with the population's centre subtracted.
        neutral_probability: The shared model's probability that each is neutral, under equal class
            frequencies and with ``posterior.mean`` subtracted; shape (utterances,), in [0, 1].
        posterior: Estimate without the unlabelled speech, see :func:`initial_posterior`.
        speaker_statistics: Public statistics.
        uniform_share: Share of neutral speech in an even mix, in [0, 1); 0 if the model has no
            neutral class, and then the mix is assumed to be even.
        direction: Direction of neutral speech, from ``neutral_direction.estimate_direction``.

    Returns:
        Shape (inputs,), float32, relative to the population's centre. It depends on the set of
        utterances, not on their order: deleting one gives the estimate without it.

    Raises:
        ModelError: As many probabilities as utterances are needed, all of them finite.

    Example:
        >>> statistics = normalisation.default_statistics(1)
        >>> start = initial_posterior(torch.zeros(0, 1), statistics)
        >>> rows, evenly = torch.tensor([[1.0], [3.0]]), torch.tensor([0.2, 0.2])
        >>> adapt_mean(rows, evenly, start, statistics, uniform_share=0.0)
        tensor([1.6000])
    """
    if neutral_probability.shape != rows.shape[:1] or not bool(
        neutral_probability.isfinite().all()
    ):
        raise ModelError(
            f"{tuple(neutral_probability.shape)} probabilities for {len(rows)} utterances; one "
            "finite probability each is needed: get the model again"
        )
    if not len(rows):
        return posterior.mean
    rows64, probabilities = rows.double(), neutral_probability.double()
    even_mix_mean = _even_mix_mean(rows64, posterior, speaker_statistics)
    if not 0 < uniform_share < 1:
        return even_mix_mean.float()
    mixes = [share for share in _NEUTRAL_SHARES if share > uniform_share]
    weights = _mix_posterior(probabilities, mixes, uniform_share)
    offset = normalisation.expected_neutral_offset(speaker_statistics, direction).double()
    mean = float(weights[0]) * even_mix_mean
    for weight, share in zip(weights[1:].tolist(), mixes, strict=True):
        mean = mean + weight * _mostly_neutral_mean(
            rows64, probabilities, posterior, speaker_statistics, offset, share, uniform_share
        )
    return mean.float()


def _mix_posterior(probabilities: Tensor, mixes: Sequence[float], uniform_share: float) -> Tensor:
    """Probability of an even mix, then of each mostly neutral one, shape (1 + mixes,), float64."""
    # Bayes: dividing by the class frequencies under which the model predicts leaves likelihoods.
    odds = (probabilities / uniform_share, (1 - probabilities) / (1 - uniform_share))
    log_likelihood = torch.stack(
        [
            (share * odds[0] + (1 - share) * odds[1]).clamp(min=_MIN_VALUE).log().sum()
            for share in (uniform_share, *mixes)
        ]
    )
    prior = torch.full(
        (len(log_likelihood),), (1 - _EVEN_MIX_PRIOR) / max(len(mixes), 1), dtype=torch.float64
    )
    # The other half is spread evenly over the mostly neutral mixes.
    prior[0] = _EVEN_MIX_PRIOR
    return torch.softmax(log_likelihood + prior.log(), 0)


def _even_mix_mean(
    rows: Tensor, posterior: MeanPosterior, speaker_statistics: SpeakerStatistics
) -> Tensor:
    """The mean, shrunk to what was known before, shape (inputs,), float64."""
    error_variance = speaker_statistics.within.double() / len(rows)
    weight = posterior.variance / (posterior.variance + error_variance)
    known = posterior.mean.double()
    shrunk: Tensor = known + weight * (rows.mean(0) - known)
    return shrunk


def _mostly_neutral_mean(
    rows: Tensor,
    probabilities: Tensor,
    posterior: MeanPosterior,
    speaker_statistics: SpeakerStatistics,
    offset: Tensor,
    share: float,
    uniform_share: float,
) -> Tensor:
    """The mean from neutral and other speech, each less its offset, shape (inputs,), float64."""
    # The model's probability assumes an even mix; this is Bayes' rule under the other share.
    neutral = share * probabilities / uniform_share
    other = (1 - share) * (1 - probabilities) / (1 - uniform_share)
    neutral = neutral / (neutral + other).clamp(min=_MIN_VALUE)
    offset_variance = (
        speaker_statistics.offset_variance.double() + _OFFSET_VARIANCE_FACTOR * offset.square()
    )
    # Under an even mix both offsets cancel, which gives the offset of other speech.
    other_size = -uniform_share / (1 - uniform_share)
    precision = 1 / posterior.variance.double()
    total = posterior.mean.double() * precision
    # Precision-weighted average of the prior and the two groups (Gaussian conjugacy).
    for weights, size in ((neutral, 1.0), (1 - neutral, other_size)):
        total_weight = weights.sum().clamp(min=_MIN_VALUE)
        group_mean = (weights[:, None] * rows).sum(0) / total_weight - size * offset
        weight = 1 / (
            speaker_statistics.within.double() / total_weight + size**2 * offset_variance
        ).clamp(min=_MIN_VALUE)
        precision, total = precision + weight, total + weight * group_mean
    return total / precision
