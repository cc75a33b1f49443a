"""Acoustic descriptors of made-up sounds, whose values are known."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from sottovoce.shared.audio import Signal
from sottovoce.shared.features import describe_speech
from sottovoce.shared.features.acoustic.analysis import AcousticDescription
from sottovoce.shared.features.acoustic.catalogue import (
    FRAME_DESCRIPTORS,
    FRAME_NAMES,
    FUNCTIONAL_NAMES,
    UTTERANCE_DESCRIPTORS,
)

RATE = 16_000
Sound = NDArray[np.float64]


def describe(samples: Sound) -> AcousticDescription:
    return describe_speech(Signal(samples.astype(np.float32), RATE))


def median(described: AcousticDescription, name: str) -> float:
    return float(np.nanmedian(described.frames[10:-10, FRAME_NAMES.index(name)]))


def sine(hertz: float, seconds: float = 1.0) -> Sound:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def pulses(
    hertz: float, *, jitter: float = 0.0, shimmer_db: float = 0.0, seconds: float = 2.0
) -> Sound:
    """Band-limited pulses whose periods and amplitudes alternate by known amounts."""
    grid = np.arange(round(seconds * RATE))
    samples = np.zeros(len(grid))
    at, number = 0.01 * RATE, 0
    while at < len(grid) - 100:
        sign = 1 if number % 2 else -1
        near = grid[max(0, round(at) - 40) : round(at) + 40]
        # Low enough in frequency for a pulse to be a smooth hump between the samples.
        hump = np.exp(-0.5 * ((near - at) / 6) ** 2)
        samples[near] += 0.3 * 10 ** (sign * shimmer_db / 40) * hump
        at += RATE / hertz * (1 + sign * jitter / 2)
        number += 1
    return samples


def vowel(hertz: float, formants: tuple[float, ...], width: float = 80.0) -> Sound:
    """Pulses through resonances, the classic formant synthesiser (Klatt 1980)."""
    # A voice falls by 6 dB an octave: the glottal flow by 12, less what the lips add.
    cycle = round(RATE / hertz)
    sound = np.tile(0.98 ** np.arange(cycle), RATE // cycle)
    sound -= sound.mean()
    for formant in formants:
        radius = np.exp(-np.pi * width / RATE)
        first, second = 2 * radius * np.cos(2 * np.pi * formant / RATE), -(radius**2)
        filtered = np.zeros(len(sound) + 2)
        for index, sample in enumerate(sound):
            filtered[index + 2] = sample + first * filtered[index + 1] + second * filtered[index]
        sound = filtered[2:]
    return 0.3 * sound / np.abs(sound).max()


@pytest.mark.parametrize("hertz", [80.0, 100.0, 157.3, 220.0, 333.0, 450.0, 500.0, 590.0])
def test_f0_of_a_sine_and_of_pulses_is_theirs(hertz: float) -> None:
    for sound in (sine(hertz), pulses(hertz)):
        described = describe(sound)

        assert described.voiced[10:-10].all()
        assert median(described, "f0") == pytest.approx(hertz, rel=0.005)
        assert median(described, "voicing") > 0.95


def test_noise_is_unvoiced() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=2 * RATE)

    described = describe(noise)

    assert described.voiced.mean() < 0.05
    assert np.isnan(described.frames[~described.voiced, FRAME_NAMES.index("f0")]).all()


@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.02, 0.05])
def test_jitter_of_alternating_periods_is_theirs(jitter: float) -> None:
    described = describe(pulses(120.0, jitter=jitter))

    assert described.utterance["jitter_local"] == pytest.approx(jitter, abs=0.002)


@pytest.mark.parametrize("shimmer", [0.0, 0.5, 1.0, 2.0])
def test_shimmer_of_alternating_amplitudes_is_theirs(shimmer: float) -> None:
    described = describe(pulses(120.0, shimmer_db=shimmer))

    assert described.utterance["shimmer_local"] == pytest.approx(shimmer, abs=0.15)


@pytest.mark.parametrize("hnr", [0.0, 5.0, 10.0, 20.0])
def test_hnr_of_a_sine_in_noise_is_known(hnr: float) -> None:
    clean = sine(200.0, seconds=3.0)
    noise = np.random.default_rng(1).normal(size=len(clean))
    # Noise below 4 kHz, where the periodicity is looked for, and equally strong everywhere.
    noise = np.convolve(noise, np.ones(8) / 8, mode="same")
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-hnr / 20)

    assert median(describe(clean + noise), "hnr") == pytest.approx(hnr, abs=2.0)


@pytest.mark.parametrize(
    "formants", [(730.0, 1_090.0, 2_440.0), (270.0, 2_290.0, 3_010.0), (530.0, 1_840.0, 2_480.0)]
)
def test_formants_of_a_synthetic_vowel_are_its_own(formants: tuple[float, ...]) -> None:
    described = describe(vowel(110.0, (*formants, 3_500.0, 4_500.0)))

    for number, formant in enumerate(formants, start=1):
        assert median(described, f"f{number}") == pytest.approx(formant, rel=0.05, abs=40), number


def test_shape_of_a_sine_is_its_frequency() -> None:
    described = describe(sine(1_000.0))

    assert median(described, "centroid") == pytest.approx(1_000, rel=0.02)
    assert median(described, "rolloff") == pytest.approx(1_000, abs=63)
    assert median(described, "zero_crossing_rate") == pytest.approx(0.125, rel=0.02)
    assert median(described, "level") == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)
    assert median(described, "flux") == pytest.approx(0, abs=1e-3)


def test_syllables_and_pauses_are_counted() -> None:
    syllable = sine(150.0, 0.15) * np.hanning(round(0.15 * RATE))
    gap = np.zeros(round(0.35 * RATE))

    described = describe(np.concatenate([syllable, gap] * 6))

    assert described.utterance["syllable_rate"] == pytest.approx(2.0, abs=0.1)
    assert described.utterance["pause_share"] == pytest.approx(0.7, abs=0.1)
    assert described.utterance["articulation_rate"] > 5
    assert described.utterance["onset_rate"] == pytest.approx(2.0, abs=0.4)


@pytest.mark.parametrize("samples", [1, 2, 7, 159, 160, 400, 16_000])
def test_silence_of_any_length_has_no_shape_no_pitch_and_no_warning(samples: int) -> None:
    described = describe(np.zeros(samples))
    values = dict(zip(FUNCTIONAL_NAMES, described.compute_functionals().tolist(), strict=True))

    assert described.frames.shape == (1 + samples // 160, len(FRAME_NAMES))
    assert not described.voiced.any()
    assert values["level_mean"] == -100
    assert values["loudness_mean"] == values["flux_mean"] == 0
    for name in ("f0", "centroid", "flatness", "contrast_3", "jitter", "shimmer", "hnr", "f1"):
        assert np.isnan(values[f"{name}_mean"]), name
    assert np.isnan(values["jitter_local"])


@pytest.mark.parametrize("samples", [1, 3, 50, 500])
def test_a_very_short_sound_has_its_frames(samples: int) -> None:
    described = describe(0.5 * np.random.default_rng(0).normal(size=samples))

    assert len(described.frames) == 1 + samples // 160
    assert np.isfinite(described.frames[:, FRAME_NAMES.index("centroid")]).all()
    if len(described.frames) == 1:
        slopes = [name.endswith("_slope") for name in FUNCTIONAL_NAMES]
        assert np.isnan(described.compute_functionals()[slopes]).all()


def test_what_is_voiced_only_is_undefined_elsewhere() -> None:
    sound = np.concatenate([sine(200.0), np.zeros(RATE)])
    described = describe(sound)

    for index, one in enumerate(FRAME_DESCRIPTORS):
        if one.voiced_only:
            assert np.isnan(described.frames[~described.voiced, index]).all(), one.name


def test_every_descriptor_has_a_unit_and_a_source() -> None:
    everything = (*FRAME_DESCRIPTORS, *UTTERANCE_DESCRIPTORS)
    names = [one.name for one in everything]

    assert len(set(names)) == len(names)
    assert len(FUNCTIONAL_NAMES) == len(set(FUNCTIONAL_NAMES))
    assert all(one.unit and one.definition and one.source for one in everything)


def test_descriptors_need_no_torch() -> None:
    program = (
        "import sys, numpy\n"
        "from sottovoce.shared.features import describe_speech\n"
        "from sottovoce.shared.audio import Signal\n"
        "describe_speech(Signal(numpy.ones(800), 16000))\n"
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
