"""How sure a recall is: bootstrap intervals over users.

Users are drawn, not utterances: utterances of one user are not independent, and what a reader
wants to know is how the system does for users it has not met.
"""

from dataclasses import dataclass

import numpy as np

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray, NumberArray

DEFAULT_DRAWS = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceInterval:
    """An estimate with a percentile bootstrap interval.

    Attributes:
        estimate: The estimate on all users.
        low: Lower end.
        high: Upper end.
        nonpositive_share: Share of draws at or below 0; for a difference, a one-sided p-value.
    """

    estimate: float
    low: float
    high: float
    nonpositive_share: float


def uar_interval(
    users: NumberArray,
    generator: np.random.Generator,
    *,
    draws: int = DEFAULT_DRAWS,
    level: float = 0.95,
) -> ConfidenceInterval:
    """Interval of the UAR over a new draw of users.

    Percentile bootstrap: Efron & Tibshirani, An Introduction to the Bootstrap (1993).

    Args:
        users: One confusion matrix a user, shape (users, classes, classes).
        generator: Draws the users.
        draws: How many cohorts to draw.
        level: Share of draws inside the interval, in (0, 1).

    Raises:
        SettingError: A wrong shape, or anything but whole numbers of 0 or above.
    """
    matrices = _stack("users", users)
    shares = _uars(_cohorts(len(matrices), draws, generator), matrices)
    return _interval(metrics.uar(matrices.sum(axis=0)), shares, level)


def paired_uar_difference(
    left: NumberArray,
    right: NumberArray,
    generator: np.random.Generator,
    *,
    draws: int = DEFAULT_DRAWS,
    level: float = 0.95,
) -> ConfidenceInterval:
    """Interval of UAR(left) - UAR(right), drawing the same users on both sides.

    Args:
        left: One confusion matrix a user, shape (users, classes, classes).
        right: The same users, in the same order, under the other system.
        generator: Draws the users.
        draws: How many cohorts to draw.
        level: Share of draws inside the interval, in (0, 1).

    Raises:
        SettingError: Different shapes, or other than the same utterances on both sides.
    """
    one, two = _stack("left", left), _stack("right", right)
    if one.shape != two.shape or not np.array_equal(one.sum(axis=2), two.sum(axis=2)):
        raise SettingError("left and right count different utterances; score both on the same ones")
    cohorts = _cohorts(len(one), draws, generator)
    value = metrics.uar(one.sum(axis=0)) - metrics.uar(two.sum(axis=0))
    return _interval(value, _uars(cohorts, one) - _uars(cohorts, two), level)


def _interval(value: float, drawn: FloatArray, level: float) -> ConfidenceInterval:
    """Percentiles of what was drawn."""
    validation.require_between(0, 1, level=level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    share = float(np.mean(drawn <= 0))
    return ConfidenceInterval(
        estimate=value, low=float(low), high=float(high), nonpositive_share=share
    )


def _cohorts(users: int, draws: int, generator: np.random.Generator) -> CountArray:
    """How often each user is drawn, shape (draws, users)."""
    validation.require_at_least(1, draws=draws)
    return generator.multinomial(users, np.full(users, 1 / users), size=draws)


def _uars(cohorts: CountArray, matrices: CountArray) -> FloatArray:
    """UAR of each cohort, shape (draws,)."""
    total = cohorts @ matrices.sum(axis=2)
    right = cohorts @ matrices.diagonal(axis1=1, axis2=2)
    here = total > 0
    share = np.divide(right, total, out=np.zeros(total.shape), where=here)
    return np.asarray(share.sum(axis=1) / here.sum(axis=1))


def _stack(name: str, values: NumberArray) -> CountArray:
    """One matrix of counts a user, checked; every user has something to count."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or not len(array) or array.shape[1] != array.shape[2]:
        raise SettingError(f"{name} has shape {array.shape}, not (users, classes, classes), >0")
    counts = metrics.require_counts(array)
    if not counts.sum(axis=(1, 2)).all():
        raise SettingError(f"{name} holds a user without utterances; leave such users out")
    return counts
