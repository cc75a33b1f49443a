"""Contracts of the voice activity detector: what lies around speech changes nothing."""

import doctest
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, speech_detector, voice_activity
from sottovoce.shared.errors import ModelError
from sottovoce.simulations.corpora import open_corpus

RATE = audio.SAMPLE_RATE


@cache
def voice() -> Tensor:
    """A made-up voice, 1.5 s, (1, samples)."""
    return open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0].load_signal().samples


def noise(seconds: float, *, dbfs: float, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 10 ** (dbfs / 20) * torch.randn(1, round(seconds * RATE), generator=rng)


def silence(samples: int) -> Tensor:
    return torch.zeros(1, samples)


def signal(*parts: Tensor) -> Signal:
    return Signal(torch.cat(parts, dim=1), RATE)


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(voice_activity).failed == 0


def test_a_voice_is_speech_and_other_sounds_are_not() -> None:
    tone = 0.3 * torch.sin(torch.arange(RATE) / 5)[None]
    click = torch.cat([silence(4_000), torch.ones(1, 1), silence(4_000)], dim=1)

    found = voice_activity.detect_speech(signal(voice()))
    assert found.has_speech
    assert 0.7 * found.duration_s < found.speech_s <= found.duration_s

    for other in (tone, click, noise(1, dbfs=-20), silence(8_000), torch.ones(1, 1)):
        nothing = voice_activity.detect_speech(signal(other))
        assert not nothing.has_speech
        assert nothing.speech_s == 0
        assert (nothing.start, nothing.end) == (0, other.shape[1])


@pytest.mark.parametrize(("before", "behind"), [(8_000, 0), (0, 8_000), (16_001, 777), (33, 5_000)])
def test_digital_silence_around_speech_changes_no_bit(before: int, behind: int) -> None:
    plain = voice_activity.cut_to_speech(signal(voice()))
    padded = voice_activity.cut_to_speech(signal(silence(before), voice(), silence(behind)))

    assert torch.equal(padded.signal.samples, plain.signal.samples)
    assert np.array_equal(padded.mask_frames(60, 320), plain.mask_frames(60, 320))
    assert padded.activity.start == plain.activity.start + before


@pytest.mark.parametrize("samples", [4_001, 16_385])
def test_room_noise_around_speech_moves_its_edges_by_less_than_a_frame(samples: int) -> None:
    seconds = samples / RATE
    room = noise(seconds, dbfs=-60)
    plain = voice_activity.detect_speech(signal(voice()))
    padded = voice_activity.detect_speech(signal(room, voice(), noise(seconds, dbfs=-60, seed=1)))

    frame = 0.02 * RATE
    assert abs(padded.start - samples - plain.start) < frame
    assert abs(padded.end - samples - plain.end) < frame


@pytest.mark.parametrize("gain", [0.1, 0.5, 2.0])
def test_the_gain_of_a_microphone_does_not_move_speech(gain: float) -> None:
    plain = voice_activity.detect_speech(signal(voice()))
    scaled = voice_activity.detect_speech(signal(gain * voice()))

    assert abs(scaled.start - plain.start) < 0.01 * RATE
    assert abs(scaled.end - plain.end) < 0.01 * RATE
    assert scaled.speech_s == pytest.approx(plain.speech_s, abs=0.04)


def test_a_margin_that_is_missing_is_made_of_zeros() -> None:
    plain = voice_activity.detect_speech(signal(voice()))
    bare = signal(voice()[:, plain.start : plain.end])

    cut = voice_activity.cut_to_speech(bare)

    margin = round(voice_activity.MARGIN_S * RATE)
    assert cut.first < 0
    assert cut.signal.samples.shape[1] == cut.activity.end - cut.activity.start + 2 * margin
    assert not cut.signal.samples[:, : -cut.first].any()


def test_a_pause_is_not_pooled_however_long() -> None:
    paused = signal(voice(), silence(RATE), voice())
    cut = voice_activity.cut_to_speech(paused)

    mask = cut.mask_frames(cut.signal.samples.shape[1] // 160, 160)

    centre = (voice().shape[1] + RATE // 2 - cut.first) // 160
    assert not mask[centre - 30 : centre + 30].any()
    assert mask.mean() > 0.5


def test_without_speech_everything_is_pooled_but_digital_silence() -> None:
    cut = voice_activity.cut_to_speech(signal(silence(999), noise(1, dbfs=-30), silence(5_000)))

    assert cut.signal.samples.shape[1] == RATE
    assert cut.mask_frames(50, 320).all()


def test_other_rates_are_judged_at_16_khz() -> None:
    found = voice_activity.detect_speech(signal(voice()))
    higher = voice_activity.detect_speech(audio.resample(signal(voice()), 44_100))

    assert higher.has_speech
    assert higher.start / 44_100 == pytest.approx(found.start / RATE, abs=0.01)
    assert higher.end / 44_100 == pytest.approx(found.end / RATE, abs=0.01)


def test_a_detector_that_is_not_the_one_expected_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "another_detector"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "silero_vad.onnx").write_bytes(b"planted")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModelError, match="SHA-256"):
        speech_detector.load_detector(package="another_detector")
    with pytest.raises(ModelError, match="pip install"):
        speech_detector.load_detector(package="no_such_detector")
