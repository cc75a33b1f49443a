"""Settings that would break a promise cannot be made."""

import math
from dataclasses import fields, replace

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation.config import (
    ROUNDING_FAILURE_PROBABILITY,
    SecureAggregationConfig,
)

USUAL = SecureAggregationConfig(
    devices=10,
    parameters=100,
    degree=6,
    threshold=4,
    quorum=7,
    clip_norm=1.0,
    granularity=1e-6,
    noise=1000.0,
)


@pytest.mark.parametrize(
    "change",
    [
        {"devices": 2},
        {"parameters": 0},
        {"degree": 5},
        {"degree": 0},
        {"degree": 10},
        {"threshold": 3},
        {"threshold": 7},
        {"quorum": 4},
        {"quorum": 11},
        {"clip_norm": math.nan},
        {"clip_norm": 0.0},
        {"granularity": math.inf},
        {"granularity": 1e-9},
        {"noise": -1.0},
        {"noise": math.nan},
        {"noise": 0.3},
        {"noise": 1e9},
        {"devices": 10.5},
        {"devices": math.nan},
        {"parameters": 20.0},
        {"degree": 6.0},
        {"threshold": 4.5},
        {"quorum": 7.5},
        {"quorum": True},
        {"bits": 32.0},
        {"bits": 7},
        {"bits": 33},
        {"bits": 20},
    ],
)
def test_bad_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(change)) if "bits" not in change else "bits"):
        replace(USUAL, **change)  # type: ignore[arg-type]


def test_every_field_changes_the_digest() -> None:
    changes = {
        "devices": 11,
        "parameters": 101,
        "degree": 4,
        "threshold": 5,
        "quorum": 8,
        "clip_norm": 1.5,
        "granularity": 2e-6,
        "noise": 0.0,
        "bits": 31,
        "sensitivity": 0.1,
    }
    assert set(changes) == {field.name for field in fields(USUAL)}
    changed = {replace(USUAL, **{name: value}).config_hash() for name, value in changes.items()}  # type: ignore[arg-type]

    assert len(changed | {USUAL.config_hash()}) == len(changes) + 1
    assert replace(USUAL).config_hash() == USUAL.config_hash()


def test_the_rounded_norm_is_the_papers() -> None:
    scaled, root = 1e6, 10.0
    squared = (
        scaled**2
        + 25
        + math.sqrt(-2 * math.log(ROUNDING_FAILURE_PROBABILITY)) * (scaled + root / 2)
    )

    assert pytest.approx(math.sqrt(squared), rel=1e-8) == USUAL.rounded_norm
    assert math.sqrt(squared) <= USUAL.rounded_norm
    coarse = replace(USUAL, granularity=1.0)
    assert pytest.approx(min(11.0, math.sqrt(1 + 25 + 5.27 * 6)), rel=0.01) == coarse.rounded_norm


def test_the_chance_to_wrap_grows_with_noise() -> None:
    chances = [replace(USUAL, noise=noise).wrap_probability for noise in (0.0, 1e6, 5e7, 8e7)]

    assert chances[0] == 0
    assert chances == sorted(chances)
    assert 0 < chances[-1] <= 2**-40
    with pytest.raises(SettingError, match="wrap"):
        replace(USUAL, noise=1e8)


def test_settings_without_a_sensitivity_travel_as_before_there_was_one() -> None:
    assert "sensitivity" not in USUAL.to_dict()
    assert SecureAggregationConfig(**USUAL.to_dict()) == USUAL
    part = replace(USUAL, sensitivity=0.1)
    assert SecureAggregationConfig(**part.to_dict()) == part
    with pytest.raises(SettingError, match="sensitivity"):
        replace(USUAL, sensitivity=2 * USUAL.clip_norm)


def test_a_ring_that_is_exactly_as_large_as_the_sum_is_large_enough() -> None:
    # Of five devices each adds at most 51 steps: a ring of 2^9 holds sums from -256 to 255.
    small = {"devices": 5, "degree": 4, "threshold": 3, "quorum": 4, "parameters": 1}
    exact = replace(USUAL, **small, bits=9, noise=0.0, granularity=1 / 50)  # type: ignore[arg-type]

    assert exact.wrap_probability == 0
    with pytest.raises(SettingError, match="wrap"):
        replace(exact, granularity=1 / 51)


@pytest.mark.parametrize("granularity", [1e-6, 0.01, 1.0])
def test_where_every_draw_counts_the_longest_vector_is_within_the_bound(granularity: float) -> None:
    settings = replace(USUAL, sensitivity=0.1, granularity=granularity, noise=0.0)

    longest = settings.clip_norm / granularity + math.sqrt(settings.parameters)
    assert longest <= settings.rounded_norm <= longest * (1 + 1e-8)
