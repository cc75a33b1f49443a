"""Contracts of the spectra: known sounds give known figures."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared.features import spectral


def tone(hertz: float, *, seconds: float = 0.5) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(int(16_000 * seconds)) / 16_000)


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hertz", [500.0, 1_000.0, 3_000.0])
def test_a_tone_has_its_centroid_and_rolloff_at_its_pitch(hertz: float) -> None:
    shape = spectral.spectral_shape(spectral.power_spectra(tone(hertz), hop=160))

    assert shape["centroid"][5:-5].mean() == pytest.approx(hertz / 1_000, rel=0.02)
    assert shape["rolloff"][5:-5].mean() == pytest.approx(hertz / 1_000, abs=0.07)


def test_noise_is_flat_and_a_tone_is_not() -> None:
    flat = spectral.spectral_shape(spectral.power_spectra(noise(8_000), hop=160))["flatness"].mean()
    peaked = spectral.spectral_shape(spectral.power_spectra(tone(1_000), hop=160))[
        "flatness"
    ].mean()

    assert flat > -5
    assert peaked < -30


def test_balance_says_where_the_energy_lies() -> None:
    low = spectral.spectral_shape(spectral.power_spectra(tone(500) + 0.01 * noise(8_000), hop=160))
    high = spectral.spectral_shape(
        spectral.power_spectra(tone(3_000) + 0.01 * noise(8_000), hop=160)
    )

    assert low["alpha_ratio"].median() > 10 > -10 > high["alpha_ratio"].median()
    assert low["hammarberg"].median() > 10 > -10 > high["hammarberg"].median()


def test_the_level_only_shifts_the_bands() -> None:
    quiet, loud = (
        spectral.log_mel_energies(spectral.power_spectra(gain * noise(8_000), hop=160), bands=26)
        for gain in (0.01, 1.0)
    )

    torch.testing.assert_close(
        loud - quiet, torch.full_like(loud, math.log(1e4)), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        spectral.mel_cepstra(quiet, count=13),
        spectral.mel_cepstra(loud, count=13),
        atol=1e-3,
        rtol=0,
    )


def test_deltas_of_a_ramp_are_its_slope() -> None:
    ramp = 3.0 * torch.arange(10.0)[:, None]

    torch.testing.assert_close(spectral.regression_deltas(ramp)[2:-2], torch.full((6, 1), 3.0))


def test_flux_is_zero_while_nothing_changes() -> None:
    steady = torch.ones(5, 26)
    changed = torch.cat([steady, steady + 2])

    assert spectral.spectral_flux(changed).tolist() == pytest.approx([0.0] * 5 + [2.0] + [0.0] * 4)


def test_levels_are_of_full_scale() -> None:
    square = torch.ones(8_000)
    square[::2] = -1

    assert spectral.frame_levels(square, hop=160)[5:-5].mean() == pytest.approx(0.0, abs=1e-3)
    assert spectral.frame_levels(0.1 * square, hop=160)[5:-5].mean() == pytest.approx(
        -20.0, abs=1e-3
    )


def test_silence_is_cut_at_the_ends_and_nothing_else() -> None:
    silence = 1e-4 * noise(16_000)
    speech = torch.cat([tone(200), silence[:3_200], tone(200)])

    kept = spectral.trim_silence(torch.cat([silence, speech, silence]))

    assert len(speech) <= len(kept) <= len(speech) + 2 * 0.16 * 16_000
    assert kept.abs().max() == speech.abs().max()


@pytest.mark.parametrize("samples", [torch.zeros(16_000), noise(16_000), noise(1)])
def test_what_has_no_silence_stays(samples: Tensor) -> None:
    assert len(spectral.trim_silence(samples)) == len(samples)
