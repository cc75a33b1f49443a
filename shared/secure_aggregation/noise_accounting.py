"""Privacy of noise that many devices add together: a Gaussian that is no better than it.

Kairouz, Liu and Steinke 2021 (https://arxiv.org/abs/2102.06387), theorem 1: the sum of n discrete
Gaussians of scale s over vectors of d integers with L2 sensitivity D is (1/2) e^2-concentrated
differentially private, with

    tau = 10 sum over k = 1 .. n-1 of exp(-2 pi^2 s^2 k / (k + 1))
    e   = min( sqrt(D^2 / (n s^2) + 2 tau d),  D / (sqrt(n) s) + tau sqrt(d) ),  s >= 1/2

tau is how far such a sum is from a discrete Gaussian. Of the constants in print for the first term
the largest is taken; from s = 2 on, tau is below 1e-15 for any number of devices.

Where the lattice is fine, which it is for 32 bits and any number of devices that can be summed, the
sum is a Gaussian but for a slack (:func:`discretisation_slack`), and its exact curve accounts for
it: a tenth less noise than the Renyi divergence asks for at epsilon 8.

Neighbouring relation: one user's vector is what it is, or zeros. That the user takes part and
adds noise shows in either case.
"""

import math
from dataclasses import replace
from typing import Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import MIN_STD

_ROUNDING_FACTOR: Final = 1 + 1e-12
"""Covers rounding, so that no bound errs on the weak side."""


def concentrated_epsilon(
    noise: float, contributors: int, *, sensitivity: float, parameters: int
) -> float:
    """The e of (1/2) e^2-concentrated differential privacy of a noised sum.

    Args:
        noise: Scale s of each device's discrete Gaussian, in integer steps.
        contributors: How many devices in the sum add noise and keep it to themselves.
        sensitivity: L2 bound on one device's rounded vector, in integer steps, above 0.
        parameters: Length of the vector.

    Returns:
        e, above 0; infinity where there is no noise, too little of it (below 0.5), or nobody who
        adds any.

    Guarantees:
        - Never below the true e, and never below ``sensitivity / (sqrt(contributors) noise)``, what
          a Gaussian on the sum would cost.
        - More noise or more contributors never raise it by more than tau's part.
    """
    validation.require_positive(sensitivity=sensitivity)
    validation.require_at_least(1, parameters=parameters)
    validation.require_non_negative(noise=noise, contributors=contributors)
    if noise < MIN_STD or contributors < 1:
        return math.inf
    plain = sensitivity / (math.sqrt(contributors) * noise)
    tau = _tau(noise, contributors)
    squared = math.sqrt(plain**2 + 2 * tau * parameters)
    return min(squared, plain + tau * math.sqrt(parameters)) * _ROUNDING_FACTOR


def effective_multiplier(settings: SecureAggregationConfig, contributors: int) -> float:
    """Noise multiplier of the plain Gaussian mechanism that stands for the noised sum.

    Args:
        settings: The round's.
        contributors: How many devices in the sum add noise and keep it to themselves; see
            :func:`honest_contributors`.

    Returns:
        1 / e, 0 where nothing is promised.

    Guarantees:
        - For every order a > 1 the Renyi divergence of the sum is at most that of a Gaussian of
          this multiplier, a e^2 / 2. So any Renyi accountant, with composition, accounts for it
          rightly.
        - Sampling of devices: Renyi bounds for *subsampled Gaussians* do not follow from this.
          Account for a sampled round as an unsampled one.
        - The (epsilon, delta) of a Gaussian by its exact curve (Balle and Wang 2018): only where
          :func:`discretisation_slack` is small, which is then to be added. Renyi divergence says
          nothing that fine.
        - Against a server that chooses who drops out, in a graph that is not complete, count only
          ``threshold + 1 - liars`` devices: it may get the sum of one part of the graph.
    """
    epsilon = concentrated_epsilon(
        settings.noise,
        contributors,
        sensitivity=settings.rounded_norm,
        parameters=settings.parameters,
    )
    return 0.0 if math.isinf(epsilon) else 1 / epsilon


