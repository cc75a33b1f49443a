"""Bootstrap confidence intervals of recall over users.

Users are resampled, not utterances: utterances of one user are not independent, and the question
is how the system performs for new users.
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
    """

    estimate: float
    low: float
    high: float


def uar_interval(
    users: NumberArray,
    generator: np.random.Generator,
    *,
    draws: int = DEFAULT_DRAWS,
    level: float = 0.95,
) -> ConfidenceInterval:
    """Estimate a confidence interval of the UAR over new samples of users.

    Percentile bootstrap: Efron & Tibshirani, An Introduction to the Bootstrap (1993).

    Args:
        users: One confusion matrix a user, shape (users, classes, classes).
        generator: Draws the users.
        draws: How many cohorts to draw.
        level: Share of draws inside the interval, in (0, 1).

    Raises:
        SettingError: A wrong shape, or anything but whole numbers of 0 or above.

    Example:
        >>> users = [[[4, 0], [0, 4]], [[2, 2], [0, 4]]]
        >>> interval = uar_interval(users, np.random.default_rng(0), draws=100)
        >>> interval.estimate, interval.low, interval.high
        (0.875, 0.75, 1.0)
    """
    matrices = _stack("users", users)
    drawn = measure_cohorts(draw_cohorts(len(matrices), draws, generator), matrices)
    validation.require_between(0, 1, level=level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return ConfidenceInterval(
        estimate=metrics.uar(matrices.sum(axis=0)), low=float(low), high=float(high)
    )


def draw_cohorts(users: int, draws: int, generator: np.random.Generator) -> CountArray:
    """Draw cohorts of as many users as there are, with replacement.

    Args:
        users: How many users there are, at least 1.
        draws: How many cohorts to draw, at least 1.
        generator: Draws the users.

    Returns:
        How often each user is drawn, shape (draws, users).

    Example:
        >>> draw_cohorts(3, 2, np.random.default_rng(0)).sum(axis=1).tolist()
        [3, 3]
    """
    validation.require_at_least(1, draws=draws)
    # Counts are enough: a multinomial draw is a resample with replacement, without its order.
    return generator.multinomial(users, np.full(users, 1 / users), size=draws)


def measure_cohorts(cohorts: CountArray, matrices: CountArray) -> FloatArray:
    """Measure the UAR of each cohort.

    Args:
        cohorts: How often each user is drawn, shape (draws, users); somebody in every draw.
        matrices: One confusion matrix a user, shape (users, classes, classes).

    Returns:
        Shape (draws,).

    Example:
        >>> users = np.array([[[4, 0], [0, 4]], [[2, 2], [0, 4]]])
        >>> measure_cohorts(np.array([[1, 1], [0, 2]]), users).tolist()
        [0.875, 0.75]
    """
    total = cohorts @ matrices.sum(axis=2)
    right = cohorts @ matrices.diagonal(axis1=1, axis2=2)
    # A cohort may lack a class altogether; its UAR is over the classes that it has.
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
