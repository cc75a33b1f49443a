"""Quantisation of updates to integers modulo 2^b and back: clip, round at random, add noise."""

import math
from typing import Any, Final

import numpy as np

from sottovoce.shared.errors import MessageError
from sottovoce.shared.secure_aggregation import discrete_gaussian
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import Integers, RandomWords

Floats = np.ndarray[Any, np.dtype[np.float64]]
RingVector = np.ndarray[Any, np.dtype[np.uint32]]
"""Integers modulo 2^b, b at most 32, each below 2^b."""

_MAX_DRAWS: Final = 16


def encode_update(
    update: Floats, settings: SecureAggregationConfig, random: RandomWords
) -> RingVector:
    """Encode one device's update for masking: bounded, quantised and noised.

    Clip -> divide by the granularity -> round at random -> add discrete Gaussian noise -> wrap.

    Args:
        update: Shape (parameters,), any real dtype.
        settings: Settings of the round.
        random: ``SystemRandomWords`` for real users, ``SeededRandomWords`` in a simulation.

    Returns:
        Shape (parameters,), each below 2^bits.

    Raises:
        MessageError: An update of another shape.

    Guarantees:
        - Before the noise, its L2 norm is at most ``settings.rounded_norm`` steps for any input.
          An update with a NaN or an infinity counts as zeros; a longer one is scaled down to the
          clip norm.
        - Under a ``sensitivity``, two updates that far apart, both of them finite, are at most
          ``settings.rounded_sensitivity`` steps apart before the noise, for the same draws of the
          rounding. Those draws do not depend on the update.
        - Noise is added to zeros too, so it stays hidden that an update was unusable.
        - Wrapping around is post-processing and costs no privacy.
        - Not guaranteed: that a device which runs other code respects the bound. Its effect on the
          sum is unbounded, as nobody sees a single update.
    """
    rounded = clip_and_round(update, settings, random)
    noised = rounded + discrete_gaussian.sample_discrete_gaussian(
        settings.parameters, settings.noise, random
    )
    return wrap_to_ring(noised, settings.bits)


def clip_and_round(
    update: Floats, settings: SecureAggregationConfig, random: RandomWords
) -> Integers:
    """Clip an update and round it to the integer grid, shape (parameters,).

    Conditional randomised rounding (Kairouz et al. 2021, section 4): every value is rounded up or
    down at random with the right expectation; a draw that makes the vector too long is repeated,
    with a probability of at most 2^-20, which bounds the bias. Under a ``sensitivity`` the first
    draw counts whatever it comes to: whether one is repeated would depend on the update, and two
    neighbouring ones would be rounded by different draws.

    """
    # Clipping moves no two updates further apart: it projects them onto a ball.
    scaled = clip_update(update, settings) / settings.granularity
    for _ in range(_MAX_DRAWS):
        # 53 bits fill a float64 in [0, 1) exactly, so that no draw rounds up to 1.
        uniforms = (random.draw_words(len(scaled)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rounded = np.floor(scaled + uniforms)
        if settings.sensitivity or l2_norm(rounded) <= settings.rounded_norm:
            return rounded.astype(np.int64)
    # Sixteen long draws in a row do not happen; rounding towards 0 keeps the bound in any case.
    return np.trunc(scaled).astype(np.int64)


def clip_update(update: Floats, settings: SecureAggregationConfig) -> Floats:
    """Scale an update down to the clip norm, as float64; zeros if it is not finite.

    Raises:
        MessageError: Another shape than (parameters,).

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> settings = select_parameters(24, 2, 1.0, dropout=0.1, corruption=0.1)
        >>> clip_update(np.array([3.0, 4.0]), settings).round(6)
        array([0.6, 0.8])
        >>> clip_update(np.array([np.nan, 4.0]), settings)
        array([0., 0.])
    """
    values = np.asarray(update, dtype=np.float64)
    if values.shape != (settings.parameters,):
        raise MessageError(f"an update has shape {values.shape}; needed: ({settings.parameters},)")
    if not np.isfinite(values).all():
        return np.zeros_like(values)
    if l2_norm(values) <= settings.clip_norm:
        return values
    largest = float(np.abs(values).max())
    unit = values / largest  # so that squares cannot overflow
    # Slightly less than the bound, for rounding errors of the product.
    return unit * (settings.clip_norm * (1 - 1e-12) / l2_norm(unit))


def l2_norm(values: Floats) -> float:
    """Compute the L2 norm; infinity instead of an error if squares overflow.

    Example:
        >>> l2_norm(np.array([3.0, 4.0])), l2_norm(np.array([1e200]))
        (5.0, inf)
    """
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.dot(values, values)))


def wrap_to_ring(values: Integers, bits: int) -> RingVector:
    """Reduce integers modulo 2^bits, to uint32.

    Example:
        >>> wrap_to_ring(np.array([-1, 256, 3]), bits=8)
        array([255,   0,   3], dtype=uint32)
    """
    return (values & ((1 << bits) - 1)).astype(np.uint32)


def decode_sum(total: RingVector, settings: SecureAggregationConfig) -> Floats:
    """Decode the sum of updates from the sum modulo 2^bits, shape (parameters,), in their units.

    Values in the upper half of the ring represent negative numbers. Apart from the noise, the
    result is exact up to one granularity per device, unless the sum wrapped around; see
    ``SecureAggregationConfig.wrap_probability``.

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> settings = select_parameters(24, 2, 1.0, dropout=0.1, corruption=0.1)
        >>> random = discrete_gaussian.SeededRandomWords(np.random.default_rng(0))
        >>> encoded = encode_update(np.array([0.5, -0.25]), settings, random)
        >>> decode_sum(encoded, settings).round(6)
        array([ 0.5 , -0.25])
    """
    half, whole = 1 << (settings.bits - 1), 1 << settings.bits
    signed = (total.astype(np.int64) + half) % whole - half
    return signed.astype(np.float64) * settings.granularity
