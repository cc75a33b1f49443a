"""Spectra of frames: log-mel bands, cepstra, shape and flux; and trimming of silence."""

import math
from functools import cache

import torch
import torchaudio.functional
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared import audio

WINDOW = 400
"""Samples in one analysis window, 25 ms at 16 kHz."""

_MIN_POWER = 1e-14  # floor of a recording that is silent throughout
_DYNAMIC_RANGE = 1e-8  # 80 dB: powers further below the recording's loudest are raised to that
_FFT = 512


def power_spectra(samples: Tensor, *, hop: int) -> Tensor:
    """Compute power spectra of Hann windows centred ``hop`` samples apart.

    Args:
        samples: Shape (samples,), float32, at 16 kHz, any length from 1.
        hop: Samples between frames.

    Returns:
        Shape (frames, 257), float32, frames = 1 + samples // hop; bins 31.25 Hz apart.

    Example:
        >>> power_spectra(torch.zeros(16_000), hop=160).shape
        torch.Size([101, 257])
    """
    half = _FFT // 2
    padded = F.pad(samples, (half, half))
    spectrum = torch.stft(
        padded, _FFT, hop, WINDOW, window=_hann(), center=False, return_complex=True
    )
    # The square of the magnitude, without the square root that abs() would take.
    return torch.view_as_real(spectrum).square().sum(-1).T / WINDOW


def log_mel_energies(spectra: Tensor, *, bands: int, low: float = 20.0) -> Tensor:
    """Compute the log energy in triangular mel bands (Slaney's scale and areas).

    Energies more than 80 dB below the recording's largest are raised to that floor, so that the
    level of the recording only shifts all of them.

    Args:
        spectra: From ``power_spectra``, (frames, 257).
        bands: Number of bands.
        low: Lower end of the lowest band in Hz; the highest ends at 8 kHz.

    Returns:
        Natural logarithms, shape (frames, bands), float32, finite for any finite input.

    Example:
        >>> log_mel_energies(power_spectra(torch.ones(800), hop=160), bands=26).shape
        torch.Size([6, 26])
    """
    energies = spectra @ _mel(bands, low)
    return energies.clamp_min(_floor(energies)).log()


def mel_cepstra(log_bands: Tensor, *, count: int) -> Tensor:
    """Compute mel-frequency cepstral coefficients 1 to ``count`` (orthonormal DCT-II).

    Davis and Mermelstein, IEEE Trans. ASSP 28(4):357-366, 1980. Coefficient 0 is left out: it is
    the level, which is a descriptor of its own.

    Args:
        log_bands: From ``log_mel_energies``, (frames, bands).
        count: Coefficients, below the number of bands.

    Returns:
        Shape (frames, count), float32.

    Example:
        >>> bool(mel_cepstra(torch.ones(1, 26), count=13).abs().max() < 1e-5)  # a flat spectrum
        True
    """
    return log_bands @ _dct(log_bands.shape[1])[:, 1 : count + 1]


def regression_deltas(values: Tensor) -> Tensor:
    """Compute slopes over five frames (regression deltas; Furui 1986); (frames, x) -> same.

    Example:
        >>> regression_deltas(torch.arange(5.0)[:, None])[2]  # one unit per frame
        tensor([1.])
    """
    padded = torch.cat([values[:1]] * 2 + [values] + [values[-1:]] * 2)
    count = len(values)
    near = padded[3 : 3 + count] - padded[1 : 1 + count]
    far = padded[4 : 4 + count] - padded[:count]
    return (near + 2 * far) / 10


def spectral_shape(spectra: Tensor) -> dict[str, Tensor]:
    """Compute centroid, roll-off, flatness, tilt and balance of each spectrum.

    Args:
        spectra: From ``power_spectra``, (frames, 257).

    Returns:
        One (frames,) tensor a descriptor, named and defined as in ``descriptors``; finite.

    Example:
        >>> shape = spectral_shape(power_spectra(torch.ones(800), hop=160))
        >>> sorted(shape)[:3]
        ['alpha_ratio', 'centroid', 'flatness']
    """
    # Logarithms and ratios of a silent frame must stay finite.
    spectra = spectra + _floor(spectra)
    hertz = _hertz()
    total = spectra.sum(1)
    gathered = spectra.cumsum(1)
    # argmax of a mask is its first True.
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
    """Root-mean-square change of the log bands since the last frame, (frames,); the first is 0.

    Example:
        >>> spectral_flux(torch.tensor([[1.0, 1.0], [4.0, 5.0], [4.0, 5.0]]))
        tensor([0.0000, 3.5355, 0.0000])
    """
    change = (log_bands[1:] - log_bands[:-1]).square().mean(1).sqrt()
    return torch.cat([torch.zeros(1), change])


def frame_levels(samples: Tensor, *, hop: int) -> Tensor:
    """Compute the level of each 25 ms frame, (frames,), in dB re full scale, -100 or above.

    Frames are those of ``power_spectra``.

    Example:
        >>> frame_levels(torch.zeros(480), hop=160)
        tensor([-100., -100., -100., -100.])
    """
    half = WINDOW // 2
    centred = samples - samples.mean()
    frames = F.pad(centred, (half, half)).unfold(0, WINDOW, hop)
    return 10 * (frames.square().mean(1) + 1e-10).log10()


def trim_silence(samples: Tensor, *, margin_s: float = 0.1) -> Tensor:
    """Cut leading and trailing silence, rather too little than too much.

    A frame is speech if its level is in the upper three quarters of the range between the
    recording's background (10th percentile of levels) and its loud parts (95th), or within 25 dB
    of the latter. A margin around the first and last such frame stays. Nothing is cut if
    background and loud parts differ by less than 10 dB.

    Args:
        samples: Shape (samples,), float32, at 16 kHz.
        margin_s: Margin before and after the speech, in seconds.

    Returns:
        A view of a part of ``samples``, at least one sample.

    Example:
        >>> loud = torch.tensor([0.5, -0.5]).repeat(4_000)  # half a second
        >>> padded = torch.cat([torch.zeros(16_000), loud, torch.zeros(16_000)])
        >>> len(padded), len(trim_silence(padded))
        (40000, 11920)
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
    """Power of silence, relative to the recording's largest."""
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
