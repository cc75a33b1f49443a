"""The price of releases, in (epsilon, delta): the only place that asks ``dp_accounting``.

Two neighbouring relations, one for each unit: add or remove one utterance of a user, or all that a
user has (the device stays and adds nothing: that it takes part is no secret). Gaussian releases
without sampling compose exactly into one Gaussian, whose epsilon has a closed form (Balle & Wang
2018). Where some are sampled, figures come from privacy-loss distributions (Koskela et al. 2020;
Doroshenko et al. 2022, "Connect the dots"), whose discretisation is pessimistic: the epsilon
reported is never below the true one. Sums of discrete noise on a fine lattice are Gaussians but for
a grain each, which is added; where noise is discrete and not known to be fine, all are priced by
Renyi divergences (Mironov 2017), which bound it as safely. Rounds under noise that hangs together
(``bands``) add up like others as long as they lie at least as many rounds apart as there are bands;
nearer ones are charged as if they pointed one way.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import dp_accounting
from dp_accounting import pld, rdp

from sottovoce.shared import check
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import (
    GRAIN,
    Kind,
    Mechanism,
    NoisedBy,
    Release,
    Unit,
    UserNoise,
)

NAME = "Gaussian closed form, or pessimistic PLD at 1e-4 where sampled (dp-accounting 0.6)"
DISCRETE_NAME = f"{NAME}, and {GRAIN:g} for every sum of discrete noise"
NEIGHBOURING = {
    Unit.UTTERANCE: "add or remove one utterance",
    Unit.USER: "add or remove everything that one user has",
}
_INTERVAL = 1e-4
_HOPELESS = 300.0
"""Squared mu from which epsilon passes 150, and a fine distribution of losses would fill
the memory. Renyi divergences (Mironov 2017) bound it as safely, some percent looser."""

_ORDERS = [1 + x / 20 for x in range(1, 200)] + [*range(11, 64), 80, 96, 128, 256, 512, 1024]
"""Renyi orders: close together where budgets of 1 to 20 find their best."""

ROUNDING = 2 * _INTERVAL
"""More than discretising adds to the epsilon of one Gaussian. It is exact where epsilon is a
multiple of the interval and grows in between (Doroshenko et al. 2022), so one interval would do."""

_TINY = 1e-4
"""Squared mu below which the closed form runs out of digits; discretising is quick there."""

_FAST_INTERVAL = 1e-3  # coarser is still an upper bound, only a looser one


def epsilon(
    releases: Iterable[Release], delta: float, *, unit: Unit = Unit.UTTERANCE, fast: bool = False
) -> float:
    """What the releases cost together.

    Args:
        releases: Everything one device let out, in any order.
        delta: In (0, 1).
        unit: Whose presence is hidden: one utterance's, or the whole user's.
        fast: Discretise coarsely, where at all, for decisions in the loop: an upper bound too,
            but looser.

    Returns:
        Epsilon, at least 0. Infinity when one release was unprotected, for this unit.

    Guarantees:
        - Never below the true epsilon of the described releases.
        - No releases cost 0; ciphertext costs 0.
        - A further release never lowers it.
        - A release that hides a user only in the sum costs an utterance what replacing the user
          costs, twice the sensitivity; it holds against those who see the sum alone.
        - A release that hides utterances alone costs a user infinity.
        - Rounds under noise that hangs together, nearer than it allows, cost more than apart:
          m of them as much as m squared.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included.
    """
    check.inside(0, 1, delta=delta)
    spent = _summed(releases, unit)
    grain = spent.grains * GRAIN
    delta *= math.exp(-grain)
    if _closed(spent):
        return _above(spent.precision, delta) + grain
    return _composed(spent, delta, _FAST_INTERVAL if fast else _INTERVAL) + grain


class _Spent(NamedTuple):
    """All steps of a ledger, such that two ledgers with the same releases are equal.

    Attributes:
        precision: Squared mu of all unsampled Gaussian steps, infinite if one is unprotected.
        sampled: (sampling rate, noise multiplier, steps) of every kind of sampled step, sorted.
        renyi: Whether a step has no closed privacy-loss distribution.
        grains: Sums whose noise is discrete, but fine.
    """

    precision: float
    sampled: tuple[tuple[float, float, int], ...]
    renyi: bool
    grains: int = 0


class _Step(NamedTuple):
    """What one release costs one unit."""

    rate: float
    noise: float
    steps: int
    renyi: bool = False
    bands: int = 0
    grains: int = 0


_UNPROTECTED = _Step(1.0, 0.0, 1)
_NOTHING = _Step(1.0, math.inf, 1)


def _utterance_step(release: Release) -> _Step:
    """What it costs one utterance."""
    if release.noise_multiplier > 0:
        return _Step(release.sample_rate, release.noise_multiplier, release.steps)
    user = release.user
    if user is None or user.noised_by is not NoisedBy.SHARES:
        # A promise to an utterance holds against the server too, which sees this in the clear.
        return _UNPROTECTED
    # The user stays, with another update: both lie in the ball, so up to two clip norms apart.
    return _in_sums(user, 1.0, user.noise_multiplier / 2)


def _user_step(release: Release) -> _Step:
    """What it costs the whole user."""
    user = release.user
    if release.kind is Kind.NORMALISER:
        # It stays on the device and shapes updates, which are bounded and booked as a whole, or
        # else are unprotected themselves.
        return _NOTHING
    if user is None:
        return _UNPROTECTED
    return _in_sums(user, user.sample_rate, user.noise_multiplier)


def _in_sums(user: UserNoise, rate: float, noise: float) -> _Step:
    """What noise in sums over users costs, at a rate and a multiplier."""
    bands = user.bands.count if user.bands else 0
    grains = user.sums if user.fine else 0
    return _Step(rate, noise, user.sums, user.discrete and not user.fine, bands, grains)


_STEP = {Unit.UTTERANCE: _utterance_step, Unit.USER: _user_step}


def _summed(releases: Iterable[Release], unit: Unit) -> _Spent:
    """All that was spent; one unprotected release makes it infinite."""
    precision, renyi, grains = 0.0, False, 0
    sampled: dict[tuple[float, float], int] = {}
    hanging: dict[str, list[tuple[int, int, float]]] = {}
    for release in releases:
        if release.mechanism is Mechanism.ENCRYPTION:
            continue
        step = _STEP[unit](release)
        if release.mechanism is Mechanism.NONE or not step.noise > 0:
            return _Spent(math.inf, (), renyi=False)
        renyi, grains = renyi or step.renyi, grains + step.grains
        if step.bands:
            rounds = hanging.setdefault(release.run, [])
            rounds.append((release.round, step.bands, math.sqrt(step.steps) / step.noise))
        elif step.rate == 1.0:
            precision += step.steps / step.noise**2
        else:
            key = (step.rate, step.noise)
            sampled[key] = sampled.get(key, 0) + step.steps
    precision += sum(map(_hanging_together, hanging.values()))
    kinds = tuple(sorted((rate, noise, steps) for (rate, noise), steps in sampled.items()))
    # Summation order must not show: two ledgers with the same releases cost the same.
    return _Spent(float(f"{precision:.12g}"), kinds, renyi, grains)


def _hanging_together(rounds: list[tuple[int, int, float]]) -> float:
    """Squared mu of one run's rounds under noise that hangs together.

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
def _composed(spent: _Spent, delta: float, interval: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision`` and the sampled steps."""
    precision, sampled, renyi, _ = spent
    if not precision and not sampled:
        return 0.0
    if math.isinf(precision):
        return math.inf
    accountant: dp_accounting.PrivacyAccountant
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    if renyi or _roughly(spent) > _HOPELESS:
        accountant = rdp.RdpAccountant(_ORDERS)
    if precision:
        # A hair more precision than was spent covers the rounding of the sum.
        accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(precision * (1 + 1e-11))))
    for rate, noise, steps in sampled:
        gaussian = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return float(accountant.get_epsilon(delta))


def _roughly(spent: _Spent) -> float:
    """Squared mu in all, roughly: what sampling amplifies, and at least that of a single step."""
    single = max((1 / noise**2 for _, noise, _ in spent.sampled), default=0.0)
    amplified = sum(steps * (rate / noise) ** 2 for rate, noise, steps in spent.sampled)
    return spent.precision + max(single, amplified)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose Gaussian mechanism keeps (epsilon, delta) (Balle & Wang 2018)."""
    check.positive(epsilon=epsilon)
    check.inside(0, 1, delta=delta)
    return 1 / float(dp_accounting.get_sigma_gaussian(epsilon, delta))


def _gaussian(precision: float, delta: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision``, exactly (Balle & Wang 2018)."""
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def _closed(spent: _Spent) -> bool:
    """Whether all of it is one Gaussian, whose epsilon has a closed form that floats can hold."""
    return not spent.sampled and not spent.renyi and _TINY <= spent.precision <= _HOPELESS


@lru_cache(maxsize=4096)
def _above(precision: float, delta: float) -> float:
    """The epsilon of one Gaussian, and a hair that covers the rounding of its closed form."""
    return _gaussian(precision * (1 + 1e-11), delta) * (1 + 1e-9) + 1e-9


def calibrate(
    plan: Callable[[float], Iterable[Release]],
    budget: float,
    delta: float,
    *,
    unit: Unit = Unit.UTTERANCE,
) -> float:
    """The smallest noise multiplier at which a plan keeps its budget.

    Args:
        plan: From a noise multiplier to all releases it leads to.
        budget: Epsilon the releases may cost together, above 0.
        delta: In (0, 1).
        unit: Whose presence the budget hides.

    Returns:
        The noise multiplier, at most 0.1 % above the smallest.

    Guarantees:
        - ``epsilon(plan(result), delta, unit=unit) <= budget``: it errs on the side of more noise.

    Raises:
        SettingError: No noise keeps the budget: other releases of the plan spend it already, or
            the budget or delta makes no sense.
    """
    check.positive(epsilon=budget)
    check.inside(0, 1, delta=delta)

    def passes(noise: float) -> bool:
        spent = _summed(plan(noise), unit)
        grain = spent.grains * GRAIN
        left, rest = budget - grain, delta * math.exp(-grain)
        # The unsampled part alone has a closed form; if that is too much, all of it is.
        if math.isinf(spent.precision):
            return True
        exact = _gaussian(spent.precision, rest) if spent.precision else 0.0
        if exact > left:
            return True
        # Far below the budget, an unsampled plan need not be discretised to know that it keeps it.
        if _closed(spent) and exact + ROUNDING <= left:
            return False
        return _composed(spent, rest, _INTERVAL) > left

    low, high = 0.0, 1.0
    while passes(high):
        low, high = high, high * 2
        if high > 1e7:
            raise SettingError(
                f"epsilon {budget} at delta {delta} is too small for this plan even for one round; "
                "raise epsilon, or lower the share of the normaliser and of the label counts"
            )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return high
