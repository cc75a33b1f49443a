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

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

DEFAULT_COVERAGE: Final = 0.9
"""Share of utterances whose set shall hold the true emotion, by default."""

MAX_ATOMS: Final = 200
MIN_CONCENTRATION, DEFAULT_CONCENTRATION, MAX_CONCENTRATION = 5.0, 15.0, 50.0
"""Bounds on ``concentration``, and its value where the speakers do not determine it: our choice."""

_FEW: Final = 2
_DIGITS: Final = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class NonconformityScores:
    """Distribution of nonconformity scores in a population, as far as a threshold needs it.

    Attributes:
        atoms: Scores that split the population's into parts of equal mass, rising, in [0, 1]; each
            is the upper end of its part, over which the mass lies evenly.
        tail_mass: Chance left to a score above all of them, in [0, 1).
        concentration: How many of a user's own clips weigh as much as the population, above 0.

    Raises:
        SettingError: Values out of these bounds, NaN, or none.
    """

    atoms: tuple[float, ...]
    tail_mass: float
    concentration: float

    def __post_init__(self) -> None:
        rising = all(one <= next_ for one, next_ in zip(self.atoms, self.atoms[1:], strict=False))
        inside = all(0 <= atom <= 1 for atom in self.atoms)
        if not (self.atoms and inside and rising and len(self.atoms) <= MAX_ATOMS):
            raise SettingError(
                f"{len(self.atoms)} atoms; they must be 1 to {MAX_ATOMS} rising scores in [0, 1]"
            )
        if not 0 <= self.tail_mass < 1:
            raise SettingError(f"tail_mass is {self.tail_mass}; it must be in [0, 1)")
        validation.require_positive(concentration=self.concentration)


