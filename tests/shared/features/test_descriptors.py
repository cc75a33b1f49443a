"""Contracts of the descriptor set: documented, named, finite for whatever comes in."""

import math
import re

import pytest
import torch
from torch import Tensor

from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError
from sottovoce.shared.features import descriptors
from sottovoce.shared.features.descriptors import Descriptors
from sottovoce.shared.features.log_mel import LogMel
from sottovoce.simulations.corpora import open_corpus


def voice(hertz: float, *, level: float = 0.1, seconds: float = 1.0) -> Signal:
    time = torch.arange(int(16_000 * seconds)) / 16_000
    wave = sum(torch.sin(2 * math.pi * hertz * k * time) / k for k in range(1, 9))
    return Signal((level * wave).float()[None], 16_000)


def click(samples: int) -> Tensor:
    wave = torch.zeros(1, samples)
    wave[0, samples // 2] = 1.0
    return wave


HARD = [
    torch.zeros(1, 1),
    torch.zeros(1, 16_000),
    torch.full((1, 8_000), 0.5),
    torch.ones(1, 1),
    click(100),
    click(16_000),
    100 * torch.randn(1, 5_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1),
    1e-7 * torch.randn(1, 5_000, generator=torch.Generator().manual_seed(0)),
    1e-30 * torch.ones(1, 399),
]


@pytest.mark.parametrize("samples", HARD)
def test_silence_clicks_and_scraps_give_finite_numbers(samples: Tensor) -> None:
    signal = Signal(samples, 16_000)

    described = descriptors.compute_descriptors(signal)
    numbers = Descriptors()(signal)
    spectrogram = LogMel()(signal)

    assert described.frames.shape == (len(described.voiced), len(descriptors.FRAME_NAMES))
    assert described.frames.isfinite().all()
    assert numbers.shape == (len(descriptors.FUNCTIONAL_NAMES),)
    assert numbers.dtype == torch.float32
    assert numbers.isfinite().all()
    assert spectrogram.shape[1] == 64
    assert spectrogram.isfinite().all()


def test_every_name_is_there_once_and_in_the_table() -> None:
    table = str(descriptors.__doc__)

    assert len(set(descriptors.FUNCTIONAL_NAMES)) == len(descriptors.FUNCTIONAL_NAMES) == 476
    for name in descriptors.FRAME_NAMES:
        family = re.sub(r"_\d+$", "_1 ", name)
        assert f"\n{family}" in table, name
    for name in descriptors.FUNCTIONAL_NAMES[-8:]:
        assert f"\n{name} " in table, name


def test_names_say_what_the_numbers_are() -> None:
    low, high = (
        dict(zip(descriptors.FUNCTIONAL_NAMES, Descriptors()(voice(hertz)).tolist(), strict=True))
        for hertz in (150.0, 300.0)
    )

    assert high["f0_p50"] - low["f0_p50"] == pytest.approx(12, abs=0.1)
    assert low["voiced_ratio"] == pytest.approx(1, abs=0.05)
    assert low["duration"] == pytest.approx(1, abs=0.02)
    assert low["f0_slope"] == pytest.approx(0, abs=0.5)
    assert high["centroid_mean"] > low["centroid_mean"]


def test_the_level_moves_only_what_is_a_level() -> None:
    soft, loud = (Descriptors()(voice(150.0, level=level)) for level in (0.01, 0.1))

    moved = {
        name
        for name, change in zip(
            descriptors.FUNCTIONAL_NAMES, (loud - soft).abs().tolist(), strict=True
        )
        if change > 0.1
    }
    assert {"level_mean", "level_p50"} <= moved
    assert all(name.startswith(("level_", "log_mel_")) for name in moved), moved


def test_a_spectrogram_is_normalised_and_does_not_know_the_level() -> None:
    soft, loud = (LogMel()(voice(150.0, level=level)) for level in (0.01, 0.1))

    torch.testing.assert_close(soft, loud, atol=0.02, rtol=0)
    torch.testing.assert_close(loud.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    assert (loud.std(0, correction=0) < 1.001).all()
    assert len(loud) == 50  # its first sample is 0, and cut off as silence


def test_another_rate_is_refused() -> None:
    for extractor in (Descriptors(), LogMel()):
        with pytest.raises(AudioError, match="16000 Hz"):
            extractor(Signal(torch.zeros(1, 8_000), 8_000))


@pytest.mark.parametrize("extractor", [Descriptors(), LogMel()])
def test_silence_around_speech_changes_no_bit(extractor: Descriptors | LogMel) -> None:
    speech = open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0].load_signal()
    padded = torch.nn.functional.pad(speech.samples, (8_123, 16_000))

    assert torch.equal(extractor(Signal(padded, 16_000)), extractor(speech))
