"""Sums over users in the memory of one vector, however many users there are."""

import math
from dataclasses import fields
from typing import Final

import torch
from torch import Tensor

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.released_sums import ReleasedSum
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.release import Release, SumMechanism

_SUPPORTED_NOISE_FIELDS: Final = frozenset(
    {"noise_multiplier", "clip_norm", "noised_by", "sample_rate", "sums"}
)
"""Fields of a sum's noise that :class:`StreamingAggregator` makes."""


class ClippedAccumulator:
    """A sum to which one user is added after another, and then forgotten.

    Args:
        size: How many numbers a user brings.
        user_noise: What will hide one user in it; None promises nothing and bounds nothing.

    Guarantees:
        - One user moves :attr:`total` by at most ``user_noise.clip_norm`` in L2 (to 1e-6,
          relative), whatever was sent: a device's word for its bound is not taken.
        - A part with a NaN or an infinity adds zeros.
        - Nothing of a single user is kept.

    Example:
        >>> from sottovoce.shared.privacy.release import NoiseSource
        >>> server = NoiseSource.SERVER
        >>> noise = SumMechanism(noise_multiplier=1.0, clip_norm=1.0, noised_by=server)
        >>> both = ClippedAccumulator(2, noise)
        >>> both.add(torch.tensor([3.0, 0.0]))
        >>> both.add(torch.tensor([0.0, 0.5]))
        >>> both.total.tolist(), both.user_count
        ([1.0, 0.5], 2)
    """

    def __init__(self, size: int, user_noise: SumMechanism | None) -> None:
        self.user_noise = user_noise
        self._clip_norm = user_noise.clip_norm if user_noise else math.inf
        self._total = torch.zeros(size, dtype=torch.float64)
        self._count = 0

    def add(self, part: Tensor, *, known_norm: float | None = None) -> None:
        """Add what one user brings, shape (size,).

        Args:
            part: What was sent.
            known_norm: Its L2 norm by ``clipping.l2_norm``, where it was computed already.
        """
        self._total += clipping.clip_to_norm(part, self._clip_norm, known_norm=known_norm)
        self._count += 1

    @property
    def total(self) -> Tensor:
        """Sum so far, shape (size,), float64; not noised, so it must not be released."""
        return self._total.clone()

    @property
    def user_count(self) -> int:
        """Number of users in the sum."""
        return self._count


class StreamingAggregator(PrivateAggregator):
    """Releases sums over sampled users, clipped and added as they come."""

    def release_sum(self, name: str, release: Release, accumulator: ClippedAccumulator) -> Tensor:
        """Release a sum with the noise that hides any one user; float64.

        Args:
            name: What it is within the run.
            release: What the ledger says of it.
            accumulator: The sum; where it promises nothing, it goes as it is.

        Guarantees:
            - The record is on disk before noise is drawn.
            - The noise has the promised standard deviation; a sum of nobody is noise alone.
            - Asked again, a server returns the same sum and books nothing more, as
              ``PrivateAggregator`` does.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        user = accumulator.user_noise
        if user is None:
            return accumulator.total
        released = self.get_released_sum(name)
        if released is not None:
            return released.total
        booking = self.book_release(name, release)
        total = accumulator.total
        # All of it is the server's: plans whose devices add noise too are refused for streaming.
        noise_std = user.noise_multiplier * user.clip_norm
        noised = self._noise(name).add_noise(total, noise_std)
        return self.store_released_sum(
            name, [booking], ReleasedSum(total=noised, devices=accumulator.user_count)
        ).total


def list_unsupported_noise(noise: SumMechanism) -> list[str]:
    """List what noise has beyond what is made here: refused, never left out."""
    named = (field.name for field in fields(noise) if field.name not in _SUPPORTED_NOISE_FIELDS)
    return [name for name in named if getattr(noise, name)]
