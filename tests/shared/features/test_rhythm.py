"""Contracts of the rhythm: counted syllables and measured pauses."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared.features import rhythm


def measured(levels: Tensor, voiced: Tensor) -> dict[str, float]:
    return dict(
        zip(rhythm.RHYTHM_NAMES, rhythm.measure_rhythm(levels, voiced).tolist(), strict=True)
    )


@pytest.mark.parametrize("rate", [2.0, 3.0, 5.0])
def test_every_voiced_hump_is_a_syllable(rate: float) -> None:
    time = torch.arange(400) / 100
    levels = -20 + 8 * torch.sin(2 * math.pi * rate * time)

    everything = torch.ones(400, dtype=torch.bool)
    assert measured(levels, everything)["syllable_rate"] == pytest.approx(rate, abs=0.26)
    assert measured(levels, ~everything)["syllable_rate"] == 0
    assert measured(levels / 8, everything)["syllable_rate"] < 1, "humps below 2 dB are none"


def test_pauses_are_long_and_deep() -> None:
    levels = torch.full((400,), -20.0)
    levels[100:150] = -60.0  # a pause of 0.5 s
    levels[200:210] = -60.0  # a stop
    levels[300:350] = -30.0  # a weak passage

    found = measured(levels, levels > -50)

    assert found["pause_rate"] == pytest.approx(0.25)
    assert found["pause_ratio"] == pytest.approx(0.125, abs=0.02)
    assert found["voiced_rate"] == pytest.approx(3 / 4)
    assert found["voiced_ratio"] == pytest.approx(340 / 400)
    assert found["voiced_mean"] == pytest.approx((1.0 + 0.5 + 1.9) / 3)
    assert found["duration"] == 4


@pytest.mark.parametrize("frames", [1, 2, 6, 7])
def test_a_few_frames_are_enough(frames: int) -> None:
    for voiced in (True, False):
        values = rhythm.measure_rhythm(torch.zeros(frames), torch.full((frames,), voiced))
        assert values.shape == (len(rhythm.RHYTHM_NAMES),)
        assert values.isfinite().all()
