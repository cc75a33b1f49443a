"""Objective of a head's fit, and its minimisation by damped Newton steps.

Cross-entropy is convex in biases, weights and the inverse temperature, but not in the log
temperature: the minimum found is the one downhill from the start.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.calibration.head import MAX_LOG_TEMPERATURE

_MOST_STEPS: Final = 100
_MOST_HALVINGS: Final = 40
_CONVERGED: Final = 1e-12
_STEP_TOLERANCE: Final = 1e-6
"""Iteration ends after a step of this predicted decrease: the error left is about its square."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadObjective:
    """Cross-entropy plus negative log prior, for logits linear in biases and weights.

    Attributes:
        logits: Shape (utterances, classes), float64.
        labels: Shape (utterances,), int64.
        design: Design matrix: ones for the bias, then coordinates; shape (utterances, columns).
        prior_mean: Mean of the prior, shape (1 + classes * columns,).
        prior_precision: Inverse variances of the prior, same shape.

    A *point* holds the log temperature, then bias and weights class by class; its shape is that of
    ``prior_mean``.

    Example:
        >>> objective = HeadObjective(
        ...     logits=torch.tensor([[2.0, 0.0]], dtype=torch.float64),
        ...     labels=torch.tensor([0]),
        ...     design=torch.ones(1, 1, dtype=torch.float64),
        ...     prior_mean=torch.zeros(3, dtype=torch.float64),
        ...     prior_precision=torch.ones(3, dtype=torch.float64),
        ... )
        >>> start, end = objective.prior_mean, find_minimum(objective, None)
        >>> objective.objective_value(end) < objective.objective_value(start)
        True
    """

    logits: Tensor
    labels: Tensor
    design: Tensor
    prior_mean: Tensor
    prior_precision: Tensor

    @cached_property
    def one_hot_labels(self) -> Tensor:
        """One-hot labels of the clips, shape (utterances, classes)."""
        classes = self.logits.shape[1]
        return torch.nn.functional.one_hot(self.labels, classes).to(self.logits.dtype)

    def class_parameters(self, point: Tensor) -> Tensor:
        """View biases and weights of a point by class, shape (classes, columns)."""
        return point[1:].view(self.logits.shape[1], -1)

    def calibrated_logits(self, point: Tensor) -> Tensor:
        """Compute the calibrated logits at a point, shape (utterances, classes)."""
        return self.logits * torch.exp(-point[0]) + self.design @ self.class_parameters(point).mT

    def logits_and_probabilities(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits over temperature, and probabilities; both (utterances, classes)."""
        return self.logits * torch.exp(-point[0]), torch.softmax(self.calibrated_logits(point), 1)

    def objective_value(self, point: Tensor) -> float:
        """Evaluate the objective at a point; infinite outside the range of temperatures."""
        # A line search backs away from infinity; written so that NaN does too.
        if not abs(float(point[0])) <= MAX_LOG_TEMPERATURE:
            return math.inf
        loss = torch.nn.functional.cross_entropy(
            self.calibrated_logits(point), self.labels, reduction="sum"
        )
        return float(loss + 0.5 * (self.prior_precision * (point - self.prior_mean).square()).sum())

    def newton_terms(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Compute gradient and curvature of the objective at a point.

        The curvature is returned as its lower Cholesky factor and is always positive definite.
        """
        scaled, probabilities = self.logits_and_probabilities(point)
        errors = probabilities - self.one_hot_labels
        slope = (errors * scaled).sum()
        gradient = torch.cat([-slope.reshape(1), (errors.mT @ self.design).flatten()])
        curvature = self.gauss_newton_curvature(scaled, probabilities)
        exact = curvature.clone()
        # Second derivative of the logits in the log temperature, which Gauss-Newton leaves out.
        exact[0, 0] += slope
        # The exact curvature is indefinite where the cost is concave in the log temperature.
        factor, wrong = torch.linalg.cholesky_ex(exact)
        if wrong:
            factor = torch.linalg.cholesky(curvature)
        return gradient + self.prior_precision * (point - self.prior_mean), factor

    def gauss_newton_curvature(self, scaled: Tensor, probabilities: Tensor) -> Tensor:
        """Compute the Gauss-Newton curvature, including that of the prior."""
        pushed = -probabilities * (scaled - (probabilities * scaled).sum(1, keepdim=True))
        corner = -(scaled * pushed).sum().reshape(1, 1)
        side = (pushed.mT @ self.design).reshape(1, -1)
        block = self._parameter_curvature(probabilities)
        whole = torch.cat([torch.cat([corner, side], 1), torch.cat([side.mT, block], 1)])
        return whole + torch.diag(self.prior_precision)

    def _parameter_curvature(self, probabilities: Tensor) -> Tensor:
        """Curvature in biases and weights, shape (classes * columns, classes * columns)."""
        classes, width = probabilities.shape[1], self.design.shape[1]
        products = logit_curvature(probabilities).flatten(1).mT @ self._column_products
        blocks = products.view(classes, classes, width, width)
        return blocks.transpose(1, 2).reshape(classes * width, -1)

    @cached_property
    def _column_products(self) -> Tensor:
        """Products of every two columns, shape (utterances, columns * columns)."""
        return (self.design[:, :, None] * self.design[:, None, :]).flatten(1)

    def logit_jacobian(self, scaled: Tensor) -> Tensor:
        """Jacobian of the calibrated logits, shape (utterances, classes, 1 + classes * columns)."""
        clips, classes = scaled.shape
        width = self.design.shape[1]
        jacobian = scaled.new_zeros(clips, classes, 1 + classes * width)
        jacobian[:, :, 0] = -scaled
        for index in range(classes):
            start = 1 + index * width
            jacobian[:, index, start : start + width] = self.design
        return jacobian


def logit_curvature(probabilities: Tensor) -> Tensor:
    """Curvature of each utterance's loss in its logits, shape (utterances, classes, classes).

    Example:
        >>> logit_curvature(torch.tensor([[0.5, 0.5]]))
        tensor([[[ 0.2500, -0.2500],
                 [-0.2500,  0.2500]]])
    """
    return torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]


