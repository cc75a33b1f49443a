"""Gaussian noise for privacy: seeded in a simulation, from the operating system on a device.

Whoever can repeat the noise can subtract it again. A simulation must repeat, so its noise comes
from a seed and protects nobody; a device's and an operator's noise comes from the operating
system's entropy and cannot be repeated by anyone, themselves included.
"""

import math
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.errors import PrivacyError

_DRAWS = 4
"""Gaussians summed into one value, see ``SystemGaussianSampler``."""


class GaussianSampler(Protocol):
    """Source of privacy noise."""

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        """Independent draws from a normal distribution of mean 0.

        Args:
            shape: Shape of the result.
            std: Standard deviation, in the units of what is noised, 0 or above.

        Returns:
            The noise, float64. Add it in float64, then round: rounding the noise first would leave
            the low bits of the secret visible.

        Raises:
            PrivacyError: ``std`` is negative, NaN or infinite.

        Guarantees:
            - A ``std`` of 0 gives zeros; a shape with a 0 gives no values.
            - No two calls share a draw.
        """
        ...


class SeededGaussianSampler:
    """Noise that a simulation can repeat. It protects nobody: people need the system's.

    Drawn in float32, a fifth of the time that float64 takes (``make bench``, "private, simulated").
    What float32 cannot reach would give a secret away; what is simulated has none.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        """See ``GaussianSampler.sample_noise``."""
        _check_std(std)
        draws = torch.randn(tuple(shape), generator=self._generator, dtype=torch.float32)
        return draws.double().mul_(std)


class SystemGaussianSampler:
    """Noise from the operating system's entropy, for devices and operators.

    Each value is the sum of four Gaussians, halved, so that the values that floating point can
    and cannot reach do not reveal the noise (Holohan and Braghin 2021, section 5.1,
    https://arxiv.org/abs/2107.10138; Opacus' secure mode does the same). Each Gaussian is the
    cosine half of a Box-Muller pair of 53-bit uniforms; the sine half is thrown away, because two
    values made of one pair would betray each other.
    """

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        """See ``GaussianSampler.sample_noise``."""
        _check_std(std)
        size = math.prod(shape)
        radius, angle = _uniforms(2 * _DRAWS * size).reshape(2, _DRAWS, size)
        gaussians = np.sqrt(-2 * np.log(radius)) * np.cos(2 * math.pi * angle)
        values = gaussians.sum(axis=0) * (std / math.sqrt(_DRAWS))
        return torch.from_numpy(values.reshape(tuple(shape)))


def _uniforms(size: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Multiples of 2**-53 in (0, 1], shape (size,), each from its own 64 bits of entropy."""
    words = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
    return ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53


def _check_std(std: float) -> None:
    """Refuse a scale that would silently be no noise, or no number."""
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(
            f"std of the noise is {std}; it must be finite and 0 or above: "
            "check clip_norm and noise_multiplier"
        )