def nonconformity(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Nonconformity scores of utterances under their true emotions: 1 - p(true).

    Args:
        probabilities: Shape (utterances, classes).
        labels: True classes, shape (utterances,), integer.

    Returns:
        Scores in [0, 1], shape (utterances,), float64.
    """
    true = probabilities.double().gather(1, labels.long()[:, None])[:, 0]
    return (1 - true).clamp(0, 1)


def fit_population_scores(
    speakers: Sequence[Tensor], *, coverage: float = DEFAULT_COVERAGE, strict: bool = False
) -> NonconformityScores:
    """Fit the distribution of scores of other people, for a user without labels.

    Args:
        speakers: Scores of each person, shape (utterances,), in [0, 1]; empty ones do not count.
        coverage: At which the people's differences are measured, in (0, 1).
        strict: Whether to leave one person's weight beyond all scores, so that the promise is
            exact for few people; it then takes at least c / (1 - c) people to rule anything out.

    Raises:
        SettingError: Nobody has a score, or one is outside [0, 1] or NaN.

    Example:
        >>> speakers = [torch.linspace(0, 0.5, 20), torch.linspace(0, 0.7, 20)]
        >>> round(find_threshold(fit_population_scores(speakers), coverage=0.9), 1)
        0.6
    """
    validation.require_between(0, 1, coverage=coverage)
    scored = [person.double() for person in speakers if len(person)]
    if not scored or not all(bool(((one >= 0) & (one <= 1)).all()) for one in scored):
        raise SettingError("scores must lie in [0, 1], and there must be some")
    values = torch.cat(scored)
    weights = torch.cat([torch.full_like(one, 1 / (len(one) * len(scored))) for one in scored])
    order = torch.argsort(values)
    mass = torch.cumsum(weights[order], 0)
    steps = torch.arange(1, MAX_ATOMS + 1, dtype=torch.float64) / MAX_ATOMS
    if strict:  # thresholds lie within parts, and must not fall below the scores themselves
        steps = (steps + 1 / MAX_ATOMS).clamp(max=1.0)
    indices = torch.searchsorted(mass, steps - 1e-9).clamp(max=len(values) - 1)
    rounded = _round_up if strict else partial(round, ndigits=_DIGITS)
    unshrunk = NonconformityScores(
        atoms=tuple(rounded(value) for value in values[order][indices].tolist()),
        tail_mass=1 / (1 + (len(scored) if strict else len(values))),
        concentration=DEFAULT_CONCENTRATION,
    )
    return NonconformityScores(
        atoms=unshrunk.atoms,
        tail_mass=unshrunk.tail_mass,
        concentration=_concentration(scored, find_threshold(unshrunk, coverage=coverage)),
    )


def _round_up(score: float) -> float:
    """A score at six digits, and not below itself: tied scores must stay within a threshold."""
    return min(math.ceil(score * 10**_DIGITS) / 10**_DIGITS, 1.0)


def find_threshold(
    population: NonconformityScores, own_scores: Tensor | None = None, *, coverage: float
) -> float:
    """Find the largest score of an emotion that cannot be ruled out.

    Args:
        population: What :func:`fit_population_scores` found.
        own_scores: Scores of the user's labelled clips, shape (clips,), in [0, 1], none of them
            from a head that was fitted on the clip itself; None or empty gives the population's
            threshold.
        coverage: Share of utterances whose set shall hold the truth, in (0, 1).

    Returns:
        A score in [0, 1]; infinity where so much coverage takes every emotion. It ends a part of
        the population's mass only as far as the coverage does: whole parts cover half of one too
        many on average, and at 90 % a whole one.

    Raises:
        SettingError: A coverage outside (0, 1), or a score outside [0, 1].
    """
    validation.require_between(0, 1, coverage=coverage)
    own_scores = torch.zeros(0) if own_scores is None else own_scores
    if not bool(((own_scores >= 0) & (own_scores <= 1)).all()):
        raise SettingError("a clip's score is outside [0, 1]; fit the head again")
    clips, atoms = len(own_scores), len(population.atoms)
    concentration = population.concentration if clips else 1.0
    tail_weight = population.tail_mass * concentration
    values = torch.cat([torch.tensor(population.atoms, dtype=torch.float64), own_scores.double()])
    each = (1 - population.tail_mass) * concentration / atoms
    weights = torch.cat([torch.full((atoms,), each, dtype=torch.float64), torch.ones(clips)])
    order = torch.argsort(values)
    mass = torch.cumsum(weights[order], 0) / (weights.sum() + tail_weight)
    index = int(torch.searchsorted(mass, coverage - 1e-9))
    if index == len(values):
        return math.inf
    score = float(values[order][index])
    if index == 0 or int(order[index]) >= atoms:  # an own clip is in or out as a whole
        return score
    below, left = float(values[order][index - 1]), float(mass[index - 1])
    return below + (score - below) * min((coverage - left) / (float(mass[index]) - left), 1.0)


def prediction_set_mask(probabilities: Tensor, threshold: float) -> Tensor:
    """The sets of many utterances.

    Args:
        probabilities: Shape (utterances, classes).
        threshold: What :func:`find_threshold` gave.

    Returns:
        Which classes are in, shape (utterances, classes), bool; never none of a row.
    """
    inside = 1 - probabilities <= threshold
    inside[torch.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def prediction_set_members(probabilities: Tensor, threshold: float) -> list[int]:
    """The classes of one utterance's set, the likeliest first; never none.

    Args:
        probabilities: Shape (classes,).
        threshold: What :func:`find_threshold` gave.
    """
    order = torch.argsort(probabilities, descending=True, stable=True).tolist()
    members = [index for index in order if 1 - float(probabilities[index]) <= threshold]
    return members or order[:1]


def _concentration(people: Sequence[Tensor], threshold: float) -> float:
    """Clips that the population counts for: moments of a beta-binomial, bounded.

    Where people's shares of covered utterances differ by no more than chance, the population says
    all; where they differ much, a few own clips outweigh it.
    """
    shares = torch.stack([(person <= threshold).double().mean() for person in people])
    mean = float(shares.mean())
    if len(people) < _FEW or not 0 < mean < 1:
        return DEFAULT_CONCENTRATION
    binomial = torch.tensor([mean * (1 - mean) / len(person) for person in people])
    between = float(shares.var()) - float(binomial.mean())
    if not between > 0:
        return MAX_CONCENTRATION
    return min(max(mean * (1 - mean) / between - 1, MIN_CONCENTRATION), MAX_CONCENTRATION)
