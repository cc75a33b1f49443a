"""What a Gaussian mechanism costs: from its mu to an epsilon."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from sottovoce.shared import validation

Floats = NDArray[np.float64]

MAX_EPSILON = 500.0
"""Upper end of searches for an epsilon."""


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Compute the epsilon of a mechanism that is exactly mu-GDP, at ``delta``.

    Example:
        >>> round(gaussian_epsilon(1.666, 1e-5), 2)
        8.0
    """
    validation.require_non_negative(mu=mu)
    validation.require_between(0, 1, delta=delta)
    if mu == 0:
        return 0.0

    def reached(epsilon: float) -> float:
        # In logarithms: exp(epsilon) alone overflows, its product with the tail does not.
        tail = math.exp(min(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)), 0.0))
        return float(ndtr(-epsilon / mu + mu / 2)) - tail

    low, high = 0.0, MAX_EPSILON
    # Sixty halvings of 500 are far below a double's resolution of epsilon.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > delta else (low, middle)
    return low
