"""The price of releases, in (epsilon, delta): the only place that asks ``dp_accounting``.

Neighbouring relation: add or remove one utterance of one speaker. Every figure comes from
privacy-loss distributions (Koskela et al. 2020; Doroshenko et al. 2022, "Connect the dots"), whose
discretisation is pessimistic: the epsilon reported is never below the true one. Gaussian releases
without sampling compose exactly into one Gaussian, which is done before discretising.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import dp_accounting
from dp_accounting import pld, rdp

from sottovoce.shared import check
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import Mechanism, Release

NAME = "PLD (dp-accounting 0.6, discretisation 1e-4, pessimistic)"
NEIGHBOURING = "add or remove one utterance"
_INTERVAL = 1e-4
_HOPELESS = 300.0
"""Squared mu from which epsilon passes 150, and a fine distribution of losses would fill
the memory. Renyi divergences (Mironov 2017) bound it as safely, some percent looser."""

_FAST_INTERVAL = 1e-3  # coarser is still an upper bound, only a looser one


def epsilon(releases: Iterable[Release], delta: float, *, fast: bool = False) -> float:
    """What the releases cost together.

    Args:
        releases: Everything one device let out, in any order.
        delta: In (0, 1).
        fast: Discretise coarsely, for decisions in the loop: an upper bound too, but looser.

    Returns:
        Epsilon, at least 0. Infinity when one release was unprotected.

    Guarantees:
        - Never below the true epsilon of the described releases.
        - No releases cost 0; ciphertext costs 0.
        - A further release never lowers it.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included.
    """
    check.inside(0, 1, delta=delta)
    precision, sampled = _summed(releases)
    interval = _FAST_INTERVAL if fast else _INTERVAL
    return _composed(precision, sampled, delta, interval)


_Sampled = tuple[tuple[float, float, int], ...]
"""(sampling rate, noise multiplier, steps) of every kind of sampled step, sorted."""


def _summed(releases: Iterable[Release]) -> tuple[float, _Sampled]:
    """Squared mu of all unsampled Gaussian steps, infinite if one is unprotected; sampled steps."""
    precision = 0.0
    sampled: dict[tuple[float, float], int] = {}
    for release in releases:
        if release.mechanism is Mechanism.NONE:
            return math.inf, ()
        if release.mechanism is Mechanism.ENCRYPTION:
            continue
        if release.sample_rate == 1.0:
            precision += release.steps / release.noise_multiplier**2
        else:
            key = (release.sample_rate, release.noise_multiplier)
            sampled[key] = sampled.get(key, 0) + release.steps
    kinds = tuple(sorted((rate, noise, steps) for (rate, noise), steps in sampled.items()))
    # Summation order must not show: two ledgers with the same releases cost the same.
    return float(f"{precision:.12g}"), kinds


@lru_cache(maxsize=4096)
def _composed(precision: float, sampled: _Sampled, delta: float, interval: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision`` and the sampled steps."""
    if not precision and not sampled:
        return 0.0
    if math.isinf(precision):
        return math.inf
    accountant: dp_accounting.PrivacyAccountant
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    if _spent(precision, sampled) > _HOPELESS:
        accountant = rdp.RdpAccountant()
    if precision:
        # A hair more precision than was spent covers the rounding of the sum.
        accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(precision * (1 + 1e-11))))
    for rate, noise, steps in sampled:
        gaussian = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return float(accountant.get_epsilon(delta))


def _spent(precision: float, sampled: _Sampled) -> float:
    """Squared mu in all, roughly: what sampling amplifies, and at least that of a single step."""
    single = max((1 / noise**2 for _, noise, _ in sampled), default=0.0)
    amplified = sum(steps * (rate / noise) ** 2 for rate, noise, steps in sampled)
    return precision + max(single, amplified)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose Gaussian mechanism keeps (epsilon, delta) (Balle & Wang 2018)."""
    check.positive(epsilon=epsilon)
    check.inside(0, 1, delta=delta)
    return 1 / float(dp_accounting.get_sigma_gaussian(epsilon, delta))


def _gaussian(precision: float, delta: float) -> float:
    """Epsilon of one Gaussian of squared mu ``precision``, exactly (Balle & Wang 2018)."""
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def calibrate(plan: Callable[[float], Iterable[Release]], budget: float, delta: float) -> float:
    """The smallest noise multiplier at which a plan keeps its budget.

    Args:
        plan: From a noise multiplier to all releases it leads to.
        budget: Epsilon the releases may cost together, above 0.
        delta: In (0, 1).

    Returns:
        The noise multiplier, at most 0.1 % above the smallest.

    Guarantees:
        - ``epsilon(plan(result), delta) <= budget``: it errs on the side of more noise.

    Raises:
        SettingError: No noise keeps the budget: other releases of the plan spend it already, or
            the budget or delta makes no sense.
    """
    check.positive(epsilon=budget)
    check.inside(0, 1, delta=delta)

    def passes(noise: float) -> bool:
        precision, sampled = _summed(plan(noise))
        # The unsampled part alone has a closed form; if that is too much, all of it is.
        if math.isinf(precision) or (precision and _gaussian(precision, delta) > budget):
            return True
        return _composed(precision, sampled, delta, _INTERVAL) > budget

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
