"""A user's head in plain numbers: how it turns logits into probabilities, without torch."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.errors import ModelError

Values: TypeAlias = Any
"""Arrays of NumPy, or tensors of torch."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PortableHead:
    """Calibration of one user, as :class:`~sottovoce.shared.calibration.head.CalibrationHead`.

    Attributes:
        log_temperature: Natural log of the temperature.
        bias: Added to each class's logit, shape (classes,), float64.
        weights: Of an adapter on coordinates of the last layer's input, shape (classes, rank); None
            has no adapter.
        basis_tag: Tag of the basis of the coordinates, 16 hexadecimal digits; "" without weights.

    Raises:
        ModelError: Numbers that are not finite, or weights of other classes.
    """

    log_temperature: float
    bias: NDArray[np.float64]
    weights: NDArray[np.float32] | None = None
    basis_tag: str = ""

    def __post_init__(self) -> None:
        finite = math.isfinite(self.log_temperature) and bool(np.isfinite(self.bias).all())
        weights = self.weights
        fits = weights is None or (
            weights.shape[:1] == self.bias.shape and bool(np.isfinite(weights).all())
        )
        if not (finite and fits and self.bias.ndim == 1):
            shape = None if weights is None else weights.shape
            raise ModelError(
                f"a head has a bias of shape {self.bias.shape} and weights of shape {shape}; it "
                "must be finite, of shapes (classes,) and (classes, rank)"
            )

    def compute_probabilities(
        self, logits: NDArray[np.float32], coordinates: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """Compute each emotion's probability from the shared model's logits.

        Args:
            logits: Shape (classes,).
            coordinates: Shape (rank,); ignored by a head without weights.

        Returns:
            Shape (classes,), float64, summing to 1.

        Raises:
            ModelError: Another number of classes, or coordinates that the weights need and that are
                missing or do not fit.

        Example:
            >>> head = PortableHead(log_temperature=0.0, bias=np.zeros(2))
            >>> head.compute_probabilities(np.zeros(2, dtype=np.float32)).tolist()
            [0.5, 0.5]
        """
        rank = None if self.weights is None else self.weights.shape[1:]
        given = None if coordinates is None else coordinates.shape
        if logits.shape != self.bias.shape or (rank is not None and given != rank):
            raise ModelError(
                f"logits have shape {logits.shape} and coordinates {given}; the head is for "
                f"{self.bias.shape} and {rank}"
            )
        calibrated = calibrate_values(
            logits, self.log_temperature, self.bias.astype(logits.dtype), self.weights, coordinates
        )
        apart = np.exp(calibrated.astype(np.float64) - float(calibrated.max()))
        probabilities: NDArray[np.float64] = apart / apart.sum()
        return probabilities


def calibrate_values(
    logits: Values,
    log_temperature: float,
    bias: Values,
    weights: Values | None = None,
    coordinates: Values | None = None,
) -> Values:
    """Apply a head's numbers to logits; NumPy arrays and torch tensors alike.

    Args:
        logits: Shape (..., classes).
        log_temperature: Natural log of the temperature.
        bias: Shape (classes,), of the logits' type.
        weights: Shape (classes, rank), of the logits' type; None has no adapter.
        coordinates: Shape (..., rank), of the logits' type; ignored without weights.

    Returns:
        logits * exp(-log_temperature) + bias + weights @ coordinates, shape (..., classes).

    Example:
        >>> calibrate_values(np.array([4.0, 0.0]), math.log(2), np.array([0.0, 1.0])).tolist()
        [2.0, 1.0]
    """
    calibrated = logits * math.exp(-log_temperature) + bias
    return calibrated if weights is None else calibrated + coordinates @ weights.T
