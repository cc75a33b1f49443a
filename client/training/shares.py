"""What tensors of weights add to gradients of single utterances, and how they are summed.

How a share is kept is chosen per layer kind, by measurement (``docs/results/benchmarks.md``):

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

_LARGEST_READ = 1e15
"""Norm of what was read. Up to here, scaled slopes that fall below float32's range (1.2e-38) may as
well be zeros: each would move the product by 1.2e-23."""


class Share(Protocol):
    """What one tensor of weights adds to the gradient of each utterance."""

    def square_norms(self) -> Tensor:
        """Of each utterance, shape (utterances,), float64; not finite where a number is not."""
        ...

    def sum(self, factors: Tensor) -> Tensor:
        """Of all utterances, each times its factor; shapes (utterances,), (weights,); float32."""
        ...

    def without(self, broken: Tensor) -> "Share":
        """Zeros for the utterances that are ``broken``, shape (utterances,), bool."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Written out.

    Attributes:
        each: Shape (utterances, outputs, ...), float32.
        order: Axes of one row in the order of the layer's weights; None where they lie so.
    """

    each: Tensor
    order: tuple[int, ...] | None = None

    def square_norms(self) -> Tensor:
        """In float32 over one output's weights, which is quick, in float64 over all outputs."""
        if self.each.dim() == 2:
            return _squares(self.each)
        each = self.each.flatten(2)
        parts = torch.linalg.vector_norm(each, dim=2).double()
        if not math.isfinite(parts.sum()):  # broken, or only too large for a square in float32
            parts = torch.linalg.vector_norm(each, dim=2, dtype=torch.float64)
        return _squares(parts)

    def sum(self, factors: Tensor) -> Tensor:
        """See ``Share.sum``."""
        total = factors @ self.each.flatten(1)
        if self.order is None:
            return total
        return total.view(self.each.shape[1:]).permute(self.order).flatten()

    def without(self, broken: Tensor) -> "Rows":
        """See ``Share.without``."""
        return Rows(_zeroed(self.each, broken), self.order)


@dataclass(frozen=True, eq=False)
class Outer:
    """One outer product an utterance, kept as its factors.

    Attributes:
        slopes: Shape (utterances, outputs), float32.
        read: Shape (utterances, inputs), float32.
    """

    slopes: Tensor
    read: Tensor

    @cached_property
    def squares(self) -> tuple[Tensor, Tensor]:
        """Square norms of both factors, each (utterances,), float64."""
        return _squares(self.slopes), _squares(self.read)

    def square_norms(self) -> Tensor:
        """The product of the factors' own."""
        return self.squares[0] * self.squares[1]

    def sum(self, factors: Tensor) -> Tensor:
        """See ``Share.sum``.

        What was read may be so large that slopes, scaled to fit it, fall below what float32 holds
        in full; the product is then taken in float64.
        """
        slopes, read = self.slopes, self.read
        if not self.squares[1].amax() <= _LARGEST_READ**2:
            slopes, read, factors = slopes.double(), read.double(), factors.double()
        return ((factors.unsqueeze(1) * slopes).mT @ read).flatten().float()

    def without(self, broken: Tensor) -> "Outer":
        """See ``Share.without``."""
        return Outer(_zeroed(self.slopes, broken), _zeroed(self.read, broken))


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """What a bias adds beside an outer product: the slopes in what its layer said.

    Attributes:
        of: The outer product that they are a factor of; it knows their norms.
        weighed: The constant input that the bias weighs.
    """

    of: Outer
    weighed: float = 1.0

    def square_norms(self) -> Tensor:
        """See ``Share.square_norms``."""
        squares = self.of.squares[0]
        return squares if self.weighed == 1 else squares * self.weighed**2

    def sum(self, factors: Tensor) -> Tensor:
        """See ``Share.sum``."""
        total = factors @ self.of.slopes
        return total if self.weighed == 1 else total * self.weighed

    def without(self, broken: Tensor) -> "Slopes":
        """See ``Share.without``."""
        return Slopes(self.of.without(broken), self.weighed)


def _squares(vectors: Tensor) -> Tensor:
    """Square norms, (utterances,), float64."""
    squares: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square()
    return squares


def _zeroed(each: Tensor, broken: Tensor) -> Tensor:
    """A copy with zeros where ``broken``: the original may be the user's own features."""
    return each.masked_fill(broken.view(-1, *[1] * (each.dim() - 1)), 0)


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """The gradient of every utterance's loss in all weights.

    Attributes:
        shares: One for each tensor of weights, in the model's order.
        norms: L2 norm of each utterance's whole gradient, shape (utterances,), float64, finite.
        zeroed: How many held a NaN or an infinity and count as zeros.
    """

    shares: tuple[Share, ...]
    norms: Tensor
    zeroed: int = 0

    def __len__(self) -> int:
        return len(self.norms)

    def sum(self, factors: Tensor) -> Tensor:
        """Of all utterances, each times its factor; products and sums in float32.

        Args:
            factors: Shape (utterances,), float64, finite, each 0 or one that float32 holds in full.

        Returns:
            Shape (params,), float64, in the order of ``flat``.
        """
        single = factors.float()
        return torch.cat([share.sum(single) for share in self.shares]).double()


def gathered(shares: tuple[Share, ...]) -> Gradients:
    """Norms, and zeros for what is no number."""
    squares = sum((share.square_norms() for share in shares[1:]), shares[0].square_norms())
    # A sum that is a number says that all are: squares of float32 are far from float64's limit.
    if math.isfinite(squares.sum()):
        return Gradients(shares, squares.sqrt())
    broken = ~squares.isfinite()
    spared = tuple(share.without(broken) for share in shares)
    return Gradients(spared, squares.masked_fill(broken, 0).sqrt(), int(broken.sum()))
