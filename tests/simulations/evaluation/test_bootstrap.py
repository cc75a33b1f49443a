"""Contracts of the intervals: they cover, they repeat, and they refuse bad input."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation import bootstrap, metrics


def cohort(users: int, skill: float, seed: int) -> np.ndarray:
    """One confusion matrix a user, 40 utterances in 2 classes."""
    rng = np.random.default_rng(seed)
    right = rng.binomial(20, np.clip(rng.normal(skill, 0.1, (users, 1)), 0, 1), (users, 2))
    return np.stack([[[a, 20 - a], [20 - b, b]] for a, b in right])


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_interval_covers_as_often_as_it_says() -> None:
    drawn = [bootstrap.uar_interval(cohort(40, 0.7, s), rng(), draws=400) for s in range(100)]
    inside = sum(interval.low <= 0.7 <= interval.high for interval in drawn)

    assert 87 <= inside <= 100
    assert np.mean([interval.high - interval.low for interval in drawn]) < 0.1


def test_interval_repeats_and_holds_the_estimate() -> None:
    users = cohort(30, 0.6, 0)
    first, second = bootstrap.uar_interval(users, rng()), bootstrap.uar_interval(users, rng())

    assert first == second
    assert first.estimate == metrics.uar(users.sum(axis=0))
    assert first.low < first.estimate < first.high


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap.uar_interval(np.zeros((0, 2, 2)), rng()),
        lambda: bootstrap.uar_interval(np.zeros((3, 2, 2)), rng()),
        lambda: bootstrap.uar_interval(np.ones((3, 2)), rng()),
        lambda: bootstrap.uar_interval(np.full((3, 2, 2), math.nan), rng()),
        lambda: bootstrap.uar_interval(np.ones((3, 2, 2)), rng(), level=math.nan),
        lambda: bootstrap.uar_interval(np.ones((3, 2, 2)), rng(), draws=0),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(SettingError):
        call()
