"""Privacy of distributed discrete noise: the Gaussian mechanism that bounds it.

Kairouz, Liu and Steinke 2021 (https://arxiv.org/abs/2102.06387), theorem 1: the sum of n discrete
Gaussians of scale s over vectors of d integers with L2 sensitivity D is (1/2) e^2-concentrated
differentially private, with

    tau = 10 sum over k = 1 .. n-1 of exp(-2 pi^2 s^2 k / (k + 1))
    e   = min( sqrt(D^2 / (n s^2) + 2 tau d),  D / (sqrt(n) s) + tau sqrt(d) ),  s >= 1/2

tau bounds the distance of such a sum from a discrete Gaussian. Of the published constants for its
first term the largest is used; from s = 2 on, tau is below 1e-15 for any number of devices.

If the lattice is fine, as with 32 bits and any number of devices that can be summed, the sum is a
Gaussian up to a slack (:func:`discretisation_slack`), and the Gaussian's exact privacy curve
applies: it needs a tenth less noise than Renyi accounting at epsilon 8.

Neighbouring relation: one user's vector is replaced by zeros, or, under a ``sensitivity``, by one
that is at most so far away, as without one utterance. That the user participates and adds noise is
visible in either case.

Under a ``sensitivity`` the theorem is used once for every outcome of the draws that round the
vectors, and of whatever else is drawn alike in both worlds: who else joined a step, and all other
users' draws. Given those draws the sums are fixed integer vectors at most ``rounded_sensitivity``
apart. What is released mixes over draws that do not depend on the data, and no mixture is easier to
tell apart than the worst of its parts (hockey-stick and Renyi divergences are jointly convex).
Conditional rounding would not allow this, which is why it is left out there.

Poisson sampling amplifies such a sum as it amplifies a Gaussian. If the unit that is hidden joins a
step by a coin of rate q of its own, the two worlds are P = (1 - q) P0 + q P1 and P0, where P0 and
P1 differ by its vector v. In :func:`discretisation_slack`, step 1 and step 3 give for every k, and
every x of the cube around it, |L(k) - l(x)| <= g, where L is the loss of P1 against P0 and l the
Gaussians'. Then (1 - q) + q exp(L(k)) lies within a factor exp(g) of (1 - q) + q exp(l(x)), either
way, so the loss of P against P0, and of P0 against P, is within g of the sampled Gaussian's at x.
Step 2 bounds the chances of P0 and of P1 at k, hence those of P, by exp(g) times the Gaussians' of
the cube. So both of the sampled sum's delta at e are at most exp(g) times the sampled Gaussian's at
e - g, and step 4 composes them as before: of two sampled Gaussians that with the larger norm
dominates (Zhu, Dong and Wang 2022). The same slack is added, and nothing else. Its Renyi divergence
of order a likewise exceeds the sampled Gaussian's by at most g a / (a - 1).
"""

import math
from dataclasses import replace
from typing import Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import MIN_STD

_ROUNDING_FACTOR: Final = 1 + 1e-12
"""Covers rounding, so that no bound is too small."""


def concentrated_epsilon(
    noise: float, contributors: int, *, sensitivity: float, parameters: int
) -> float:
    """Compute the e of (1/2) e^2-concentrated differential privacy of a noised sum.

    Args:
        noise: Scale s of each device's discrete Gaussian, in integer steps.
        contributors: Number of devices in the sum that add noise and keep it secret.
        sensitivity: L2 bound on one device's rounded vector, in integer steps, above 0.
        parameters: Length of the vector.

    Returns:
        e, above 0; infinity without noise, with too little of it (below 0.5), or without
        contributors.

    Guarantees:
        - Never below the true e, and never below ``sensitivity / (sqrt(contributors) noise)``, the
          e of a Gaussian on the sum.
        - More noise or more contributors never raise it by more than the terms in tau.

    Example:
        >>> round(concentrated_epsilon(8.0, 100, sensitivity=40.0, parameters=10), 6)
        0.5
        >>> concentrated_epsilon(0.0, 100, sensitivity=40.0, parameters=10)
        inf
    """
    validation.require_positive(sensitivity=sensitivity)
    validation.require_at_least(1, parameters=parameters)
    validation.require_non_negative(noise=noise, contributors=contributors)
    # Theorem 1 holds for s of 1/2 and above only; below, there is no bound to return.
    if noise < MIN_STD or contributors < 1:
        return math.inf
    plain = sensitivity / (math.sqrt(contributors) * noise)
    tau = _tau(noise, contributors)
    squared = math.sqrt(plain**2 + 2 * tau * parameters)
    return min(squared, plain + tau * math.sqrt(parameters)) * _ROUNDING_FACTOR


