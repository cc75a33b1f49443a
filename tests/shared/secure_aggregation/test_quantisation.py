"""Nobody's update outweighs another's; sums come back exact to the granularity."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sottovoce.shared.errors import MessageError
from sottovoce.shared.secure_aggregation import quantisation
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import (
    SeededRandomWords,
    SystemRandomWords,
)

FINE = SecureAggregationConfig(
    devices=5,
    parameters=64,
    degree=4,
    threshold=3,
    quorum=4,
    clip_norm=2.0,
    granularity=1e-7,
)
COARSE = replace(FINE, granularity=0.3)


def seeded(seed: int) -> SeededRandomWords:
    return SeededRandomWords(np.random.default_rng(seed))


@pytest.mark.parametrize("settings", [FINE, COARSE])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-3, 1.0, 1e30, 1e200, 1e308, math.inf, math.nan])
def test_no_update_outgrows_the_bound(settings: SecureAggregationConfig, size: float) -> None:
    update = np.full(64, size) * np.resize([1, -1], 64)
    clipped = quantisation.clip_update(update, settings)
    rounded = quantisation.clip_and_round(update, settings, SystemRandomWords())

    assert quantisation.l2_norm(clipped) <= settings.clip_norm
    assert quantisation.l2_norm(rounded.astype(float)) <= settings.rounded_norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_zeros(bad: float) -> None:
    update = np.ones(64)
    update[3] = bad

    assert not quantisation.clip_and_round(update, FINE, SystemRandomWords()).any()
    assert quantisation.encode_update(update, replace(FINE, noise=50.0), SystemRandomWords()).any()


def test_a_long_update_keeps_its_direction_and_a_short_one_everything() -> None:
    update = np.random.default_rng(0).normal(size=64)
    long = quantisation.clip_update(100 * update, FINE)

    assert quantisation.l2_norm(long) == pytest.approx(FINE.clip_norm)
    assert long == pytest.approx(update * FINE.clip_norm / np.linalg.norm(update))
    assert (quantisation.clip_update(update / 100, FINE) == update / 100).all()


def test_rounding_keeps_the_mean() -> None:
    update = np.random.default_rng(1).uniform(-0.2, 0.2, 64)
    total = (
        sum(quantisation.clip_and_round(update, COARSE, seeded(n)) for n in range(3000))
        * COARSE.granularity
    )

    # One rounding has a standard deviation of half a step at most.
    assert np.abs(total / 3000 - update).max() < 6 * 0.5 * COARSE.granularity / math.sqrt(3000)
    # Rounding to the nearest would be off by more than that.
    nearest = np.rint(update / COARSE.granularity) * COARSE.granularity
    assert np.abs(nearest - update).max() > 6 * 0.5 * COARSE.granularity / math.sqrt(3000)


class Upwards:
    """Uniform numbers just below 1: every value is rounded up, however long that makes it."""

    def draw_words(self, size: int) -> np.ndarray:
        return np.full(size, 2**64 - 1, dtype=np.uint64)


def test_a_rounding_that_is_always_too_long_is_cut_instead() -> None:
    settings = replace(FINE, parameters=4096, granularity=1.9)
    update = np.full(4096, 1e-6)

    rounded = quantisation.clip_and_round(update, settings, Upwards())

    assert quantisation.l2_norm(np.ones(4096)) > settings.rounded_norm
    assert not rounded.any()


@pytest.mark.parametrize("bits", [29, 32])
def test_a_sum_comes_back_exact_to_the_granularity(bits: int) -> None:
    settings = replace(FINE, bits=bits)
    updates = np.random.default_rng(2).normal(size=(5, 64)) * 0.2
    total = np.zeros(64, dtype=np.uint32)
    for update in updates:
        total = (
            total + quantisation.encode_update(update, settings, SystemRandomWords())
        ) & np.uint32(2**bits - 1)

    error = quantisation.decode_sum(total, settings) - updates.sum(0)
    assert np.abs(error).max() <= 5 * settings.granularity
    assert np.abs(error).max() > 0


def test_negative_values_wrap_and_come_back() -> None:
    values = np.array([-1, 0, 1, -(2**28), 2**28 - 1])
    settings = replace(FINE, parameters=5, bits=29, granularity=0.5, noise=0.0)

    assert (
        quantisation.decode_sum(quantisation.wrap_to_ring(values, 29), settings) == values * 0.5
    ).all()


@pytest.mark.parametrize("bits", [8, 20, 31, 32])
def test_a_ring_holds_what_is_left_modulo_its_size(bits: int) -> None:
    values = np.array([-(2**40) - 3, -300, -1, 0, 255, 256, 2**bits - 1, 2**bits, 2**40 + 3])

    wrapped = quantisation.wrap_to_ring(values, bits)

    assert wrapped.dtype == np.uint32
    assert wrapped.tolist() == [int(value) % 2**bits for value in values]


def test_noise_is_added_at_its_scale() -> None:
    settings = replace(FINE, parameters=20_000, noise=1e4)
    noised = quantisation.decode_sum(
        quantisation.encode_update(np.zeros(20_000), settings, SystemRandomWords()), settings
    )

    scale = noised.std() / settings.granularity
    assert abs(scale / 1e4 - 1) < 6 / math.sqrt(2 * 20_000)


def test_a_seed_repeats_all_of_it() -> None:
    update, settings = np.linspace(-1, 1, 64), replace(FINE, noise=100.0)
    one, again, other = (quantisation.encode_update(update, settings, seeded(n)) for n in (4, 4, 5))

    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.parametrize("shape", [(), (63,), (65,), (64, 1), (1, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match="shape"):
        quantisation.encode_update(np.zeros(shape), FINE, SystemRandomWords())


@pytest.mark.parametrize("size", [0.01, 1.9, 2.0, 2.5, 40.0])
@pytest.mark.parametrize("granularity", [1e-6, 0.3])
def test_neighbours_are_rounded_by_the_same_draws(size: float, granularity: float) -> None:
    """Whatever the rest is, and however it is clipped, a part moves the whole by no more."""
    settings = replace(FINE, granularity=granularity, sensitivity=0.1)
    random = np.random.default_rng(3)
    for seed in range(20):
        whole, part = random.normal(size=64), random.normal(size=64)
        whole *= size / quantisation.l2_norm(whole)
        part *= 0.1 / quantisation.l2_norm(part)
        one, other = (
            quantisation.clip_and_round(update, settings, seeded(seed)).astype(float)
            for update in (whole, whole + part)
        )
        assert quantisation.l2_norm(one - other) <= settings.rounded_sensitivity


class UpThenAnywhere(SeededRandomWords):
    """Rounds every value up at first."""

    def __init__(self) -> None:
        super().__init__(np.random.default_rng(0))
        self.draws = 0

    def draw_words(self, count: int) -> Any:
        self.draws += 1
        drawn = super().draw_words(count)
        return np.full_like(drawn, 2**64 - 1) if self.draws == 1 else drawn


@pytest.mark.parametrize(("sensitivity", "draws"), [(0.0, 2), (0.1, 1)])
def test_under_a_sensitivity_no_draw_is_repeated(sensitivity: float, draws: int) -> None:
    """Whether one is would depend on the update: neighbours would come from other draws."""
    settings = replace(COARSE, granularity=1.0, sensitivity=sensitivity)
    random = UpThenAnywhere()

    rounded = quantisation.clip_and_round(np.full(64, 0.25), settings, random)

    assert random.draws == draws
    assert (rounded == 1).all() == (draws == 1)
