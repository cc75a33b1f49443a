"""Privacy accounting of releases, in (epsilon, delta): the only user of ``dp_accounting``.

Two neighbouring relations, one for each unit: add or remove one utterance of a user, or all that a
user has (the device stays and adds nothing: that it takes part is no secret). Gaussian releases
without sampling compose exactly into one Gaussian, whose epsilon has a closed form (Balle & Wang
2018). Where some are sampled, figures come from privacy-loss distributions (Koskela et al. 2020;
Doroshenko et al. 2022, "Connect the dots"), whose discretisation is pessimistic: the epsilon
reported is never below the true one. Sums of discrete noise on a fine lattice are Gaussians but for
a slack each, which is added; where noise is discrete and not known to be near-Gaussian, all are
accounted for by Renyi divergences (Mironov 2017), which bound it as safely. Rounds under correlated
noise (``bands``) compose like others as long as they are separated by at least as many rounds as
there are bands; nearer ones are charged as if they all moved the sum in one direction.

Privacy-loss distributions compose mechanisms that are fixed in advance. Where each may be chosen
after seeing what the ones before answered, as by a server that asks a device, refusing by the
composed epsilon is no valid privacy filter once steps are sampled: a :class:`CompositionRule` says
by which theorem releases may be added up.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from threading import Lock
from typing import Any, ClassVar, NamedTuple

import dp_accounting
from dp_accounting import pld, rdp

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

ACCOUNTANT_NAME = (
    "Gaussian closed form, or pessimistic PLD at 1e-4 where sampled (dp-accounting 0.6)"
)
DISCRETE_ACCOUNTANT_NAME = (
    f"{ACCOUNTANT_NAME}, and {DISCRETISATION_SLACK:g} for every sum of discrete noise"
)
NEIGHBOURING_RELATIONS = {
    PrivacyUnit.UTTERANCE: "add or remove one utterance",
    PrivacyUnit.USER: "add or remove everything that one user has",
}
_DISCRETISATION_INTERVAL = 1e-4
_MAX_PLD_PRECISION = 300.0
"""Squared mu from which epsilon passes 150, and a fine distribution of losses would fill
the memory. Renyi divergences (Mironov 2017) bound it as safely, some percent looser."""

_ORDERS = [1 + x / 20 for x in range(1, 200)] + [*range(11, 64), 80, 96, 128, 256, 512, 1024]
"""Renyi orders: close together where budgets of 1 to 20 find their best."""

MAX_DISCRETISATION_ERROR = 2 * _DISCRETISATION_INTERVAL
"""More than discretising adds to the epsilon of one Gaussian. It is exact where epsilon is a
multiple of the interval and grows in between (Doroshenko et al. 2022), so one interval would do."""

_HAIR = 1 + 1e-11
"""A hair more precision than was spent covers the rounding of its sum."""

_MIN_CLOSED_PRECISION = 1e-4
"""Squared mu below which the closed form runs out of digits; discretising is quick there."""

MIN_DELTA = 1e-100
"""Delta below which the accountants run out of digits."""

_MAX_PLD_STEPS = 10**7
"""Sampled steps above which a distribution of losses would fill the memory."""

STEP_BY_STEP_ERROR = 1e-6
"""More than the order of composition moves an epsilon by."""

_FEW_KINDS = 8
"""Kinds of sampled steps up to which all are composed anew, always in one order."""

MAX_GROUP = 10**6
"""Largest group of units whose epsilon is computed."""

_MAX_MIXTURE = 100
"""Largest group of sampled units whose number in a step is a distribution of its own."""

_COARSE_INTERVAL = 1e-3  # coarser is still an upper bound, only a looser one

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
    spent = _compose(releases, unit)
    bound = _epsilon_of(spent, delta, _DISCRETISATION_INTERVAL, step_by_step=True)
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
        return self._add_up(_compose(releases, unit), delta, fast=fast)

    @abstractmethod
    def _add_up(self, spent: "_Composition", delta: float, *, fast: bool) -> float:
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

    def _add_up(self, spent: "_Composition", delta: float, *, fast: bool) -> float:
        interval = _COARSE_INTERVAL if fast else _DISCRETISATION_INTERVAL
        return _epsilon_of(spent, delta, interval, step_by_step=fast)


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

    def _add_up(self, spent: "_Composition", delta: float, *, fast: bool) -> float:
        interval = _COARSE_INTERVAL if fast else _DISCRETISATION_INTERVAL
        return _epsilon_of(_unamplified(spent), delta, interval, step_by_step=False)


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

    def _add_up(self, spent: "_Composition", delta: float, *, fast: bool) -> float:  # noqa: ARG002
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
    spent = _compose(releases, unit)
    return _cheapest_filter(spent, delta)[1] if spent.sampled else None


def _cheapest_filter(spent: "_Composition", delta: float) -> tuple[float, float | None]:
    """The least epsilon of all filters, and its order; of equal ones the first."""
    whole = _epsilon_of(_unamplified(spent), delta, _DISCRETISATION_INTERVAL, step_by_step=False)
    costs = [(_renyi_epsilon(spent, delta, order), order) for order in _FILTER_ORDERS]
    return min([(whole, None), *costs], key=lambda cost: cost[0])


def _sampled_passes(spent: "_Composition", delta: float, budget: float) -> bool:
    """Whether sampled steps pass a budget, by the cheapest filter or composed as a fixed plan."""
    if _cheapest_filter(spent, delta)[0] > budget:
        return True
    # The filter leaves composition so far below the budget that mostly a coarse bound tells.
    coarse = _epsilon_of(spent, delta, _COARSE_INTERVAL, step_by_step=False)
    if coarse + MAX_DISCRETISATION_ERROR <= budget:
        return False
    return _epsilon_of(spent, delta, _DISCRETISATION_INTERVAL, step_by_step=False) > budget


def _unamplified(spent: "_Composition") -> "_Composition":
    """The same steps, as if every unit took part in each."""
    return _as_group(spent, 1) if spent.sampled else spent


def _as_group(spent: "_Composition", changes: int) -> "_Composition":
    """What the steps cost so many units, as if each took part in every step."""
    whole = spent.precision + math.fsum(steps / noise**2 for _, noise, steps in spent.sampled)
    return spent._replace(
        precision=float(f"{whole * changes**2:.12g}"),
        sampled=(),
        near_gaussian_sums=spent.near_gaussian_sums * changes,
    )


def _renyi_epsilon(spent: "_Composition", delta: float, order: float) -> float:
    """Epsilon of all steps by their divergence at one order."""
    slack = spent.near_gaussian_sums * DISCRETISATION_SLACK
    delta *= math.exp(-slack)
    if not spent.precision and not spent.sampled:
        return slack
    parts = [order / 2 * spent.precision * _HAIR]
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
    accountant.compose(*_sampled_event(rate, noise, 1))
    return float(accountant.rdp[0])


def _epsilon_of(
    spent: "_Composition", delta: float, interval: float, *, step_by_step: bool
) -> float:
    """Epsilon of all steps, at a discretisation."""
    slack = spent.near_gaussian_sums * DISCRETISATION_SLACK
    # The slack counts against epsilon and against the logarithm of delta; see noise_accounting.
    delta *= math.exp(-slack)
    if delta < MIN_DELTA and (spent.precision or spent.sampled):
        return math.inf
    if _has_closed_form(spent):
        return _closed_form_epsilon(spent.precision, delta) + slack
    many = step_by_step and len(spent.sampled) > _FEW_KINDS and not _needs_renyi(spent)
    compose = _extended_epsilon if many else _composed_epsilon
    return compose(spent, delta, interval) + slack


class _Composition(NamedTuple):
    """All steps of a ledger, such that two ledgers with the same releases are equal.

    Attributes:
        precision: Squared mu of all unsampled Gaussian steps, infinite if one is unprotected.
        sampled: (sampling rate, noise multiplier, steps) of every kind of sampled step, sorted.
        needs_renyi: Whether a step has no closed privacy-loss distribution.
        near_gaussian_sums: Sums whose noise is discrete, but near-Gaussian.
    """

    precision: float
    sampled: tuple[tuple[float, float, int], ...]
    needs_renyi: bool
    near_gaussian_sums: int = 0


class _MechanismSteps(NamedTuple):
    """What one release costs one unit."""

    rate: float
    noise: float
    steps: int
    needs_renyi: bool = False
    bands: int = 0
    near_gaussian_sums: int = 0


_UNPROTECTED = _MechanismSteps(1.0, 0.0, 1)
_NO_COST = _MechanismSteps(1.0, math.inf, 1)


def _utterance_step(release: Release) -> _MechanismSteps:
    """What it costs one utterance."""
    if release.noise_multiplier > 0:
        return _MechanismSteps(release.sample_rate, release.noise_multiplier, release.steps)
    user = release.user
    if user is None or user.noised_by is not NoiseSource.DISTRIBUTED:
        # A promise to an utterance holds against the server too, which sees this in the clear.
        return _UNPROTECTED
    # The user stays, with another update: both lie in the ball, so up to two clip norms apart.
    return _sum_step(user, 1.0, user.noise_multiplier / 2)


def _user_step(release: Release) -> _MechanismSteps:
    """What it costs the whole user."""
    user = release.user
    if release.kind is ReleaseKind.NORMALISER:
        # It stays on the device and shapes updates, which are bounded and booked as a whole, or
        # else are unprotected themselves.
        return _NO_COST
    if user is None:
        return _UNPROTECTED
    return _sum_step(user, user.sample_rate, user.noise_multiplier)


def _sum_step(user: SumMechanism, rate: float, noise: float) -> _MechanismSteps:
    """What noise in sums over users costs, at a rate and a multiplier."""
    bands = user.bands.band_count if user.bands else 0
    near_gaussian = user.sums if user.near_gaussian else 0
    needs_renyi = user.discrete and not user.near_gaussian
    return _MechanismSteps(rate, noise, user.sums, needs_renyi, bands, near_gaussian)


_STEP_BY_UNIT = {PrivacyUnit.UTTERANCE: _utterance_step, PrivacyUnit.USER: _user_step}


def _compose(releases: Iterable[Release], unit: PrivacyUnit) -> _Composition:
    """All that was spent; one unprotected release makes it infinite."""
    # Squared mus of Gaussians without sampling add up: all of them are one Gaussian.
    precision, needs_renyi, near_gaussian = 0.0, False, 0
    sampled: dict[tuple[float, float], int] = {}
    correlated: dict[str, list[tuple[int, int, float]]] = {}
    for release in releases:
        if release.mechanism is Mechanism.ENCRYPTION:
            continue
        step = _STEP_BY_UNIT[unit](release)
        if release.mechanism is Mechanism.NONE or not step.noise > 0:
            return _Composition(math.inf, (), needs_renyi=False)
        needs_renyi = needs_renyi or step.needs_renyi
        near_gaussian += step.near_gaussian_sums
        if step.bands:
            rounds = correlated.setdefault(release.run, [])
            rounds.append((release.round, step.bands, math.sqrt(step.steps) / step.noise))
        elif step.rate == 1.0:
            precision += step.steps / step.noise**2
        else:
            key = (step.rate, step.noise)
            sampled[key] = sampled.get(key, 0) + step.steps
    precision += sum(map(_correlated_precision, correlated.values()))
    kinds = tuple(sorted((rate, noise, steps) for (rate, noise), steps in sampled.items()))
    # Summation order must not show: two ledgers with the same releases cost the same.
    return _Composition(float(f"{precision:.12g}"), kinds, needs_renyi, near_gaussian)


def _correlated_precision(rounds: list[tuple[int, int, float]]) -> float:
    """Squared mu of one run's rounds under correlated noise.

    A round's noise reaches as far as its bands. Rounds out of each other's reach move coordinates
    of their own, and their squares add up. Rounds within reach may move the same ones, one way:
    their sum is squared.

    Args:
        rounds: Each with its bands and its own mu.
    """
    rounds = sorted(rounds)
    clusters = [rounds[0][2]]
    reach = rounds[0][1]
    for (before, _, _), (number, bands, mu) in pairwise(rounds):
        reach = max(reach, bands)
        if number - before < reach:
            clusters[-1] += mu
        else:
            clusters.append(mu)
            reach = bands
    return sum(mu * mu for mu in clusters)


@lru_cache(maxsize=4096)
def _composed_epsilon(spent: _Composition, delta: float, interval: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision`` and the sampled steps."""
    precision, sampled, _, _ = spent
    if not precision and not sampled:
        return 0.0
    if math.isinf(precision):
        return math.inf
    accountant: dp_accounting.PrivacyAccountant
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    if _needs_renyi(spent):
        accountant = rdp.RdpAccountant(_ORDERS)
    if precision:
        accountant.compose(_unsampled_event(precision))
    for kind in sampled:
        accountant.compose(*_sampled_event(*kind))
    return float(accountant.get_epsilon(delta))


