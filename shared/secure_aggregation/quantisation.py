"""From updates to integers modulo 2^b and back: clip, round at random, add noise."""

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
    """One device's update, bounded and noised, as it goes under the mask.

    Clip -> divide by the granularity -> round at random -> add discrete Gaussian noise -> wrap.

    Args:
        update: Shape (parameters,), any real dtype.
        settings: The round's.
        random: ``SystemRandomWords`` for people, ``SeededRandomWords`` in a simulation.

    Returns:
        Shape (parameters,), each below 2^bits.

    Raises:
        MessageError: Another shape.

    Guarantees:
        - Before the noise, its L2 norm is at most ``settings.rounded_norm`` steps, whatever came
          in: nobody's update outweighs another's. An update with a NaN or an infinity counts as
          zeros; a longer one is scaled down to the clip norm.
        - Noise is added to zeros too: that an update was unusable does not show.
        - Wrapping around is post-processing and costs no privacy.
        - Not promised: that a device which does not run this code keeps to the bound. Its effect
          on the sum is unbounded, as nobody sees a single update.
    """
    rounded = clip_and_round(update, settings, random)
    noised = rounded + discrete_gaussian.sample_discrete_gaussian(
        settings.parameters, settings.noise, random
    )
    return wrap_to_ring(noised, settings.bits)


def clip_and_round(
    update: Floats, settings: SecureAggregationConfig, random: RandomWords
) -> Integers:
    """The clipped update on the integer grid, shape (parameters,); see :func:`encode_update`.

    Conditional randomised rounding (Kairouz et al. 2021, section 4): every value goes up or down
    at random so that its mean is kept; a draw that makes the vector too long is drawn again. The
    chance of that is at most 2^-20, so the means are kept up to that share. Should 16 draws all be
    too long (never, short of a bug), values are cut towards 0, which never makes a vector longer.
    """
    scaled = clip_update(update, settings) / settings.granularity
    for _ in range(_MAX_DRAWS):
        uniforms = (random.draw_words(len(scaled)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rounded = np.floor(scaled + uniforms)
        if l2_norm(rounded) <= settings.rounded_norm:
            return rounded.astype(np.int64)
    return np.trunc(scaled).astype(np.int64)


def clip_update(update: Floats, settings: SecureAggregationConfig) -> Floats:
    """The update scaled down to the clip norm, float64; zeros where it is not finite.

    Raises:
        MessageError: Another shape than (parameters,).
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
    return unit * (settings.clip_norm * (1 - 1e-12) / l2_norm(unit))


def l2_norm(values: Floats) -> float:
    """L2 norm; infinity rather than an error where squares overflow."""
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.dot(values, values)))


def wrap_to_ring(values: Integers, bits: int) -> RingVector:
    """Integers modulo 2^bits."""
    return (values & ((1 << bits) - 1)).astype(np.uint32)


def decode_sum(total: RingVector, settings: SecureAggregationConfig) -> Floats:
    """The sum of updates out of the sum modulo 2^bits, shape (parameters,), in their units.

    Values from half of the ring on stand for negative ones. The result is exact to the
    granularity for each device, beside the noise, unless the sum wrapped around; see
    ``SecureAggregationConfig.wrap_probability``.
    """
    half, whole = 1 << (settings.bits - 1), 1 << settings.bits
    signed = (total.astype(np.int64) + half) % whole - half
    return signed.astype(np.float64) * settings.granularity
