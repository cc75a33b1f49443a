"""Mel bands, loudness, cepstral coefficients and their slopes."""

import math
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.features.acoustic.framing import Array, Spectra, bin_hertz

BANDS: Final = 26
COEFFICIENTS: Final = 13

_LOW_HZ, _HIGH_HZ = 20.0, 8_000.0
_LIFTER = 22
_REACH = 2  # frames on each side that a slope reads
_FLOOR = 1e-12
_LOUDNESS_EXPONENT = 0.33


def measure_bands(spectra: Spectra) -> Array:
    """Measure the power in 26 triangular bands from 20 Hz to 8 kHz, equally wide in mel.

    Returns:
        Shape (frames, 26), float32, on the mel scale of HTK.

    Example:
        >>> from sottovoce.shared.features.acoustic.framing import compute_spectra
        >>> measure_bands(compute_spectra(np.zeros(160, dtype=np.float32))).shape
        (2, 26)
    """
    return spectra.powers @ _mel_filters()


def measure_loudness(bands: Array) -> Array:
    """Measure loudness as the sum of compressed bands under an equal-loudness curve.

    After the auditory spectrum of perceptual linear prediction (Hermansky, J. Acoust. Soc. Am.
    87(4):1738-1752, 1990), as GeMAPS uses it (Eyben et al. 2016).

    Args:
        bands: From :func:`measure_bands`, shape (frames, 26).

    Returns:
        Shape (frames,), float32; 0 for silence. Without calibration it has no unit.

    Example:
        >>> measure_loudness(np.zeros((1, 26), dtype=np.float32)).tolist()
        [0.0]
    """
    loudness: Array = ((bands * _equal_loudness()) ** _LOUDNESS_EXPONENT).sum(axis=1)
    return loudness


def compute_cepstra(bands: Array) -> Array:
    """Compute cepstral coefficients 1 to 13 of mel bands, liftered as by HTK.

    Args:
        bands: From :func:`measure_bands`, shape (frames, 26).

    Returns:
        Shape (frames, 13), float32; all 0 for silence, whose log spectrum is flat.

    Example:
        >>> compute_cepstra(np.ones((3, 26), dtype=np.float32)).shape
        (3, 13)
    """
    return np.log(np.maximum(bands, _FLOOR)) @ _cosines()


def compute_deltas(values: Array) -> Array:
    """Compute the slope of each column over five frames (Furui 1986), ends repeated.

    Args:
        values: Shape (frames, columns).

    Returns:
        The same shape, in units a frame.

    Example:
        >>> compute_deltas(np.arange(7, dtype=np.float32)[:, None])[3].tolist()
        [1.0]
    """
    padded = np.pad(values, ((_REACH, _REACH), (0, 0)), mode="edge")
    count = len(values)
    slopes: Array = np.zeros_like(values)
    for step in range(1, _REACH + 1):
        ahead, behind = padded[_REACH + step :][:count], padded[_REACH - step :][:count]
        slopes += np.float32(step) * (ahead - behind)
    slopes /= np.float32(2 * sum(step**2 for step in range(1, _REACH + 1)))
    return slopes


@cache
def _mel_filters() -> Array:
    """Triangular filters, shape (257, 26)."""
    edges = _band_edges()
    bins = 2_595 * np.log10(1 + bin_hertz()[:, None] / 700)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters: Array = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return filters


@cache
def _cosines() -> Array:
    """The discrete cosine transform with its lifter, shape (26, 13)."""
    orders = np.arange(1, COEFFICIENTS + 1)
    angles = np.pi * orders * (np.arange(BANDS)[:, None] + 0.5) / BANDS
    lifter = 1 + _LIFTER / 2 * np.sin(np.pi * orders / _LIFTER)
    cosines: Array = (np.sqrt(2 / BANDS) * np.cos(angles) * lifter).astype(np.float32)
    return cosines


@cache
def _equal_loudness() -> Array:
    """Hermansky's equal-loudness weights at the bands' centres, shape (26,)."""
    edges = _band_edges()
    square = (2 * np.pi * 700 * (10 ** (edges[1:-1] / 2_595) - 1)) ** 2
    weights = (square + 56.8e6) * square**2 / ((square + 6.3e6) ** 2 * (square + 0.38e9))
    scaled: Array = (weights / weights.max()).astype(np.float32)
    return scaled


def _band_edges() -> NDArray[np.float64]:
    """Edges and centres of the bands in mel, (28,)."""
    low, high = (2_595 * math.log10(1 + hertz / 700) for hertz in (_LOW_HZ, _HIGH_HZ))
    return np.linspace(low, high, BANDS + 2)
