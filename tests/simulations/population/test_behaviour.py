"""Devices' ways: the shares that were asked for, by time of day, the same in any order."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.population.behaviour import Fate, Habits, fate, habits
from sottovoce.simulations.population.settings import PopulationSettings

CROWD = PopulationSettings(users=1_000_000, cohort=1_000)
SOME = range(3_000)


def _fates(settings: PopulationSettings, number: int = 5) -> Counter[Fate]:
    return Counter(fate(settings, 1, place, number) for place in SOME)


@pytest.mark.parametrize("hours", [0.5, 6.0, 10.0, 18.0, 24.0])
def test_the_asked_share_of_a_day_is_there(hours: float) -> None:
    settings = replace(CROWD, hours=hours)
    for hour in (0.0, 7.5, 19.0):
        there = np.mean([habits(settings, 1, place).there(hour) for place in SOME])
        assert abs(there - hours / 24) < 0.03


def test_one_device_is_there_for_its_hours_and_over_midnight() -> None:
    own = Habits(zone=0, begins=22.0, hours=9.0, flakiness=0.0, seconds=1.0)
    assert [own.there(hour) for hour in (21.9, 22.0, 23.5, 0.0, 6.9, 7.1)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    ahead = replace(own, zone=5)
    assert ahead.there(17.0)
    assert not ahead.there(22.0 + 4.1)


def test_the_day_goes_on_from_round_to_round() -> None:
    settings = replace(CROWD, every_s=3600.0, dropout=0.0)
    for place in range(200):
        there = [fate(settings, 1, place, n) is not Fate.UNAVAILABLE for n in range(24)]
        own = habits(settings, 1, place)
        assert abs(sum(there) - own.hours) <= 1
        turns = sum(a != b for a, b in zip(there, [*there[1:], there[0]], strict=True))
        assert turns <= 2, "one stretch a day"


def test_dropout_and_deadline_take_the_share_that_was_asked_for() -> None:
    awake = replace(CROWD, hours=24.0)
    still = replace(awake, dropout=0.0, slow=0.0, reply_s=1.0)
    assert _fates(still) == {Fate.ANSWERS: len(SOME)}
    assert abs(_fates(replace(still, dropout=0.2))[Fate.DROPPED] / len(SOME) - 0.2) < 0.03
    assert _fates(replace(still, reply_s=1e6)) == {Fate.LATE: len(SOME)}
    late = _fates(replace(still, reply_s=60.0, slow=0.5))[Fate.LATE]
    assert abs(late / len(SOME) - 0.5) < 0.04, "the usual device takes as long as the deadline"


def test_slow_devices_are_slow_in_every_round() -> None:
    """Stragglers are devices, not accidents."""
    settings = replace(CROWD, hours=24.0, dropout=0.0, slow=1.0)
    late = np.array(
        [[fate(settings, 1, place, n) is Fate.LATE for n in range(6)] for place in range(1_000)]
    )
    share = late.mean()
    assert 0.05 < share < 0.3
    assert late[late[:, 0], 1:].mean() > 3 * share


def test_ways_follow_from_seed_and_place_alone() -> None:
    backwards = [habits(CROWD, 1, place) for place in reversed(range(50))][::-1]
    assert backwards == [habits(CROWD, 1, place) for place in range(50)]
    assert habits(CROWD, 1, 3) != habits(CROWD, 2, 3) != habits(CROWD, 2, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cohort": 2_000_000}, "population.cohort is 2e.06; it must be at most 1e.06"),
        ({"hours": 25.0}, "population.hours is 25; it must be at most 24"),
        ({"hours": 0.0}, "hours is 0.0"),
        ({"dropout": 0.6}, "population.dropout is 0.6; it must be at most 0.5"),
        ({"deadline_s": float("nan")}, "deadline_s is nan"),
        ({"users": 0}, "users is 0"),
        ({"quorum": 0.0}, "quorum is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        replace(CROWD, **change)  # type: ignore[arg-type]
