"""Contracts of the gate: silence is refused, quiet speech is not."""

import json
import math
from pathlib import Path

import pytest
import torch

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, quality
from sottovoce.shared.audio.quality import QualityFlag, QualityReport


def speech(*, level: float = 0.1, noise: float = 1e-5, seconds: float = 2.0) -> Signal:
    """Bursts of a harmonic sound between pauses, over noise."""
    time = torch.arange(int(16_000 * seconds)) / 16_000
    voice = sum(torch.sin(2 * math.pi * 150 * k * time) / k for k in range(1, 6))
    bursts = (torch.sin(2 * math.pi * 2 * time) > 0).float()
    rng = torch.Generator().manual_seed(0)
    samples = level * voice * bursts + noise * torch.randn(len(time), generator=rng)
    return Signal(samples.clamp(-1, 1).float()[None], 16_000)


def test_sound_speech_has_no_flags() -> None:
    measured = quality.measure_quality(speech())

    assert measured.flags == QualityFlag(0)
    assert measured.is_usable
    assert measured.flag_summary == ""
    assert measured.duration_s == 2.0
    assert measured.snr_db > 30


@pytest.mark.parametrize(
    "samples",
    [torch.zeros(16_000), torch.full((16_000,), 0.3), 1e-5 * torch.ones(16_000), torch.zeros(1)],
)
def test_silence_is_refused_whatever_its_offset(samples: torch.Tensor) -> None:
    signal = Signal(samples[None], 16_000)

    assert QualityFlag.SILENT in quality.measure_quality(signal).flags
    assert not quality.measure_quality(signal).is_usable


def test_a_short_recording_is_refused() -> None:
    assert quality.measure_quality(speech(seconds=0.2)).flags & QualityFlag.TOO_SHORT
    assert not quality.measure_quality(speech(seconds=0.2)).is_usable
    assert quality.measure_quality(speech(seconds=0.3)).is_usable


@pytest.mark.parametrize(
    ("signal", "flag"),
    [
        (speech(level=2.0), QualityFlag.CLIPPED),
        (speech(level=1e-3), QualityFlag.QUIET),
        (speech(noise=0.1), QualityFlag.NOISY),
    ],
)
def test_poor_speech_is_flagged_and_stays_usable(signal: Signal, flag: QualityFlag) -> None:
    measured = quality.measure_quality(signal)

    assert measured.flags == flag
    assert measured.is_usable
    assert str(flag.name).lower() in measured.flag_summary


def test_figures_are_finite_and_survive_json() -> None:
    for signal in (speech(), Signal(torch.zeros(1, 1), 16_000), Signal(torch.ones(1, 3), 1)):
        measured = quality.measure_quality(signal)
        text = json.dumps(measured.to_json(), allow_nan=False)
        assert QualityReport.from_json(json.loads(text)) == measured


@pytest.mark.corpora
def test_the_silent_clip_of_cremad_is_refused(corpora_dir: Path) -> None:
    clip = audio.load_signal(corpora_dir / "cremad/audio/1076_MTI_SAD_XX.opus")

    assert QualityFlag.SILENT in quality.measure_quality(clip).flags


@pytest.mark.corpora
@pytest.mark.parametrize(("actor", "least"), [("Actor_09", 5), ("Actor_20", 7)])
def test_very_quiet_speech_of_ravdess_is_used(corpora_dir: Path, actor: str, least: int) -> None:
    clips = sorted((corpora_dir / "ravdess/audio" / actor).glob("*.flac"))
    measured = [quality.measure_quality(audio.load_signal(clip)) for clip in clips]

    assert all(quality.is_usable for quality in measured)
    assert sum(QualityFlag.QUIET in quality.flags for quality in measured) >= least
