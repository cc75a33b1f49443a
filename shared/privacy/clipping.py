"""Clipping to an L2 norm, so that one row, or one user, cannot outweigh the others."""

import math
from typing import Final

import torch
from torch import Tensor

_ONE: Final = 1 - 2.0**-25
"""A factor from here up to 1 is 1 in float32."""

_SMALL: Final = 1e-30
"""A smaller factor has too few digits in float32, or none: one of 2e-45 may come out as 3e-45."""


def l2_norm(vector: Tensor) -> float:
    """L2 norm of a vector, shape (n,), taken in float64.

    Not finite where a number is not, or where float64 cannot hold its square.
    """
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def clip_to_norm(vector: Tensor, max_norm: float, *, known_norm: float | None = None) -> Tensor:
    """Scale a vector down onto the ball of radius ``max_norm``.

    Args:
        vector: Shape (n,), float32 or float64.
        max_norm: The L2 bound, in the units of ``vector``, above 0; infinity bounds nothing.
        known_norm: What :func:`l2_norm` gives for this very vector, where it was computed already.

    Returns:
        The bounded vector, shape (n,), same dtype.

    Guarantees:
        - Its L2 norm is at most ``max_norm`` (to 1e-6, relative), whatever came in.
        - A finite vector within the bound comes back unchanged.
        - A vector with a NaN or an infinity comes back as zeros.
        - Two vectors are no further apart afterwards than before: a bound on what one utterance
          changes outlives the bound on the user.
    """
    if known_norm is None:
        if max_norm == math.inf and math.isfinite(vector.sum()):  # so is every number in it
            return vector
        known_norm = l2_norm(vector)
    if not math.isfinite(known_norm):
        return torch.zeros_like(vector)
    if not known_norm > max_norm:
        return vector
    factor = max_norm / known_norm
    if factor >= _ONE and vector.dtype == torch.float32:  # bounded before, up to rounding
        return vector
    if factor < _SMALL:
        return (vector.double() * factor).to(vector.dtype)
    return vector * factor
