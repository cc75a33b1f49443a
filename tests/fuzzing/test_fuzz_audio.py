"""The reader of recordings raises only ``AudioError``, whatever the bytes and the samples are."""

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mutations import FUZZ, mutated_bytes

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.quality import measure_quality
from sottovoce.shared.audio.voice_activity import detect_speech
from sottovoce.shared.errors import AudioError

RATE = 16_000
MAX_SAMPLES = 60 * RATE
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_24"),
    "adpcm": ("WAV", "IMA_ADPCM"),
}


def encode(name: str, channels: int = 1) -> bytes:
    """A third of a second of a tone."""
    container, subtype = FORMATS[name]
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(RATE // 3) / RATE)
    file = io.BytesIO()
    samples = np.stack([tone] * channels, axis=1)
    soundfile.write(file, samples, RATE, format=container, subtype=subtype)
    return file.getvalue()


VALID = {name: encode(name) for name in FORMATS}
STEREO = {name: encode(name, 2) for name in FORMATS}


def read(folder: Path, data: bytes) -> Signal | None:
    """What prediction does with a file; None where it is refused."""
    path = folder / "recording"
    path.write_bytes(data)
    try:
        signal = audio.load_signal(path, max_duration_s=MAX_SAMPLES / RATE)
    except AudioError:
        return None
    assert signal.samples.isfinite().all()
    assert signal.rate == RATE
    assert signal.samples.shape[1] <= MAX_SAMPLES
    measure_quality(signal)
    return signal


@pytest.mark.parametrize("name", FORMATS)
def test_valid_recordings_are_read(tmp_path: Path, name: str) -> None:
    signal = read(tmp_path, VALID[name])

    assert signal is not None
    assert signal.samples.shape[1] == pytest.approx(RATE // 3, abs=1_500)


@pytest.mark.parametrize("name", FORMATS)
@FUZZ
@given(data=st.data())
def test_any_bytes_are_read_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    read(tmp_path, data.draw(mutated_bytes(VALID[name], STEREO[name])))


@FUZZ
@given(
    rate=st.integers(0, 2**32 - 1),
    channels=st.integers(0, 2**16 - 1),
    bits=st.sampled_from([0, 8, 16, 24, 32, 64, 65_535]),
    code=st.sampled_from([0, 1, 3, 6, 7, 0xFFFE, 0xFFFF]),
    size=st.sampled_from([0, 4, 10_666, 2**31 - 1, 2**32 - 1]),
)
def test_any_header_is_read_or_refused(
    tmp_path: Path, rate: int, channels: int, bits: int, code: int, size: int
) -> None:
    """A header may promise any rate, any number of channels and any length."""
    align = channels * bits // 8 & 0xFFFF
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + size & 0xFFFFFFFF, b"WAVE", b"fmt ", 16, code, channels, rate),
        *(rate * align & 0xFFFFFFFF, align, bits, b"data", size),
    )

    read(tmp_path, header + VALID["wav"][44:])


@FUZZ
@given(
    samples=arrays.arrays(
        dtype=st.one_of(
            arrays.floating_dtypes(),
            arrays.integer_dtypes(),
            arrays.unsigned_integer_dtypes(),
            arrays.complex_number_dtypes(),
            arrays.boolean_dtypes(),
            arrays.byte_string_dtypes(),
            arrays.datetime64_dtypes(),
        ),
        shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
    ),
    rate=st.one_of(
        st.floats(), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.just("16000")
    ),
)
def test_any_array_at_any_rate_is_taken_or_refused(samples: Any, rate: Any) -> None:
    with contextlib.suppress(AudioError):
        signal = Signal(samples, rate)
        assert signal.samples.isfinite().all()
        measure_quality(signal)


@FUZZ
@given(
    length=st.integers(1, 3 * RATE),
    level=st.sampled_from([0.0, 1e-38, 1e-6, 0.1, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
def test_speech_is_looked_for_in_anything(length: int, level: float, seed: int) -> None:
    noise = torch.randn(1, length, generator=torch.Generator().manual_seed(seed))
    with contextlib.suppress(AudioError):
        found = detect_speech(Signal(level * noise, RATE))
        assert 0 <= found.start <= found.end <= length
        assert np.isfinite(found.probabilities).all()
