"""Cohorts: who joins a round, of all enrolled devices or of a population that nobody lists."""

import itertools
import math
import random
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sottovoce.server.federation import participation_groups
from sottovoce.server.federation.participants import Participant
from sottovoce.shared import seeding, validation
from sottovoce.shared.protocol.training_plan import Plan

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
        # The logarithm below would be that of 0.
        if self.user_sampling_rate == 1:
            yield from range(self.users)
            return
        # log1p keeps the digits of a small rate, which 1 - rate would lose.
        index, scale = -1, math.log1p(-self.user_sampling_rate)
        while True:
            # 1 - random() is in (0, 1], so that the logarithm is finite.
            gap = math.log(1 - rng.random()) / scale
            # Compared as a float: with a tiny rate the gap can be infinite, which is no int.
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


@dataclass(kw_only=True, slots=True)
class CohortSelector:
    """Selects a round's cohort among all enrolled devices, as the plan's privacy asks.

    Attributes:
        plan: The run's public facts.
        simulated_seed: Seed of a simulated server; None on a real one, whose draws are secret.
        groups: Each user's participation group, once assigned, where noise is correlated.
    """

    plan: Plan
    simulated_seed: int | None
    groups: Mapping[str, int] = field(default_factory=dict)

    def assign_groups(
        self, folder: Path, contributors: Sequence[Participant], *, training_started: bool
    ) -> None:
        """Assign participation groups, where noise is correlated across rounds.

        Args:
            folder: Where the split is stored.
            contributors: Devices that train.
            training_started: Whether rounds were made already.

        Raises:
            ModelError: The stored split is damaged, or gone in the middle of a run.
        """
        seed = self.simulated_seed
        self.groups = self.plan.participation.assign_groups(
            lambda min_separation: participation_groups.assign_groups(
                folder,
                [device.user for device in contributors],
                salt=self.plan.run if seed is None else str(seed),
                min_separation=min_separation,
                training_started=training_started,
            )
        )

    def select(self, number: int, contributors: Sequence[Participant]) -> list[Participant]:
        """Select who joins a round: everybody, a group, or a sample that only this server sees.

        Args:
            number: The round, from 1.
            contributors: Devices that train.
        """
        chosen = set(
            self.plan.participation.select_cohort(
                number,
                [one.user for one in contributors],
                groups=self.groups,
                make_rng=lambda: self._make_rng(number),
            )
        )
        return [one for one in contributors if one.user in chosen]

    def _make_rng(self, number: int) -> random.Random:
        """Make the source of a round's draws; a real server's are secret."""
        if self.simulated_seed is None:
            return secrets.SystemRandom()
        seed = seeding.derive_seed(self.simulated_seed, "cohort", number)
        return random.Random(seed)  # noqa: S311

    def expected_size(self, contributors: int) -> float:
        """Compute the expected size of a cohort, the same in all rounds; who joined is secret."""
        return self.plan.participation.expected_contributors(contributors)

    def mean_divisor(self, received: int, contributors: int) -> float:
        """Divisor of a round's sum: who came, or who was expected where that is secret."""
        return self.plan.participation.round_divisor(received, contributors)
