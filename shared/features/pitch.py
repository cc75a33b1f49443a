"""Pitch by YIN, and the voice qualities that follow from periods.

A. de Cheveigné and H. Kawahara, YIN, a fundamental frequency estimator for speech and music,
J. Acoust. Soc. Am. 111(4):1917-1930, 2002: steps 1 to 5 (difference function, cumulative mean
normalisation, absolute threshold, parabolic interpolation), all frames at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared import audio

LOWEST, HIGHEST = 60.0, 700.0
"""Range of the search in Hz: from a low male voice to a scream."""

THRESHOLD = 0.15
"""Aperiodicity below which the first dip is taken (YIN's absolute threshold)."""

VOICED = 0.35
"""Aperiodicity below which a frame is voiced."""

FAINT_DB = 35.0
"""A frame this far below the recording's loud ones is not voiced, however periodic."""

_WINDOW = 512  # samples that are compared, 32 ms: two periods of the lowest voice
_FFT = 1_024
_SHORTEST_LAG = int(audio.RATE / HIGHEST)
_LONGEST_LAG = int(audio.RATE / LOWEST) + 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pitch:
    """What YIN found, frame by frame.

    Attributes:
        hertz: Fundamental frequency, shape (frames,), float32; 0 where unvoiced.
        voiced: Shape (frames,), bool.
        aperiodicity: YIN's normalised difference at the period, (frames,), 0 for a periodic
            sound, about 1 for noise, at most 2.
    """

    hertz: Tensor
    voiced: Tensor
    aperiodicity: Tensor


def track(samples: Tensor, *, hop: int) -> Pitch:
    """Follow the fundamental frequency.

    Args:
        samples: Shape (samples,), float32, at 16 kHz, any length from 1.
        hop: Samples between frames.

    Returns:
        The track, frames = 1 + samples // hop, each centred on its sample.
    """
    frames = _frames(samples, hop)
    curves = _normalised_differences(frames)
    lags, aperiodicity = _periods(curves)
    level = 10 * (frames[:, :_WINDOW].square().mean(1) + 1e-10).log10()
    loud = level > torch.quantile(level, 0.95) - FAINT_DB
    voiced = (aperiodicity < VOICED) & loud & (level > -90.0)
    hertz = torch.where(voiced, audio.RATE / lags, torch.zeros_like(lags))
    return Pitch(hertz=_median(hertz, voiced), voiced=voiced, aperiodicity=aperiodicity)


def harmonicity(pitch: Pitch) -> Tensor:
    """Harmonics-to-noise ratio in dB, (frames,), in [-20, 40].

    10 log10(r / (1 - r)) after Boersma (Proc. Inst. Phonetic Sciences 17:97-110, 1993), with the
    periodic share r of the energy taken from YIN: r = 1 - aperiodicity / 2.
    """
    share = (1 - pitch.aperiodicity / 2).clamp(1e-6, 1 - 1e-6)
    return (10 * (share / (1 - share)).log10()).clamp(-20.0, 40.0)


def semitones(pitch: Pitch) -> Tensor:
    """Fundamental frequency in semitones above 27.5 Hz, (frames,); 0 where unvoiced."""
    return 12 * (pitch.hertz.clamp_min(27.5) / 27.5).log2()


def jitter(pitch: Pitch) -> Tensor:
    """Bend of the period between three voiced frames relative to it, (frames,); else 0.

    A proxy: real jitter compares neighbouring glottal cycles, this compares frames 10 ms apart.
    The second difference leaves an even glide of intonation out.
    """
    period = audio.RATE / pitch.hertz.clamp_min(LOWEST)
    return _bend(period, pitch.voiced) / period


def shimmer(levels: Tensor, voiced: Tensor) -> Tensor:
    """Bend of the level between three voiced frames in dB, (frames,); else 0. A proxy, too."""
    return _bend(levels, voiced)


def _frames(samples: Tensor, hop: int) -> Tensor:
    """Frames of window plus longest lag without their mean, (frames, 512 + 268)."""
    length = _WINDOW + _LONGEST_LAG + 1
    padded = F.pad(samples, (length // 2, length - length // 2))
    frames = padded.unfold(0, length, hop)[: 1 + len(samples) // hop]
    return frames - frames.mean(1, keepdim=True)


def _normalised_differences(frames: Tensor) -> Tensor:
    """YIN's d'(lag) for lags 0 to the longest plus one, (frames, lags); 1 where all is silent."""
    # Scaled to the loudest sample: single precision is then enough for quiet frames as well.
    frames = frames / frames.abs().amax(1, keepdim=True).clamp_min(1e-8)
    head = torch.fft.rfft(frames[:, :_WINDOW], n=_FFT)
    shared = torch.fft.irfft(head.conj() * torch.fft.rfft(frames, n=_FFT), n=_FFT)
    squares = F.pad(frames.double().square().cumsum(1), (1, 0))
    lags = frames.shape[1] - _WINDOW + 1
    energy = squares[:, _WINDOW : _WINDOW + lags] - squares[:, :lags]
    difference = (energy[:, :1] + energy - 2 * shared[:, :lags].double()).clamp_min(0.0)
    running = difference[:, 1:].cumsum(1) / torch.arange(1, lags)
    curve = torch.where(running > 1e-9, difference[:, 1:] / running.clamp_min(1e-9), 1.0)
    return F.pad(curve, (1, 0), value=1.0).float()


def _periods(curves: Tensor) -> tuple[Tensor, Tensor]:
    """Best lag in samples, with a fraction, and the curve's value there; each (frames,)."""
    searched = curves[:, _SHORTEST_LAG : _LONGEST_LAG + 1]
    before, after = curves[:, _SHORTEST_LAG - 1 : _LONGEST_LAG], curves[:, _SHORTEST_LAG + 1 :]
    dips = (searched < THRESHOLD) & (searched <= before) & (searched <= after)
    first = dips.to(torch.float32).argmax(1)
    chosen = torch.where(dips.any(1), first, searched.argmin(1))[:, None]
    left, middle, right = (part.gather(1, chosen)[:, 0] for part in (before, searched, after))
    bend = left - 2 * middle + right
    shift = torch.where(bend > 1e-9, 0.5 * (left - right) / bend.clamp_min(1e-9), 0.0)
    lags = chosen[:, 0] + _SHORTEST_LAG + shift.clamp(-0.5, 0.5)
    return lags, middle.clamp(0.0, 2.0)


def _median(hertz: Tensor, voiced: Tensor) -> Tensor:
    """Median of three among voiced neighbours: takes single octave jumps out."""
    if len(hertz) < 3:
        return hertz
    smooth = hertz.clone()
    smooth[1:-1] = hertz.unfold(0, 3, 1).median(1).values
    whole = voiced & _both_sides(voiced)
    return torch.where(whole, smooth, hertz)


def _bend(values: Tensor, voiced: Tensor) -> Tensor:
    """Absolute second difference where a frame and both neighbours are voiced, else 0."""
    bend = torch.zeros_like(values)
    if len(values) > 2:
        bend[1:-1] = (values[2:] - 2 * values[1:-1] + values[:-2]).abs() / 2
    return torch.where(voiced & _both_sides(voiced), bend, torch.zeros_like(bend))


def _both_sides(voiced: Tensor) -> Tensor:
    """Whether both neighbours of a frame are voiced, (frames,)."""
    padded = F.pad(voiced, (1, 1))
    return padded[:-2] & padded[2:]
