"""The user's mean from unlabelled speech, whatever mix of emotions it happens to hold.

Most speech of every day is neutral. The mean of such speech is not the user's mean over all
emotions but lies towards the user's neutral voice, and with it taken off, neutral speech no longer
sounds neutral. So two explanations compete by how likely they make what the shared model hears: an
*even* mix, as in training, whose mean is the user's; and a mix that is *mostly neutral*, in which
each utterance counts as neutral by its chance of being so, and neutral speech lies from the user's
mean by an offset known from public corpora and from the shared model. The estimate is their
average, weighed by belief.

Both start from what is known already: the population, or the user's neutral enrolment clips. So no
clips, neutral clips and a stream of unlabelled ones are one estimator that knows more or less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import neutral as neutral_speech
from sottovoce.shared import normaliser
from sottovoce.shared.errors import ModelError
from sottovoce.shared.normaliser import Population

_SHARES = (0.7, 0.8, 0.9)
"""How much of a mostly neutral mix is neutral, each as likely as the others."""

_EVEN = 0.5
"""Belief in an even mix before anything was heard."""

_WIDER = 2.0
"""How much more users' means vary than those of public speakers, who were recorded alike."""

_OFFSET_DOUBT = 0.5
"""Variance of the offset from corpus to corpus, in squared offsets."""

_LEAST = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Belief:
    """Where a user's mean lies as far as is known, from the population's centre.

    Attributes:
        mean: Shape (inputs,), float32.
        variance: Of the error of ``mean``, shape (inputs,), float32.
    """

    mean: Tensor
    variance: Tensor


def begin(neutral: Tensor, population: Population, direction: Tensor | None = None) -> Belief:
    """What is known of a user before any unlabelled speech.

    Args:
        neutral: Clips known to be neutral, shape (utterances, inputs), the centre taken off; none
            leaves the population alone.
        population: Public statistics.
        direction: Where the shared model hears neutral speech, as in ``neutral.direction``.
    """
    between = _WIDER * population.between
    variance = between
    if len(neutral):
        doubt = population.neutral_within / len(neutral) + population.offset_spread
        variance = between * doubt / (between + doubt).clamp(min=_LEAST)
    mean = normaliser.estimate(neutral, population, neutral=True, direction=direction)
    return Belief(mean=mean, variance=variance.clamp(min=_LEAST))


def even_share(labels: Sequence[str]) -> float:
    """The share of neutral speech where every class of a model is heard alike."""
    return int(neutral_speech.classes(labels).sum()) / len(labels)


def estimate(
    rows: Tensor,
    neutral: Tensor,
    belief: Belief,
    population: Population,
    *,
    even: float,
    direction: Tensor | None = None,
) -> Tensor:
    """The user's mean from unlabelled speech.

    Args:
        rows: Shape (utterances, inputs), with the population's centre taken off.
        neutral: The shared model's chance that each is neutral, where every class is as likely as
            the others, heard behind ``belief.mean``; shape (utterances,), in [0, 1].
        belief: What is known already.
        population: Public statistics.
        even: Share of neutral speech in an even mix, in [0, 1); 0 where the model knows no neutral
            class, and then the mix is taken to be even.
        direction: Where the shared model hears neutral speech, as in ``neutral.direction``.

    Returns:
        Shape (inputs,), float32, from the population's centre. It depends on which utterances are
        there, not on how they came: one forgotten leaves what would be there without it.

    Raises:
        ModelError: As many chances as utterances are needed, all of them finite.
    """
    if neutral.shape != rows.shape[:1] or not bool(neutral.isfinite().all()):
        raise ModelError(
            f"{tuple(neutral.shape)} chances for {len(rows)} utterances; one finite chance each is "
            "needed: get the model again"
        )
    if not len(rows):
        return belief.mean
    wide, chances = rows.double(), neutral.double()
    usual = _even_mix(wide, belief, population)
    if not 0 < even < 1:
        return usual.float()
    mixes = [share for share in _SHARES if share > even]
    weights = _beliefs(chances, mixes, even)
    offset = normaliser.neutral_offset(population, direction).double()
    found = float(weights[0]) * usual
    for weight, share in zip(weights[1:].tolist(), mixes, strict=True):
        found = found + weight * _mostly_neutral(
            wide, chances, belief, population, offset, share, even
        )
    return found.float()


def mix(neutral: Tensor, *, even: float) -> float:
    """Belief that unlabelled speech is mostly neutral, in [0, 1]; arguments as in ``estimate``."""
    if not len(neutral) or not 0 < even < 1:
        return 0.0
    mixes = [share for share in _SHARES if share > even]
    return 1 - float(_beliefs(neutral.double(), mixes, even)[0])


def _beliefs(chances: Tensor, mixes: Sequence[float], even: float) -> Tensor:
    """Belief in an even mix, then in each mostly neutral one, shape (1 + mixes,), float64."""
    odds = (chances / even, (1 - chances) / (1 - even))
    likely = torch.stack(
        [
            (share * odds[0] + (1 - share) * odds[1]).clamp(min=_LEAST).log().sum()
            for share in (even, *mixes)
        ]
    )
    before = torch.full((len(likely),), (1 - _EVEN) / max(len(mixes), 1), dtype=torch.float64)
    before[0] = _EVEN
    return torch.softmax(likely + before.log(), 0)


def _even_mix(rows: Tensor, belief: Belief, population: Population) -> Tensor:
    """The mean, shrunk to what was known before, shape (inputs,), float64."""
    doubt = population.within.double() / len(rows)
    trust = belief.variance / (belief.variance + doubt)
    known = belief.mean.double()
    shrunk: Tensor = known + trust * (rows.mean(0) - known)
    return shrunk


def _mostly_neutral(
    rows: Tensor,
    chances: Tensor,
    belief: Belief,
    population: Population,
    offset: Tensor,
    share: float,
    even: float,
) -> Tensor:
    """What neutral speech and other speech say, each by its offset, shape (inputs,), float64.

    Under an even mix both offsets cancel, which gives the one of other speech.
    """
    calm = share * chances / even
    calm = calm / (calm + (1 - share) * (1 - chances) / (1 - even)).clamp(min=_LEAST)
    spread = population.offset_spread.double() + _OFFSET_DOUBT * offset.square()
    other = -even / (1 - even)
    precision = 1 / belief.variance.double()
    total = belief.mean.double() * precision
    for weights, size in ((calm, 1.0), (1 - calm, other)):
        heard = weights.sum().clamp(min=_LEAST)
        said = (weights[:, None] * rows).sum(0) / heard - size * offset
        trust = 1 / (population.within.double() / heard + size**2 * spread).clamp(min=_LEAST)
        precision, total = precision + trust, total + trust * said
    return total / precision