def _deviation(precision: float) -> float:
    """Standard deviation of the Gaussian of sensitivity 1 that all unsampled steps are together."""
    # A hair more precision than was spent covers the rounding of the sum.
    return 1 / math.sqrt(precision * _HAIR)


def _unsampled_event(precision: float) -> dp_accounting.DpEvent:
    return dp_accounting.GaussianDpEvent(_deviation(precision))


def _sampled_event(rate: float, noise: float, steps: int) -> tuple[dp_accounting.DpEvent, int]:
    gaussian = dp_accounting.GaussianDpEvent(noise)
    return dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps


def _needs_renyi(spent: _Composition) -> bool:
    """Whether a distribution of losses does not exist, or would fill the memory."""
    too_many = sum(steps for _, _, steps in spent.sampled) > _MAX_PLD_STEPS
    return spent.needs_renyi or too_many or _approximate_precision(spent) > _MAX_PLD_PRECISION


def _extended_epsilon(spent: _Composition, delta: float, interval: float) -> float:
    """As ``_composed_epsilon``, from the largest part of it that was composed before."""
    accountant = copy.deepcopy(_COMPOSED.extend(dict(_steps_by_kind(spent)), interval))
    if spent.precision:
        accountant.compose(_unsampled_event(spent.precision))
    return float(accountant.get_epsilon(delta))


