"""Per-example gradients of weight tensors: how they are represented, measured and summed.

How a tensor's gradients are kept is chosen per layer kind, by measurement
(``docs/results/benchmarks.md``):

- A linear layer on one vector an utterance: as the two factors of an outer product. Its norm is
  the product of their norms, the clipped sum one small product of matrices; the gradients are never
  written out (ghost clipping, Li et al. 2022, https://arxiv.org/abs/2110.05679).
- Layers over frames: written out, (utterances, weights). Their norm has a closed form too, but it
  adds large terms of both signs, so that in float32 a small norm can come out far too small, and
  the clip would not hold. A norm that is taken from what is summed cannot be wrong about it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

MAX_ACTIVATION_NORM = 1e15
"""Norm of activations. Up to here, scaled gradients that fall below float32's range (1.2e-38) may
as well be zeros: each would move the product by 1.2e-23."""


class ParameterGradients(Protocol):
    """Gradients of each utterance's loss in one tensor of weights."""

    def squared_norms(self) -> Tensor:
        """Compute square norms, (utterances,), float64; not finite where a number is not."""
        ...

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over utterances, each times its factor; (utterances,) to (weights,), float32."""
        ...

    def zero_examples(self, broken: Tensor) -> "ParameterGradients":
        """Zero the utterances that are ``broken``, shape (utterances,), bool."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MaterialisedGradients:
    """Gradients written out, one row an utterance.

    Attributes:
        per_example: Shape (utterances, outputs, ...), float32.
        axis_order: Axes of one row in the order of the layer's weights; None where they lie so.
    """

    per_example: Tensor
    axis_order: tuple[int, ...] | None = None

    def squared_norms(self) -> Tensor:
        """Sum squares in float32 over one output's weights, which is quick, then in float64."""
        if self.per_example.dim() == 2:
            return _squares(self.per_example)
        each = self.per_example.flatten(2)
        # float32 is enough here: squares are added in float64, where small parts are not lost.
        parts = torch.linalg.vector_norm(each, dim=2).double()
        if not math.isfinite(parts.sum()):  # broken, or only too large for a square in float32
            parts = torch.linalg.vector_norm(each, dim=2, dtype=torch.float64)
        return _squares(parts)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """See ``ParameterGradients.weighted_sum``."""
        total = factors @ self.per_example.flatten(1)
        if self.axis_order is None:
            return total
        return total.view(self.per_example.shape[1:]).permute(self.axis_order).flatten()

    def zero_examples(self, broken: Tensor) -> "MaterialisedGradients":
        """See ``ParameterGradients.zero_examples``."""
        return MaterialisedGradients(_zeroed(self.per_example, broken), self.axis_order)


@dataclass(frozen=True, eq=False)
class OuterProductGradients:
    """Gradients that are one outer product an utterance, kept as its factors.

    Attributes:
        output_gradients: Shape (utterances, outputs), float32.
        activations: Shape (utterances, inputs), float32.
    """

    output_gradients: Tensor
    activations: Tensor

    @cached_property
    def factor_squared_norms(self) -> tuple[Tensor, Tensor]:
        """Squared norms of both factors, each (utterances,), float64."""
        return _squares(self.output_gradients), _squares(self.activations)

    def squared_norms(self) -> Tensor:
        """Multiply the factors' squared norms."""
        return self.factor_squared_norms[0] * self.factor_squared_norms[1]

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """See ``ParameterGradients.weighted_sum``.

        Activations may be so large that output gradients, scaled to fit them, fall below what
        float32 holds in full; the product is then taken in float64.
        """
        gradients, activations = self.output_gradients, self.activations
        # "not <=": NaN takes the careful way as well.
        if not self.factor_squared_norms[1].amax() <= MAX_ACTIVATION_NORM**2:
            gradients, activations = gradients.double(), activations.double()
            factors = factors.double()
        return ((factors.unsqueeze(1) * gradients).mT @ activations).flatten().float()

    def zero_examples(self, broken: Tensor) -> "OuterProductGradients":
        """See ``ParameterGradients.zero_examples``."""
        return OuterProductGradients(
            _zeroed(self.output_gradients, broken), _zeroed(self.activations, broken)
        )


@dataclass(frozen=True, slots=True, eq=False)
class BiasGradients:
    """Gradients of a bias beside an outer product: its layer's output gradients.

    Attributes:
        outer_product: The outer product that they are a factor of; it knows their norms.
        bias_feature: The constant input that the bias weighs.
    """

    outer_product: OuterProductGradients
    bias_feature: float = 1.0

    def squared_norms(self) -> Tensor:
        """See ``ParameterGradients.squared_norms``."""
        squares = self.outer_product.factor_squared_norms[0]
        return squares if self.bias_feature == 1 else squares * self.bias_feature**2

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """See ``ParameterGradients.weighted_sum``."""
        total = factors @ self.outer_product.output_gradients
        return total if self.bias_feature == 1 else total * self.bias_feature

    def zero_examples(self, broken: Tensor) -> "BiasGradients":
        """See ``ParameterGradients.zero_examples``."""
        return BiasGradients(self.outer_product.zero_examples(broken), self.bias_feature)


def _squares(vectors: Tensor) -> Tensor:
    """Square norms, (utterances,), float64."""
    squares: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square()
    return squares


def _zeroed(each: Tensor, broken: Tensor) -> Tensor:
    """A copy with zeros where ``broken``: the original may be the user's own features."""
    return each.masked_fill(broken.view(-1, *[1] * (each.dim() - 1)), 0)


@dataclass(frozen=True, slots=True, eq=False)
class PerExampleGradients:
    """Gradient of every utterance's loss in all weights.

    Attributes:
        parameter_gradients: One for each tensor of weights, in the model's order.
        norms: L2 norm of each utterance's whole gradient, shape (utterances,), float64, finite.
        zeroed: How many held a NaN or an infinity and count as zeros.
    """

    parameter_gradients: tuple[ParameterGradients, ...]
    norms: Tensor
    zeroed: int = 0

    def __len__(self) -> int:
        return len(self.norms)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over utterances, each times its factor; products and sums in float32.

        Args:
            factors: Shape (utterances,), float64, finite, each 0 or one that float32 holds in full.

        Returns:
            Shape (params,), float64, in the order of ``flatten_parameters``.
        """
        single = factors.float()
        return torch.cat(
            [gradients.weighted_sum(single) for gradients in self.parameter_gradients]
        ).double()


def collect_gradients(parameter_gradients: tuple[ParameterGradients, ...]) -> PerExampleGradients:
    """Collect all tensors' gradients with their norms, and zeros for what is no number."""
    squares = sum(
        (gradients.squared_norms() for gradients in parameter_gradients[1:]),
        parameter_gradients[0].squared_norms(),
    )
    # A sum that is a number says that all are: squares of float32 are far from float64's limit.
    if math.isfinite(squares.sum()):
        return PerExampleGradients(parameter_gradients, squares.sqrt())
    # One broken utterance adds zeros; the others are not touched.
    broken = ~squares.isfinite()
    zeroed = tuple(gradients.zero_examples(broken) for gradients in parameter_gradients)
    return PerExampleGradients(zeroed, squares.masked_fill(broken, 0).sqrt(), int(broken.sum()))
