"""Cohort sampling: the right chance, nobody listed, secret on a real server."""

import itertools
import random
import tracemalloc

import pytest

from sottovoce.server.federation.cohort_sampling import CohortSampler, split_into_batches
from sottovoce.shared.errors import SettingError


def _draw(cohorts: CohortSampler, seed: int) -> list[int]:
    return list(cohorts.sample(cohorts.make_rng(1, seed)))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_everyone_joins_with_the_rate_independently_of_neighbours(rate: float) -> None:
    users, rounds = 50, 6_000
    rng, crowd = random.Random(1), CohortSampler(users=users, user_sampling_rate=rate)
    joined, pairs = [0] * users, 0
    for _ in range(rounds):
        drawn = list(crowd.sample(rng))
        assert drawn == sorted(set(drawn))
        for index in drawn:
            joined[index] += 1
        pairs += sum(b - a == 1 for a, b in itertools.pairwise(drawn))

    spread = (rounds * rate * (1 - rate)) ** 0.5
    assert all(abs(count - rounds * rate) < 5 * spread for count in joined)
    chances = rounds * (users - 1)
    # Neighbours share a place, so their pairs vary a little more than independent coins.
    assert abs(pairs - chances * rate**2) < 8 * (chances * rate**2) ** 0.5


def test_a_wrong_rate_would_be_found() -> None:
    """The test above can fail: it tells 0.3 from 0.31."""
    rng, crowd = random.Random(1), CohortSampler(users=50, user_sampling_rate=0.31)
    joined = sum(len(list(crowd.sample(rng))) for _ in range(6_000))
    assert abs(joined - 6_000 * 50 * 0.3) > 5 * (6_000 * 50 * 0.3 * 0.7) ** 0.5


def test_everybody_joins_at_rate_1() -> None:
    assert _draw(CohortSampler(users=5, user_sampling_rate=1.0), 0) == [0, 1, 2, 3, 4]


def test_a_billion_users_cost_no_more_than_those_who_are_drawn() -> None:
    crowd = CohortSampler(users=1_000_000_000, user_sampling_rate=1e-6)
    tracemalloc.start()
    count = sum(1 for _ in crowd.sample(crowd.make_rng(1, 3)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert 800 < count < 1_200
    assert peak < 100_000


def test_a_simulation_repeats_its_coins_and_rounds_and_runs_differ() -> None:
    crowd = CohortSampler(users=10_000, user_sampling_rate=0.01)
    first = _draw(crowd, 3)

    assert first == _draw(crowd, 3) != _draw(crowd, 4)
    assert first != list(crowd.sample(crowd.make_rng(2, 3)))
    assert first != list(crowd.sample(crowd.make_rng(1, 4)))


def test_a_real_server_takes_coins_from_the_system() -> None:
    crowd = CohortSampler(users=10_000, user_sampling_rate=0.01)
    assert isinstance(crowd.make_rng(1, None), random.SystemRandom)
    assert list(crowd.sample(crowd.make_rng(1, None))) != list(
        crowd.sample(crowd.make_rng(1, None))
    )


@pytest.mark.parametrize(("users", "rate"), [(0, 0.1), (5, 0.0), (5, 1.5), (5, float("nan"))])
def test_cohorts_that_make_no_sense_are_refused(users: int, rate: float) -> None:
    with pytest.raises(SettingError):
        CohortSampler(users=users, user_sampling_rate=rate)


def test_batches_keep_order_and_leave_nobody_out() -> None:
    assert list(split_into_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(split_into_batches([], 3)) == []
