"""A population: how many users, who is drawn, and how their devices behave."""

from dataclasses import dataclass

from sottovoce.shared import check
from sottovoce.shared.errors import SettingError

MOST_USERS = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PopulationSettings:
    """A crowd of made-up users, the table ``[population]`` of a scenario.

    Attributes:
        users: How many are registered.
        cohort: How many a round draws on average; each joins by a coin of chance cohort / users.
        held_out: Further users who never train and test the model.
        clips: How many clips a user has on average; from half of that to one and a half.
        hours: How many hours a day a device can take part (idle, charging, on an unmetered
            network), on average; 24 for always.
        dropout: Chance that a device stops before it has answered, on average over devices.
        reply_s: How long a usual device takes to answer, in seconds, above 0.
        slow: Spread of the devices' speeds, the standard deviation of its logarithm.
        deadline_s: Replies that come later than this are not counted, in seconds, above 0.
        every_s: From the start of one round to that of the next, in seconds: the day goes on.
        quorum: Least share of the expected cohort whose updates make a round, in (0, 1].
    """

    users: int
    cohort: int
    held_out: int = 200
    clips: int = 12
    hours: float = 10.0
    dropout: float = 0.05
    reply_s: float = 20.0
    slow: float = 0.5
    deadline_s: float = 60.0
    every_s: float = 3600.0
    quorum: float = 0.05

    def __post_init__(self) -> None:
        check.at_least(1, users=self.users, cohort=self.cohort, held_out=self.held_out)
        check.at_least(2, clips=self.clips)
        check.positive(
            hours=self.hours,
            reply_s=self.reply_s,
            deadline_s=self.deadline_s,
            every_s=self.every_s,
        )
        check.not_negative(dropout=self.dropout, slow=self.slow)
        check.rate(quorum=self.quorum)
        limits = (
            ("users", self.users, MOST_USERS),
            ("cohort", self.cohort, self.users),
            ("hours", self.hours, 24),
            ("dropout", self.dropout, 0.5),  # a device's own is up to twice the mean
        )
        for name, value, most in limits:
            if value > most:
                raise SettingError(f"population.{name} is {value:g}; it must be at most {most:g}")

    @property
    def rate(self) -> float:
        """Chance that a user joins a round, in (0, 1]."""
        return self.cohort / self.users
