"""Where users' heads and sets start, learned from what training users told of their clips.

Public speakers are another corpus: how sure a model should be of users, and how strange it finds
them, they only tell roughly. Users' answers say it of the users themselves, as one noised sum
(:mod:`sottovoce.shared.calibration`). Two things are made of it, both post-processing:

- **the usual temperature**: one Newton step from the public one, shrunk by its own standard error,
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
so the level is all but free (a belief of standard deviation 2, three times what corpora differ by).

The noised number of clips is uncertain too. Ranges that are told as they are add up to it once
more, with less noise; what is left of the doubt counts as the rest does.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sottovoce.server.prior import CORPUS_SHIFT, usual_scores
from sottovoce.shared import conformal
from sottovoce.shared.calibration import LEVELS, Question, slopes_of, usual_bend
from sottovoce.shared.conformal import Scores
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.heads import HeadPrior

_LEVEL_SD: Final = 2.0
"""How far, in normal quantiles, all levels of users may lie from those of public speakers."""

_SLOPE_SD: Final = 0.5
"""How much wider or narrower users' scores lie, in the normal quantile of every level."""

_PATH_SD: Final = 0.2
"""How much farther from one level to the next, beside that, a step of one normal quantile."""

_USER_SD: Final = 0.3
"""How far users' own log temperatures lie apart: the default prior's width."""

_USER_SHARE: Final = 0.1
"""Users' own distributions differ about as if a clip in ten of a user's were worth one user."""

_LEAST_BEND: Final = 0.3
"""The summed bend is at least this share of what public speakers say: it divides."""

_FARTHEST: Final = 0.6
"""No step of the log temperature is longer."""

_STEPS: Final = 30
_LEAST_SLOPE: Final = 0.2
_TAIL: Final = 9.0

LOG = logging.getLogger("sottovoce.server")

_SINGULAR: Final[type[Exception]] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""What torch raises of a matrix that cannot be inverted."""

Speakers = Sequence[tuple[Tensor, Tensor]]
"""Logits, shape (utterances, classes), and labels of each public speaker."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """The noised sum of what clips told.

    Attributes:
        total: Shape (WIDTH,), float64.
        spread: Standard deviation of the noise in each number.
        weight: What the parts of it add up to, above 0: clips, by noised counts, or users where
            each sent a mean.
        clips: How many clips there are about, above 0.
        users: How many users, at least 1.
        weight_spread: Standard deviation of the noise in ``weight``.
    """

    total: Tensor
    spread: float
    weight: float
    clips: float
    users: int
    weight_spread: float = 0.0


def question(prior: HeadPrior, speakers: Speakers, *, short: bool) -> Question:
    """What to ask of users, from public speakers behind the usual head.

    Args:
        prior: From public speakers.
        speakers: The same ones, under the final model.
        short: Whether answers are told less the public shares: a user's clips are bounded together.
    """
    temperature = prior.mean.log_temperature
    people = usual_scores(prior.mean, speakers)
    atoms = torch.tensor(conformal.learn(people).atoms, dtype=torch.float64)
    places = [max(1, round(level * len(atoms))) - 1 for level in LEVELS]
    edges = atoms[places].float()
    shares = _public_shares(people, edges).float()
    bend = usual_bend(torch.cat([logits for logits, _ in speakers]), temperature)
    return Question(
        log_temperature=temperature,
        bend=bend,
        edges=edges,
        shares=shares if short else torch.zeros_like(shares),
    )


def learned(prior: HeadPrior, speakers: Speakers, asked: Question, answers: Answers) -> HeadPrior:
    """The prior with the users' own temperature and scores.

    Args:
        prior: From public speakers.
        speakers: The same ones, under the final model.
        asked: What was asked.
        answers: What came back, summed.

    Returns:
        The prior; without users' clips in the sum it stays near the public one. Where the sum makes
        no sense, as one lying device can bring about, it is the public one.
    """
    try:
        found = _learned(prior, speakers, asked, answers)
    except (_SINGULAR, SettingError, ModelError) as error:
        LOG.warning("what devices told of their clips makes no sense, and is left out: %s", error)
        return prior
    if not math.isfinite(found.mean.log_temperature):
        LOG.warning("what devices told of their clips is no temperature, and is left out")
        return prior
    return found


def _learned(prior: HeadPrior, speakers: Speakers, asked: Question, answers: Answers) -> HeadPrior:
    """See :func:`learned`; raises where the sum makes no sense."""
    usual = replace(prior.mean, log_temperature=asked.log_temperature)
    shares = _public_shares(usual_scores(usual, speakers), asked.edges)
    answers = _counted(asked, answers)
    temperature = asked.log_temperature + _temperature_step(asked, answers)
    settled = replace(prior, mean=replace(prior.mean, log_temperature=temperature))
    public = conformal.learn(usual_scores(settled.mean, speakers))
    levels, shift, doubt = _shift(asked, shares, answers)
    predictive = (levels + shift) / (1 + doubt.square()).sqrt()
    scores = _moved(public, levels, predictive)
    return replace(settled, scores=replace(scores, beyond=1 / (1 + answers.clips)))


def _public_shares(people: Sequence[Tensor], edges: Tensor) -> Tensor:
    """Public speakers' share in each range, everybody counting alike, (ranges,), float64."""
    ranges = [torch.searchsorted(edges.double(), one) for one in people if len(one)]
    counted = [torch.bincount(one, minlength=len(LEVELS) + 1).double() for one in ranges]
    return torch.stack([one / one.sum() for one in counted]).mean(0)


