"""Fundamental frequency by autocorrelation, with the cheapest path through its candidates.

P. Boersma, Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise
ratio of a sampled sound, Proc. Institute of Phonetic Sciences 17:97-110, 1993. Costs are those
that Praat uses by default.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.audio import SAMPLE_RATE
from sottovoce.shared.features.acoustic.framing import HOP, Array, cut_frames

MIN_F0_HZ: Final = 75.0
MAX_F0_HZ: Final = 600.0

_RATE = SAMPLE_RATE // 2  # harmonics above 4 kHz tell nothing of the period
_WINDOW = 320  # three periods of the lowest voice
_FFT = 512
_MIN_LAG, _MAX_LAG = int(_RATE / MAX_F0_HZ), int(_RATE / MIN_F0_HZ) + 1
_CANDIDATES = 3
_VOICING_THRESHOLD, _SILENCE_THRESHOLD = 0.45, 0.03
_OCTAVE_COST, _JUMP_COST, _SWITCH_COST = 0.01, 0.35, 0.14
_IMPOSSIBLE = -1e6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class F0Track:
    """Fundamental frequency of one signal, frame by frame.

    Attributes:
        f0_hz: Shape (frames,), float32; NaN in unvoiced frames.
        voiced: Shape (frames,), bool.
        strength: Voicing confidence: the normalised autocorrelation at the period, in [0, 1]; in
            unvoiced frames, that of the best candidate. Shape (frames,), float32.
    """

    f0_hz: Array
    voiced: NDArray[np.bool_]
    strength: Array


def track_f0(samples: Array) -> F0Track:
    """Track the fundamental frequency from 75 to 600 Hz.

    Args:
        samples: Shape (samples,), float32, at 16 kHz.

    Returns:
        The track, frames = 1 + samples // 160.

    Example:
        >>> time = np.arange(8_000, dtype=np.float32) / SAMPLE_RATE
        >>> found = track_f0(np.sin(2 * np.pi * 200 * time))
        >>> round(float(found.f0_hz[25]))
        200
    """
    frames = cut_frames(halve_rate(samples), _WINDOW, hop=HOP // 2)[: 1 + len(samples) // HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    peaks = np.abs(frames).max(axis=1)
    loudest = max(float(peaks.max()), 1e-9)
    lags, strengths = _find_candidates(_autocorrelate(frames))
    # Praat's strength of "unvoiced": it grows as a frame is quieter than the loudest.
    quiet = 2 - peaks / loudest * ((1 + _VOICING_THRESHOLD) / _SILENCE_THRESHOLD)
    unvoiced = _VOICING_THRESHOLD + np.maximum(0, quiet)
    octaves = np.log2(lags)
    costs = _OCTAVE_COST * (octaves + np.log2(MIN_F0_HZ / _RATE))
    chosen = _find_path(np.where(strengths > 0, strengths - costs, _IMPOSSIBLE), unvoiced, octaves)
    voiced = chosen < _CANDIDATES
    rows = np.arange(len(frames))
    best = strengths[rows, np.where(voiced, chosen, strengths.argmax(axis=1))]
    hertz = _RATE / lags[rows, np.minimum(chosen, _CANDIDATES - 1)]
    return F0Track(
        f0_hz=np.where(voiced, hertz, np.nan).astype(np.float32),
        voiced=voiced,
        strength=np.clip(best, 0, 1).astype(np.float32),
    )


def halve_rate(samples: Array) -> Array:
    """Low-pass a signal gently, and keep every second sample.

    Example:
        >>> halve_rate(np.ones(10, dtype=np.float32))[2:4].tolist()
        [1.0, 1.0]
    """
    padded = np.pad(samples, 3)
    count = len(samples)
    # Binomial weights of order 6: 18 dB less at 4 kHz, all less above.
    weights = (1, 6, 15, 20, 15, 6, 1)
    halved: Array = np.zeros((count + 1) // 2, dtype=np.float32)
    for step, weight in enumerate(weights):
        halved += np.float32(weight / 64) * padded[step : step + count : 2]
    return halved


def _autocorrelate(frames: Array) -> Array:
    """Autocorrelation of each frame over that of its window, lags 0 to the longest + 1."""
    window, expected = _window()
    spectra = np.fft.rfft(frames * window, n=_FFT)
    powers = spectra.real**2 + spectra.imag**2
    correlation = np.fft.irfft(powers, n=_FFT)[:, : _MAX_LAG + 2]
    normalised = correlation / (np.maximum(correlation[:, :1], 1e-12) * expected)
    return normalised.astype(np.float32, copy=False)


def _find_candidates(correlation: Array) -> tuple[Array, Array]:
    """The strongest maxima of each frame: lags in samples and strengths, (frames, 4) each."""
    inner = correlation[:, _MIN_LAG : _MAX_LAG + 1]
    before = correlation[:, _MIN_LAG - 1 : _MAX_LAG]
    behind = correlation[:, _MIN_LAG + 1 : _MAX_LAG + 2]
    maxima = np.where((inner > before) & (inner >= behind), inner, np.float32(0))
    # Of a voice's equally strong multiples of the period, the shortest must be among them.
    costs = _OCTAVE_COST * np.log2(np.arange(_MIN_LAG, _MAX_LAG + 1, dtype=np.float32))
    columns = np.argpartition(maxima - costs, -_CANDIDATES, axis=1)[:, -_CANDIDATES:]
    left, middle, right = (np.take_along_axis(part, columns, 1) for part in (before, inner, behind))
    there = np.take_along_axis(maxima, columns, 1) > 0
    bend = np.where(there, left - 2 * middle + right, -1)
    shift = 0.5 * (left - right) / np.minimum(bend, -1e-9)
    strengths = middle - 0.25 * (left - right) * shift
    # Above 1 a peak is reflected, as in Praat: interpolation passed it.
    strengths = np.where(strengths > 1, 1 / np.maximum(strengths, 1), strengths)
    lags = columns + _MIN_LAG + np.clip(shift, -1, 1)
    return np.where(there, lags, _MAX_LAG), np.where(there, strengths, 0)


def _find_path(strengths: Array, unvoiced: Array, octaves: Array) -> NDArray[np.int64]:
    """The best candidate of each frame, Viterbi; the number of candidates stands for unvoiced."""
    jumps = _JUMP_COST * np.abs(octaves[1:, None, :] - octaves[:-1, :, None])
    # A path through such a frame gains by being unvoiced there, whatever lies around.
    forced = (unvoiced - strengths.max(axis=1) > 2 * _SWITCH_COST).tolist()
    # Plain lists: for four states they are several times faster than small arrays.
    totals = [*strengths[0].tolist(), float(unvoiced[0])]
    steps: list[list[int]] = []
    rest = zip(
        strengths[1:].tolist(), unvoiced[1:].tolist(), jumps.tolist(), forced[1:], strict=True
    )
    states = range(_CANDIDATES)
    for own, silent, jump, is_forced in rest:
        step, new = [], []
        if is_forced:
            best = max(totals[:_CANDIDATES]) - _SWITCH_COST
            stays = totals[_CANDIDATES] >= best
            origin = _CANDIDATES if stays else totals.index(best + _SWITCH_COST)
            steps.append([origin] * (_CANDIDATES + 1))
            totals = [_IMPOSSIBLE] * _CANDIDATES + [max(totals[_CANDIDATES], best) + silent]
            continue
        away = totals[_CANDIDATES] - _SWITCH_COST
        for state in states:
            best, origin = away, _CANDIDATES
            for earlier in states:
                reached = totals[earlier] - jump[earlier][state]
                if reached > best:
                    best, origin = reached, earlier
            new.append(best + own[state])
            step.append(origin)
        best = max(totals[:_CANDIDATES])
        stays = totals[_CANDIDATES] >= best - _SWITCH_COST
        step.append(_CANDIDATES if stays else totals.index(best))
        new.append(max(totals[_CANDIDATES], best - _SWITCH_COST) + silent)
        totals = new
        steps.append(step)
    path = [totals.index(max(totals))]
    for step in reversed(steps):
        path.append(step[path[-1]])
    return np.array(path[::-1])


@cache
def _window() -> tuple[Array, Array]:
    """Hann window, and its normalised autocorrelation over the lags."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(_WINDOW) + 0.5) / _WINDOW)
    expected = np.fft.irfft(np.abs(np.fft.rfft(window, n=2 * _FFT)) ** 2)[: _MAX_LAG + 2]
    return window.astype(np.float32), (expected / expected[0]).astype(np.float32)