def effective_multiplier(
    settings: SecureAggregationConfig, contributors: int, *, whole: bool = False
) -> float:
    """Noise multiplier of the Gaussian mechanism that accounts for the noised sum.

    Args:
        settings: The round's.
        contributors: Number of devices in the sum that add noise and keep it secret; see
            :func:`honest_contributors`.
        whole: Whether a device's whole vector is hidden, also where the settings have a
            ``sensitivity``.

    Returns:
        1 / e; 0 if there is no guarantee.

    Guarantees:
        - For every order a > 1 the Renyi divergence of the sum is at most that of a Gaussian of
          this multiplier, a e^2 / 2. So any Renyi accountant gives valid bounds, also under
          composition.
        - Sampling: Renyi bounds for *subsampled Gaussians* do not follow from this alone. They do
          with :func:`discretisation_slack` added, for units that join by coins of their own, as
          the module says. Of devices whom the server asks, everybody sees who takes part: account
          for such a round as an unsampled one.
        - The (epsilon, delta) of a Gaussian by its exact curve (Balle and Wang 2018): only with
          :func:`discretisation_slack` added. A bound on Renyi divergence alone does not imply it.
        - Against a server that chooses who drops out, in a graph that is not complete, count only
          ``threshold + 1 - liars`` devices: it may get the sum of one part of the graph.

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> settings = select_parameters(
        ...     24, 10, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=1.5
        ... )
        >>> round(effective_multiplier(settings, contributors=18), 6)  # 21 survivors, 3 dishonest
        1.5
        >>> effective_multiplier(settings, contributors=0)
        0.0
    """
    epsilon = concentrated_epsilon(
        settings.noise,
        contributors,
        sensitivity=_reach(settings, whole=whole),
        parameters=settings.parameters,
    )
    return 0.0 if math.isinf(epsilon) else 1 / epsilon


def discretisation_slack(
    settings: SecureAggregationConfig, contributors: int, *, whole: bool = False
) -> float:
    """Bound the privacy loss of a sum of discrete noise beyond that of a Gaussian.

    Args:
        settings: The round's.
        contributors: Number of devices in the sum that add noise and keep it secret.
        whole: As in :func:`effective_multiplier`.

    Returns:
        g, 0 or above; infinity if there is no guarantee.

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
       factor exp(tau) either way. So the loss L(k) is (|v|^2 - 2 <k, v>) / 2 s^2 up to 2 d tau,
       either way.
    2. A discrete Gaussian's chance of k is at most the normal density there (its normaliser is at
       least sqrt(2 pi) s, by Poisson summation), and that is at most exp(d / 24 s^2) times the
       normal chance of the unit cube around k: by Jensen's inequality the mean over the cube of
       exp(-(2 <k, u> + |u|^2) / 2 s^2) is at least exp(-E|u|^2 / 2 s^2).
    3. For x in that cube <k, v> and <x, v> lie at most |v|_1 / 2 <= sqrt(d) D / 2 apart.
    4. So E max(0, 1 - exp(e - L)) is at most exp(d tau + d / 24 s^2) times what a Gaussian has at
       e - 2 d tau - sqrt(d) D / 2 s^2. The same holds for a rising function of the losses so far in
       place of this one, and the right-hand side depends on v by its norm alone and rises with it:
       so it goes through one sum after the other, whatever v each chose.

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> settings = select_parameters(
        ...     24, 10, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=1.5
        ... )
        >>> discretisation_slack(settings, contributors=18) < 1e-6
        True
    """
    # As in :func:`concentrated_epsilon`: below that, theorem 1 gives no bound.
    if settings.noise < MIN_STD or contributors < 1:
        return math.inf
    variance = contributors * settings.noise**2
    tau, size = _tau(settings.noise, contributors), settings.parameters
    # One vector in place of another may differ by twice the bound.
    farthest = 2 * _reach(settings, whole=whole)
    shift = 2 * size * tau + math.sqrt(size) * farthest / (2 * variance)
    factor = size * tau + size / (24 * variance)
    return max(shift, factor) * _ROUNDING_FACTOR


