"""Fit of the nonconformity scores of a population, from which prediction sets start.

The theory stands in ``conformal.py``, which computes the sets.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration.conformal import (
    DEFAULT_CONCENTRATION,
    DEFAULT_COVERAGE,
    MAX_ATOMS,
    MAX_CONCENTRATION,
    MIN_CONCENTRATION,
    NonconformityScores,
    find_threshold,
)
from sottovoce.shared.errors import SettingError

_FEW: Final = 2
_DIGITS: Final = 6


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
