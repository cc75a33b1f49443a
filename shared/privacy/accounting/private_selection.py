"""Private selection: the best of a random number of runs, when nothing else of them is released.

Comparing N runs and keeping the best costs what all N cost, if their results are looked at. If
their number is drawn at random instead, and nobody ever sees anything of the others, the best one
costs little more than a single run: Papernot and Steinke 2022, "Hyperparameter tuning with Renyi
differential privacy" (theorems 2 and 6). ``dp_accounting`` prices it (``RepeatAndSelectDpEvent``).
"""

import math
import random
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import dp_event, rdp

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.accounting.composition import Composition, compose_releases
from sottovoce.shared.privacy.accounting.composition_rules import FIXED_PLAN, CompositionRule
from sottovoce.shared.privacy.accounting.loss_distributions import (
    RENYI_ORDERS,
    deviation_of,
    sampled_event,
)
from sottovoce.shared.privacy.release import PrivacyUnit, Release

SELECTION_SCORE = (
    "the score is part of each run: computed from what the run released with its noise, or on "
    "public data, never on users' own data"
)
"""What the runs may be compared by."""

SELECTION_SCOPE = (
    "it holds against those who see the best run alone; whoever made the runs, the server "
    "included, has seen all of them"
)
"""Against whom the best run costs less than all."""

MAX_MEAN_RUNS = 10**6
_MAX_SHAPE = 1e6
_LEAST_ORDER_OF_SLACK = 2.0
"""Orders from which the slack of discrete noise costs at most twice itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomStopping:
    """Distribution of the number of runs.

    Attributes:
        mean_runs: Mean number of runs, from 1.
        shape: Shape of a truncated negative binomial: 1 is geometric (after each run, stop with
            chance one over the mean), 0 logarithmic; infinity is Poisson, which may draw no run.

    Raises:
        SettingError: A mean or a shape out of these bounds, NaN included.

    Example:
        >>> RandomStopping(mean_runs=10).name
        'geometric'
    """

    mean_runs: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        validation.require_range(1, MAX_MEAN_RUNS, mean_runs=self.mean_runs)
        if self.shape != math.inf:
            validation.require_range(0, _MAX_SHAPE, shape=self.shape)

    @property
    def name(self) -> str:
        """The distribution, in words."""
        known = {0.0: "logarithmic", 1.0: "geometric", math.inf: "Poisson"}
        return known.get(self.shape, f"truncated negative binomial of shape {self.shape:g}")

    def draw_runs(self, rng: random.Random | None = None) -> int:
        """Draw how many runs to make: before the first one, and to be kept secret.

        Args:
            rng: Where the draw comes from; None is the operating system. A number that somebody
                can foresee protects nothing.

        Example:
            >>> RandomStopping(mean_runs=1).draw_runs()
            1
        """
        left = (rng or secrets.SystemRandom()).random()
        number, chance = self._first_chance()
        while left >= chance and chance > 0:
            left -= chance
            number += 1
            chance *= self._ratio(number)
        return number

    def _first_chance(self) -> tuple[int, float]:
        """The least number of runs, and its chance."""
        if self.shape == math.inf:
            return 0, math.exp(-self.mean_runs)
        stop = _stopping_chance(self.mean_runs, self.shape)
        if stop == 1:
            return 1, 1.0
        if self.shape == 0:
            return 1, (1 - stop) / -math.log(stop)
        return 1, self.shape * (1 - stop) / math.expm1(-self.shape * math.log(stop))

    def _ratio(self, number: int) -> float:
        """Chance of so many runs, divided by that of one less."""
        if self.shape == math.inf:
            return self.mean_runs / number
        stop = _stopping_chance(self.mean_runs, self.shape)
        return (number - 1 + self.shape) / number * (1 - stop)


@lru_cache(maxsize=64)
def _stopping_chance(mean: float, shape: float) -> float:
    """The parameter gamma of a truncated negative binomial with this mean, in (0, 1]."""
    low, high = 0.0, 1.0
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if _mean_runs(middle, shape) < mean else (middle, high)
    return high


def _mean_runs(stop: float, shape: float) -> float:
    """Mean of a truncated negative binomial (Papernot and Steinke 2022, definition 1)."""
    if stop == 1:
        return 1.0
    if shape == 0:
        return (1 / stop - 1) / -math.log(stop)
    return shape * (1 / stop - 1) / -math.expm1(shape * math.log(stop))


def compute_selection_epsilon(
    releases: Iterable[Release],
    delta: float,
    stopping: RandomStopping,
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
    rule: CompositionRule = FIXED_PLAN,
) -> float:
    """Compute what the best of a random number of runs costs.

    Args:
        releases: Everything that one run releases, its score included.
        delta: In (0, 1).
        stopping: How the number of runs was drawn.
        unit: Whose presence is hidden.
        rule: By which releases of one run are added up.

    Returns:
        Epsilon, at least 0. Infinity where a release of a run was unprotected.

    Guarantees:
        - Holds if every run draws its settings in the same way and independently of the others, if
          their number was drawn from ``stopping`` and is kept secret, and if only the best run, by
          a score that is among its releases, ever leaves whoever compares them.
        - Whoever sees the messages of all runs, as the server does that trains them, is told what
          all of them cost together: ``compute_epsilon`` of all their releases.
        - Steps of one run may adapt to the answers before, as its plan says; what the plan is was
          fixed for all runs.
        - Near-Gaussian sums cost their slack at every order, as for ``RenyiFilter``.
        - The ledgers of all runs that were made stay as they are: devices paid for each.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included, or a rule that holds at one order
            alone: the theorem needs the divergences of a run at all orders.
    """
    validation.require_between(0, 1, delta=delta)
    if rule.renyi_order is not None:
        raise SettingError(
            f"releases are added up by the {rule.name}, which bounds a run at one order alone; "
            "private selection needs all orders: use plain composition (tuning_runs), or runs "
            "without sampled steps"
        )
    spent = compose_releases(releases, unit)
    if math.isinf(spent.precision):
        return math.inf
    return _selection_epsilon(spent, delta, stopping)


@lru_cache(maxsize=256)
def _selection_epsilon(spent: Composition, delta: float, stopping: RandomStopping) -> float:
    """Epsilon of the best of so many runs."""
    events: list[dp_event.DpEvent] = [
        dp_event.SelfComposedDpEvent(*sampled_event(*kind)) for kind in spent.sampled
    ]
    if spent.precision:
        events.append(dp_event.GaussianDpEvent(deviation_of(spent.precision)))
    orders = RENYI_ORDERS
    if spent.slack:
        # Slack s costs s a / (a - 1) at order a, at most 2 s from order 2 on.
        orders = [order for order in orders if order >= _LEAST_ORDER_OF_SLACK]
        events.append(dp_event.ZCDpEvent(rho=0.0, xi=2 * spent.slack))
    if not events:
        return 0.0
    run = dp_event.ComposedDpEvent(events)
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(run, stopping.mean_runs, stopping.shape))
    return float(accountant.get_epsilon(delta))
