"""Prediction sets: emotions that cannot be ruled out, with a promise of how often that is right.

Split conformal prediction (Vovk et al., Algorithmic Learning in a Random World, 2005). An utterance
of emotion y is as strange as the model finds y unlikely: its score is 1 - p(y). The set of a new
utterance holds every emotion whose score is at most a threshold (least ambiguous sets: Sadinle, Lei
& Wasserman, JASA 2019), and always the likeliest one. The threshold is a quantile of scores of
people whose emotions are known.

Utterances of one person resemble each other, so people count, not utterances: every person's scores
have the same weight together (pooled distributions: Dunn, Wasserman & Ramdas, JASA 2023).

A user's own labelled clips move the threshold. The user's distribution of scores is drawn from a
Dirichlet process around the population's (Ferguson, Annals of Statistics 1973), and the threshold
is a quantile of what that process predicts next: the population counts as ``concentration`` clips,
how many is learned from how much people's coverage differs. Without labels the threshold is the
population's; with many it is the quantile of the user's own clips.

What is promised, at coverage c:

========================  ==========================================  ============================
scores of                 a new person's new utterance is covered     provided that
========================  ==========================================  ============================
others, ``strict``        with chance c or more, exactly              the person is exchangeable
                          (Lee, Barber & Willett, 2023)               with those people
others                    with chance c, for many people              the same
others and the user       with chance c if the process were true;     labelled clips are random
                          for this user as clips grow, whatever is    moments of the user's voice
========================  ==========================================  ============================

People of another corpus are not exchangeable with users: no promise follows from them, and
docs/results/heads.md tells what was measured. No promise is made for one emotion alone, nor for a
group of users; nor where users label only what surprised them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.errors import SettingError

COVERAGE: Final = 0.9
"""The usual share of utterances whose set shall hold the true emotion."""

ATOMS: Final = 200
LEAST_CLIPS, USUAL_CLIPS, MOST_CLIPS = 5.0, 15.0, 50.0
"""Bounds on ``concentration``, and what it is where people do not tell: our choice."""

_FEW: Final = 2
_DIGITS: Final = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How strange utterances look in a population, as far as a threshold needs it.

    Attributes:
        atoms: Scores that split the population's into parts of equal mass, rising, in [0, 1]; each
            is the upper end of its part, over which the mass lies evenly.
        beyond: Chance left to a score above all of them, in [0, 1).
        concentration: How many of a user's own clips weigh as much as the population, above 0.

    Raises:
        SettingError: Values out of these bounds, NaN, or none.
    """

    atoms: tuple[float, ...]
    beyond: float
    concentration: float

    def __post_init__(self) -> None:
        rising = all(one <= next_ for one, next_ in zip(self.atoms, self.atoms[1:], strict=False))
        inside = all(0 <= atom <= 1 for atom in self.atoms)
        if not (self.atoms and inside and rising and len(self.atoms) <= ATOMS):
            raise SettingError(
                f"{len(self.atoms)} atoms; they must be 1 to {ATOMS} rising scores in [0, 1]"
            )
        if not 0 <= self.beyond < 1:
            raise SettingError(f"beyond is {self.beyond}; it must be in [0, 1)")
        check.positive(concentration=self.concentration)


