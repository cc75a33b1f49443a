"""Cohorts of a large population: who joins a round, drawn without listing who does not."""

import itertools
import math
import random
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sottovoce.shared import seeding, validation

_BATCH_SIZE = 256
"""Devices whose replies the server holds at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortSampler:
    """Poisson sampling of users: who joins a round.

    Attributes:
        users: How many devices may be drawn: the first ones of the grid. Those behind them only
            take the model in the end.
        user_sampling_rate: Chance that a device joins a round, independently of others, in (0, 1].

    Example:
        >>> CohortSampler(users=1_000_000, user_sampling_rate=1e-3).expected_size
        1000.0
    """

    users: int
    user_sampling_rate: float

    def __post_init__(self) -> None:
        validation.require_at_least(1, users=self.users)
        validation.require_rate(user_sampling_rate=self.user_sampling_rate)

    @property
    def expected_size(self) -> float:
        """Expected number of devices in a round: public, whoever comes."""
        return self.users * self.user_sampling_rate

    def sample(self, rng: random.Random) -> Iterator[int]:
        """Sample the indices of those who join a round, rising, each below ``users``.

        Args:
            rng: Where the draws come from; on a real server the operating system.

        Guarantees:
            - Each device joins with chance ``user_sampling_rate``, independently of all others (to
              1e-13, relative: draws have 53 bits). What is drawn are the gaps between those who
              join, which are geometric, so time and memory go with the cohort, not with the
              population.
        """
        if self.user_sampling_rate == 1:
            yield from range(self.users)
            return
        index, scale = -1, math.log1p(-self.user_sampling_rate)
        while True:
            # 1 - random() is in (0, 1], so that the logarithm is finite.
            gap = math.log(1 - rng.random()) / scale
            if not gap < self.users:
                return
            index += 1 + int(gap)
            if index >= self.users:
                return
            yield index

    def make_rng(self, number: int, seed: int | None) -> random.Random:
        """Make the generator of one round: secret on a real server, repeatable on a simulated one.

        Args:
            number: The round, 0 for the initial cohort.
            seed: The simulated server's; None on a real one.
        """
        if seed is None:
            return secrets.SystemRandom()
        return random.Random(seeding.derive_seed(seed, "crowd", number))  # noqa: S311


def split_into_batches(indices: Iterable[int], size: int = _BATCH_SIZE) -> Iterator[list[int]]:
    """Split indices into batches, in order.

    Example:
        >>> list(split_into_batches(range(5), 2))
        [[0, 1], [2, 3], [4]]
    """
    left = iter(indices)
    while batch := list(itertools.islice(left, size)):
        yield batch
