"""The user's mean from unlabelled speech, whatever mix of emotions it happens to hold.

Most speech of every day is neutral. The mean of such speech is not the user's mean over all
emotions but lies towards the user's neutral voice, and with it subtracted, neutral speech no longer
looks neutral. So two models of the mix compete by the likelihood of what the shared model predicts:
an *even* mix, as in training, whose mean is the user's; and a mix that is *mostly neutral*, in
which each utterance counts as neutral by its probability of being so, and neutral speech lies from
the user's mean by an offset known from public corpora and from the shared model. The estimate is
their average, weighed by posterior probability.

Both start from a prior: the population, or the user's neutral enrolment clips. So no clips, neutral
clips and a stream of unlabelled ones are one estimator that knows more or less.
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
"""Shares of neutral speech in a mostly neutral mix, equally likely a priori."""

_EVEN_MIX_PRIOR = 0.5
"""Prior probability of an even mix."""

_BETWEEN_VARIANCE_FACTOR = 2.0
"""Variance of users' means over that of public speakers, who were recorded under one condition."""

_OFFSET_VARIANCE_FACTOR = 0.5
"""Variance of the offset from corpus to corpus, in squared offsets."""

_MIN_VALUE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeanPosterior:
    """Gaussian posterior of a user's mean, relative to the population's centre.

    Attributes:
        mean: Shape (inputs,), float32.
        variance: Of the error of ``mean``, shape (inputs,), float32.
    """

    mean: Tensor
    variance: Tensor


def initial_posterior(
    neutral_rows: Tensor, speaker_statistics: SpeakerStatistics, direction: Tensor | None = None
) -> MeanPosterior:
    """What is known of a user's mean before any unlabelled speech.

    Args:
        neutral_rows: Clips known to be neutral, shape (utterances, inputs), the centre subtracted;
            none leaves the population alone.
        speaker_statistics: Public statistics.
        direction: Of neutral speech, from ``neutral_direction.estimate_direction``.
    """
    between = _BETWEEN_VARIANCE_FACTOR * speaker_statistics.between
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
    """The share of neutral speech where every class of a model is equally frequent."""
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
    """The user's mean from unlabelled speech.

    Args:
        rows: Shape (utterances, inputs), with the population's centre subtracted.
        neutral_probability: The shared model's probability that each is neutral, under equal class
            frequencies and with ``posterior.mean`` subtracted; shape (utterances,), in [0, 1].
        posterior: What is known already.
        speaker_statistics: Public statistics.
        uniform_share: Share of neutral speech in an even mix, in [0, 1); 0 where the model knows no
            neutral class, and then the mix is taken to be even.
        direction: Of neutral speech, from ``neutral_direction.estimate_direction``.

    Returns:
        Shape (inputs,), float32, from the population's centre. It depends on which utterances are
        there, not on how they came: one forgotten leaves what would be there without it.

    Raises:
        ModelError: As many probabilities as utterances are needed, all of them finite.
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


def mostly_neutral_probability(neutral_probability: Tensor, *, uniform_share: float) -> float:
    """Probability that unlabelled speech is mostly neutral; arguments as for :func:`adapt_mean`."""
    if not len(neutral_probability) or not 0 < uniform_share < 1:
        return 0.0
    mixes = [share for share in _NEUTRAL_SHARES if share > uniform_share]
    return 1 - float(_mix_posterior(neutral_probability.double(), mixes, uniform_share)[0])


def _mix_posterior(probabilities: Tensor, mixes: Sequence[float], uniform_share: float) -> Tensor:
    """Probability of an even mix, then of each mostly neutral one, shape (1 + mixes,), float64."""
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
    """The mean from neutral and other speech, each less its offset, shape (inputs,), float64.

    Under an even mix both offsets cancel, which gives the one of other speech.
    """
    neutral = share * probabilities / uniform_share
    other = (1 - share) * (1 - probabilities) / (1 - uniform_share)
    neutral = neutral / (neutral + other).clamp(min=_MIN_VALUE)
    offset_variance = (
        speaker_statistics.offset_variance.double() + _OFFSET_VARIANCE_FACTOR * offset.square()
    )
    other_size = -uniform_share / (1 - uniform_share)
    precision = 1 / posterior.variance.double()
    total = posterior.mean.double() * precision
    for weights, size in ((neutral, 1.0), (1 - neutral, other_size)):
        total_weight = weights.sum().clamp(min=_MIN_VALUE)
        group_mean = (weights[:, None] * rows).sum(0) / total_weight - size * offset
        weight = 1 / (
            speaker_statistics.within.double() / total_weight + size**2 * offset_variance
        ).clamp(min=_MIN_VALUE)
        precision, total = precision + weight, total + weight * group_mean
    return total / precision