def scores(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How strange utterances look under their true emotions.

    Args:
        probabilities: Shape (utterances, classes).
        labels: True classes, shape (utterances,), integer.

    Returns:
        Scores in [0, 1], shape (utterances,), float64.
    """
    true = probabilities.double().gather(1, labels.long()[:, None])[:, 0]
    return (1 - true).clamp(0, 1)


def learn(people: Sequence[Tensor], *, coverage: float = COVERAGE, strict: bool = False) -> Scores:
    """What other people's scores say of a user without labels.

    Args:
        people: Scores of each person, shape (utterances,), in [0, 1]; empty ones count for nothing.
        coverage: At which the people's differences are measured, in (0, 1).
        strict: Whether to leave one person's weight beyond all scores, so that the promise is
            exact for few people; it then takes at least c / (1 - c) people to rule anything out.

    Raises:
        SettingError: Nobody has a score, or one is outside [0, 1] or NaN.

    Example:
        >>> population = learn([torch.linspace(0, 0.5, 20), torch.linspace(0, 0.7, 20)])
        >>> round(threshold(population, coverage=0.9), 1)
        0.6
    """
    check.inside(0, 1, coverage=coverage)
    heard = [person.double() for person in people if len(person)]
    if not heard or not all(bool(((one >= 0) & (one <= 1)).all()) for one in heard):
        raise SettingError("scores must lie in [0, 1], and there must be some")
    values = torch.cat(heard)
    weights = torch.cat([torch.full_like(one, 1 / (len(one) * len(heard))) for one in heard])
    order = torch.argsort(values)
    mass = torch.cumsum(weights[order], 0)
    steps = torch.arange(1, ATOMS + 1, dtype=torch.float64) / ATOMS
    if strict:  # thresholds lie within parts, and must not fall below the scores themselves
        steps = (steps + 1 / ATOMS).clamp(max=1.0)
    places = torch.searchsorted(mass, steps - 1e-9).clamp(max=len(values) - 1)
    rounded = _no_lower if strict else partial(round, ndigits=_DIGITS)
    known = Scores(
        atoms=tuple(rounded(value) for value in values[order][places].tolist()),
        beyond=1 / (1 + (len(heard) if strict else len(values))),
        concentration=USUAL_CLIPS,
    )
    return Scores(
        atoms=known.atoms,
        beyond=known.beyond,
        concentration=_concentration(heard, threshold(known, coverage=coverage)),
    )


def _no_lower(score: float) -> float:
    """A score at six digits, and not below itself: tied scores must stay within a threshold."""
    return min(math.ceil(score * 10**_DIGITS) / 10**_DIGITS, 1.0)


def threshold(population: Scores, own: Tensor | None = None, *, coverage: float) -> float:
    """The largest score of an emotion that cannot be ruled out.

    Args:
        population: What :func:`learn` found.
        own: Scores of the user's labelled clips, shape (clips,), in [0, 1], none of them from a
            head that was fitted on the clip itself; None or empty gives the population's threshold.
        coverage: Share of utterances whose set shall hold the truth, in (0, 1).

    Returns:
        A score in [0, 1]; infinity where so much coverage takes every emotion. It ends a part of
        the population's mass only as far as the coverage does: whole parts cover half of one too
        many on average, and at 90 % a whole one.

    Raises:
        SettingError: A coverage outside (0, 1), or a score outside [0, 1].
    """
    check.inside(0, 1, coverage=coverage)
    own = torch.zeros(0) if own is None else own
    if not bool(((own >= 0) & (own <= 1)).all()):
        raise SettingError("a clip's score is outside [0, 1]; fit the head again")
    clips, atoms = len(own), len(population.atoms)
    usual = population.concentration if clips else 1.0
    unseen = population.beyond * usual
    values = torch.cat([torch.tensor(population.atoms, dtype=torch.float64), own.double()])
    each = (1 - population.beyond) * usual / atoms
    weights = torch.cat([torch.full((atoms,), each, dtype=torch.float64), torch.ones(clips)])
    order = torch.argsort(values)
    mass = torch.cumsum(weights[order], 0) / (weights.sum() + unseen)
    place = int(torch.searchsorted(mass, coverage - 1e-9))
    if place == len(values):
        return math.inf
    score = float(values[order][place])
    if place == 0 or int(order[place]) >= atoms:  # an own clip is in or out as a whole
        return score
    below, left = float(values[order][place - 1]), float(mass[place - 1])
    return below + (score - below) * min((coverage - left) / (float(mass[place]) - left), 1.0)


def sets(probabilities: Tensor, limit: float) -> Tensor:
    """The sets of many utterances.

    Args:
        probabilities: Shape (utterances, classes).
        limit: What :func:`threshold` gave.

    Returns:
        Which classes are in, shape (utterances, classes), bool; never none of a row.
    """
    inside = 1 - probabilities <= limit
    inside[torch.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def members(probabilities: Tensor, limit: float) -> list[int]:
    """The classes of one utterance's set, the likeliest first; never none.

    Args:
        probabilities: Shape (classes,).
        limit: What :func:`threshold` gave.
    """
    order = torch.argsort(probabilities, descending=True, stable=True).tolist()
    kept = [place for place in order if 1 - float(probabilities[place]) <= limit]
    return kept or order[:1]


def _concentration(people: Sequence[Tensor], limit: float) -> float:
    """Clips that the population counts for: moments of a beta-binomial, bounded.

    Where people's shares of covered utterances differ by no more than chance, the population says
    all; where they differ much, a few own clips outweigh it.
    """
    shares = torch.stack([(person <= limit).double().mean() for person in people])
    usual = float(shares.mean())
    if len(people) < _FEW or not 0 < usual < 1:
        return USUAL_CLIPS
    chance = torch.tensor([usual * (1 - usual) / len(person) for person in people])
    between = float(shares.var()) - float(chance.mean())
    if not between > 0:
        return MOST_CLIPS
    return min(max(usual * (1 - usual) / between - 1, LEAST_CLIPS), MOST_CLIPS)
