"""Formants F1 to F3 by linear prediction of the spectrum below 5.5 kHz.

J. Makhoul, Spectral linear prediction: properties and applications, IEEE Trans. ASSP 23(3):283-296,
1975: the autocorrelation is read from a part of the power spectrum, so that nothing is resampled.
J. D. Markel and A. H. Gray, Linear Prediction of Speech, Springer 1976: formants from the roots.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.features.acoustic.framing import Array, Spectra, bin_hertz, bins_below

COUNT: Final = 3
"""Formants that are returned."""

CEILING_HZ: Final = 5_500.0
"""Highest frequency of the model: five formants of most voices lie below (Praat's default)."""

_ORDER = 10
_PREEMPHASIS_HZ = 50.0
_MARGIN_HZ = 50.0  # roots nearer to 0 Hz or to the ceiling are no formants
_NOISE = 1e-9  # of the power: keeps the prediction stable in silence


def find_formants(spectra: Spectra, voiced: NDArray[np.bool_]) -> Array:
    """Find the first three formants of voiced frames.

    Args:
        spectra: The short-time spectrum.
        voiced: Which frames are voiced, shape (frames,).

    Returns:
        Shape (frames, 3), float32, Hz; NaN in unvoiced frames, and where there are fewer.

    Example:
        >>> from sottovoce.shared.features.acoustic.framing import compute_spectra
        >>> noise = np.random.default_rng(0).normal(size=1_600).astype(np.float32)
        >>> find_formants(compute_spectra(noise), np.zeros(11, dtype=bool)).shape
        (11, 3)
    """
    found = np.full((len(voiced), COUNT), np.nan, dtype=np.float32)
    if voiced.any():
        powers = spectra.powers[voiced, : bins_below(CEILING_HZ) + 1]
        found[voiced] = _find_resonances(_predict(powers @ _cosines()))
    return found


def _predict(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predictor coefficients a1 ... a10 of each frame, by Levinson's and Durbin's recursion."""
    correlation = correlation.copy()
    correlation[:, 0] = correlation[:, 0] * (1 + _NOISE) + 1e-30
    coefficients = np.zeros((len(correlation), _ORDER))
    error = correlation[:, 0]
    for order in range(_ORDER):
        earlier = coefficients[:, :order]
        rest = np.einsum("ij,ij->i", earlier, correlation[:, order:0:-1])
        reflection = -(correlation[:, order + 1] + rest) / error
        coefficients[:, :order] = earlier + reflection[:, None] * earlier[:, ::-1]
        coefficients[:, order] = reflection
        error = error * np.maximum(1 - reflection**2, 1e-12)
    return coefficients


def _find_resonances(coefficients: NDArray[np.float64]) -> Array:
    """Frequencies of the lowest roots, shape (frames, 3)."""
    companion = np.zeros((len(coefficients), _ORDER, _ORDER))
    companion[:, 0, :] = -coefficients
    companion[:, range(1, _ORDER), range(_ORDER - 1)] = 1
    roots = np.linalg.eigvals(companion)
    rate = 2 * _ceiling()
    hertz = np.angle(roots) * rate / (2 * np.pi)
    # Wide roots count, as in Praat: without them a weak F1 would be given the name of F2.
    fits = (hertz > _MARGIN_HZ) & (hertz < rate / 2 - _MARGIN_HZ)
    ordered = np.sort(np.where(fits, hertz, np.inf), axis=1)[:, :COUNT]
    return np.where(np.isfinite(ordered), ordered, np.nan).astype(np.float32)


def _ceiling() -> float:
    """Frequency of the last bin that is read, in Hz."""
    return float(bin_hertz()[bins_below(CEILING_HZ)])


@cache
def _cosines() -> NDArray[np.float64]:
    """From pre-emphasised powers to the autocorrelation of lags 0 to 10, shape (bins, 11)."""
    hertz = bin_hertz()[: bins_below(CEILING_HZ) + 1].astype(np.float64)
    rate = 2 * hertz[-1]
    factor = np.exp(-2 * np.pi * _PREEMPHASIS_HZ / rate)
    angles = 2 * np.pi * hertz / rate
    emphasis = 1 + factor**2 - 2 * factor * np.cos(angles)
    # Both ends of a real spectrum stand once, the bins between twice.
    twice = np.where((hertz == 0) | (hertz == hertz[-1]), 1.0, 2.0)
    cosines = np.cos(angles[:, None] * np.arange(_ORDER + 1))
    weighted: NDArray[np.float64] = (emphasis * twice)[:, None] * cosines
    return weighted