def _counted(asked: Question, answers: Answers) -> Answers:
    """The same, with the weight that ranges add up to as well, where they are told as they are."""
    if asked.shares.any():
        return answers
    told = answers.total[2:]
    noise, doubt = len(told) * answers.spread**2, answers.weight_spread**2
    if not noise + doubt:
        return answers
    weight = answers.weight + (float(told.sum()) - answers.weight) * doubt / (noise + doubt)
    weight = max(weight, float(answers.users))
    spread = math.sqrt(noise * doubt / (noise + doubt))
    return replace(answers, weight=weight, clips=weight, weight_spread=spread)


def _temperature_step(asked: Question, answers: Answers) -> float:
    """From the public log temperature to the users', shrunk by how little is known of it."""
    pull, bend = slopes_of(answers.total).tolist()
    noise = float(slopes_of(torch.full((2,), answers.spread))[0])
    usual = asked.bend * answers.weight
    total = max(bend + usual, _LEAST_BEND * usual, 1e-9)
    of_clips = answers.weight / total / answers.clips
    error = of_clips + _USER_SD**2 / answers.users + (noise / total) ** 2
    trust = CORPUS_SHIFT**2 / (CORPUS_SHIFT**2 + error)
    step: float = -trust * pull / total
    return min(max(step, -_FARTHEST), _FARTHEST)


def _shift(asked: Question, shares: Tensor, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
    """Normal quantiles of public levels, how far users' lie beside, and the standard errors."""
    less = asked.shares.double()
    usual = less + (1 - less.sum()) / len(less)
    seen = usual + (answers.total[2:] - answers.total[2:].mean()) / answers.weight  # adds up to 1
    levels = _quantile(shares.cumsum(0)[:-1])
    precision = torch.linalg.inv(_doubt(seen, usual, answers))
    prior = torch.linalg.inv(_believed(levels))
    shift = torch.zeros_like(levels)
    curvature = prior
    for _ in range(_STEPS):
        places = levels + shift
        bound = torch.cat([places.new_zeros(1), torch.special.ndtr(places), places.new_ones(1)])
        density = torch.diag(torch.exp(-places.square() / 2) / math.sqrt(2 * math.pi))
        none = places.new_zeros(1, len(places))
        slopes = torch.cat([density, none]) - torch.cat([none, density])
        curvature = slopes.T @ precision @ slopes + prior
        pull = slopes.T @ precision @ (seen - bound.diff()) - prior @ shift
        shift = shift + torch.linalg.solve(curvature, pull).clamp(-0.5, 0.5)
    return levels, shift, torch.linalg.inv(curvature).diagonal().sqrt()


def _believed(levels: Tensor) -> Tensor:
    """Covariance of the shift at all levels, before anything was told."""
    far = levels - levels[len(levels) // 2]
    path = (far.abs()[:, None] + far.abs()[None] - (far[:, None] - far[None]).abs()) / 2
    tiny = 1e-4 * torch.eye(len(levels), dtype=torch.float64)
    return _LEVEL_SD**2 + _SLOPE_SD**2 * torch.outer(far, far) + _PATH_SD**2 * path + tiny


def _doubt(seen: Tensor, usual: Tensor, answers: Answers) -> Tensor:
    """Covariance of the seen shares: sampling of clips and of users, noise in sums and weight.

    A weight that is off by a part moves what was seen towards the ``usual`` by that part.
    """
    likely = seen.clamp(min=0.01)
    likely = likely / likely.sum()
    sampled = torch.diag(likely) - torch.outer(likely, likely)
    sampling = 1 / answers.clips + _USER_SHARE / answers.users
    noise = (answers.spread / answers.weight) ** 2 + 1e-9
    off = (answers.weight_spread / answers.weight) * (seen - usual)
    eye = torch.eye(len(seen), dtype=torch.float64)
    return sampled * sampling + noise * eye + torch.outer(off, off)


def _moved(public: Scores, levels: Tensor, users: Tensor) -> Scores:
    """Public scores, where at public ``levels`` users have theirs at ``users``."""
    atoms = torch.tensor(public.atoms, dtype=torch.float64)
    places = users.clone()
    for one in range(1, len(places)):  # a distribution rises
        least = places[one - 1] + _LEAST_SLOPE * (levels[one] - levels[one - 1])
        places[one] = torch.maximum(places[one], least)
    ends = torch.tensor([-_TAIL, _TAIL], dtype=torch.float64)
    grid = torch.cat([levels[:1] + ends[:1], levels, levels[-1:] + ends[1:]])
    at = torch.cat([places[:1] + ends[:1], places, places[-1:] + ends[1:]])
    wanted = _quantile(torch.arange(1, len(atoms) + 1, dtype=torch.float64) / len(atoms))
    known = torch.special.ndtr(_interpolated(wanted, at, grid)) * len(atoms)
    chosen = (torch.ceil(known - 1e-6).long() - 1).clamp(0, len(atoms) - 1)
    return replace(public, atoms=tuple(atoms[chosen].tolist()))


def _interpolated(wanted: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Values between places, in straight lines."""
    place = torch.searchsorted(at, wanted).clamp(1, len(at) - 1)
    left, right = at[place - 1], at[place]
    share = ((wanted - left) / (right - left).clamp(min=1e-12)).clamp(0, 1)
    return values[place - 1] + share * (values[place] - values[place - 1])


def _quantile(shares: Tensor) -> Tensor:
    """Normal quantiles, at most some five away."""
    found: Tensor = torch.special.ndtri(shares.double().clamp(1e-6, 1 - 1e-6))
    return found
