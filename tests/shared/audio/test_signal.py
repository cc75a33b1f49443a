"""Contracts of loading: what is read comes back as sound; what is not is named, with a way out."""

import hashlib
import math
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError, RecordingFault


def tone(rate: int, *, hertz: float = 1_000.0, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def written(path: Path, samples: np.ndarray, rate: int, **how: str) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize(("name", "loss"), [("a.wav", 1e-4), ("a.flac", 1e-4), ("a.ogg", 0.1)])
def test_formats_come_back_as_they_were_written(tmp_path: Path, name: str, loss: float) -> None:
    samples = tone(16_000)

    signal = audio.load_signal(written(tmp_path / name, samples, 16_000))

    assert signal.rate == 16_000
    assert signal.samples.shape == (1, len(samples))
    assert signal.samples.dtype == torch.float32
    assert (signal.samples[0] - torch.from_numpy(samples)).abs().max() < loss


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(16_000)
    both = np.stack([left, np.zeros_like(left)], axis=1)

    signal = audio.load_signal(written(tmp_path / "a.wav", both, 16_000, subtype="FLOAT"))

    torch.testing.assert_close(signal.samples[0], torch.from_numpy(left / 2))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_099])
def test_resampling_keeps_pitch_level_and_place(tmp_path: Path, rate: int) -> None:
    signal = audio.load_signal(written(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT"))

    inner = slice(1_000, 7_000)  # the ends ring
    expected = torch.from_numpy(tone(16_000))
    assert signal.samples.shape[1] == math.ceil(int(rate * 0.5) * 16_000 / rate)
    torch.testing.assert_close(signal.samples[0, inner], expected[inner], atol=2e-3, rtol=0)


@pytest.mark.parametrize("rate", [48_000, 47_999])
def test_what_the_new_rate_cannot_hold_is_gone(rate: int) -> None:
    high = Signal(torch.from_numpy(tone(rate, hertz=10_000))[None], rate)

    assert audio.resample(high, 16_000).samples[0, 1_000:7_000].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("noise.wav", b"this is not sound"),
        ("empty.wav", b""),
        ("headless.raw", b"\0" * 64),
        ("cut.wav", b"RIFF\x24\x00\x00\x00WAVEfmt "),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(AudioError, match="cannot be read") as caught:
        audio.load_signal(path)
    assert str(path) in str(caught.value)
    assert caught.value.kind is RecordingFault.NOT_AUDIO


@pytest.mark.parametrize(
    ("samples", "word", "kind"),
    [
        ([], "no samples", RecordingFault.EMPTY),
        ([0.0, math.nan, 0.0], "NaN", RecordingFault.NOT_FINITE),
        ([0.0, math.inf], "infinite", RecordingFault.NOT_FINITE),
        ([0.0, 32_768.0], "divide its samples", RecordingFault.TOO_LOUD),
    ],
)
def test_sound_that_is_none_is_refused(
    tmp_path: Path, samples: list[float], word: str, kind: RecordingFault
) -> None:
    values = np.array(samples, dtype=np.float32)
    path = written(tmp_path / "a.wav", values, 16_000, subtype="FLOAT")

    with pytest.raises(AudioError, match=word) as caught:
        audio.load_signal(path)
    assert str(path) in str(caught.value)
    assert caught.value.kind is kind
    assert pickle.loads(pickle.dumps(caught.value)).kind is kind  # noqa: S301 (our own)


def test_missing_files_folders_and_long_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(16_000), 16_000)

    for missing in (tmp_path, tmp_path / "none.wav"):
        with pytest.raises(AudioError, match="is not a file"):
            audio.load_signal(missing)
    with pytest.raises(AudioError, match="cut it into utterances") as caught:
        audio.load_signal(path, max_duration_s=0.4)
    assert caught.value.kind is RecordingFault.TOO_LONG


def test_a_truncated_file_never_crashes(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.flac", tone(16_000), 16_000).read_bytes()
    for cut in range(0, len(whole), max(1, len(whole) // 25)):
        path = tmp_path / "cut.flac"
        path.write_bytes(whole[:cut])
        with suppress(AudioError):
            assert audio.load_signal(path).samples.isfinite().all()


def test_a_wrong_rate_names_both_rates_and_the_way_out() -> None:
    signal = Signal(torch.zeros(1, 8), 8_000)

    with pytest.raises(AudioError, match=r"8000 Hz.*16000 Hz.*audio\.resample"):
        audio.require_sample_rate(signal, 16_000, reader="the model")
    with pytest.raises(AudioError, match="above 0"):
        audio.resample(signal, 0)


@pytest.mark.parametrize(
    "samples",
    [torch.zeros(8), torch.zeros(2, 8), torch.zeros(1, 0), torch.zeros(1, 8, dtype=torch.float64)],
)
def test_a_signal_is_mono_float_and_not_empty(samples: torch.Tensor) -> None:
    with pytest.raises(AudioError):
        Signal(samples, 16_000)


def test_content_hash_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"sound")

    assert audio.hash_file(path) == hashlib.sha256(b"sound").hexdigest()
    with pytest.raises(AudioError, match="cannot be read"):
        audio.hash_file(tmp_path / "none")
