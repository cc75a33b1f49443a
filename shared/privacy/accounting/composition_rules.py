"""Rules of composition: by which theorem releases may be added up, and the epsilon each gives.

Privacy-loss distributions compose mechanisms that are fixed in advance. Where each may be chosen
after seeing what the ones before answered, as by a server that asks a device, refusing by the
composed epsilon is no valid privacy filter once steps are sampled: a :class:`CompositionRule` says
by which theorem releases may be added up.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from dp_accounting import rdp

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.accounting.composition import Composition, compose_releases
from sottovoce.shared.privacy.accounting.loss_distributions import (
    COARSE_INTERVAL,
    DISCRETISATION_INTERVAL,
    MAX_DISCRETISATION_ERROR,
    MIN_DELTA,
    PRECISION_MARGIN,
    account_steps,
    sampled_event,
)
from sottovoce.shared.privacy.release import PrivacyUnit, Release

STEP_BY_STEP_ERROR = 1e-6
"""More than the order of composition moves an epsilon by."""

MIN_RENYI_ORDER, MAX_RENYI_ORDER = 1.05, 1024.0
"""Ends of the order of a Renyi filter: nearer to 1 the conversion to epsilon loses its digits."""

_FILTER_ORDERS = (
    *(2 + quarter / 4 for quarter in range(32)),
    *map(float, range(10, 33)),
    *(40.0, 48.0, 64.0, 96.0, 128.0, 256.0, 512.0, 1024.0),
)
"""Orders that a plan's is chosen from; below 2 the series of a sampled step need not converge."""


def compute_epsilon(
    releases: Iterable[Release],
    delta: float,
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
    fast: bool = False,
) -> float:
    """Compute what the releases cost together.

    Args:
        releases: Everything one device released, in any order.
        delta: In (0, 1).
        unit: Whose presence is hidden: one utterance's, or the whole user's.
        fast: Discretise coarsely, where at all, for decisions in the loop: an upper bound too,
            but looser.

    Returns:
        Epsilon, at least 0. Infinity when one release was unprotected, for this unit.

    Guarantees:
        - Never below the true epsilon of the described releases, if their mechanisms were fixed
          in advance or none is sampled; else ask a :class:`CompositionRule`.
        - No releases cost 0; ciphertext costs 0.
        - A further release never lowers it.
        - No releases break it: those that no accountant can hold (a delta below ``MIN_DELTA``, once
          the slack of discrete noise is paid) cost infinity.
        - A release that hides a user only in the sum costs an utterance what replacing the user
          costs, twice the sensitivity; it holds against those who see the sum alone.
        - A release that hides utterances alone costs a user infinity.
        - Rounds under correlated noise that are nearer than it allows cost more than separated
          ones: m of them as much as m squared.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included.
    """
    return FIXED_PLAN.compute_epsilon(releases, delta, unit=unit, fast=fast)


def bound_epsilon(
    releases: Iterable[Release], delta: float, *, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
) -> float:
    """Bound what :func:`compute_epsilon` gives from above, within ``STEP_BY_STEP_ERROR``.

    Where there are many kinds of sampled steps it composes what is new with what was composed the
    last time, so that asking after every release takes no longer with every release. The last
    digits then depend on what was asked before: for decisions, not for figures that are published.

    Args:
        releases: Everything one device released, in any order.
        delta: In (0, 1).
        unit: Whose presence is hidden.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included.
    """
    validation.require_between(0, 1, delta=delta)
    spent = compose_releases(releases, unit)
    bound = account_steps(spent, delta, DISCRETISATION_INTERVAL, step_by_step=True)
    return bound + STEP_BY_STEP_ERROR


class CompositionRule(ABC):
    """The theorem by which releases are added up, so which choices of mechanisms it bears.

    Attributes:
        kind: Name in records.
        hint: A clause on what it does to sampled steps; empty where that needs no words.
        renyi_order: The order at which Renyi divergences are added up; None for other rules.
    """

    kind: ClassVar[str]
    hint: ClassVar[str] = ""
    renyi_order: float | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """The rule and its theorem, in words."""

    def to_record(self) -> dict[str, Any]:
        """State the rule in the keys of an account, which :func:`rule_from_record` reads."""
        order = {} if self.renyi_order is None else {"renyi_order": self.renyi_order}
        return {"composition": self.kind} | order

    def compute_epsilon(
        self,
        releases: Iterable[Release],
        delta: float,
        *,
        unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
        fast: bool = False,
    ) -> float:
        """Compute what the releases cost together by this rule; see :func:`compute_epsilon`."""
        validation.require_between(0, 1, delta=delta)
        return self._add_up(compose_releases(releases, unit), delta, fast=fast)

    @abstractmethod
    def _add_up(self, spent: Composition, delta: float, *, fast: bool) -> float:
        """Epsilon of all steps by this rule."""


