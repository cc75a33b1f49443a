"""A population: how many users, who is drawn, and how their devices behave."""

from dataclasses import dataclass

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

MAX_USERS = 1_000_000_000


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
        validation.require_at_least(1, users=self.users, cohort=self.cohort, held_out=self.held_out)
        validation.require_at_least(2, clips=self.clips)
        validation.require_positive(
            available_hours_per_day=self.available_hours_per_day,
            median_reply_s=self.median_reply_s,
            deadline_s=self.deadline_s,
            round_interval_s=self.round_interval_s,
        )
        validation.require_non_negative(dropout=self.dropout, log_speed_std=self.log_speed_std)
        validation.require_rate(quorum=self.quorum)
        limits = (
            ("users", self.users, MAX_USERS),
            ("cohort", self.cohort, self.users),
            ("available_hours_per_day", self.available_hours_per_day, 24),
            ("dropout", self.dropout, 0.5),  # a device's own is up to twice the mean
        )
        for name, value, most in limits:
            if value > most:
                raise SettingError(f"population.{name} is {value:g}; it must be at most {most:g}")

    @property
    def user_sampling_rate(self) -> float:
        """Probability that a user joins a round, in (0, 1]."""
        return self.cohort / self.users
