"""Jitter and shimmer from one glottal cycle to the next, and the harmonics-to-noise ratio.

Cycles are found by matching waveforms (I. R. Titze and H. Liang, Comparison of F0 extraction
methods for high-precision voice perturbation measurements, J. Speech and Hearing Research
36(6):1120-1133, 1993); what counts as a cycle is Praat's rule: neighbouring periods differ by at
most a factor 1.3, neighbouring amplitudes by at most 1.6.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.audio import SAMPLE_RATE
from sottovoce.shared.features.acoustic.framing import HOP, Array
from sottovoce.shared.features.acoustic.pitch import F0Track

MAX_PERIOD_FACTOR: Final = 1.3
MAX_AMPLITUDE_FACTOR: Final = 1.6

_SMOOTH = 9  # samples, twice: leaves the fundamental and its first harmonics
_SHIFT = 4  # samples by which a pulse may miss its cycle
_EDGE = 0.2  # of a period on each side of a pulse, whose power is its amplitude
_REACH = 2  # frames on each side whose cycles count for a frame


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cycles:
    """Glottal cycles of one signal, in order; those of a voiced stretch follow one another.

    Attributes:
        positions: Where each begins, in samples, shape (cycles,).
        periods: Length of each in samples, shape (cycles,), float64.
        amplitudes: Amplitude around each beginning, shape (cycles,), float64.
        stretches: Number of the voiced stretch of each, shape (cycles,).
    """

    positions: NDArray[np.int64]
    periods: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    stretches: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Perturbation:
    """Changes from each cycle to the next.

    Attributes:
        positions: Where they are, in samples, shape (changes,).
        jitter: Absolute change of the period over the mean period, (changes,); NaN if no cycle.
        shimmer_db: Absolute change of the amplitude in dB, (changes,); NaN if no cycle.
    """

    positions: NDArray[np.int64]
    jitter: NDArray[np.float64]
    shimmer_db: NDArray[np.float64]


def find_cycles(samples: Array, track: F0Track) -> Cycles:
    """Find the glottal cycles of all voiced stretches.

    Args:
        samples: Shape (samples,), float32, at 16 kHz.
        track: Fundamental frequency of the same signal.

    Example:
        >>> from sottovoce.shared.features.acoustic.pitch import track_f0
        >>> time = np.arange(8_000, dtype=np.float32) / SAMPLE_RATE
        >>> sine = np.sin(2 * np.pi * 200 * time)
        >>> round(float(np.median(find_cycles(sine, track_f0(sine)).periods)), 1)
        80.0
    """
    smooth = _smooth(samples)
    pulses: list[int] = []
    numbers: list[int] = []
    hertz = track.f0_hz.tolist()
    for number, (first, last) in enumerate(_stretches(track.voiced)):
        found = _walk(smooth, hertz, first, last)
        pulses += found
        numbers += [number] * len(found)
    at, stretch = np.array(pulses, dtype=np.int64), np.array(numbers, dtype=np.int64)
    paired = stretch[1:] == stretch[:-1]
    starts, ends = at[:-1][paired], at[1:][paired]
    return Cycles(
        positions=starts,
        periods=_match(samples, starts, ends),
        amplitudes=_amplitudes(samples, starts, ends - starts),
        stretches=stretch[:-1][paired],
    )


def measure_perturbation(cycles: Cycles) -> Perturbation:
    """Measure the changes of period and amplitude from each cycle to the next.

    Example:
        >>> three = Cycles(
        ...     positions=np.array([0, 100, 202]),
        ...     periods=np.array([100.0, 102.0, 100.0]),
        ...     amplitudes=np.ones(3),
        ...     stretches=np.zeros(3, dtype=np.int64),
        ... )
        >>> measure_perturbation(three).jitter.round(4).tolist()
        [0.0198, 0.0198]
    """
    same = cycles.stretches[1:] == cycles.stretches[:-1]
    first, second = cycles.periods[:-1][same], cycles.periods[1:][same]
    quiet, loud = (
        np.maximum(part[same], 1e-9) for part in (cycles.amplitudes[:-1], cycles.amplitudes[1:])
    )
    regular = np.maximum(first / second, second / first) <= MAX_PERIOD_FACTOR
    even = regular & (np.maximum(quiet / loud, loud / quiet) <= MAX_AMPLITUDE_FACTOR)
    return Perturbation(
        positions=cycles.positions[1:][same],
        jitter=np.where(regular, np.abs(second - first) / ((first + second) / 2), np.nan),
        shimmer_db=np.where(even, np.abs(20 * np.log10(loud / quiet)), np.nan),
    )


def average_over_frames(
    values: NDArray[np.float64], positions: NDArray[np.int64], voiced: NDArray[np.bool_]
) -> Array:
    """Average values of cycles over the 50 ms around each voiced frame.

    Args:
        values: One a change, shape (changes,); NaN does not count.
        positions: In samples, rising, shape (changes,).
        voiced: Which frames are voiced, shape (frames,).

    Returns:
        Shape (frames,), float32; NaN in unvoiced frames, and where there is no cycle.

    Example:
        >>> voiced = np.array([True, False])
        >>> average_over_frames(np.array([1.0, 3.0]), np.array([0, 80]), voiced).tolist()
        [2.0, nan]
    """
    counted = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(counted, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(counted)])
    centres = np.arange(len(voiced)) * HOP
    reach = _REACH * HOP + HOP // 2
    low = np.searchsorted(positions, centres - reach)
    high = np.searchsorted(positions, centres + reach)
    number = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(number, 1)
    return np.where(voiced & (number > 0), means, np.nan).astype(np.float32)


def measure_hnr(track: F0Track) -> Array:
    """Measure the harmonics-to-noise ratio of voiced frames in dB (Boersma 1993).

    Returns:
        10 log10(r / (1 - r)) of the strength r, in [-50, 50]; NaN in unvoiced frames.

    Example:
        >>> half = np.array([0.5], dtype=np.float32)
        >>> measure_hnr(F0Track(f0_hz=half * 400, voiced=half > 0, strength=half)).tolist()
        [0.0]
    """
    share = np.clip(track.strength.astype(np.float64), 1e-5, 1 - 1e-5)
    decibels = 10 * np.log10(share / (1 - share))
    return np.where(track.voiced, decibels, np.nan).astype(np.float32)


def _smooth(samples: Array) -> Array:
    """Low-pass by two moving averages, turned so that its sharper peaks point up."""
    smooth = samples.astype(np.float64)
    for _ in range(2):
        sums = np.cumsum(np.pad(smooth, (_SMOOTH // 2 + 1, _SMOOTH // 2)))
        smooth = (sums[_SMOOTH:] - sums[:-_SMOOTH]) / _SMOOTH
    smooth = smooth - smooth.mean()
    # Mean cube, without a power that numpy computes slowly.
    upright: Array = smooth if float(smooth @ (smooth * smooth)) >= 0 else -smooth
    return upright.astype(np.float32)


def _stretches(voiced: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last frame of each voiced stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], voiced, [False]])))
    yield from zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True)


def _walk(smooth: Array, hertz: list[float], first: int, last: int) -> list[int]:
    """Pulses of one stretch: from its highest peak to both ends, a period at a time."""
    begin = max(0, first * HOP - HOP // 2)
    end = min(len(smooth), last * HOP + HOP // 2)
    if end - begin < 2 * HOP:
        return []
    start = begin + int(smooth[begin:end].argmax())
    pulses = [start]
    for direction in (1, -1):
        at = start
        while True:
            frame = min(max(round(at / HOP), first), last)
            period = SAMPLE_RATE / hertz[frame]
            near, far = (round(at + direction * factor * period) for factor in (0.8, 1.25))
            low, high = min(near, far), max(near, far) + 1
            if low < begin or high > end:
                break
            at = low + int(smooth[low:high].argmax())
            pulses.append(at)
    return sorted(pulses)


def _gather(samples: Array, centres: NDArray[np.int64], reach: int) -> Array:
    """Samples around centres, zeros beyond the ends, shape (centres, 2 reach + 1)."""
    padded = np.pad(samples, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    gathered: Array = windows[centres]
    return gathered


def _match(
    samples: Array, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Periods, by the shift at which each cycle resembles the one before most."""
    if not len(starts):
        return np.zeros(0)
    periods = ends - starts
    half = periods // 2
    reach = int(half.max())
    inside = np.abs(np.arange(-reach, reach + 1)) <= half[:, None]
    cycle = np.where(inside, _gather(samples, starts, reach), np.float32(0))
    following = _gather(samples, ends, reach + _SHIFT + 1)
    squares = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    likeness = np.empty((len(starts), 2 * _SHIFT + 3))
    for shift in range(2 * _SHIFT + 3):
        part = following[:, shift : shift + 2 * reach + 1]
        energy = _window_energy(squares, ends + shift - _SHIFT - 1, half)
        likeness[:, shift] = np.einsum("ij,ij->i", cycle, part) / np.sqrt(energy)
    best = 1 + likeness[:, 1:-1].argmax(axis=1)
    rows = np.arange(len(starts))
    left, middle, right = (likeness[rows, best + step] for step in (-1, 0, 1))
    bend = np.minimum(left - 2 * middle + right, -1e-12)
    fraction = np.clip(0.5 * (left - right) / bend, -0.5, 0.5)
    matched: NDArray[np.float64] = periods + (best - _SHIFT - 1) + fraction
    return matched


def _window_energy(
    squares: NDArray[np.float64], centres: NDArray[np.int64], half: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Energy of the samples around centres, from running sums of squares."""
    last = len(squares) - 1
    low, high = np.clip(centres - half, 0, last), np.clip(centres + half + 1, 0, last)
    energy: NDArray[np.float64] = np.maximum(squares[high] - squares[low], 1e-12)
    return energy


def _amplitudes(
    samples: Array, centres: NDArray[np.int64], periods: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Root mean square around each pulse under a Hann window of 0.4 periods."""
    if not len(centres):
        return np.zeros(0)
    widths = np.maximum(np.round(_EDGE * periods), 1)[:, None]
    reach = int(widths.max())
    places = np.arange(-reach, reach + 1) / widths
    weights = np.where(np.abs(places) < 1, 0.5 + 0.5 * np.cos(np.pi * places), 0)
    squares = (_gather(samples, centres, reach) * weights) ** 2
    rms: NDArray[np.float64] = np.sqrt(squares.sum(axis=1) / (weights**2).sum(axis=1))
    return rms