def _steps_by_kind(spent: _Composition) -> Iterator[tuple[tuple[float, float], int]]:
    for rate, noise, steps in spent.sampled:
        yield (rate, noise), steps


class _ComposedSteps:
    """The last few compositions of sampled steps, each of which others can be made from."""

    def __init__(self, size: int) -> None:
        self._lock = Lock()
        self._known: deque[tuple[float, dict[tuple[float, float], int], pld.PLDAccountant]]
        self._known = deque(maxlen=size)

    def extend(self, steps: dict[tuple[float, float], int], interval: float) -> pld.PLDAccountant:
        """Compose all of these steps; the result must not be changed.

        Args:
            steps: How many of every (rate, noise multiplier).
            interval: Of the discretisation.
        """
        with self._lock:
            known = list(self._known)
        parts = [
            (len(steps) - len(own), sum(steps.values()) - sum(own.values()), index)
            for index, (at, own, _) in enumerate(known)
            if at == interval and all(steps.get(kind, 0) >= count for kind, count in own.items())
        ]
        if parts:
            _, before, composed = known[min(parts)[2]]
        else:
            before = {}
            composed = pld.PLDAccountant(value_discretization_interval=interval)
        left = {kind: count - before.get(kind, 0) for kind, count in steps.items()}
        if not any(left.values()):
            return composed
        composed = copy.deepcopy(composed)
        for (rate, noise), count in sorted(left.items()):
            if count:
                composed.compose(*_sampled_event(rate, noise, count))
        with self._lock:
            self._known.append((interval, dict(steps), composed))
        return composed


