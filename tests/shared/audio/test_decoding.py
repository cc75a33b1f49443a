"""Contracts of decoding: what can be read is read, defects are named, demands are bounded."""

import io
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sottovoce.shared import audio
from sottovoce.shared.audio import RecordingDefect, decoding, quality
from sottovoce.shared.audio.quality import QualityFlag
from sottovoce.shared.errors import AudioError, RecordingFault

RATE = 16_000


def speech(seconds: float = 3.0) -> np.ndarray:
    """Bursts of a buzz, which codecs cannot leave out."""
    time = np.arange(int(seconds * RATE)) / RATE
    rng = np.random.default_rng(4)
    buzz = np.sign(np.sin(2 * np.pi * 110 * time)) * np.sin(2 * np.pi * 2 * time) ** 2
    return (0.3 * buzz + 0.01 * rng.normal(size=len(time))).astype(np.float32)


def encoded(kind: str, subtype: str | None = None, samples: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(
        file, speech() if samples is None else samples, RATE, format=kind, subtype=subtype
    )
    return file.getvalue()


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_a_whole_file_has_no_defect(tmp_path: Path, kind: str, subtype: str) -> None:
    signal = audio.load_signal(saved(tmp_path / "a", encoded(kind, subtype)))

    assert signal.duration_s == pytest.approx(3.0, abs=0.1)
    assert not signal.defects


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_of_a_file_that_is_cut_short_the_rest_is_read_and_the_defect_is_named(
    tmp_path: Path, kind: str, subtype: str, share: float
) -> None:
    whole = encoded(kind, subtype, np.tile(speech(), 5))
    path = saved(tmp_path / "a", whole[: int(share * len(whole))])

    signal = audio.load_signal(path)

    assert signal.defects == RecordingDefect.CUT_SHORT
    assert 0.25 * 15 < signal.duration_s < (share + 0.04) * 15
    measured = quality.measure_quality(signal)
    assert QualityFlag.CUT_SHORT in measured.flags
    assert measured.is_usable
    assert "cut short" in measured.flag_summary


@pytest.mark.parametrize("share", [0.34, 0.5, 0.66, 0.9])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_of_an_ogg_page_that_breaks_off_whole_packets_are_read(
    tmp_path: Path, subtype: str, share: float
) -> None:
    """A page holds a second; a file of three would lose all of it."""
    whole = encoded("OGG", subtype)
    path = saved(tmp_path / "a.ogg", whole[: int(share * len(whole))])

    signal = audio.load_signal(path)

    assert signal.defects == RecordingDefect.CUT_SHORT
    assert 3 * share - 0.8 < signal.duration_s < 3 * share + 0.2


@pytest.mark.parametrize("table", [bytes(3), b"", bytes([9])])
def test_an_ogg_page_without_sound_at_the_end_changes_nothing(tmp_path: Path, table: bytes) -> None:
    head = b"OggS" + bytes(22) + bytes([len(table)])
    path = saved(tmp_path / "a.ogg", encoded("OGG", "VORBIS") + head + table)

    signal = audio.load_signal(path)

    assert signal.defects == RecordingDefect.CUT_SHORT
    assert signal.duration_s == pytest.approx(3.0, abs=0.1)


def test_a_file_that_ends_before_its_sound_says_that_it_is_cut_short(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.wav", encoded("WAV")[:44])

    with pytest.raises(AudioError, match="cut short") as caught:
        audio.load_signal(path)
    assert caught.value.kind is RecordingFault.EMPTY


@pytest.mark.parametrize("size", [0x7FFF_F000, 0xFFFF_FFFF])
def test_headers_written_into_a_pipe_promise_nothing(tmp_path: Path, size: int) -> None:
    data = bytearray(encoded("WAV"))
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")

    signal = audio.load_signal(saved(tmp_path / "a.wav", bytes(data)))

    assert not signal.defects
    assert signal.duration_s == pytest.approx(3.0, abs=0.01)


def wav(*, rate: int = RATE, channels: int = 1, frames: int = 4_000) -> bytes:
    body = np.full(frames * channels, 1_000, dtype="<i2").tobytes()
    block = 2 * channels
    layout = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFF_FFFF, block, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", len(body))
    return b"RIFF" + struct.pack("<I", len(chunks) + len(body) + 4) + b"WAVE" + chunks + body


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"rate": 2_147_483_647}, "2147483647 Hz"),
        ({"rate": 20_000_000}, "20000000 Hz"),
        ({"rate": 768_001}, "from 1000 to 768000"),
        ({"rate": 999}, "999 Hz"),
        ({"rate": 1}, "1 Hz"),
        ({"channels": 33}, "33 channels"),
        ({"channels": 1_000, "frames": 8}, "1000 channels"),
    ],
)
def test_what_no_recording_of_speech_has_is_refused_before_it_is_decoded(
    tmp_path: Path, header: dict[str, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.wav", wav(**header))
    monkeypatch.setattr(soundfile.SoundFile, "read", None)

    with pytest.raises(AudioError, match=words) as caught:
        audio.load_signal(path)
    assert caught.value.kind is RecordingFault.BAD_FORMAT


def test_a_long_recording_takes_little_memory_beside_its_result(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    clicks = np.zeros(48_000 * 100, dtype=np.int16)
    clicks[::300] = 8_000
    soundfile.write(path, clicks, 48_000, format="FLAC", subtype="PCM_16")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    signal = audio.load_signal(path)

    taken_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1_024
    assert signal.samples.shape == (1, 100 * RATE)
    assert taken_mb < 200


def test_long_recordings_sound_as_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    samples = 0.1 * rng.normal(size=44_100 * 37)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 44_100, subtype="FLOAT")
    whole = audio.load_signal(path).samples
    monkeypatch.setattr(decoding, "ONE_PASS_SAMPLES", 50_000)

    torch.testing.assert_close(audio.load_signal(path).samples, whole, atol=1e-5, rtol=0)


def test_channels_that_cancel_are_read_as_one_of_them(tmp_path: Path) -> None:
    mono, turned = speech(), np.stack([speech(), -speech()], axis=1)
    for name, samples in (("mono.wav", mono), ("turned.wav", turned)):
        soundfile.write(tmp_path / name, samples, RATE, subtype="FLOAT")

    signal = audio.load_signal(tmp_path / "turned.wav")

    assert torch.equal(signal.samples, audio.load_signal(tmp_path / "mono.wav").samples)
    assert quality.measure_quality(signal).flags & QualityFlag.CHANNELS_CANCEL
    assert quality.measure_quality(signal).is_usable


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
def test_a_name_that_is_not_unicode_is_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Erkl\xe4rung.wav"))
    try:
        saved(path, wav())
    except OSError:
        pytest.skip("this file system takes no such names")

    assert audio.load_signal(path).duration_s == 0.25
    assert len(audio.hash_file(path)) == 64


def test_any_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")

    for path in (tmp_path / "pipe.wav", "\0.wav", "x" * 5_000, "/dev/zero"):
        with pytest.raises(AudioError):
            audio.load_signal(path)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_pieces_of_a_recording_are_the_whole_at_its_own_rate(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "a", encoded(kind))
    rate, pieces = audio.read_pieces(path)

    whole = np.concatenate(list(pieces))
    assert np.array_equal(whole, audio.load_signal(path, rate=rate).waveform)


def test_pieces_of_what_is_no_recording_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.wav", saved(tmp_path / "text.wav", b"no sound at all")):
        with pytest.raises(AudioError, match=path.name):
            audio.read_pieces(path)
    long = saved(tmp_path / "long.wav", wav(frames=8_000))
    _, pieces = audio.read_pieces(long, max_duration_s=0.1)
    with pytest.raises(AudioError, match=r"is longer than"):
        list(pieces)
