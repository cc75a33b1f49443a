"""Contracts of loading: what is read comes back as sound; what is not is named, with a way out."""

import hashlib
import math
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sottovoce.shared import audio
from sottovoce.shared.audio import RecordingDefect, Signal
from sottovoce.shared.audio import signal as signal_module
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
    both = np.stack([left, 0.01 * left], axis=1)

    signal = audio.load_signal(written(tmp_path / "a.wav", both, 16_000, subtype="FLOAT"))

    torch.testing.assert_close(signal.samples[0], torch.from_numpy(left * 0.505))


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


SINE = torch.sin(torch.arange(400) / 7) / 2


@pytest.mark.parametrize(
    "samples",
    [
        SINE,
        SINE[:, None],
        SINE.double(),
        SINE.numpy(),
        SINE.numpy()[None],
        SINE.numpy()[:, None].astype(np.float64),
        SINE.numpy().astype(">f4"),
        SINE.flip(0).numpy()[::-1],
        (SINE * 2**15).round().short(),
        (SINE * 2**15).round().short().numpy(),
        (SINE.double() * 2**31).round().numpy().astype(np.int32),
        torch.stack([SINE, SINE]),
        torch.stack([SINE, SINE], dim=1).numpy(),
        SINE.clone().requires_grad_(),
    ],
)
def test_a_signal_takes_samples_as_other_libraries_give_them(samples: Any) -> None:
    signal = Signal(samples, 16_000)

    assert signal.samples.dtype == torch.float32
    torch.testing.assert_close(signal.samples, SINE[None], atol=2**-15, rtol=0)
    assert not signal.defects


def test_eight_bits_are_read_at_their_own_full_scale() -> None:
    wide = (SINE * 127).round()

    for samples in (wide.to(torch.int8), (wide + 128).to(torch.uint8)):
        torch.testing.assert_close(Signal(samples, 8_000).samples[0], SINE, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (torch.zeros(1, 0), "no samples"),
        (np.zeros((0, 2), dtype=np.float32), "no samples"),
        (np.zeros((2, 0)), "no samples"),
        (torch.zeros(0, 2), "no samples"),
        (np.float32(0.5), "float32"),
        (np.array(0.5), "two axes"),
        (torch.zeros(1, 1, 8), "two axes"),
        (np.zeros((2, 8)) > 0, "bool"),
        (np.zeros(8, dtype=np.complex64), "complex64"),
        (np.zeros(8, dtype=np.int64), "int64.*full scale"),
        (np.zeros(8, dtype=np.uint16), "uint16"),
        (np.array(["a", "b"]), "U1"),
        (np.array([0.5, None]), "object"),
        (np.zeros((2, 8_000)), "8000 channels.*NumPy array"),
        (torch.zeros(8_000, 2), "8000 channels.*tensor"),
        ([0.5, 0.25], "list"),
        ("a.wav", "str"),
        (None, "NoneType"),
        (np.array([0.5, np.nan]), "NaN"),
        (np.array([0.5, 1e300]), "infinite"),
        (np.array([0.5, 8_000.0]), "peaks at"),
    ],
)
def test_what_is_no_samples_is_refused_by_name(samples: Any, words: str) -> None:
    with pytest.raises(AudioError, match=words):
        Signal(samples, 16_000)


@pytest.mark.parametrize("rate", [44_100, 44_100.0, np.int16(8_000), np.float64(44_100)])
def test_a_whole_number_is_a_rate(rate: Any) -> None:
    signal = Signal(SINE, rate)

    assert type(signal.rate) is int
    assert signal.rate == int(rate)
    assert audio.resample(signal, np.float32(16_000)).rate == 16_000  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rate",
    [0, -1, 0.5, 44_100.5, math.nan, math.inf, True, "16000", None, 1j, 20_000_000, 10**30],
)
def test_other_rates_are_refused(rate: Any) -> None:
    with pytest.raises(AudioError, match="whole number"):
        Signal(SINE, rate)
    with pytest.raises(AudioError, match="whole number"):
        audio.resample(Signal(SINE, 8_000), rate)


@pytest.mark.parametrize(
    ("channels", "defects"),
    [
        ([1.0, -1.0], RecordingDefect.CHANNELS_CANCEL),
        ([1.0, -0.9], RecordingDefect.CHANNELS_CANCEL),
        ([1.0, -1.0, 1.0, -1.0], RecordingDefect.CHANNELS_CANCEL),
        ([1.0, 0.0], RecordingDefect.DEAD_CHANNEL),
        ([0.0, 0.0, 1.0, 0.0], RecordingDefect.DEAD_CHANNEL),
        ([1.0, -1.0, 0.0], RecordingDefect.CHANNELS_CANCEL | RecordingDefect.DEAD_CHANNEL),
        ([1.0, 1.0], RecordingDefect(0)),
        ([0.0, 0.0], RecordingDefect(0)),
    ],
)
def test_channels_that_cancel_or_are_dead_do_not_lower_the_sound(
    channels: list[float], defects: RecordingDefect
) -> None:
    samples = torch.stack([gain * SINE for gain in channels])

    signal = Signal(samples, 16_000)

    assert signal.defects == defects
    torch.testing.assert_close(signal.samples[0], max(channels) * SINE)


def test_a_constant_offset_does_not_hide_that_channels_cancel() -> None:
    signal = Signal(torch.stack([SINE + 0.1, 0.1 - SINE]), 16_000)

    assert signal.defects == RecordingDefect.CHANNELS_CANCEL


def test_channels_that_cancel_for_a_part_of_the_time_are_found() -> None:
    long = SINE.repeat(60)
    turned = long.clone()
    turned[: len(long) // 3] *= -1

    assert Signal(torch.stack([long, turned]), 16_000).defects == RecordingDefect.CHANNELS_CANCEL


def test_two_speakers_on_two_channels_do_not_cancel() -> None:
    rng = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(2, 40_000, generator=rng)

    assert not Signal(noise, 16_000).defects


@pytest.mark.parametrize("rate", [44_100, 47_999])
def test_long_signals_are_resampled_in_parts_to_the_same_sound(
    rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(2)
    signal = Signal(0.1 * torch.randn(1, 40 * rate + 17, generator=rng), rate)
    whole = audio.resample(signal, 16_000).samples
    monkeypatch.setattr(signal_module, "ONE_PASS_SAMPLES", 1_000)

    parts = audio.resample(signal, 16_000).samples

    assert parts.shape == whole.shape
    # White noise is the hardest case for a Fourier transform's ends.
    torch.testing.assert_close(parts, whole, atol=5e-4, rtol=0)


def test_content_hash_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"sound")

    assert audio.hash_file(path) == hashlib.sha256(b"sound").hexdigest()
    with pytest.raises(AudioError, match="cannot be read"):
        audio.hash_file(tmp_path / "none")
