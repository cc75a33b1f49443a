"""Spectra, frame by frame: log-mel bands, cepstra, shape and flux, and where speech starts."""

import math
from functools import cache

import torch
import torchaudio.functional
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared import audio

WINDOW = 400
"""Samples in one analysis window, 25 ms at 16 kHz."""

_MIN_POWER = 1e-14  # power of what is silent throughout
_DYNAMIC_RANGE = 1e-8  # 80 dB: what lies further below the recording's loudest is set to that
_FFT = 512


def power_spectra(samples: Tensor, *, hop: int) -> Tensor:
    """Power spectra of Hann windows centred ``hop`` samples apart.

    Args:
        samples: Shape (samples,), float32, at 16 kHz, any length from 1.
        hop: Samples between frames.

    Returns:
        Shape (frames, 257), float32, frames = 1 + samples // hop; bins 31.25 Hz apart.
    """
    half = _FFT // 2
    padded = F.pad(samples, (half, half))
    spectrum = torch.stft(
        padded, _FFT, hop, WINDOW, window=_hann(), center=False, return_complex=True
    )
    return torch.view_as_real(spectrum).square().sum(-1).T / WINDOW


def log_mel_energies(spectra: Tensor, *, bands: int, low: float = 20.0) -> Tensor:
    """Natural logarithm of the energy in triangular mel bands (Slaney's scale and areas).

    Energies more than 80 dB below the recording's largest are set to that, so that the level of
    the recording only shifts all of them.

    Args:
        spectra: From ``power_spectra``, (frames, 257).
        bands: How many.
        low: Lower end of the lowest band in Hz; the highest ends at 8 kHz.

    Returns:
        Shape (frames, bands), float32, finite for any finite input.
    """
    energies = spectra @ _mel(bands, low)
    return energies.clamp_min(_floor(energies)).log()


def mel_cepstra(log_bands: Tensor, *, count: int) -> Tensor:
    """Mel-frequency cepstral coefficients 1 to ``count`` (orthonormal DCT-II).

    Davis and Mermelstein, IEEE Trans. ASSP 28(4):357-366, 1980. Coefficient 0 is left out: it is
    the level, which stands in the descriptors under its own name.

    Args:
        log_bands: From ``log_mel_energies``, (frames, bands).
        count: Coefficients, below the number of bands.

    Returns:
        Shape (frames, count), float32.
    """
    return log_bands @ _dct(log_bands.shape[1])[:, 1 : count + 1]


def regression_deltas(values: Tensor) -> Tensor:
    """Slope over five frames, per frame (regression deltas; Furui 1986). (frames, x) -> same."""
    padded = torch.cat([values[:1]] * 2 + [values] + [values[-1:]] * 2)
    count = len(values)
    near = padded[3 : 3 + count] - padded[1 : 1 + count]
    far = padded[4 : 4 + count] - padded[:count]
    return (near + 2 * far) / 10


def spectral_shape(spectra: Tensor) -> dict[str, Tensor]:
    """Centroid, roll-off, flatness, tilt and balance of each spectrum.

    Args:
        spectra: From ``power_spectra``, (frames, 257).

    Returns:
        One (frames,) tensor a descriptor, named and defined as in ``descriptors``; finite.
    """
    spectra = spectra + _floor(spectra)
    hertz = _hertz()
    total = spectra.sum(1)
    gathered = spectra.cumsum(1)
    rolled = (gathered >= 0.85 * total[:, None]).to(torch.float32).argmax(1)
    flatness = spectra.log().mean(1) - spectra.mean(1).log()
    decibels = 10 * spectra.log10()
    return {
        "centroid": spectra @ hertz / total / 1_000,
        "rolloff": hertz[rolled] / 1_000,
        "flatness": 10 / math.log(10) * flatness,
        "slope_low": _slope(decibels, 0, 500),
        "slope_high": _slope(decibels, 500, 1_500),
        "alpha_ratio": _band_db(spectra, 50, 1_000) - _band_db(spectra, 1_000, 5_000),
        "hammarberg": _peak_db(spectra, 0, 2_000) - _peak_db(spectra, 2_000, 5_000),
    }


