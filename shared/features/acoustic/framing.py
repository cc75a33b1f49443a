"""Frames of a signal, and the one short-time spectrum that descriptors share."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.audio import SAMPLE_RATE

Array = NDArray[np.float32]

HOP: Final = 160
"""Samples between frames, 10 ms at 16 kHz."""

WINDOW: Final = 400
"""Samples of a frame, 25 ms at 16 kHz, under a Hann window."""

FRAME_RATE: Final = SAMPLE_RATE // HOP
"""Frames a second."""

FFT: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spectra:
    """Short-time spectrum of one signal, computed once for all descriptors.

    Attributes:
        magnitudes: Shape (frames, 257), float32; a full-scale sine has 1 in its bin.
        powers: Squares of the magnitudes, the same shape.
    """

    magnitudes: Array
    powers: Array


def compute_spectra(samples: Array) -> Spectra:
    """Compute the short-time spectrum of a signal, frames = 1 + samples // 160.

    Args:
        samples: Shape (samples,), float32, at 16 kHz.

    Example:
        >>> time = np.arange(1_600, dtype=np.float32) / SAMPLE_RATE
        >>> found = compute_spectra(np.sin(2 * np.pi * 1_000 * time).astype(np.float32))
        >>> found.magnitudes.shape, round(float(found.magnitudes[5].max()), 2)
        ((11, 257), 1.0)
    """
    frames = cut_frames(samples, WINDOW) * _hann(WINDOW)
    spectra = np.fft.rfft(frames, n=FFT)
    powers = (spectra.real**2 + spectra.imag**2).astype(np.float32, copy=False)
    return Spectra(magnitudes=np.sqrt(powers), powers=powers)


def cut_frames(samples: Array, length: int, *, hop: int = HOP) -> Array:
    """Cut centred frames, a read-only view of the padded signal of shape (frames, length).

    Frame ``i`` is centred on sample ``i * hop``; the signal is continued by zeros.

    Example:
        >>> cut_frames(np.ones(320, dtype=np.float32), 400).sum(axis=1).tolist()
        [200.0, 320.0, 200.0]
    """
    padded = np.pad(samples, (length // 2, length - length // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, length)
    return windows[: len(samples) + 1 : hop]


def sum_frames(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum values of samples over each 25 ms frame, (samples,) to (frames,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.arange(0, len(values) + 1, HOP)
    first = np.maximum(centres - WINDOW // 2, 0)
    last = np.minimum(centres + WINDOW // 2, len(values))
    totals: NDArray[np.float64] = sums[last] - sums[first]
    return totals


@cache
def bin_hertz() -> Array:
    """Frequency of each bin in Hz, shape (257,)."""
    return np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=np.float32)


def bins_below(hertz: float) -> int:
    """Count the bins below a frequency in Hz.

    Example:
        >>> bins_below(100.0)  # 0, 31.25, 62.5 and 93.75 Hz
        4
    """
    return math.ceil(hertz * FFT / SAMPLE_RATE)


@cache
def _hann(length: int) -> Array:
    """Periodic Hann window, scaled so that a sine's bin has the sine's amplitude."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    scaled: Array = (2 * window / window.sum()).astype(np.float32)
    return scaled