_COMPOSED = _ComposedSteps(size=8)


def _approximate_precision(spent: _Composition) -> float:
    """Squared mu in all, roughly: what sampling amplifies, and at least that of a single step."""
    # Losses reach as far as those of one step without sampling, however low the rate.
    single = max((1 / noise**2 for _, noise, _ in spent.sampled), default=0.0)
    amplified = sum(steps * (rate / noise) ** 2 for rate, noise, steps in spent.sampled)
    return spent.precision + max(single, amplified)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose Gaussian mechanism keeps (epsilon, delta) (Balle & Wang 2018)."""
    validation.require_positive(epsilon=epsilon)
    validation.require_between(0, 1, delta=delta)
    return 1 / float(dp_accounting.get_sigma_gaussian(epsilon, delta))


def _gaussian_epsilon(precision: float, delta: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision``, exactly (Balle & Wang 2018)."""
    # One mechanism of sensitivity 1: its standard deviation is 1 / mu.
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def _has_closed_form(spent: _Composition) -> bool:
    """Whether all of it is one Gaussian, whose epsilon has a closed form that floats can hold."""
    return (
        not spent.sampled
        and not spent.needs_renyi
        and _MIN_CLOSED_PRECISION <= spent.precision <= _MAX_PLD_PRECISION
    )


@lru_cache(maxsize=4096)
def _closed_form_epsilon(precision: float, delta: float) -> float:
    """The epsilon of one Gaussian, and a hair that covers the rounding of its closed form."""
    return _gaussian_epsilon(precision * _HAIR, delta) * (1 + 1e-9) + 1e-9


def compute_mu(
    releases: Iterable[Release], *, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
) -> float | None:
    """Compute the mu of Gaussian differential privacy of the releases together.

    The squared mus of Gaussians without sampling add up (Dong, Roth and Su 2022, corollary 3.3);
    sums of near-Gaussian discrete noise cost their slack beside it.

    Args:
        releases: Everything one device released, in any order.
        unit: Whose presence is hidden.

    Returns:
        At least 0, infinite where a release was unprotected. None where steps are sampled or noise
        is discrete on a coarse lattice: no single mu describes them.

    Example:
        >>> compute_mu([])
        0.0
    """
    spent = _compose(releases, unit)
    if spent.sampled or (spent.needs_renyi and not math.isinf(spent.precision)):
        return None
    return math.sqrt(spent.precision)