@dataclass(frozen=True, slots=True)
class FixedPlanComposition(CompositionRule):
    """Composition of mechanisms that are fixed in advance; only what they are asked may adapt.

    Guarantees:
        - Holds where rates, noise and number of all steps were fixed before the first answer, as
          in one plan that is bound by its hash. It is no filter.
    """

    kind: ClassVar[str] = "fixed-plan"

    @property
    def name(self) -> str:
        """The rule in words."""
        return "composition of a plan fixed in advance"

    def _add_up(self, spent: Composition, delta: float, *, fast: bool) -> float:
        interval = COARSE_INTERVAL if fast else DISCRETISATION_INTERVAL
        return account_steps(spent, delta, interval, step_by_step=fast)


@dataclass(frozen=True, slots=True)
class GaussianFilter(CompositionRule):
    """Fully adaptive composition of Gaussians (Smith and Thakurta 2022), no step amplified.

    Guarantees:
        - Whoever chooses each release after seeing all answers before, as long as none is made that
          would bring this epsilon above a limit, the whole life costs at most that limit: squared
          mus add up on every path, and their sum is bounded.
        - A sampled step is charged as if it were not sampled, which dominates it (adding or
          removing). Amplification depends on the loss so far, which is why it cannot be added up.
        - Without sampled steps it is what :func:`compute_epsilon` gives, digit for digit.
        - Two things beside Gaussians are charged as they always were, and the theorem does not
          cover choosing them by what was answered: the slack of near-Gaussian sums, all of which
          together bounds by how much epsilon and the logarithm of delta could be passed
          (``DISCRETISATION_SLACK`` a sum); and discrete noise on a coarse lattice, whose limit is
          lower, so that delta at most doubles. A :class:`RenyiFilter` covers both.
    """

    kind: ClassVar[str] = "gaussian-filter"
    hint: ClassVar[str] = (
        ", which amplifies no sampling: a budget that has a renyi_order before the first release "
        "does"
    )

    @property
    def name(self) -> str:
        """The rule and its theorem, in words."""
        return "Gaussian filter (Smith and Thakurta 2022)"

    def _add_up(self, spent: Composition, delta: float, *, fast: bool) -> float:
        interval = COARSE_INTERVAL if fast else DISCRETISATION_INTERVAL
        return account_steps(spent.unamplified(), delta, interval, step_by_step=False)


@dataclass(frozen=True, slots=True)
class RenyiFilter(CompositionRule):
    """Fully adaptive composition at one Renyi order (Feldman and Zrnic 2021).

    Attributes:
        renyi_order: Order alpha, from ``MIN_RENYI_ORDER`` to ``MAX_RENYI_ORDER``. It must be fixed
            before the first answer: the best order of a path is known only at its end.

    Guarantees:
        - As :class:`GaussianFilter`'s first, for sampled steps too, whose divergence at this order
          (Mironov et al. 2019) adds up on every path. It becomes epsilon by the conversion of
          Canonne, Kamath and Steinke (2020) at this order.
        - The slack of near-Gaussian sums is a bound on their likelihood, so on their divergence at
          this order too: it costs slack x alpha / (alpha - 1), which adds up likewise.

    Raises:
        SettingError: An order outside these bounds, NaN included.

    Example:
        >>> RenyiFilter(4.25).name
        'Renyi filter of order 4.25 (Feldman and Zrnic 2021)'
    """

    kind: ClassVar[str] = "renyi-filter"
    renyi_order: float

    def __post_init__(self) -> None:
        validation.require_range(MIN_RENYI_ORDER, MAX_RENYI_ORDER, renyi_order=self.renyi_order)

    @property
    def name(self) -> str:
        """The rule and its theorem, in words."""
        return f"Renyi filter of order {self.renyi_order:g} (Feldman and Zrnic 2021)"

    def _add_up(self, spent: Composition, delta: float, *, fast: bool) -> float:  # noqa: ARG002
        return _renyi_epsilon(spent, delta, self.renyi_order)  # always quick


