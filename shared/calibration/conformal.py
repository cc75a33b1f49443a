"""Prediction sets: the emotions that cannot be ruled out, with guaranteed coverage.

Split conformal prediction (Vovk et al., Algorithmic Learning in a Random World, 2005). The
nonconformity score of an utterance of emotion y is 1 - p(y). The prediction set of a new utterance
holds every emotion whose score is at most a threshold (least ambiguous sets: Sadinle, Lei &
Wasserman, JASA 2019), and always the most probable one. The threshold is a quantile of the scores
of people whose emotions are known.

Utterances of one person are correlated, so each person has the same total weight, however many
utterances there are (pooled distributions: Dunn, Wasserman & Ramdas, JASA 2023).

A user's own labelled clips move the threshold. The user's distribution of scores is modelled as a
draw from a Dirichlet process around the population's (Ferguson, Annals of Statistics 1973), and the
threshold is a quantile of its predictive distribution. The population counts as ``concentration``
clips, a number learned from how much coverage differs from person to person. Without labels the
threshold is the population's; with many labels it is the quantile of the user's own clips.

Guarantees at coverage c:

========================  ==========================================  ============================
scores of                 a new person's new utterance is covered     provided that
========================  ==========================================  ============================
others, ``strict``        with chance c or more, exactly              the person is exchangeable
                          (Lee, Barber & Willett, 2023)               with those people
others                    with chance c, for many people              the same
others and the user       with chance c if the process were true;     labelled clips are random
                          for this user as clips grow, whatever is    moments of the user's voice
========================  ==========================================  ============================

People of another corpus are not exchangeable with users, so nothing is guaranteed when calibrating
on them. Nothing is guaranteed for a single emotion, for a group of users, or where users label
only what surprised them.
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
"""Default share of utterances whose prediction set holds the true emotion."""

MAX_ATOMS: Final = 200
MIN_CONCENTRATION, DEFAULT_CONCENTRATION, MAX_CONCENTRATION = 5.0, 15.0, 50.0
"""Bounds on ``concentration``, and its value where speakers do not determine it: chosen by hand."""

_FEW: Final = 2
_DIGITS: Final = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class NonconformityScores:
    """Distribution of nonconformity scores in a population, summarised for thresholds.

    Attributes:
        atoms: Quantiles that split the scores into parts of equal mass, ascending, in [0, 1]; each
            is the upper end of its part, over which the mass is spread evenly.
        tail_mass: Probability of a score above all atoms, in [0, 1).
        concentration: Number of a user's own clips that weigh as much as the population, above 0.

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
    """Compute nonconformity scores of utterances under their true emotions: 1 - p(true).

    Args:
        probabilities: Shape (utterances, classes).
        labels: True classes, shape (utterances,), integer.

    Returns:
        Scores in [0, 1], shape (utterances,), float64.

    Example:
        >>> nonconformity(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
        tensor([0.7500], dtype=torch.float64)
    """
    true = probabilities.double().gather(1, labels.long()[:, None])[:, 0]
    return (1 - true).clamp(0, 1)


def fit_population_scores(
    speakers: Sequence[Tensor], *, coverage: float = DEFAULT_COVERAGE, strict: bool = False
) -> NonconformityScores:
    """Fit the score distribution of other people, from which an unlabelled user starts.

    Args:
        speakers: Scores of each person, shape (utterances,), in [0, 1]; empty ones do not count.
        coverage: Coverage at which differences between people are measured, in (0, 1).
        strict: Whether to reserve one person's weight above all scores, which makes the guarantee
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
    # Equal weight per person: else whoever recorded most would set everybody's threshold.
    weights = torch.cat([torch.full_like(one, 1 / (len(one) * len(scored))) for one in scored])
    order = torch.argsort(values)
    mass = torch.cumsum(weights[order], 0)
    steps = torch.arange(1, MAX_ATOMS + 1, dtype=torch.float64) / MAX_ATOMS
    if strict:  # thresholds lie within parts, and must not fall below the scores themselves
        steps = (steps + 1 / MAX_ATOMS).clamp(max=1.0)
    # The slack absorbs the rounding of a cumulative sum, which may end just below 1.
    indices = torch.searchsorted(mass, steps - 1e-9).clamp(max=len(values) - 1)
    rounded = _round_up if strict else partial(round, ndigits=_DIGITS)
    unshrunk = NonconformityScores(
        atoms=tuple(rounded(value) for value in values[order][indices].tolist()),
        # A new score ranks above all n known ones with probability 1 / (n + 1) by exchangeability.
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
        A score in [0, 1]; infinity where this coverage needs every emotion. Thresholds are
        interpolated within a part of the population's mass: rounding up to whole parts would
        cover too much.

    Raises:
        SettingError: A coverage outside (0, 1), or a score outside [0, 1].

    Example:
        >>> population = NonconformityScores(atoms=(0.25, 0.5), tail_mass=0.0, concentration=2.0)
        >>> find_threshold(population, coverage=0.75)
        0.375
        >>> own = torch.tensor([1.0, 1.0])  # the model suits this user badly
        >>> find_threshold(population, own, coverage=0.75)
        1.0
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
    # The quantile lies in the tail mass, above every score that was seen.
    if index == len(values):
        return math.inf
    score = float(values[order][index])
    if index == 0 or int(order[index]) >= atoms:  # an own clip is in or out as a whole
        return score
    below, left = float(values[order][index - 1]), float(mass[index - 1])
    return below + (score - below) * min((coverage - left) / (float(mass[index]) - left), 1.0)


def prediction_set_mask(probabilities: Tensor, threshold: float) -> Tensor:
    """Compute the prediction sets of many utterances.

    Args:
        probabilities: Shape (utterances, classes).
        threshold: What :func:`find_threshold` gave.

    Returns:
        Which classes are in, shape (utterances, classes), bool; never none of a row.

    Example:
        >>> prediction_set_mask(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]), threshold=0.7)
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    inside = 1 - probabilities <= threshold
    # An empty set would tell a reader nothing; adding a class can only raise coverage.
    inside[torch.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def prediction_set_members(probabilities: Tensor, threshold: float) -> list[int]:
    """List the classes of one utterance's prediction set, the most probable first.

    Args:
        probabilities: Shape (classes,).
        threshold: What :func:`find_threshold` gave.

    Returns:
        Indices of classes, at least one.

    Example:
        >>> prediction_set_members(torch.tensor([0.3, 0.6, 0.1]), threshold=0.7)
        [1, 0]
        >>> prediction_set_members(torch.tensor([0.3, 0.6, 0.1]), threshold=0.1)  # never empty
        [1]
    """
    order = torch.argsort(probabilities, descending=True, stable=True).tolist()
    members = [index for index in order if 1 - float(probabilities[index]) <= threshold]
    return members or order[:1]


def _concentration(people: Sequence[Tensor], threshold: float) -> float:
    """Clips that the population counts for: moments of a beta-binomial, bounded.

    Where people's coverage differs by no more than chance, the population is trusted fully; where
    it differs much, a few of the user's own clips outweigh it.
    """
    shares = torch.stack([(person <= threshold).double().mean() for person in people])
    mean = float(shares.mean())
    if len(people) < _FEW or not 0 < mean < 1:
        return DEFAULT_CONCENTRATION
    binomial = torch.tensor([mean * (1 - mean) / len(person) for person in people])
    # Differences beyond what binomial counts of so few utterances would show anyway.
    between = float(shares.var()) - float(binomial.mean())
    if not between > 0:
        return MAX_CONCENTRATION
    return min(max(mean * (1 - mean) / between - 1, MIN_CONCENTRATION), MAX_CONCENTRATION)
