"""How devices behave: when they can take part, how fast they are, whether they last a round.

Everything is a function of (seed, user) and (seed, user, round), so that it is the same in any
order, in any process, and in a resumed run. It never depends on what a user says: the coins that
draw a cohort stay the only chance by which a user's data gets into a sum, or a smaller one.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sottovoce.shared import seeds
from sottovoce.simulations.population.settings import PopulationSettings

_DAY = 24.0
_USUAL_START, _START_SPREAD = 22.0, 3.0
"""Devices are put to charge in the evening, local time; hours."""

_JITTER = 0.25
"""How much one device's time to answer varies from round to round: spread of the logarithm."""


class Fate(StrEnum):
    """What becomes of a device that a round drew."""

    ANSWERS = ""
    UNAVAILABLE = "unavailable"
    DROPPED = "dropped"
    LATE = "late"


@dataclass(frozen=True, kw_only=True, slots=True)
class Habits:
    """One device's ways.

    Attributes:
        zone: Hours that its clock is ahead of the server's, 0 to 23.
        begins: Local hour from which it can take part, in [0, 24).
        hours: For how many hours a day, in [0, 24].
        flakiness: Chance that it stops before it has answered, in [0, 1].
        seconds: How long it usually takes to answer, above 0.
    """

    zone: int
    begins: float
    hours: float
    flakiness: float
    seconds: float

    def there(self, hour: float) -> bool:
        """Whether it can take part at an hour of the server's clock."""
        return (hour + self.zone - self.begins) % _DAY < self.hours


def habits(settings: PopulationSettings, seed: int, place: int) -> Habits:
    """A device's ways, always the same.

    Args:
        settings: The population's.
        seed: The run's.
        place: Which user, from 0.
    """
    rng = seeds.numpy_rng(seed, "habits", place)
    zone, start, length, flake = int(rng.integers(24)), rng.normal(), rng.random(), rng.random()
    speed = math.exp(settings.slow * rng.normal())
    always = settings.hours >= _DAY
    return Habits(
        zone=zone,
        begins=float((_USUAL_START + _START_SPREAD * start) % _DAY),
        hours=_DAY if always else _hours(settings.hours, length),
        flakiness=settings.dropout * 2 * flake,
        seconds=settings.reply_s * speed,
    )


def _hours(usual: float, draw: float) -> float:
    """From half the usual to one and a half, symmetrically, and never more than a day has."""
    spread = min(usual / 2, _DAY - usual)
    return usual + spread * (2 * draw - 1)


def fate(settings: PopulationSettings, seed: int, place: int, number: int) -> Fate:
    """What becomes of a device in a round that drew it.

    Args:
        settings: The population's.
        seed: The run's.
        place: Which user, from 0.
        number: The round, from 0.
    """
    own = habits(settings, seed, place)
    if not own.there(number * settings.every_s / 3600):
        return Fate.UNAVAILABLE
    rng: np.random.Generator = seeds.numpy_rng(seed, "fate", place, number)
    if rng.random() < own.flakiness:
        return Fate.DROPPED
    if own.seconds * math.exp(_JITTER * rng.normal()) > settings.deadline_s:
        return Fate.LATE
    return Fate.ANSWERS
