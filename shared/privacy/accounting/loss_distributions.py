"""Epsilon of composed steps: closed forms, privacy-loss distributions and Renyi divergences.

One Gaussian has an epsilon in closed form (Balle & Wang 2018). Where steps are sampled, figures
come from privacy-loss distributions (Koskela et al. 2020; Doroshenko et al. 2022, "Connect the
dots"), whose discretisation is pessimistic: the epsilon reported is never below the true one. Sums
of discrete noise on a fine lattice are Gaussians but for a slack each, which is added; where noise
is discrete and not known to be near-Gaussian, all are accounted for by Renyi divergences (Mironov
2017), which bound it as safely.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from threading import Lock
from typing import Any

import dp_accounting
from dp_accounting import pld, rdp

from sottovoce.shared import validation
from sottovoce.shared.privacy.accounting.composition import Composition
from sottovoce.shared.privacy.release import DISCRETISATION_SLACK

ACCOUNTANT_NAME = (
    "Gaussian closed form, or pessimistic PLD at 1e-4 where sampled (dp-accounting 0.6)"
)
DISCRETE_ACCOUNTANT_NAME = (
    f"{ACCOUNTANT_NAME}, and {DISCRETISATION_SLACK:g} for every sum of discrete noise"
)
DISCRETISATION_INTERVAL = 1e-4
MAX_PLD_PRECISION = 300.0
"""Squared mu from which epsilon passes 150, and a fine distribution of losses would fill
the memory. Renyi divergences (Mironov 2017) bound it as safely, some percent looser."""

RENYI_ORDERS = [1 + x / 20 for x in range(1, 200)] + [*range(11, 64), 80, 96, 128, 256, 512, 1024]
"""Renyi orders: close together where budgets of 1 to 20 find their best."""

MAX_DISCRETISATION_ERROR = 2 * DISCRETISATION_INTERVAL
"""More than discretising adds to the epsilon of one Gaussian. It is exact where epsilon is a
multiple of the interval and grows in between (Doroshenko et al. 2022), so one interval would do."""

PRECISION_MARGIN = 1 + 1e-11
"""A hair more precision than was spent covers the rounding of its sum."""

_MIN_CLOSED_PRECISION = 1e-4
"""Squared mu below which the closed form runs out of digits; discretising is quick there."""

MIN_DELTA = 1e-100
"""Delta below which the accountants run out of digits."""

_MAX_PLD_STEPS = 10**7
"""Sampled steps above which a distribution of losses would fill the memory."""

_FEW_KINDS = 8
"""Kinds of sampled steps up to which all are composed anew, always in one order."""

COARSE_INTERVAL = 1e-3  # coarser is still an upper bound, only a looser one


def account_steps(
    spent: Composition, delta: float, interval: float, *, step_by_step: bool
) -> float:
    """Epsilon of all steps, at a discretisation."""
    slack = spent.slack
    # The slack counts against epsilon and against the logarithm of delta; see noise_accounting.
    delta *= math.exp(-slack)
    if delta < MIN_DELTA and (spent.precision or spent.sampled):
        return math.inf
    if has_closed_form(spent):
        return _closed_form_epsilon(spent.precision, delta) + slack
    many = step_by_step and len(spent.sampled) > _FEW_KINDS and not lacks_loss_distribution(spent)
    compose = _extended_epsilon if many else account_discretised
    return compose(spent, delta, interval) + slack


@lru_cache(maxsize=4096)
def account_discretised(spent: Composition, delta: float, interval: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision`` and the sampled steps."""
    precision, sampled, _, _ = spent
    if not precision and not sampled:
        return 0.0
    if math.isinf(precision):
        return math.inf
    accountant: dp_accounting.PrivacyAccountant
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    if lacks_loss_distribution(spent):
        accountant = rdp.RdpAccountant(RENYI_ORDERS)
    if precision:
        accountant.compose(_unsampled_event(precision))
    for kind in sampled:
        accountant.compose(*sampled_event(*kind))
    return float(accountant.get_epsilon(delta))


def deviation_of(precision: float) -> float:
    """Standard deviation of the Gaussian of sensitivity 1 that all unsampled steps are together."""
    # A hair more precision than was spent covers the rounding of the sum.
    return 1 / math.sqrt(precision * PRECISION_MARGIN)


def _unsampled_event(precision: float) -> dp_accounting.DpEvent:
    return dp_accounting.GaussianDpEvent(deviation_of(precision))


def sampled_event(rate: float, noise: float, steps: int) -> tuple[dp_accounting.DpEvent, int]:
    """Describe sampled Gaussian steps of sensitivity 1 as events of an accountant."""
    gaussian = dp_accounting.GaussianDpEvent(noise)
    return dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps


def lacks_loss_distribution(spent: Composition) -> bool:
    """Whether a distribution of losses does not exist, or would fill the memory."""
    too_many = sum(steps for _, _, steps in spent.sampled) > _MAX_PLD_STEPS
    return spent.needs_renyi or too_many or approximate_precision(spent) > MAX_PLD_PRECISION


def _extended_epsilon(spent: Composition, delta: float, interval: float) -> float:
    """As ``account_discretised``, from the largest part of it that was composed before."""
    accountant = copy.deepcopy(_COMPOSED.extend(dict(_steps_by_kind(spent)), interval))
    if spent.precision:
        accountant.compose(_unsampled_event(spent.precision))
    return float(accountant.get_epsilon(delta))


def _steps_by_kind(spent: Composition) -> Iterator[tuple[tuple[float, float], int]]:
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
                composed.compose(*sampled_event(rate, noise, count))
        with self._lock:
            self._known.append((interval, dict(steps), composed))
        return composed


_COMPOSED = _ComposedSteps(size=8)


def approximate_precision(spent: Composition) -> float:
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


def gaussian_epsilon(precision: float, delta: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision``, exactly (Balle & Wang 2018)."""
    # One mechanism of sensitivity 1: its standard deviation is 1 / mu.
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def has_closed_form(spent: Composition) -> bool:
    """Whether all of it is one Gaussian, whose epsilon has a closed form that floats can hold."""
    return (
        not spent.sampled
        and not spent.needs_renyi
        and _MIN_CLOSED_PRECISION <= spent.precision <= MAX_PLD_PRECISION
    )


@lru_cache(maxsize=4096)
def _closed_form_epsilon(precision: float, delta: float) -> float:
    """The epsilon of one Gaussian, and a hair that covers the rounding of its closed form."""
    return gaussian_epsilon(precision * PRECISION_MARGIN, delta) * (1 + 1e-9) + 1e-9


def compose_losses(
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
            deviation_of(precision), value_discretization_interval=interval
        )
        parts.insert(0, gaussian)
    return reduce(lambda whole, part: whole.compose(part), parts)
