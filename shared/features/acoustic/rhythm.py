"""Rhythm of an utterance: syllables, onsets, pauses, and lengths of voiced stretches.

N. H. de Jong and T. Wempe, Praat script to detect syllable nuclei and measure speech rate
automatically, Behavior Research Methods 41(2):385-390, 2009. S. Böck, F. Krebs and M. Schedl,
Evaluating the online capabilities of onset detection methods, ISMIR 2012.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.features.acoustic.framing import FRAME_RATE, Array

DIP_DB: Final = 2.0
"""Least height of a syllable's nucleus above the dips on both sides."""

PAUSE_DB: Final = 25.0
"""How far below the loud parts a pause lies, in dB."""

PAUSE_S: Final = 0.15
"""Shortest pause, in seconds."""

_SMOOTH = 7  # frames, 70 ms: below a syllable, above a glottal cycle
_LOUD = 0.95  # quantile of the level that stands for loud parts
_AROUND, _BEFORE, _ABOVE, _WAIT = 10, 3, 0.07, 3
_FLOOR_DB = -80.0


def measure_onset_strength(bands: Array) -> Array:
    """Measure how much louder mel bands become: mean of the rises in dB, shape (frames,).

    Args:
        bands: Powers of mel bands, shape (frames, bands).

    Example:
        >>> measure_onset_strength(np.array([[1, 1], [10, 10]], dtype=np.float32)).tolist()
        [0.0, 10.0]
    """
    loudest = max(float(bands.max()), 1e-12)
    decibels = 10 * np.log10(np.maximum(bands / loudest, 10 ** (_FLOOR_DB / 10)))
    rises = np.maximum(np.diff(decibels, axis=0), 0).mean(axis=1)
    strength: Array = np.concatenate([[0], rises]).astype(np.float32)
    return strength


def measure_rhythm(
    level: Array, voiced: NDArray[np.bool_], onset_strength: Array
) -> Mapping[str, float]:
    """Measure rates of syllables and onsets, pauses and voiced stretches.

    Args:
        level: Level of each frame in dB, shape (frames,), 100 frames a second.
        voiced: Which frames are voiced, shape (frames,).
        onset_strength: From :func:`measure_onset_strength`, shape (frames,).

    Returns:
        Values by the names that the catalogue defines; NaN where there is nothing to divide by.

    Example:
        >>> even = np.full(100, -20, dtype=np.float32)  # one second of even voice
        >>> found = measure_rhythm(even, np.ones(100, dtype=bool), np.zeros(100, dtype=np.float32))
        >>> found["syllable_rate"], found["pause_share"]
        (1.0, 0.0)
    """
    seconds = len(level) / FRAME_RATE
    smooth = _smooth(level)
    floor = float(np.quantile(smooth, _LOUD)) - PAUSE_DB
    # Digital silence has no loud parts that a pause could lie below.
    quiet = (smooth < floor) | (smooth <= _FLOOR_DB)
    pauses = [run for run in _runs(quiet) if run >= PAUSE_S * FRAME_RATE]
    voices = np.array(_runs(voiced)) / FRAME_RATE
    syllables = _count_nuclei(smooth, voiced, floor)
    speaking = seconds - sum(pauses) / FRAME_RATE
    return {
        "syllable_rate": syllables / seconds,
        "articulation_rate": syllables / speaking if speaking > 0 else np.nan,
        "onset_rate": _count_onsets(onset_strength) / seconds,
        "pause_share": sum(pauses) / len(level),
        "pause_rate": len(pauses) / seconds,
        "voiced_share": float(voiced.mean()),
        "voiced_rate": len(voices) / seconds,
        "voiced_length_mean": float(voices.mean()) if len(voices) else np.nan,
        "voiced_length_std": float(voices.std()) if len(voices) else np.nan,
    }


def _count_nuclei(level: Array, voiced: NDArray[np.bool_], floor: float) -> int:
    """How many voiced peaks above the floor rise out of both their dips."""
    count, peak, dip, climbing, peak_voiced = 0, -np.inf, np.inf, True, False
    for height, voice in zip(level.tolist(), voiced.tolist(), strict=True):
        if climbing:
            if height > peak:
                peak, peak_voiced = height, voice
            if height < peak - DIP_DB:  # the peak is over: it counts, and a dip begins
                count += peak_voiced and peak > floor
                dip, climbing = height, False
        else:
            dip = min(dip, height)
            if height > dip + DIP_DB:
                peak, peak_voiced, climbing = height, voice, True
    return count + (climbing and peak_voiced and peak > floor)


def _count_onsets(strength: Array) -> int:
    """Peaks of the onset strength that stand above their surroundings, 30 ms apart or more."""
    lowest, highest = float(strength.min()), float(strength.max())
    if not highest > lowest:
        return 0
    scaled = (strength - lowest) / (highest - lowest)
    padded = np.pad(scaled, (_BEFORE, 0), mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, _BEFORE + 1)
    means = _moving_mean(scaled, _AROUND)
    peaks = np.flatnonzero((scaled >= views.max(axis=1)) & (scaled >= means + _ABOVE))
    count, last = 0, -_WAIT - 1
    for frame in peaks.tolist():
        if frame > last + _WAIT:
            count, last = count + 1, frame
    return count


def _moving_mean(values: Array, reach: int) -> NDArray[np.float64]:
    """Mean over as many frames as there are on both sides."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    means: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return means


def _smooth(level: Array) -> Array:
    """Moving average over 70 ms, ends repeated, (frames,)."""
    padded = np.pad(level, _SMOOTH // 2, mode="edge")
    smooth = np.convolve(padded, np.ones(_SMOOTH) / _SMOOTH, mode="valid")
    return smooth.astype(np.float32)


def _runs(marked: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of marked frames, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    lengths: list[int] = (edges[1::2] - edges[::2]).tolist()
    return lengths
