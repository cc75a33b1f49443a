"""Bounds: what makes one row, or one user, unable to outweigh the others."""

import math

import torch
from torch import Tensor


def project(vector: Tensor, max_norm: float) -> Tensor:
    """Scale a vector down onto the ball of radius ``max_norm``.

    Args:
        vector: Shape (n,), float32 or float64.
        max_norm: The L2 bound, in the units of ``vector``, above 0; infinity bounds nothing.

    Returns:
        The bounded vector, shape (n,), same dtype.

    Guarantees:
        - Its L2 norm is at most ``max_norm`` (to 1e-6, relative), whatever came in.
        - A finite vector within the bound comes back unchanged.
        - A vector with a NaN or an infinity comes back as zeros.
        - Two vectors are no further apart afterwards than before: a bound on what one utterance
          changes outlives the bound on the user.
    """
    if max_norm == math.inf and math.isfinite(vector.sum()):  # so is every number in it
        return vector
    # A NaN or an infinity makes the norm one; so do float64 numbers too large to be squared.
    norm = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
    if not math.isfinite(norm):
        return torch.zeros_like(vector)
    if not norm > max_norm:
        return vector
    return vector * (max_norm / norm)
