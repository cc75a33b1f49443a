"""A population: how many users, who is drawn, and how their devices behave."""

from dataclasses import dataclass

from sottovoce.shared import validation

MAX_USERS = 1_000_000_000
MAX_COHORT = 1_000_000
MAX_HELD_OUT = 10_000
MAX_CLIPS = 1_000
"""A round's cohort and the held-out users' clips are held in memory."""
MAX_SECONDS = 1e8
"""Three years: longer than any reply, deadline or interval of rounds."""
MAX_LOG_SPEED_STD = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PopulationSettings:
    """A synthetic population, the table ``[population]`` of a scenario.

    Attributes:
        users: How many are registered.
        cohort: How many a round samples on average; each with probability cohort / users.
        held_out: Further users who never train and test the model.
        clips: How many clips a user has on average; from half of that to one and a half.
        available_hours_per_day: How many hours a day a device can take part (idle, charging, on
            an unmetered network), on average; 24 for always.
        dropout: Probability that a device stops before it has answered, on average over devices.
        median_reply_s: How long the median device takes to answer, in seconds, above 0.
        log_speed_std: Standard deviation of the logarithm of the devices' speeds.
        deadline_s: Replies that come later than this are not counted, in seconds, above 0.
        round_interval_s: From the start of one round to that of the next, in seconds.
        quorum: Least share of the expected cohort whose updates make a round, in (0, 1].
    """

    users: int
    cohort: int
    held_out: int = 200
    clips: int = 12
    available_hours_per_day: float = 10.0
    dropout: float = 0.05
    median_reply_s: float = 20.0
    log_speed_std: float = 0.5
    deadline_s: float = 60.0
    round_interval_s: float = 3600.0
    quorum: float = 0.05

    def __post_init__(self) -> None:
        validation.require_count(1, MAX_USERS, **{"population.users": self.users})
        most = min(MAX_COHORT, self.users)
        validation.require_count(1, most, **{"population.cohort": self.cohort})
        validation.require_count(1, MAX_HELD_OUT, **{"population.held_out": self.held_out})
        validation.require_count(2, MAX_CLIPS, **{"population.clips": self.clips})
        ranges = (
            ("available_hours_per_day", self.available_hours_per_day, 1e-3, 24),
            ("dropout", self.dropout, 0, 0.5),  # a device's own is up to twice the mean
            ("median_reply_s", self.median_reply_s, 1e-3, MAX_SECONDS),
            ("log_speed_std", self.log_speed_std, 0, MAX_LOG_SPEED_STD),
            ("deadline_s", self.deadline_s, 1e-3, MAX_SECONDS),
            ("round_interval_s", self.round_interval_s, 1e-3, MAX_SECONDS),
        )
        for name, value, low, high in ranges:
            validation.require_range(low, high, **{f"population.{name}": value})
        validation.require_rate(**{"population.quorum": self.quorum})

    @property
    def user_sampling_rate(self) -> float:
        """Probability that a user joins a round, in (0, 1]."""
        return self.cohort / self.users