def find_minimum(objective: HeadObjective, start: Tensor | None) -> Tensor:
    """Minimise the objective from the prior's mean, or from a start with a lower value.

    Args:
        objective: The function to minimise.
        start: A point to start from if it is lower than the prior's mean; None for none.

    Returns:
        The minimum downhill from there; its value is never above that of the prior's mean.
    """
    point, cost = objective.prior_mean, objective.objective_value(objective.prior_mean)
    if start is not None and (near := objective.objective_value(start)) < cost:
        point, cost = start, near
    for _ in range(_MOST_STEPS):
        gradient, factor = objective.newton_terms(point)
        step = -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        slope = float(gradient @ step)
        # Newton's decrement: twice the predicted decrease. The negated form ends the loop on NaN.
        if not -slope > _CONVERGED * (1 + abs(cost)):
            break
        point, lower = _line_search(objective, point, step, slope, cost)
        if not lower < cost or -slope < _STEP_TOLERANCE * (1 + abs(cost)):
            break
        cost = lower
    return point


def _line_search(
    objective: HeadObjective, point: Tensor, step: Tensor, slope: float, cost: float
) -> tuple[Tensor, float]:
    """The first point along the step that is sufficiently lower; the old one if none is."""
    length = 1.0
    for _ in range(_MOST_HALVINGS):
        trial = point + length * step
        trial_cost = objective.objective_value(trial)
        # Armijo's condition with the usual constant (Nocedal & Wright 2006, section 3.1).
        if trial_cost <= cost + 1e-4 * length * slope:
            return trial, trial_cost
        length /= 2
    return point, cost
