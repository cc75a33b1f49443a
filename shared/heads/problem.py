"""What a head's fit minimises, and the Newton steps that do it.

Cross-entropy is convex in biases, weights and the inverse temperature, not in its log: the minimum
found is the one downhill from the start.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.heads.head import MOST_LOG_TEMPERATURE

_MOST_STEPS: Final = 100
_MOST_HALVINGS: Final = 40
_CONVERGED: Final = 1e-12
_NEAR: Final = 1e-6
"""A Newton step that promises no more than this ends: what it leaves is about its square."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Cross-entropy plus half the prior's quadratic, for scores linear in biases and weights.

    Attributes:
        logits: Shape (utterances, classes), float64.
        labels: Shape (utterances,), int64.
        columns: What biases and weights multiply: ones, then coordinates; (utterances, columns).
        centre: The prior's mean, shape (1 + classes * columns,).
        precision: Its inverse variances, same shape.
    """

    logits: Tensor
    labels: Tensor
    columns: Tensor
    centre: Tensor
    precision: Tensor

    @cached_property
    def hits(self) -> Tensor:
        """1 for each clip's class, shape (utterances, classes)."""
        classes = self.logits.shape[1]
        return torch.nn.functional.one_hot(self.labels, classes).to(self.logits.dtype)

    def rows(self, point: Tensor) -> Tensor:
        """Biases and weights by class."""
        return point[1:].view(self.logits.shape[1], -1)

    def scores(self, point: Tensor) -> Tensor:
        """Calibrated logits."""
        return self.logits * torch.exp(-point[0]) + self.columns @ self.rows(point).mT

    def outputs(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """The logits over the temperature, and the chances."""
        return self.logits * torch.exp(-point[0]), torch.softmax(self.scores(point), 1)

    def cost(self, point: Tensor) -> float:
        """What is minimised; infinite where no head can be."""
        if not abs(float(point[0])) <= MOST_LOG_TEMPERATURE:
            return math.inf
        loss = torch.nn.functional.cross_entropy(self.scores(point), self.labels, reduction="sum")
        return float(loss + 0.5 * (self.precision * (point - self.centre).square()).sum())

    def slopes(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the cost at a point, and the factor of a positive definite curvature.

        The factor is Cholesky's, lower.
        """
        scaled, chances = self.outputs(point)
        errors = chances - self.hits
        pull = (errors * scaled).sum()
        gradient = torch.cat([-pull.reshape(1), (errors.mT @ self.columns).flatten()])
        curvature = self.convex(scaled, chances)
        exact = curvature.clone()
        exact[0, 0] += pull
        # The exact curvature is indefinite where the cost bends down along the log temperature.
        factor, wrong = torch.linalg.cholesky_ex(exact)
        if wrong:
            factor = torch.linalg.cholesky(curvature)
        return gradient + self.precision * (point - self.centre), factor

    def convex(self, scaled: Tensor, chances: Tensor) -> Tensor:
        """Curvature without the bend of the log (Gauss-Newton), the prior's included."""
        pushed = -chances * (scaled - (chances * scaled).sum(1, keepdim=True))
        corner = -(scaled * pushed).sum().reshape(1, 1)
        side = (pushed.mT @ self.columns).reshape(1, -1)
        block = self._block(chances)
        whole = torch.cat([torch.cat([corner, side], 1), torch.cat([side.mT, block], 1)])
        return whole + torch.diag(self.precision)

    def _block(self, chances: Tensor) -> Tensor:
        """Of biases and weights, shape (classes * columns,) squared."""
        classes, width = chances.shape[1], self.columns.shape[1]
        found = (bends(chances).flatten(1).mT @ self._squares).view(classes, classes, width, width)
        return found.transpose(1, 2).reshape(classes * width, -1)

    @cached_property
    def _squares(self) -> Tensor:
        """Products of every two columns, shape (utterances, columns * columns)."""
        return (self.columns[:, :, None] * self.columns[:, None, :]).flatten(1)

    def moves(self, scaled: Tensor) -> Tensor:
        """How each calibrated logit moves with the point, (utterances, classes, 1 + ...)."""
        clips, classes = scaled.shape
        width = self.columns.shape[1]
        found = scaled.new_zeros(clips, classes, 1 + classes * width)
        found[:, :, 0] = -scaled
        for place in range(classes):
            start = 1 + place * width
            found[:, place, start : start + width] = self.columns
        return found


def bends(chances: Tensor) -> Tensor:
    """Curvature of each utterance's loss in its logits, shape (utterances, classes, classes)."""
    return torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]


def lowest(problem: Problem, start: Tensor | None) -> Tensor:
    """The minimum that lies downhill from the prior's mean, or from a start no higher than it."""
    point, cost = problem.centre, problem.cost(problem.centre)
    if start is not None and (near := problem.cost(start)) < cost:
        point, cost = start, near
    for _ in range(_MOST_STEPS):
        gradient, factor = problem.slopes(point)
        step = -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        slope = float(gradient @ step)
        if not -slope > _CONVERGED * (1 + abs(cost)):
            break
        point, lower = _descend(problem, point, step, slope, cost)
        if not lower < cost or -slope < _NEAR * (1 + abs(cost)):
            break
        cost = lower
    return point


def _descend(
    problem: Problem, point: Tensor, step: Tensor, slope: float, cost: float
) -> tuple[Tensor, float]:
    """The first point along the step that is clearly lower (Armijo); the old one if none is."""
    length = 1.0
    for _ in range(_MOST_HALVINGS):
        trial = point + length * step
        trial_cost = problem.cost(trial)
        if trial_cost <= cost + 1e-4 * length * slope:
            return trial, trial_cost
        length /= 2
    return point, cost