def discretisation_slack(settings: SecureAggregationConfig, contributors: int) -> float:
    """Compute what a noised sum of discrete noise costs beyond a Gaussian.

    Args:
        settings: The round's.
        contributors: How many devices in the sum add noise and keep it to themselves.

    Returns:
        g, 0 or above, infinity where nothing is promised.

    Guarantees:
        - Let d(e) be the delta at epsilon e of the Gaussian mechanism of
          :func:`effective_multiplier`, for one user's vector or none, or for one vector or another
          in its place. The noised sum's is at most exp(g) d(e - g), at every e.
        - Composition adds slacks: n such sums, each chosen after the last was seen, and any other
          mechanisms beside them, have at most the delta of the Gaussians that stand for them at
          e less all slacks, times exp of all slacks.

    Why: let s^2 = contributors x noise^2, v the difference of two neighbouring sums, D its largest
    norm, d the number of values, and tau as above.

    1. In each value the sum's chance of k is that of a discrete Gaussian of variance s^2 up to a
       factor exp(tau) either way. So the loss L(k) is at most (|v|^2 - 2 <k, v>) / 2 s^2 + 2 d tau.
    2. A discrete Gaussian's chance of k is at most the normal density there (its normaliser is at
       least sqrt(2 pi) s, by Poisson summation), and that is at most exp(d / 24 s^2) times the
       normal chance of the unit cube around k: by Jensen's inequality the mean over the cube of
       exp(-(2 <k, u> + |u|^2) / 2 s^2) is at least exp(-E|u|^2 / 2 s^2).
    3. For x in that cube <k, v> and <x, v> lie at most |v|_1 / 2 <= sqrt(d) D / 2 apart.
    4. So E max(0, 1 - exp(e - L)) is at most exp(d tau + d / 24 s^2) times what a Gaussian has at
       e - 2 d tau - sqrt(d) D / 2 s^2. The same holds for a rising function of the losses so far in
       place of this one, and the right-hand side depends on v by its norm alone and rises with it:
       so it goes through one sum after the other, whatever v each chose.
    """
    if settings.noise < MIN_STD or contributors < 1:
        return math.inf
    variance = contributors * settings.noise**2
    tau, size = _tau(settings.noise, contributors), settings.parameters
    farthest = 2 * settings.rounded_norm
    shift = 2 * size * tau + math.sqrt(size) * farthest / (2 * variance)
    factor = size * tau + size / (24 * variance)
    return max(shift, factor) * _ROUNDING_FACTOR


def honest_contributors(summed: int, dishonest: int) -> int:
    """How many of the devices in a sum can be counted on for noise, at least 1.

    Args:
        summed: Devices in the sum; before a round its quorum, after it the survivors.
        dishonest: Most of them that side with the server: they may add no noise, or tell it.

    Raises:
        SettingError: Nobody would be left.
    """
    left = summed - dishonest
    if left < 1:
        raise SettingError(
            f"of {summed} summed devices {dishonest} may be dishonest: nobody is left to add noise"
        )
    return left


def calibrate_local_noise(
    settings: SecureAggregationConfig, multiplier: float, *, contributors: int
) -> float:
    """Scale of each device's noise, in integer steps, for a wanted multiplier of the sum.

    Args:
        settings: The round's; its own ``noise`` does not matter.
        multiplier: Wanted effective multiplier, above 0.
        contributors: Devices that can be counted on for noise: those that stay when as many as
            allowed drop out, less the dishonest ones.

    Returns:
        The least such noise, at most 1e-9 (relative) too large, at least 0.5.

    Guarantees:
        - ``effective_multiplier(replace(settings, noise=result), contributors) >= multiplier``.
    """
    validation.require_positive(multiplier=multiplier)
    validation.require_at_least(1, contributors=contributors)

    def enough(noise: float) -> bool:
        epsilon = concentrated_epsilon(
            noise, contributors, sensitivity=settings.rounded_norm, parameters=settings.parameters
        )
        return not math.isinf(epsilon) and 1 / epsilon >= multiplier

    low = MIN_STD
    if enough(low):
        return low
    # tau is all but gone at 8, so that a little more than the plain Gaussian's share is enough.
    high = max(8.0, 1.01 * multiplier * settings.rounded_norm / math.sqrt(contributors))
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def with_noise(
    settings: SecureAggregationConfig, multiplier: float, *, contributors: int
) -> SecureAggregationConfig:
    """The settings with the least noise for a wanted multiplier; 0 wants none.

    Raises:
        SettingError: Negative, NaN or infinite, or more noise than the ring holds.
    """
    validation.require_non_negative(multiplier=multiplier)
    if multiplier == 0:
        return replace(settings, noise=0.0)
    return replace(
        settings, noise=calibrate_local_noise(settings, multiplier, contributors=contributors)
    )


def _tau(noise: float, contributors: int) -> float:
    """The theorem's tau."""
    rate = -2 * math.pi**2 * noise**2
    return 10 * math.fsum(math.exp(rate * k / (k + 1)) for k in range(1, contributors))
