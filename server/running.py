"""Sums over users that hold one number a weight, however many users there are."""

import math

import torch
from torch import Tensor

from sottovoce.server.kept import LetOut
from sottovoce.server.sums import Sums
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.release import Release, UserNoise


class RunningSum:
    """A sum to which one user is added after another, and then forgotten.

    Args:
        size: How many numbers a user brings.
        user: What will hide one user in it; None promises nothing and bounds nothing.

    Guarantees:
        - One user moves :attr:`total` by at most ``user.clip_norm`` in L2 (to 1e-6, relative),
          whatever was sent: a device's word for its bound is not taken.
        - A part with a NaN or an infinity adds zeros.
        - Nothing of a single user is kept.

    Example:
        >>> from sottovoce.shared.privacy.release import NoisedBy
        >>> noise = UserNoise(noise_multiplier=1.0, clip_norm=1.0, noised_by=NoisedBy.SERVER)
        >>> both = RunningSum(2, noise)
        >>> both.add(torch.tensor([3.0, 0.0]))
        >>> both.add(torch.tensor([0.0, 0.5]))
        >>> both.total.tolist(), both.count
        ([1.0, 0.5], 2)
    """

    def __init__(self, size: int, user: UserNoise | None) -> None:
        self.user = user
        self._clip_norm = user.clip_norm if user else math.inf
        self._total = torch.zeros(size, dtype=torch.float64)
        self._count = 0

    def add(self, part: Tensor, *, length: float | None = None) -> None:
        """Add what one user brings, shape (size,).

        Args:
            part: What was sent.
            length: What ``bound.length`` says of it, where this server asked already.
        """
        self._total += bound.project(part, self._clip_norm, known=length)
        self._count += 1

    @property
    def total(self) -> Tensor:
        """The sum so far, shape (size,), float64; not noised, so it must not be let out."""
        return self._total.clone()

    @property
    def count(self) -> int:
        """How many users are in it."""
        return self._count


class RunningSums(Sums):
    """What a server lets out about a crowd; see ``Sums``."""

    def let_out(self, name: str, release: Release, summed: RunningSum) -> Tensor:
        """A sum with the noise that hides any one user; float64.

        Args:
            name: What it is within the run.
            release: What the ledger says of it.
            summed: The sum; where it promises nothing, it goes as it is.

        Guarantees:
            - The record is on disk before noise is drawn.
            - The noise has the promised standard deviation; a sum of nobody is noise alone.
            - Asked again, a server gives the same sum and books nothing more, as ``Sums`` does.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        user = summed.user
        if user is None:
            return summed.total
        kept = self.kept(name)
        if kept is not None:
            return kept.total
        booked = self.book(name, release)
        total = summed.total
        spread = user.noise_multiplier * user.clip_norm
        noised = total + self._noise(booked).normal(tuple(total.shape), spread)
        return self.keep(name, [booked], LetOut(total=noised, devices=summed.count)).total