def spectral_flux(log_bands: Tensor) -> Tensor:
    """Root-mean-square change of the log bands since the frame before, (frames,); first is 0."""
    change = (log_bands[1:] - log_bands[:-1]).square().mean(1).sqrt()
    return torch.cat([torch.zeros(1), change])


def frame_levels(samples: Tensor, *, hop: int) -> Tensor:
    """Level of each 25 ms frame, (frames,), in dB re full scale, -100 or above.

    Frames are those of ``power_spectra``.
    """
    half = WINDOW // 2
    centred = samples - samples.mean()
    frames = F.pad(centred, (half, half)).unfold(0, WINDOW, hop)
    return 10 * (frames.square().mean(1) + 1e-10).log10()


def trim_silence(samples: Tensor, *, margin_s: float = 0.1) -> Tensor:
    """Cut the silence before and after the speech, and rather too little than too much.

    A frame is speech when its level is in the upper three quarters of the range between the
    recording's background (10th percentile of levels) and its loud parts (95th), or within 25 dB
    of these. What lies ``margin_s`` around the first and last such frame stays, and everything
    stays where background and loud parts differ by less than 10 dB.

    Args:
        samples: Shape (samples,), float32, at 16 kHz.
        margin_s: Seconds kept before and behind.

    Returns:
        A view of a part of ``samples``, at least one sample.
    """
    hop = audio.SAMPLE_RATE // 100
    found = frame_levels(samples, hop=hop)
    background, loud = (float(torch.quantile(found, at)) for at in (0.10, 0.95))
    if loud - background < 10.0:
        return samples
    speech = (found > min(loud - 25.0, background + 0.25 * (loud - background))).nonzero()
    first, last = int(speech[0]) * hop, int(speech[-1]) * hop
    margin = int(margin_s * audio.SAMPLE_RATE) + WINDOW // 2
    return samples[max(0, first - margin) : last + margin]


def _floor(powers: Tensor) -> float:
    """Below what a power is silence, relative to the recording's largest."""
    return max(_MIN_POWER, _DYNAMIC_RANGE * float(powers.max()))


@cache
def _hann() -> Tensor:
    """The analysis window, (400,)."""
    return torch.hann_window(WINDOW)


@cache
def _hertz() -> Tensor:
    """Frequency of each bin, (257,)."""
    return torch.linspace(0, audio.SAMPLE_RATE / 2, _FFT // 2 + 1)


@cache
def _mel(bands: int, low: float) -> Tensor:
    """Mel filters, (257, bands)."""
    filters: Tensor = torchaudio.functional.melscale_fbanks(
        _FFT // 2 + 1,
        low,
        audio.SAMPLE_RATE / 2,
        bands,
        audio.SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters


@cache
def _dct(bands: int) -> Tensor:
    """Orthonormal DCT-II, (bands, bands)."""
    matrix: Tensor = torchaudio.functional.create_dct(bands, bands, norm="ortho")
    return matrix


def _bins(low: float, high: float) -> slice:
    """Bins from ``low`` up to but not including ``high`` Hz."""
    step = audio.SAMPLE_RATE / _FFT
    return slice(math.ceil(low / step), math.ceil(high / step))


def _slope(decibels: Tensor, low: float, high: float) -> Tensor:
    """Slope of the line through the spectrum within a band, dB per kHz, (frames,)."""
    inside = _bins(low, high)
    kilohertz = _hertz()[inside] / 1_000
    kilohertz = kilohertz - kilohertz.mean()
    return decibels[:, inside] @ kilohertz / kilohertz.square().sum()


def _band_db(spectra: Tensor, low: float, high: float) -> Tensor:
    """Energy within a band in dB, (frames,)."""
    return 10 * spectra[:, _bins(low, high)].sum(1).log10()


def _peak_db(spectra: Tensor, low: float, high: float) -> Tensor:
    """Strongest bin of a band in dB, (frames,)."""
    return 10 * spectra[:, _bins(low, high)].amax(1).log10()
