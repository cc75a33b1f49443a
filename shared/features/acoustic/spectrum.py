"""Level, zero crossings, and the shape of the spectrum and its change."""

from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np

from sottovoce.shared.features.acoustic.framing import (
    WINDOW,
    Array,
    Spectra,
    bin_hertz,
    bins_below,
    sum_frames,
)

SILENCE_DB: Final = -100.0
"""Level of digital silence in dB; frames at or below :data:`AUDIBLE_DB` have no spectral shape."""

AUDIBLE_DB: Final = -95.0

CONTRAST_EDGES: Final = (0.0, 200.0, 400.0, 800.0, 1_600.0, 3_200.0, 6_400.0, 8_000.0)
"""Edges in Hz of the bands of spectral contrast."""

_ROLLOFF_SHARE, _FLUX_HZ = 0.85, 5_000.0
_FLOOR = 1e-10


def measure_level(samples: Array) -> Array:
    """Measure the root mean square of each frame in dB re full scale, at least -100.

    Example:
        >>> float(measure_level(np.ones(800, dtype=np.float32))[2])
        0.0
    """
    squares = sum_frames(samples.astype(np.float64) ** 2) / WINDOW
    decibels: Array = (10 * np.log10(np.maximum(squares, _FLOOR))).astype(np.float32)
    return decibels


def count_zero_crossings(samples: Array) -> Array:
    """Measure the share of neighbouring samples of each frame between which the sign turns.

    Example:
        >>> turning = np.tile(np.array([1, -1], dtype=np.float32), 400)
        >>> round(float(count_zero_crossings(turning)[2]), 2)
        1.0
    """
    negative = np.signbit(samples)
    turns = np.concatenate([[False], negative[1:] != negative[:-1]])
    rates: Array = (sum_frames(turns.astype(np.float64)) / WINDOW).astype(np.float32)
    return rates


def measure_shape(spectra: Spectra, level: Array) -> Mapping[str, Array]:
    """Measure centroid, bandwidth, roll-off, flatness and contrast of each frame.

    Args:
        spectra: The short-time spectrum.
        level: In dB, shape (frames,); frames of digital silence have no shape, and get NaN.

    Returns:
        Arrays of shape (frames,), float32, by the names that the catalogue defines.

    Example:
        >>> from sottovoce.shared.features.acoustic.framing import compute_spectra
        >>> time = np.arange(1_600, dtype=np.float32) / 16_000
        >>> sine = np.sin(2 * np.pi * 1_000 * time)
        >>> shape = measure_shape(compute_spectra(sine), measure_level(sine))
        >>> round(float(shape["centroid"][5])), round(float(shape["rolloff"][5]))
        (1000, 1031)
    """
    hertz = bin_hertz()
    magnitudes, powers = spectra.magnitudes, np.maximum(spectra.powers, _FLOOR**2)
    total = np.maximum(magnitudes.sum(axis=1), _FLOOR)
    centroid = magnitudes @ hertz / total
    # The variance as the mean square less the square of the mean needs no array of deviations.
    spread = magnitudes @ hertz**2 / total - centroid**2
    gathered = np.cumsum(magnitudes, axis=1)
    rolled = np.count_nonzero(gathered < _ROLLOFF_SHARE * gathered[:, -1:], axis=1)
    logs = np.log(powers).mean(axis=1) - np.log(powers.mean(axis=1))
    values = {
        "centroid": centroid,
        "bandwidth": np.sqrt(np.maximum(spread, 0)),
        "rolloff": hertz[np.minimum(rolled, len(hertz) - 1)],
        "flatness": np.float32(10 / np.log(10)) * logs,
    } | _measure_contrast(powers)
    silent = level <= AUDIBLE_DB
    return {name: np.where(silent, np.float32(np.nan), value) for name, value in values.items()}


def measure_flux(spectra: Spectra) -> Array:
    """Measure the root-mean-square change of magnitudes below 5 kHz since the frame before.

    Returns:
        Shape (frames,), float32, re full scale; 0 in the first frame.

    Example:
        >>> from sottovoce.shared.features.acoustic.framing import compute_spectra
        >>> measure_flux(compute_spectra(np.zeros(320, dtype=np.float32))).tolist()
        [0.0, 0.0, 0.0]
    """
    change = np.diff(spectra.magnitudes[:, : bins_below(_FLUX_HZ)], axis=0)
    flux: Array = np.zeros(len(spectra.magnitudes), dtype=np.float32)
    flux[1:] = np.sqrt(np.einsum("ij,ij->i", change, change) / change.shape[1])
    return flux


def _measure_contrast(powers: Array) -> dict[str, Array]:
    """Strongest over weakest bin of each band in dB, after Jiang et al. 2002."""
    edges = _contrast_bins()
    high = np.maximum.reduceat(powers, edges, axis=1)
    low = np.minimum.reduceat(powers, edges, axis=1)
    decibels = 10 * np.log10(high / low)
    return {f"contrast_{number}": column for number, column in enumerate(decibels.T, start=1)}


@cache
def _contrast_bins() -> list[int]:
    """First bin of each band."""
    return [bins_below(edge) for edge in CONTRAST_EDGES[:-1]]
