"""Cohorts out of a crowd: who joins a round, drawn without listing who does not."""

import itertools
import math
import random
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sottovoce.shared import check, seeds

_MOST_AT_ONCE = 256
"""Devices whose replies the server holds together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohorts:
    """How a run draws its rounds from a crowd.

    Attributes:
        users: How many devices may be drawn: the first ones of the grid. Those behind them only
            take the model in the end.
        rate: Chance that a device joins a round, by a coin of its own, in (0, 1].

    Example:
        >>> Cohorts(users=1_000_000, rate=1e-3).expected
        1000.0
    """

    users: int
    rate: float

    def __post_init__(self) -> None:
        check.at_least(1, users=self.users)
        check.rate(rate=self.rate)

    @property
    def expected(self) -> float:
        """How many devices a round expects: public, whoever comes."""
        return self.users * self.rate

    def draw(self, coins: random.Random) -> Iterator[int]:
        """Places of those who join a round, rising, each below ``users``.

        Args:
            coins: Where the coins come from; on a real server the operating system.

        Guarantees:
            - Each device joins with chance ``rate``, independently of all others (to 1e-13,
              relative: coins have 53 bits). What is drawn are the gaps between those who join,
              which are geometric, so time and memory go with the cohort, not with the crowd.
        """
        if self.rate == 1:
            yield from range(self.users)
            return
        place, scale = -1, math.log1p(-self.rate)
        while True:
            # 1 - random() is in (0, 1], so that the logarithm is finite.
            gap = math.log(1 - coins.random()) / scale
            if not gap < self.users:
                return
            place += 1 + int(gap)
            if place >= self.users:
                return
            yield place

    def coins(self, number: int, seed: int | None) -> random.Random:
        """The coins of one round: secret on a real server, repeatable on a simulated one.

        Args:
            number: The round, 0 for the founding one.
            seed: The simulated server's; None on a real one.
        """
        if seed is None:
            return secrets.SystemRandom()
        return random.Random(seeds.derive(seed, "crowd", number))  # noqa: S311


def batches(places: Iterable[int], size: int = _MOST_AT_ONCE) -> Iterator[list[int]]:
    """The same, in order, a few at a time.

    Example:
        >>> list(batches(range(5), 2))
        [[0, 1], [2, 3], [4]]
    """
    left = iter(places)
    while batch := list(itertools.islice(left, size)):
        yield batch
