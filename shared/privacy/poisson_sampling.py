"""Poisson sampling: who joins a step, seeded in a simulation, from system entropy on a device.

Sampling amplifies privacy only against those who do not know who joined. So a device's draws must
not follow from a seed that could be tried out: torch's generator keeps 32 bits of the one it gets.
"""

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.privacy.system_random import draw_system_words

_BITS = 64


class PoissonSampler(Protocol):
    """Source of independent Bernoulli draws."""

    def sample(self, count: int, probability: float) -> Tensor:
        """Draw who joins, each independently.

        Args:
            count: How many draws, 0 or more.
            probability: That each is true, in (0, 1].

        Returns:
            Shape (count,), bool.

        Guarantees:
            - Each is true with at most the probability, to a relative 1e-9 where that is 1e-6 or
              more.
            - No two calls share a draw.
        """
        ...


class SeededPoissonSampler:
    """Draws that a simulation can repeat. They amplify nobody's privacy."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def sample(self, count: int, probability: float) -> Tensor:
        """See ``PoissonSampler.sample``."""
        # 53 bits where the probability counts: with 24, no draw is true less often than 6e-8.
        kind = torch.float64 if probability < 1 else torch.float32
        return torch.rand(count, generator=self._generator, dtype=kind) < probability


class SystemPoissonSampler:
    """Draws from the operating system's entropy, for devices."""

    def sample(self, count: int, probability: float) -> Tensor:
        """See ``PoissonSampler.sample``."""
        words = draw_system_words(count)
        if probability >= 1:
            # 2^64 does not fit into the 64 bits compared below.
            return torch.ones(count, dtype=torch.bool)
        return torch.from_numpy(words < np.uint64(math.floor(probability * 2.0**_BITS)))
