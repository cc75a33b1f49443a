"""Devices' behaviour: the shares that were asked for, by time of day, the same in any order."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.population.availability import (
    Availability,
    DeviceBehaviour,
    draw_availability,
    draw_behaviour,
)
from sottovoce.simulations.scenario.population import PopulationSettings

SETTINGS = PopulationSettings(users=1_000_000, cohort=1_000)
SOME = range(3_000)


def _outcomes(settings: PopulationSettings, number: int = 5) -> Counter[Availability]:
    return Counter(draw_availability(settings, 1, index, number) for index in SOME)


@pytest.mark.parametrize("hours", [0.5, 6.0, 10.0, 18.0, 24.0])
def test_the_asked_share_of_a_day_is_there(hours: float) -> None:
    settings = replace(SETTINGS, available_hours_per_day=hours)
    for hour in (0.0, 7.5, 19.0):
        there = np.mean([draw_behaviour(settings, 1, index).is_available(hour) for index in SOME])
        assert abs(there - hours / 24) < 0.03


def test_one_device_is_there_for_its_hours_and_over_midnight() -> None:
    own = DeviceBehaviour(
        clock_offset_h=0,
        available_from_h=22.0,
        available_hours=9.0,
        dropout_probability=0.0,
        median_reply_s=1.0,
    )
    assert [own.is_available(hour) for hour in (21.9, 22.0, 23.5, 0.0, 6.9, 7.1)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    ahead = replace(own, clock_offset_h=5)
    assert ahead.is_available(17.0)
    assert not ahead.is_available(22.0 + 4.1)


def test_the_day_goes_on_from_round_to_round() -> None:
    settings = replace(SETTINGS, round_interval_s=3600.0, dropout=0.0)
    for index in range(200):
        there = [
            draw_availability(settings, 1, index, n) is not Availability.UNAVAILABLE
            for n in range(24)
        ]
        own = draw_behaviour(settings, 1, index)
        assert abs(sum(there) - own.available_hours) <= 1
        changes = sum(a != b for a, b in zip(there, [*there[1:], there[0]], strict=True))
        assert changes <= 2, "one stretch a day"


def test_dropout_and_deadline_take_the_share_that_was_asked_for() -> None:
    awake = replace(SETTINGS, available_hours_per_day=24.0)
    still = replace(awake, dropout=0.0, log_speed_std=0.0, median_reply_s=1.0)
    assert _outcomes(still) == {Availability.AVAILABLE: len(SOME)}
    assert (
        abs(_outcomes(replace(still, dropout=0.2))[Availability.DROPPED] / len(SOME) - 0.2) < 0.03
    )
    assert _outcomes(replace(still, median_reply_s=1e6)) == {Availability.LATE: len(SOME)}
    late = _outcomes(replace(still, median_reply_s=60.0, log_speed_std=0.5))[Availability.LATE]
    assert abs(late / len(SOME) - 0.5) < 0.04, "the usual device takes as long as the deadline"


def test_slow_devices_are_slow_in_every_round() -> None:
    """Stragglers are devices, not accidents."""
    settings = replace(SETTINGS, available_hours_per_day=24.0, dropout=0.0, log_speed_std=1.0)
    late = np.array(
        [
            [draw_availability(settings, 1, index, n) is Availability.LATE for n in range(6)]
            for index in range(1_000)
        ]
    )
    share = late.mean()
    assert 0.05 < share < 0.3
    assert late[late[:, 0], 1:].mean() > 3 * share


def test_behaviour_follows_from_seed_and_index_alone() -> None:
    backwards = [draw_behaviour(SETTINGS, 1, index) for index in reversed(range(50))][::-1]
    assert backwards == [draw_behaviour(SETTINGS, 1, index) for index in range(50)]
    assert (
        draw_behaviour(SETTINGS, 1, 3)
        != draw_behaviour(SETTINGS, 2, 3)
        != draw_behaviour(SETTINGS, 2, 4)
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"cohort": 2_000_000},
            "population.cohort is 2000000; it must be .* 1 to 1,000,000",
        ),
        (
            {"available_hours_per_day": 25.0},
            "population.available_hours_per_day is 25.0; it must be from 0.001 to 24",
        ),
        ({"available_hours_per_day": 0.0}, "available_hours_per_day is 0.0"),
        ({"dropout": 0.6}, "population.dropout is 0.6; it must be from 0 to 0.5"),
        ({"deadline_s": float("nan")}, "deadline_s is nan"),
        ({"users": 0}, "users is 0"),
        ({"quorum": 0.0}, "quorum is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        replace(SETTINGS, **change)  # type: ignore[arg-type]
