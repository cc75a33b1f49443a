"""Simulated channels: a seed decides them, and they keep length and level."""

import numpy as np
import pytest

from sottovoce.shared.audio import Signal
from sottovoce.simulations.data.channels import pass_channel


@pytest.fixture(scope="module")
def tone() -> Signal:
    times = np.arange(8_000) / 16_000
    samples = 0.1 * np.sin(2 * np.pi * 440 * times) * (times < 0.3)
    return Signal(samples.astype(np.float32)[None], 16_000)


def test_a_seed_decides_a_channel(tone: Signal) -> None:
    one, again, other = (pass_channel(tone, seed=seed).waveform for seed in (1, 1, 2))

    assert np.array_equal(one, again)
    assert np.abs(one - other).max() > 0.01


def test_length_and_level_stay(tone: Signal) -> None:
    for seed in range(5):
        through = pass_channel(tone, seed=seed)

        assert through.samples.shape == tone.samples.shape
        before, after = (np.sqrt(np.square(one.waveform).mean()) for one in (tone, through))
        assert after == pytest.approx(before, rel=0.1)


def test_a_channel_adds_noise_where_there_was_silence(tone: Signal) -> None:
    behind = pass_channel(tone, seed=3).waveform[-1_000:]

    assert np.abs(behind).max() > 0