def discretisation_slack(
    releases: Iterable[Release], *, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
) -> float:
    """Sum what near-Gaussian discrete noise costs beyond a Gaussian, in epsilon and log delta."""
    return _compose(releases, unit).near_gaussian_sums * DISCRETISATION_SLACK


def compute_group_epsilon(
    releases: Iterable[Release],
    delta: float,
    *,
    changes: int,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
) -> float:
    """Compute what the releases cost a group of units that are all added or all removed.

    Args:
        releases: Everything one device released, in any order.
        delta: In (0, 1), the same for the group as for one unit.
        changes: Size k of the group, from 1 to ``MAX_GROUP``.
        unit: Whose presence is hidden.

    Returns:
        Epsilon of the group; infinity where a release was unprotected.

    Guarantees:
        - Never below the group's true epsilon, and that of :func:`compute_epsilon` for one unit.
        - Gaussians without sampling: k units move them k times as far, so mu becomes k mu (Dong,
          Roth and Su 2022, theorem 2.14), which is exact; it holds for any k changes, and so for
          relabelling one utterance, which is one removed and one added. The slack of near-Gaussian
          sums grows with the distance at most: k times.
        - Sampled steps: of k units a binomial number takes part, which is a mixture of Gaussians
          (Ganesh 2024, "Tight group-level DP guarantees for DP-SGD with sampling"). Where its
          distribution of losses would fill the memory, as if each took part in every step.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included, or ``changes`` outside its bounds.
    """
    validation.require_between(0, 1, delta=delta)
    validation.require_count(1, MAX_GROUP, changes=changes)
    spent = _compose(releases, unit)
    if changes == 1 or math.isinf(spent.precision):
        return _epsilon_of(spent, delta, _DISCRETISATION_INTERVAL, step_by_step=False)
    together = _as_group(spent._replace(sampled=()), changes)
    if not spent.sampled:
        return _epsilon_of(together, delta, _DISCRETISATION_INTERVAL, step_by_step=False)
    reach = changes**2 * _approximate_precision(spent)
    if _needs_renyi(spent) or reach > _MAX_PLD_PRECISION or changes > _MAX_MIXTURE:
        unamplified = _as_group(spent, changes)
        return _epsilon_of(unamplified, delta, _DISCRETISATION_INTERVAL, step_by_step=False)
    slack = together.near_gaussian_sums * DISCRETISATION_SLACK
    rest = delta * math.exp(-slack)
    if rest < MIN_DELTA:
        return math.inf
    return _group_losses(together.precision, spent.sampled, changes, rest) + slack


@lru_cache(maxsize=64)
def _group_losses(
    precision: float, sampled: tuple[tuple[float, float, int], ...], changes: int, delta: float
) -> float:
    """Epsilon of a Gaussian and of sampled steps in which a binomial number of units takes part."""
    # Losses of a group reach further: as many points, so that it takes no longer.
    interval = 2 * _COARSE_INTERVAL * changes

    def mixture(rate: float, noise: float) -> Any:  # noqa: ANN401  (untyped)
        chances = [
            math.comb(changes, count) * rate**count * (1 - rate) ** (changes - count)
            for count in range(changes + 1)
        ]
        return pld.privacy_loss_distribution.from_mixture_gaussian_mechanism(
            noise, list(range(changes + 1)), chances, value_discretization_interval=interval
        )

    losses = _compose_losses(precision, sampled, interval, mixture)
    return float(losses.get_epsilon_for_delta(delta))


def _compose_losses(
    precision: float,
    sampled: tuple[tuple[float, float, int], ...],
    interval: float,
    losses_of_step: Callable[[float, float], Any],
) -> Any:  # noqa: ANN401  (untyped)
    """Distribution of losses of one Gaussian and the sampled steps, of which there are some.

    Args:
        precision: Squared mu of the Gaussian.
        sampled: (sampling rate, noise multiplier, steps) of every kind.
        interval: Of the discretisation.
        losses_of_step: From a rate and a noise multiplier to the distribution of one step's losses.
    """
    parts = [losses_of_step(rate, noise).self_compose(steps) for rate, noise, steps in sampled]
    if precision:
        gaussian = pld.privacy_loss_distribution.from_gaussian_mechanism(
            _deviation(precision), value_discretization_interval=interval
        )
        parts.insert(0, gaussian)
    return reduce(lambda whole, part: whole.compose(part), parts)


