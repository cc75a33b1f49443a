"""Functionals: statistics over time of every frame-level descriptor."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.features.acoustic.framing import FRAME_RATE, Array

STATISTICS: Final = ("mean", "std", "p10", "p50", "p90", "slope")
"""Mean, standard deviation, three percentiles, and the regression line's slope per second."""

_QUANTILES = (0.1, 0.5, 0.9)


def compute_statistics(frames: Array) -> Array:
    """Compute statistics of each column over the frames where it is defined.

    Args:
        frames: Shape (frames, descriptors); NaN marks frames without a value.

    Returns:
        Shape (6, descriptors), float32, rows as in ``STATISTICS``; NaN for a column without any
        value, and the slope for one with fewer than two.

    Example:
        >>> column = np.array([[1.0], [np.nan], [3.0]], dtype=np.float32)
        >>> compute_statistics(column)[[0, 1, 5], 0].round(2).tolist()  # from 1 to 3 in 20 ms
        [2.0, 1.0, 100.0]
    """
    defined = ~np.isnan(frames)
    counts = defined.sum(axis=0)
    divisor = np.maximum(counts, 1)
    values = np.where(defined, frames, 0).astype(np.float64)
    mean = values.sum(axis=0) / divisor
    centred = np.where(defined, values - mean, 0)
    std = np.sqrt(np.einsum("ij,ij->j", centred, centred) / divisor)
    # True positions in time, so that a slope is not squeezed by unvoiced gaps.
    time = np.arange(len(frames)) / FRAME_RATE
    moment = time @ defined / divisor
    spread = np.maximum(time**2 @ defined - divisor * moment**2, 0)
    # Centred values sum to 0: the mean time need not be taken off.
    slope = time @ centred / np.where(counts > 1, np.maximum(spread, 1e-9), np.nan)
    rows = np.stack([mean, std, *_quantiles(frames, counts), slope])
    return np.where(counts > 0, rows, np.nan).astype(np.float32)


def _quantiles(frames: Array, counts: NDArray[np.int64]) -> list[Array]:
    """Percentiles of each column, linear between ranks."""
    ordered = np.sort(frames, axis=0)  # NaN comes last
    columns = np.arange(frames.shape[1])
    found = []
    for share in _QUANTILES:
        place = share * np.maximum(counts - 1, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(counts - 1, 0))
        low, high = ordered[below, columns], ordered[above, columns]
        found.append(low + (place - below) * (high - low))
    return found
