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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from sottovoce.shared import validation
from sottovoce.shared.errors import ModelError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_COVERAGE: Final = 0.9
"""Default share of utterances whose prediction set holds the true emotion."""

MAX_ATOMS: Final = 200
MIN_CONCENTRATION, DEFAULT_CONCENTRATION, MAX_CONCENTRATION = 5.0, 15.0, 50.0
"""Bounds on ``concentration``, and its value where speakers do not determine it: chosen by hand."""


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


def parse_scores(numbers: Mapping[str, float | list[float]]) -> NonconformityScores:
    """Rebuild scores from the numbers of a heads' prior; a server may have sent anything.

    Args:
        numbers: With ``scores``, ``scores_beyond`` and ``scores_concentration``, as in a message or
            in ``model.json``.

    Raises:
        KeyError: A number is missing.
        ModelError: One is of another type.
        SettingError: Scores that are none.

    Example:
        >>> numbers = {"scores": [0.5], "scores_beyond": 0.1, "scores_concentration": 9.0}
        >>> parse_scores(numbers).atoms
        (0.5,)
    """
    atoms = numbers["scores"]
    if not isinstance(atoms, list):
        raise ModelError(f"a head prior holds {atoms!r} where scores belong")
    return NonconformityScores(
        atoms=tuple(parse_number(atom) for atom in atoms),
        tail_mass=parse_number(numbers["scores_beyond"]),
        concentration=parse_number(numbers["scores_concentration"]),
    )


def parse_number(value: float | list[float]) -> float:
    """Take a plain number out of the numbers of a heads' prior.

    Raises:
        ModelError: A list, or a truth value.
    """
    # In Python a bool is an int, and a message that holds one is not ours.
    if isinstance(value, list | bool):
        raise ModelError(f"a head prior holds {value!r} where one number belongs")
    return float(value)


def nonconformity(probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Compute nonconformity scores of utterances under their true emotions: 1 - p(true).

    Args:
        probabilities: Shape (utterances, classes).
        labels: True classes, shape (utterances,), integer.

    Returns:
        Scores in [0, 1], shape (utterances,), float64.

    Example:
        >>> import torch
        >>> nonconformity(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
        tensor([0.7500], dtype=torch.float64)
    """
    # Methods of tensors alone: predicting needs this module, and no torch.
    true = probabilities.double().gather(1, labels.long()[:, None])[:, 0]
    return (1 - true).clamp(0, 1)


def find_threshold(
    population: NonconformityScores, own_scores: ArrayLike | None = None, *, coverage: float
) -> float:
    """Find the largest score of an emotion that cannot be ruled out.

    Args:
        population: What :func:`~sottovoce.shared.calibration.conformal_fit.fit_population_scores`
            found.
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
        >>> own = [1.0, 1.0]  # the model suits this user badly
        >>> find_threshold(population, own, coverage=0.75)
        1.0
    """
    validation.require_between(0, 1, coverage=coverage)
    own = np.asarray([] if own_scores is None else own_scores, dtype=np.float64)
    if not bool(((own >= 0) & (own <= 1)).all()):
        raise SettingError("a clip's score is outside [0, 1]; fit the head again")
    clips, atoms = len(own), len(population.atoms)
    concentration = population.concentration if clips else 1.0
    tail_weight = population.tail_mass * concentration
    values = np.concatenate([np.array(population.atoms), own])
    each = (1 - population.tail_mass) * concentration / atoms
    weights = np.concatenate([np.full(atoms, each), np.ones(clips)])
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order]) / (weights.sum() + tail_weight)
    index = int(np.searchsorted(mass, coverage - 1e-9))
    # The quantile lies in the tail mass, above every score that was seen.
    if index == len(values):
        return math.inf
    score = float(values[order][index])
    if index == 0 or int(order[index]) >= atoms:  # an own clip is in or out as a whole
        return score
    below, left = float(values[order][index - 1]), float(mass[index - 1])
    return below + (score - below) * min((coverage - left) / (float(mass[index]) - left), 1.0)


def prediction_set_mask(probabilities: "Tensor", threshold: float) -> "Tensor":
    """Compute the prediction sets of many utterances.

    Args:
        probabilities: Shape (utterances, classes).
        threshold: What :func:`find_threshold` gave.

    Returns:
        Which classes are in, shape (utterances, classes), bool; never none of a row.

    Example:
        >>> import torch
        >>> prediction_set_mask(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]), threshold=0.7)
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    inside = 1 - probabilities <= threshold
    # An empty set would tell a reader nothing; adding a class can only raise coverage.
    return inside.scatter(1, probabilities.argmax(1, keepdim=True), value=True)


def prediction_set_members(probabilities: ArrayLike, threshold: float) -> list[int]:
    """List the classes of one utterance's prediction set, the most probable first.

    Args:
        probabilities: Shape (classes,).
        threshold: What :func:`find_threshold` gave.

    Returns:
        Indices of classes, at least one.

    Example:
        >>> prediction_set_members([0.3, 0.6, 0.1], threshold=0.7)
        [1, 0]
        >>> prediction_set_members([0.3, 0.6, 0.1], threshold=0.1)  # never empty
        [1]
    """
    chances = np.asarray(probabilities)
    order: list[int] = np.argsort(-chances, kind="stable").tolist()
    members = [index for index in order if 1 - float(chances[index]) <= threshold]
    return members or order[:1]