def compute_deltas(
    releases: Iterable[Release],
    epsilons: Sequence[float],
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
) -> list[float]:
    """Compute the least delta of the releases together at each of several epsilons.

    Args:
        releases: Everything one device released, in any order.
        epsilons: Each 0 or above.
        unit: Whose presence is hidden.

    Returns:
        A delta for each epsilon, in [0, 1]; 1 where a release was unprotected, or where noise is
        discrete on a coarse lattice, which has no closed distribution of losses.

    Guarantees:
        - Never below the true delta: exact for Gaussians without sampling (Balle and Wang 2018),
          pessimistic by discretisation where steps are sampled.
    """
    validation.require_non_negative(**{f"epsilons[{n}]": one for n, one in enumerate(epsilons)})
    spent = _compose(releases, unit)
    if not spent.precision and not spent.sampled:
        return [0.0] * len(epsilons)
    if math.isinf(spent.precision) or _needs_renyi(spent):
        return [1.0] * len(epsilons)
    slack = spent.near_gaussian_sums * DISCRETISATION_SLACK
    losses = _loss_function(spent)
    return [
        min(1.0, math.exp(slack) * float(losses.get_delta_for_epsilon(one - slack)))
        for one in epsilons
    ]


def _loss_function(spent: "_Composition") -> Any:  # noqa: ANN401  (untyped)
    """What tells delta at an epsilon: one Gaussian in closed form, or a distribution of losses."""
    if not spent.sampled:
        return pld.privacy_loss_mechanism.GaussianPrivacyLoss(_deviation(spent.precision))

    def sampled_gaussian(rate: float, noise: float) -> Any:  # noqa: ANN401  (untyped)
        return pld.privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=_COARSE_INTERVAL
        )

    return _compose_losses(spent.precision, spent.sampled, _COARSE_INTERVAL, sampled_gaussian)


def calibrate_noise_multiplier(
    releases_for: Callable[[float], Iterable[Release]],
    budget: float,
    delta: float,
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
) -> float:
    """Find the smallest noise multiplier at which the releases keep a budget.

    Where steps are sampled, under the filter that costs least: a device cannot know that the plan
    was fixed before the first answer.

    Args:
        releases_for: From a noise multiplier to all releases it leads to.
        budget: Epsilon the releases may cost together, above 0.
        delta: In (0, 1).
        unit: Whose presence the budget hides.

    Returns:
        The noise multiplier, at most 0.1 % above the smallest.

    Guarantees:
        - ``compute_epsilon(releases_for(result), delta, unit=unit) <= budget``, and so is what the
          filter of :func:`choose_renyi_order` gives: it errs on the side of more noise.

    Raises:
        SettingError: No noise keeps the budget: other releases of the plan spend it already, or
            the budget or delta makes no sense.
    """
    validation.require_positive(epsilon=budget)
    validation.require_between(0, 1, delta=delta)

    def passes(noise: float) -> bool:
        spent = _compose(releases_for(noise), unit)
        slack = spent.near_gaussian_sums * DISCRETISATION_SLACK
        left, rest = budget - slack, delta * math.exp(-slack)
        # The unsampled part alone has a closed form; if that is too much, all of it is.
        if math.isinf(spent.precision):
            return True
        exact = _gaussian_epsilon(spent.precision, rest) if spent.precision else 0.0
        if exact > left:
            return True
        if spent.sampled:
            return _sampled_passes(spent, delta, budget)
        # Far below the budget, an unsampled plan need not be discretised to know that it keeps it.
        if _has_closed_form(spent) and exact + MAX_DISCRETISATION_ERROR <= left:
            return False
        return _composed_epsilon(spent, rest, _DISCRETISATION_INTERVAL) > left

    found = _least_noise(passes)
    if found is None:
        raise SettingError(
            f"epsilon {budget} at delta {delta} is too small for this plan even for one round; "
            "raise epsilon, or lower the share of the normaliser and of the label counts"
        )
    return found


def _least_noise(passes: Callable[[float], bool]) -> float | None:
    """The least multiplier that keeps a budget, or one up to 0.1 % above; None below 1e7."""
    low, high = 0.0, 1.0
    while passes(high):
        low, high = high, high * 2
        if high > 1e7:
            return None
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return high
