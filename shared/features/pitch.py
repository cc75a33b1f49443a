"""Pitch by YIN, and the voice quality measures that follow from the periods.

A. de Cheveigné and H. Kawahara, YIN, a fundamental frequency estimator for speech and music,
J. Acoust. Soc. Am. 111(4):1917-1930, 2002: steps 1 to 5 (difference function, cumulative mean
normalisation, absolute threshold, parabolic interpolation), all frames at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared import audio

MIN_F0_HZ, MAX_F0_HZ = 60.0, 700.0
"""Search range in Hz: from a low male voice to a scream."""

DIP_THRESHOLD = 0.15
"""Aperiodicity below which the first dip is taken (YIN's absolute threshold)."""

VOICED_THRESHOLD = 0.35
"""Aperiodicity below which a frame is voiced."""

VOICED_RANGE_DB = 35.0
"""Frames this far below the recording's loud ones are unvoiced, however periodic."""

_WINDOW = 512  # samples that are compared, 32 ms: two periods of the lowest voice
_FFT = 1_024
_MIN_LAG = int(audio.SAMPLE_RATE / MAX_F0_HZ)
_MAX_LAG = int(audio.SAMPLE_RATE / MIN_F0_HZ) + 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PitchTrack:
    """Pitch of one utterance, frame by frame, estimated by YIN.

    Attributes:
        f0_hz: Fundamental frequency, shape (frames,), float32; 0 in unvoiced frames.
        voiced: Shape (frames,), bool.
        aperiodicity: YIN's normalised difference at the period, (frames,), 0 for a periodic
            sound, about 1 for noise, at most 2.
    """

    f0_hz: Tensor
    voiced: Tensor
    aperiodicity: Tensor


def track_pitch(samples: Tensor, *, hop: int) -> PitchTrack:
    """Track the fundamental frequency of a signal.

    Args:
        samples: Shape (samples,), float32, at 16 kHz, any length from 1.
        hop: Samples between frames.

    Returns:
        The track, frames = 1 + samples // hop, each centred on its sample.

    Example:
        >>> time = torch.arange(8_000) / audio.SAMPLE_RATE
        >>> found = track_pitch((2 * torch.pi * 200 * time).sin(), hop=160)
        >>> round(float(found.f0_hz[25]))
        200
    """
    frames = _frames(samples, hop)
    curves = _normalised_differences(frames)
    lags, aperiodicity = _periods(curves)
    level = 10 * (frames[:, :_WINDOW].square().mean(1) + 1e-10).log10()
    loud = level > torch.quantile(level, 0.95) - VOICED_RANGE_DB
    voiced = (aperiodicity < VOICED_THRESHOLD) & loud & (level > -90.0)
    hertz = torch.where(voiced, audio.SAMPLE_RATE / lags, torch.zeros_like(lags))
    return PitchTrack(f0_hz=_median(hertz, voiced), voiced=voiced, aperiodicity=aperiodicity)


def harmonics_to_noise(pitch: PitchTrack) -> Tensor:
    """Compute the harmonics-to-noise ratio in dB, (frames,), in [-20, 40].

    10 log10(r / (1 - r)) after Boersma (Proc. Inst. Phonetic Sciences 17:97-110, 1993), with the
    periodic share r of the energy taken from YIN: r = 1 - aperiodicity / 2.

    Example:
        >>> noisy = PitchTrack(
        ...     f0_hz=torch.tensor([200.0]),
        ...     voiced=torch.tensor([True]),
        ...     aperiodicity=torch.tensor([1.0]),
        ... )
        >>> harmonics_to_noise(noisy)  # half of the energy is noise
        tensor([0.])
    """
    share = (1 - pitch.aperiodicity / 2).clamp(1e-6, 1 - 1e-6)
    return (10 * (share / (1 - share)).log10()).clamp(-20.0, 40.0)


def f0_semitones(pitch: PitchTrack) -> Tensor:
    """Convert the pitch to semitones above 27.5 Hz, (frames,); 0 in unvoiced frames.

    Example:
        >>> octaves = PitchTrack(
        ...     f0_hz=torch.tensor([110.0, 220.0, 0.0]),
        ...     voiced=torch.tensor([True, True, False]),
        ...     aperiodicity=torch.tensor([0.1, 0.1, 1.0]),
        ... )
        >>> f0_semitones(octaves)
        tensor([24., 36.,  0.])
    """
    return 12 * (pitch.f0_hz.clamp_min(27.5) / 27.5).log2()


def jitter_proxy(pitch: PitchTrack) -> Tensor:
    """Relative second difference of the period over three voiced frames, (frames,); else 0.

    A proxy: real jitter compares neighbouring glottal cycles, this compares frames 10 ms apart.
    The second difference is not affected by a linear glide of intonation.

    Example:
        >>> steady = PitchTrack(
        ...     f0_hz=torch.full((3,), 200.0),
        ...     voiced=torch.ones(3, dtype=torch.bool),
        ...     aperiodicity=torch.zeros(3),
        ... )
        >>> jitter_proxy(steady)
        tensor([0., 0., 0.])
    """
    period = audio.SAMPLE_RATE / pitch.f0_hz.clamp_min(MIN_F0_HZ)
    return _second_difference(period, pitch.voiced) / period


def shimmer_proxy(levels: Tensor, voiced: Tensor) -> Tensor:
    """Second difference of the level over three voiced frames in dB, (frames,); else 0.

    A proxy, for the same reason as :func:`jitter_proxy`.

    Example:
        >>> levels = torch.tensor([-20.0, -18.0, -20.0])
        >>> shimmer_proxy(levels, torch.ones(3, dtype=torch.bool))
        tensor([0., 2., 0.])
    """
    return _second_difference(levels, voiced)


def _frames(samples: Tensor, hop: int) -> Tensor:
    """Frames of window plus longest lag without their mean, (frames, 512 + 268)."""
    length = _WINDOW + _MAX_LAG + 1
    padded = F.pad(samples, (length // 2, length - length // 2))
    frames = padded.unfold(0, length, hop)[: 1 + len(samples) // hop]
    return frames - frames.mean(1, keepdim=True)


def _normalised_differences(frames: Tensor) -> Tensor:
    """YIN's d'(lag) for lags 0 to the longest plus one, (frames, lags); 1 where all is silent."""
    # Scaled to the loudest sample: single precision is then enough for quiet frames as well.
    frames = frames / frames.abs().amax(1, keepdim=True).clamp_min(1e-8)
    # All lags at once: YIN's difference is energies minus twice the cross-correlation, which is a
    # product of spectra (de Cheveigné and Kawahara 2002, appendix).
    head = torch.fft.rfft(frames[:, :_WINDOW], n=_FFT)
    shared = torch.fft.irfft(head.conj() * torch.fft.rfft(frames, n=_FFT), n=_FFT)
    # In double precision: running sums of squares are subtracted from one another.
    squares = F.pad(frames.double().square().cumsum(1), (1, 0))
    lags = frames.shape[1] - _WINDOW + 1
    energy = squares[:, _WINDOW : _WINDOW + lags] - squares[:, :lags]
    difference = (energy[:, :1] + energy - 2 * shared[:, :lags].double()).clamp_min(0.0)
    running = difference[:, 1:].cumsum(1) / torch.arange(1, lags)
    curve = torch.where(running > 1e-9, difference[:, 1:] / running.clamp_min(1e-9), 1.0)
    return F.pad(curve, (1, 0), value=1.0).float()


def _periods(curves: Tensor) -> tuple[Tensor, Tensor]:
    """Best lag in samples, with a fraction, and the curve's value there; each (frames,)."""
    searched = curves[:, _MIN_LAG : _MAX_LAG + 1]
    before, after = curves[:, _MIN_LAG - 1 : _MAX_LAG], curves[:, _MIN_LAG + 1 :]
    dips = (searched < DIP_THRESHOLD) & (searched <= before) & (searched <= after)
    first = dips.to(torch.float32).argmax(1)
    chosen = torch.where(dips.any(1), first, searched.argmin(1))[:, None]
    left, middle, right = (part.gather(1, chosen)[:, 0] for part in (before, searched, after))
    curvature = left - 2 * middle + right
    # Vertex of the parabola through three points; flat dips have none.
    shift = torch.where(curvature > 1e-9, 0.5 * (left - right) / curvature.clamp_min(1e-9), 0.0)
    lags = chosen[:, 0] + _MIN_LAG + shift.clamp(-0.5, 0.5)
    return lags, middle.clamp(0.0, 2.0)


def _median(hertz: Tensor, voiced: Tensor) -> Tensor:
    """Median of three among voiced neighbours: takes single octave jumps out."""
    if len(hertz) < 3:
        return hertz
    smooth = hertz.clone()
    smooth[1:-1] = hertz.unfold(0, 3, 1).median(1).values
    whole = voiced & _both_sides(voiced)
    return torch.where(whole, smooth, hertz)


def _second_difference(values: Tensor, voiced: Tensor) -> Tensor:
    """Absolute second difference where a frame and both neighbours are voiced, else 0."""
    difference = torch.zeros_like(values)
    if len(values) > 2:
        difference[1:-1] = (values[2:] - 2 * values[1:-1] + values[:-2]).abs() / 2
    return torch.where(voiced & _both_sides(voiced), difference, torch.zeros_like(difference))


def _both_sides(voiced: Tensor) -> Tensor:
    """Whether both neighbours of a frame are voiced, (frames,)."""
    padded = F.pad(voiced, (1, 1))
    return padded[:-2] & padded[2:]
