"""Which rounds a user takes part in, and what follows for records, sums and words.

One object each for users who train in every round, who are sampled (Poisson), and who train in
separated rounds under correlated noise (banded matrix factorisation). A plan's scheme chooses it;
server and devices ask it and never which of them it is. It is an object beside the scheme rather
than a decorator around it: a decorator would forward every method of the scheme to change these.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol, TypeVar

from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import Release, SumMechanism

T = TypeVar("T")
Result_co = TypeVar("Result_co", covariant=True)


class RoundBooking(Protocol[Result_co]):
    """How a device can let a prepared update leave; the plan's participation says which way.

    Every way books the release before the update is computed, or requires that it was booked.
    """

    def book_and_release(self) -> Result_co:
        """Book this round, then make its release."""
        ...

    def release_booked(self, all_rounds: Release) -> Result_co:
        """Release it once, where the record of all rounds was booked in advance."""
        ...

    def release_if_separated(self, banded_noise: BandedNoise) -> Result_co:
        """Book and release it, if it is far enough from the device's other rounds."""
        ...


class Participation(ABC):
    """Which rounds a user takes part in.

    Guarantees:
        - What :meth:`round_releases` gives covers every round that a user can take part in, those
          that whoever does not see the draws must take the user to be in included.
    """

    @abstractmethod
    def round_releases(self, rounds: int, record: Callable[[int], Release]) -> Iterator[Release]:
        """Iterate over the records of a user's rounds.

        Args:
            rounds: Rounds of the plan.
            record: From a round's number, from 1, to its record.
        """

    @abstractmethod
    def all_rounds_release(self, rounds: int, record: Callable[[int], Release]) -> Release | None:
        """The one record of all rounds, where it is booked before the first; else None."""

    @abstractmethod
    def releases_in_advance(self, releases: Mapping[str, Release]) -> Mapping[str, Release]:
        """Enrolment sums that a device books in advance, whether or not they are requested.

        Args:
            releases: The records of all sums of enrolment, by name.
        """

    @abstractmethod
    def release_round(
        self, booking: RoundBooking[T], rounds: int, record: Callable[[int], Release]
    ) -> T:
        """Let a device's update leave in the way that these records need.

        Args:
            booking: The device's ways.
            rounds: Rounds of the plan.
            record: From a round's number to its record.
        """

    @abstractmethod
    def assign_groups(self, assign: Callable[[int], Mapping[str, int]]) -> Mapping[str, int]:
        """Assign users to participation groups; without groups nobody is in one.

        Args:
            assign: From the number of groups to each user's group, from 0.
        """

    @abstractmethod
    def select_cohort(
        self,
        number: int,
        users: Sequence[str],
        *,
        groups: Mapping[str, int],
        make_rng: Callable[[], Random],
    ) -> list[str]:
        """Select who joins a round, in the order of ``users``.

        Args:
            number: The round, from 1.
            users: All contributing users.
            groups: What :meth:`assign_groups` gave.
            make_rng: Makes the source of the round's draws; only the server sees them.
        """

    @abstractmethod
    def expected_contributors(self, contributing: int) -> float:
        """Expected number of devices in a round, out of those that contribute."""

    @abstractmethod
    def round_divisor(self, received: int, contributing: int) -> float:
        """Divisor of a round's sum: who came, or who was expected where that is a secret."""

    @abstractmethod
    def cumulative_noise_factor(self, rounds: int) -> float:
        """Factor from one draw of a round's noise to the noise of all rounds' sums together."""

    @abstractmethod
    def match_noise(
        self, *, independent: Callable[[], T], correlated: Callable[[BandedNoise], T]
    ) -> T:
        """Choose between independent noise in each round and noise correlated across rounds."""

    @abstractmethod
    def describe(self, rounds: int) -> str:
        """Describe in words which rounds a user takes part in."""

    def to_record(self, rounds: int) -> dict[str, Any]:
        """The fields ``participation`` of privacy.json; empty where all train in every round."""
        return {}

    def mechanism_sentence(self, rounds: int) -> str:
        """A sentence on the mechanism of all rounds, with a space before it; or nothing."""
        return ""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Assumptions behind the records, beside those of the scheme."""
        return ()


class EveryRound(Participation):
    """Every user trains in every round, under independent noise.

    Example:
        >>> EveryRound().expected_contributors(7), EveryRound().describe(3)
        (7.0, 'every device in every round')
    """

    def round_releases(self, rounds: int, record: Callable[[int], Release]) -> Iterator[Release]:
        """One record a round."""
        return map(record, range(1, rounds + 1))

    def all_rounds_release(
        self,
        rounds: int,
        record: Callable[[int], Release],
    ) -> Release | None:
        """Nothing: each round is booked when it is asked for."""
        return None

    def releases_in_advance(self, releases: Mapping[str, Release]) -> Mapping[str, Release]:
        """Nothing: whoever enrols is asked."""
        return {}

    def release_round(
        self,
        booking: RoundBooking[T],
        rounds: int,
        record: Callable[[int], Release],
    ) -> T:
        """Book the round, then make its release."""
        return booking.book_and_release()

    def assign_groups(self, assign: Callable[[int], Mapping[str, int]]) -> Mapping[str, int]:
        """Nobody is in a group."""
        return {}

    def select_cohort(
        self,
        number: int,
        users: Sequence[str],
        *,
        groups: Mapping[str, int],
        make_rng: Callable[[], Random],
    ) -> list[str]:
        """Select every contributing user."""
        return list(users)

    def expected_contributors(self, contributing: int) -> float:
        """All contributing devices, in every round."""
        return contributing * 1.0

    def round_divisor(self, received: int, contributing: int) -> float:
        """Count those who came.

        No secret here: that a user takes part is public, and whether a device answers depends on
        plan, request, budget and network, never on its clips (``client.federation``). So this is
        post-processing of public facts.
        """
        return received

    def cumulative_noise_factor(self, rounds: int) -> float:
        """Independent noise adds up as the square root of the rounds."""
        return math.sqrt(rounds)

    def match_noise(
        self,
        *,
        independent: Callable[[], T],
        correlated: Callable[[BandedNoise], T],
    ) -> T:
        """Independent noise in each round."""
        return independent()

    def describe(self, rounds: int) -> str:
        """Every device in every round."""
        return "every device in every round"


@dataclass(frozen=True, slots=True)
class PoissonSampled(EveryRound):
    """Each user joins each round with a fixed chance; who does is the server's secret.

    Attributes:
        mechanism: What hides a user in a round's sum, with its ``sample_rate`` below 1.
    """

    mechanism: SumMechanism

    def round_releases(self, rounds: int, record: Callable[[int], Release]) -> Iterator[Release]:
        """One record for all rounds."""
        yield self.all_rounds_release(rounds, record)

    def all_rounds_release(self, rounds: int, record: Callable[[int], Release]) -> Release:
        """The record of all rounds, those that the device will not join included."""
        return replace(record(0), user=replace(self.mechanism, sums=rounds))

    def releases_in_advance(self, releases: Mapping[str, Release]) -> Mapping[str, Release]:
        """All of them: whoever does not see the draws must take anybody to have been asked."""
        return releases

    def release_round(
        self, booking: RoundBooking[T], rounds: int, record: Callable[[int], Release]
    ) -> T:
        """Release under the record of all rounds, which enrolment booked."""
        return booking.release_booked(self.all_rounds_release(rounds, record))

    def select_cohort(
        self,
        number: int,
        users: Sequence[str],
        *,
        groups: Mapping[str, int],
        make_rng: Callable[[], Random],
    ) -> list[str]:
        """A Poisson sample: one draw a user, in their order."""
        rng = make_rng()
        return [one for one in users if rng.random() < self.mechanism.sample_rate]

    def expected_contributors(self, contributing: int) -> float:
        """The expected size of the sample."""
        return contributing * self.mechanism.sample_rate

    def round_divisor(self, received: int, contributing: int) -> float:
        """Those who were expected: how many came is a secret."""
        return self.expected_contributors(contributing)

    def describe(self, rounds: int) -> str:
        """Poisson, with its rate."""
        rate = self.mechanism.sample_rate
        return f"Poisson, each device with rate {rate:g} in every round"


_CORRELATED_NOISE_CLAIM = (
    "The server keeps the noise of the last rounds secret while the run lasts, and uses it once; "
    "devices refuse rounds nearer to each other than the minimum separation."
)


@dataclass(frozen=True, slots=True)
class SeparatedRounds(EveryRound):
    """Each user trains in one of ``min_separation`` rounds, under noise correlated across rounds.

    Attributes:
        banded_noise: Minimum separation of a user's rounds, and the correlation of their noise.

    Example:
        >>> groups = SeparatedRounds(BandedNoise.from_square_root(bands=2, min_separation=3))
        >>> groups.expected_contributors(12)
        4.0
    """

    banded_noise: BandedNoise

    def round_releases(self, rounds: int, record: Callable[[int], Release]) -> Iterator[Release]:
        """One record for each of one group's rounds; the first group has the most."""
        return map(record, range(1, rounds + 1, self.banded_noise.min_separation))

    def release_round(
        self,
        booking: RoundBooking[T],
        rounds: int,
        record: Callable[[int], Release],
    ) -> T:
        """Book and release the round, if it is separated from the device's others."""
        return booking.release_if_separated(self.banded_noise)

    def assign_groups(self, assign: Callable[[int], Mapping[str, int]]) -> Mapping[str, int]:
        """As many groups as the minimum separation."""
        return assign(self.banded_noise.min_separation)

    def select_cohort(
        self,
        number: int,
        users: Sequence[str],
        *,
        groups: Mapping[str, int],
        make_rng: Callable[[], Random],
    ) -> list[str]:
        """Select the users of the round's participation group."""
        group = self.banded_noise.participation_group(number)
        return [one for one in users if groups[one] == group]

    def expected_contributors(self, contributing: int) -> float:
        """The size of a group: the same in all rounds, or noise would not cancel."""
        return contributing / self.banded_noise.min_separation

    def round_divisor(self, received: int, contributing: int) -> float:
        """The size of a group, whoever came."""
        return self.expected_contributors(contributing)

    def cumulative_noise_factor(self, rounds: int) -> float:
        """Correlated noise cancels in part."""
        return self.banded_noise.cumulative_noise_factor(rounds)

    def match_noise(
        self,
        *,
        independent: Callable[[], T],
        correlated: Callable[[BandedNoise], T],
    ) -> T:
        """Noise correlated across rounds."""
        return correlated(self.banded_noise)

    def describe(self, rounds: int) -> str:
        """Participation groups, and how many rounds one user has."""
        return (
            "participation groups, each device in one of "
            f"{self.banded_noise.min_separation} rounds and in at most "
            f"{self.banded_noise.max_participations(rounds)} of {rounds}"
        )

    def to_record(self, rounds: int) -> dict[str, Any]:
        """Separation and correlation, for programs."""
        return {
            "participation": {
                "rounds": rounds,
                "spacing": self.banded_noise.min_separation,
                "most": self.banded_noise.max_participations(rounds),
                "bands": self.banded_noise.band_count,
                "coefficients": list(self.banded_noise.coefficients),
            }
        }

    def mechanism_sentence(self, rounds: int) -> str:
        """All rounds are one Gaussian mechanism."""
        bands, most = self.banded_noise, self.banded_noise.max_participations(rounds)
        noise = f"correlated over {bands.band_count} rounds (banded matrix factorisation)"
        if bands.band_count == 1:
            noise = "independent in each round"
        return (
            f" Each user trains in at most {most} of the rounds, at least {bands.min_separation} "
            f"rounds from one to the next, and the noise is {noise}; all rounds are one Gaussian "
            f"mechanism, in which the contributions of a user's {most} rounds are orthogonal."
        )

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The server's care with noise that later rounds use again."""
        return (_CORRELATED_NOISE_CLAIM,)


def choose_participation(mechanism: SumMechanism) -> Participation:
    """Choose the participation that a round's mechanism accounts for.

    Guarantees:
        - A mechanism with a sampling rate and bands has been refused by :class:`SumMechanism`.
    """
    if mechanism.bands:
        return SeparatedRounds(mechanism.bands)
    return PoissonSampled(mechanism) if mechanism.sample_rate < 1 else EveryRound()