FIXED_PLAN = FixedPlanComposition()
GAUSSIAN_FILTER = GaussianFilter()


def filter_of_order(renyi_order: float | None) -> CompositionRule:
    """The valid privacy filter of an order; None is the Gaussian filter.

    Raises:
        SettingError: An order that no filter has.

    Example:
        >>> filter_of_order(None).name
        'Gaussian filter (Smith and Thakurta 2022)'
    """
    return GAUSSIAN_FILTER if renyi_order is None else RenyiFilter(renyi_order)


def rule_from_record(record: Mapping[str, Any]) -> CompositionRule:
    """Read the rule that an account states; one that states none is of a plan fixed in advance.

    Args:
        record: Its keys ``composition`` and ``renyi_order`` are read.

    Raises:
        SettingError: A rule that there is not, or an order that goes with no rule.

    Example:
        >>> rule_from_record({"composition": "renyi-filter", "renyi_order": 4.0}).renyi_order
        4.0
    """
    kind, order = record.get("composition"), record.get("renyi_order")
    if order is not None and type(order) not in (int, float):
        raise SettingError(f"renyi_order is {order!r:.20}; it must be a number")
    if kind == RenyiFilter.kind and order is not None:
        return RenyiFilter(float(order))
    plain = {None: FIXED_PLAN, FIXED_PLAN.kind: FIXED_PLAN, GAUSSIAN_FILTER.kind: GAUSSIAN_FILTER}
    if order is not None or not isinstance(kind, str | None) or kind not in plain:
        raise SettingError(
            f"composition is {kind!r:.20} and renyi_order {order}; it must be fixed-plan or "
            "gaussian-filter, or renyi-filter with an order"
        )
    return plain[kind]


def choose_renyi_order(
    releases: Iterable[Release], delta: float, *, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
) -> float | None:
    """Choose the filter under which a plan's releases cost least, before any of them is made.

    Args:
        releases: Everything the plan may release, which is public.
        delta: In (0, 1).
        unit: Whose presence is hidden.

    Returns:
        The order of a Renyi filter, or None where the Gaussian filter costs least: always where
        nothing is sampled.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included.
    """
    validation.require_between(0, 1, delta=delta)
    spent = compose_releases(releases, unit)
    return _cheapest_filter(spent, delta)[1] if spent.sampled else None


def _cheapest_filter(spent: Composition, delta: float) -> tuple[float, float | None]:
    """The least epsilon of all filters, and its order; of equal ones the first."""
    whole = account_steps(spent.unamplified(), delta, DISCRETISATION_INTERVAL, step_by_step=False)
    costs = [(_renyi_epsilon(spent, delta, order), order) for order in _FILTER_ORDERS]
    return min([(whole, None), *costs], key=lambda cost: cost[0])


def sampled_steps_pass(spent: Composition, delta: float, budget: float) -> bool:
    """Whether sampled steps pass a budget, by the cheapest filter or composed as a fixed plan."""
    if _cheapest_filter(spent, delta)[0] > budget:
        return True
    # The filter leaves composition so far below the budget that mostly a coarse bound tells.
    coarse = account_steps(spent, delta, COARSE_INTERVAL, step_by_step=False)
    if coarse + MAX_DISCRETISATION_ERROR <= budget:
        return False
    return account_steps(spent, delta, DISCRETISATION_INTERVAL, step_by_step=False) > budget


def _renyi_epsilon(spent: Composition, delta: float, order: float) -> float:
    """Epsilon of all steps by their divergence at one order."""
    slack = spent.slack
    delta *= math.exp(-slack)
    if not spent.precision and not spent.sampled:
        return slack
    parts = [order / 2 * spent.precision * PRECISION_MARGIN]
    parts += [
        steps * _sampled_divergence(rate, noise, order) for rate, noise, steps in spent.sampled
    ]
    divergence = math.fsum(parts)
    # "not": where a series lost all digits there is no bound.
    if not divergence < math.inf or min(parts) < 0 or delta < MIN_DELTA:
        return math.inf
    epsilon, _ = rdp.compute_epsilon([order], [divergence], delta)
    return float(epsilon) + slack


@lru_cache(maxsize=65536)
def _sampled_divergence(rate: float, noise: float, order: float) -> float:
    """Renyi divergence of one sampled Gaussian step at one order (Mironov et al. 2019)."""
    accountant = rdp.RdpAccountant([order])
    accountant.compose(*sampled_event(rate, noise, 1))
    return float(accountant.rdp[0])
