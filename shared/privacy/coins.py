"""Coins that decide who joins a step: seeded in a simulation, the operating system's on a device.

Sampling amplifies privacy only against those who do not know who joined. So a device's coins must
not follow from a seed that could be tried out: torch's generator keeps 32 bits of the one it gets.
"""

import math
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_BITS = 64


class Coins(Protocol):
    """Where coins come from."""

    def toss(self, count: int, chance: float) -> Tensor:
        """Independent coins.

        Args:
            count: How many, 0 or more.
            chance: That each says yes, in (0, 1].

        Returns:
            Shape (count,), bool.

        Guarantees:
            - Each says yes with at most the chance, to a relative 1e-9 where that is 1e-6 or more.
            - No two calls share a coin.
        """
        ...


class SeededCoins:
    """Coins that a simulation can repeat. They amplify nobody's privacy."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def toss(self, count: int, chance: float) -> Tensor:
        """See ``Coins.toss``."""
        # Of 53 bits, where chance counts; with 24 a coin never says yes less often than 6e-8.
        kind = torch.float64 if chance < 1 else torch.float32
        return torch.rand(count, generator=self._generator, dtype=kind) < chance


class SystemCoins:
    """Coins of the operating system's entropy, for devices."""

    def toss(self, count: int, chance: float) -> Tensor:
        """See ``Coins.toss``."""
        words = np.frombuffer(os.urandom(_BITS // 8 * count), dtype=np.uint64)
        if chance >= 1:
            return torch.ones(count, dtype=torch.bool)
        return torch.from_numpy(words < np.uint64(math.floor(chance * 2.0**_BITS)))
