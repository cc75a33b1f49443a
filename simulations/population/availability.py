"""Behaviour of devices: when they can take part, how fast they are, whether they drop out.

Everything is a function of (seed, user) and (seed, user, round), so that it is the same in any
order, in any process, and in a resumed run. It never depends on a user's data: the
sampling of a cohort stays the only probability by which it gets into a sum, or a smaller one.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sottovoce.shared import seeding
from sottovoce.simulations.scenario.population import PopulationSettings

_DAY_HOURS = 24.0
_MEAN_START_H, _START_STD_H = 22.0, 3.0
"""Devices are put to charge in the evening, local time; hours."""

_LOG_JITTER_STD = 0.25
"""How much one device's time to answer varies from round to round: standard
deviation of the logarithm."""


class Availability(StrEnum):
    """Availability of a device that a round sampled."""

    AVAILABLE = ""
    UNAVAILABLE = "unavailable"
    DROPPED = "dropped"
    LATE = "late"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBehaviour:
    """Availability, dropout and reply time of one device.

    Attributes:
        clock_offset_h: Hours that its clock is ahead of the server's, 0 to 23.
        available_from_h: Local hour from which it can take part, in [0, 24).
        available_hours: For how many hours a day, in [0, 24].
        dropout_probability: Probability that it stops before it has answered, in [0, 1].
        median_reply_s: Median time until it answers, in seconds, above 0.
    """

    clock_offset_h: int
    available_from_h: float
    available_hours: float
    dropout_probability: float
    median_reply_s: float

    def is_available(self, hour: float) -> bool:
        """Whether it can take part at an hour of the server's clock."""
        return (
            hour + self.clock_offset_h - self.available_from_h
        ) % _DAY_HOURS < self.available_hours


def draw_behaviour(settings: PopulationSettings, seed: int, index: int) -> DeviceBehaviour:
    """A device's behaviour, always the same.

    Args:
        settings: The population's.
        seed: The run's.
        index: Which user, from 0.
    """
    # All draws at once and always: a setting that needs fewer must not shift the others.
    rng = seeding.numpy_rng(seed, "habits", index)
    zone, start, hours, dropout = int(rng.integers(24)), rng.normal(), rng.random(), rng.random()
    speed = math.exp(settings.log_speed_std * rng.normal())
    always = settings.available_hours_per_day >= _DAY_HOURS
    return DeviceBehaviour(
        clock_offset_h=zone,
        available_from_h=float((_MEAN_START_H + _START_STD_H * start) % _DAY_HOURS),
        available_hours=_DAY_HOURS
        if always
        else _draw_hours(settings.available_hours_per_day, hours),
        # Uniform from 0 to twice the setting, whose mean is the setting.
        dropout_probability=settings.dropout * 2 * dropout,
        median_reply_s=settings.median_reply_s * speed,
    )


def _draw_hours(mean: float, draw: float) -> float:
    """From half the mean to one and a half, symmetrically, and never more than a day has."""
    half_range = min(mean / 2, _DAY_HOURS - mean)
    return mean + half_range * (2 * draw - 1)


def draw_availability(
    settings: PopulationSettings, seed: int, index: int, number: int
) -> Availability:
    """Draw the availability of one sampled device in a round.

    Args:
        settings: The population's.
        seed: The run's.
        index: Which user, from 0.
        number: The round, from 0.
    """
    own = draw_behaviour(settings, seed, index)
    if not own.is_available(number * settings.round_interval_s / 3600):
        return Availability.UNAVAILABLE
    rng: np.random.Generator = seeding.numpy_rng(seed, "fate", index, number)
    if rng.random() < own.dropout_probability:
        return Availability.DROPPED
    if own.median_reply_s * math.exp(_LOG_JITTER_STD * rng.normal()) > settings.deadline_s:
        return Availability.LATE
    return Availability.AVAILABLE
