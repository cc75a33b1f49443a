"""Distance from familiar speech, and what it does to probabilities; NumPy alone.

What a model knows of public speech is fitted in ``familiar_speech.py``.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST_DEVIATION = 10.0
"""Most deviations that one input counts for: one odd input alone must not decide."""

_DOUBT_FROM, _DOUBT_AT_LIMIT = 0.8, 0.75


def standard_distances(rows: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    """Compute root mean squares of standardised inputs, each at most ten deviations.

    Args:
        rows: Shape (..., inputs).
        mean: Shape (inputs,).
        scale: Deviation of each input, shape (inputs,), above 0.

    Returns:
        Shape (...); what is no number is as far away as can be.

    Example:
        >>> standard_distances([[3.0, 3.0]], [0.0, 0.0], [1.0, 1.0]).tolist()
        [3.0]
    """
    wide = np.asarray(rows, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = wide - np.asarray(mean, dtype=np.float64)
        standard = np.nan_to_num(apart / np.asarray(scale, np.float64), nan=LARGEST_DEVIATION)
    bounded = standard.clip(-LARGEST_DEVIATION, LARGEST_DEVIATION)
    distances: NDArray[np.float64] = np.sqrt(np.square(bounded).mean(-1))
    return distances


def measure_unfamiliarity(
    row: ArrayLike, references: Iterable[ArrayLike], *, scale: ArrayLike, limit: float
) -> float:
    """Measure the distance to the nearest reference, in units of what is familiar.

    Args:
        row: Projected features of a recording, shape (inputs,).
        references: Means of speech that is familiar, each (inputs,).
        scale: Deviation of each input, shape (inputs,), above 0.
        limit: Distance within which speech is familiar, above 0.

    Returns:
        At least 0; above 1 the recording is unlike familiar speech.

    Example:
        >>> measure_unfamiliarity([3.0], ([0.0], [2.0]), scale=[1.0], limit=2.0)
        0.5
    """
    return min(float(standard_distances(row, mean, scale)) for mean in references) / limit


def temper_probabilities(
    probabilities: NDArray[np.float64], temperature: float
) -> NDArray[np.float64]:
    """Divide log probabilities by a temperature (Guo et al., ICML 2017), as of an unknown voice.

    Args:
        probabilities: Shape (classes,), summing to 1.
        temperature: At least 1; 1 changes nothing.

    Returns:
        Shape (classes,), summing to 1, in the same order.

    Example:
        >>> temper_probabilities(np.array([0.9, 0.1]), 2.0).round(3).tolist()
        [0.75, 0.25]
    """
    if temperature == 1:
        return probabilities
    powers: NDArray[np.float64] = probabilities ** (1 / temperature)
    tempered: NDArray[np.float64] = powers / powers.sum()
    return tempered


def soften_probabilities(
    probabilities: NDArray[np.float64], unfamiliarity: float
) -> NDArray[np.float64]:
    """Mix probabilities with equal ones, the more the less familiar a recording is.

    Nothing happens up to 0.8 of the limit, where most speech of the training's own kind lies; at
    the limit three quarters are equal shares, and beyond it all but a shrinking rest.

    Args:
        probabilities: Shape (classes,), summing to 1.
        unfamiliarity: From :meth:`FamiliarSpeech.measure_unfamiliarity`.

    Returns:
        Shape (classes,), summing to 1, in the same order.

    Example:
        >>> soften_probabilities(np.array([1.0, 0.0]), 1.0).tolist()
        [0.625, 0.375]
    """
    if unfamiliarity <= _DOUBT_FROM:
        return probabilities
    if unfamiliarity <= 1:
        doubt = _DOUBT_AT_LIMIT * (unfamiliarity - _DOUBT_FROM) / (1 - _DOUBT_FROM)
    else:
        # Bounded, so that the likeliest stays the likeliest.
        doubt = 1 - (1 - _DOUBT_AT_LIMIT) / min(unfamiliarity, LARGEST_DEVIATION) ** 2
    return (1 - doubt) * probabilities + doubt / len(probabilities)
