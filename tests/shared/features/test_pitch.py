"""Contracts of the pitch tracker: known pitches are found, and noise has none."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared.features import pitch


def voice(hertz: Tensor | float, *, seconds: float = 0.5, harmonics: int = 8) -> Tensor:
    """A harmonic sound whose overtones fall by 6 dB an octave."""
    track = torch.as_tensor(hertz).expand(int(16_000 * seconds)).double()
    phase = 2 * math.pi * (track / 16_000).cumsum(0)
    top = min(harmonics, int(7_000 / float(track.max())))
    return (0.1 * sum(torch.sin(k * phase) / k for k in range(1, top + 1))).float()


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hertz", [70.0, 110.0, 165.3, 220.0, 331.7, 450.0, 640.0])
@pytest.mark.parametrize("level", [1e-3, 1.0])
def test_a_steady_pitch_is_found_to_half_a_percent(hertz: float, level: float) -> None:
    found = pitch.track_pitch(level * voice(hertz), hop=160)

    inner = slice(5, 45)
    assert found.voiced[inner].all()
    assert (found.f0_hz[inner] / hertz - 1).abs().max() < 5e-3
    assert pitch.jitter_proxy(found)[inner].max() < 1e-3
    assert pitch.harmonics_to_noise(found)[inner].min() > 15


def test_a_gliding_pitch_is_followed() -> None:
    glide = torch.linspace(120, 240, 16_000)
    found = pitch.track_pitch(voice(glide, seconds=1.0), hop=160)

    # The window and the lag behind it centre the estimate within a few milliseconds.
    centre = glide[::160][5:95]
    assert (found.f0_hz[5:95] / centre - 1).abs().max() < 0.03


def test_noise_and_silence_are_not_voiced() -> None:
    assert pitch.track_pitch(noise(16_000), hop=160).voiced.float().mean() < 0.05
    assert not pitch.track_pitch(torch.zeros(16_000), hop=160).voiced.any()


def test_more_noise_means_less_harmonicity() -> None:
    clean = voice(150.0)
    means = []
    for amount in (0.0, 0.1, 0.3):
        found = pitch.track_pitch(clean + amount * noise(len(clean)), hop=160)
        means.append(float(pitch.harmonics_to_noise(found)[5:45].mean()))

    assert means == sorted(means, reverse=True)
    assert means[0] - means[2] > 5


def test_shimmer_reads_level_bends_of_voiced_frames_only() -> None:
    levels = torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0])
    voiced = torch.tensor([True, True, True, False, True])

    assert pitch.shimmer_proxy(levels, voiced).tolist() == [0.0, 2.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 480, 700])
def test_any_length_has_a_track(samples: int) -> None:
    found = pitch.track_pitch(noise(samples), hop=160)

    assert len(found.f0_hz) == len(found.voiced) == 1 + samples // 160
    for values in (found.f0_hz, pitch.f0_semitones(found), pitch.harmonics_to_noise(found)):
        assert values.isfinite().all()
    assert pitch.jitter_proxy(found).isfinite().all()