def honest_contributors(summed: int, dishonest: int) -> int:
    """Count the devices in a sum whose noise can be relied on, at least 1.

    Args:
        summed: Devices in the sum; before a round its quorum, after it the survivors.
        dishonest: Upper bound on those that collude with the server: they may add no noise, or
            reveal it.

    Raises:
        SettingError: Nobody would be left.

    Example:
        >>> honest_contributors(21, dishonest=3)
        18
    """
    left = summed - dishonest
    if left < 1:
        raise SettingError(
            f"of {summed} summed devices {dishonest} may be dishonest: nobody is left to add noise"
        )
    return left


def calibrate_local_noise(
    settings: SecureAggregationConfig,
    multiplier: float,
    *,
    contributors: int,
    whole: bool = False,
) -> float:
    """Find the scale of each device's noise, in integer steps, for a multiplier of the sum.

    Args:
        settings: Settings of the round; their own ``noise`` is ignored.
        multiplier: Target of :func:`effective_multiplier`, above 0.
        contributors: Devices whose noise can be relied on: those left after as many dropouts as
            allowed, less the dishonest ones.
        whole: As in :func:`effective_multiplier`.

    Returns:
        The least such noise, up to a relative excess of 1e-9, at least 0.5.

    Guarantees:
        - ``effective_multiplier(replace(settings, noise=result), contributors, whole=whole)`` is at
          least ``multiplier``.

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> settings = select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
        >>> noise = calibrate_local_noise(settings, multiplier=2.0, contributors=16)
        >>> round(noise * 4 / settings.rounded_norm, 6)  # sqrt(16) = 4
        2.0
    """
    validation.require_positive(multiplier=multiplier)
    validation.require_at_least(1, contributors=contributors)

    reach = _reach(settings, whole=whole)

    def enough(noise: float) -> bool:
        epsilon = concentrated_epsilon(
            noise, contributors, sensitivity=reach, parameters=settings.parameters
        )
        return not math.isinf(epsilon) and 1 / epsilon >= multiplier

    low = MIN_STD
    if enough(low):
        return low
    # At 8, tau is negligible, so slightly more than the share of a plain Gaussian is enough.
    high = max(8.0, 1.01 * multiplier * reach / math.sqrt(contributors))
    # Bisection keeps ``enough(high)`` true, so what is returned never falls short.
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def with_noise(
    settings: SecureAggregationConfig, multiplier: float, *, contributors: int
) -> SecureAggregationConfig:
    """Set the least noise that gives a multiplier of the sum; 0 removes the noise.

    Raises:
        SettingError: A negative, NaN or infinite multiplier, or more noise than the ring holds.

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> settings = select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
        >>> with_noise(settings, 0.0, contributors=18) == settings
        True
    """
    validation.require_non_negative(multiplier=multiplier)
    if multiplier == 0:
        return replace(settings, noise=0.0)
    return replace(
        settings, noise=calibrate_local_noise(settings, multiplier, contributors=contributors)
    )


def _reach(settings: SecureAggregationConfig, *, whole: bool) -> float:
    """L2 bound on what is hidden, in integer steps."""
    return settings.rounded_norm if whole else settings.rounded_sensitivity


def _tau(noise: float, contributors: int) -> float:
    """The theorem's tau."""
    # Summed by fsum: the terms span hundreds of orders of magnitude.
    rate = -2 * math.pi**2 * noise**2
    return 10 * math.fsum(math.exp(rate * k / (k + 1)) for k in range(1, contributors))
