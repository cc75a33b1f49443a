"""Gradients of heads on frozen features, in closed form.

A head is a chain of linear layers on one vector an utterance, with a ReLU between two of them. Its
slopes are written down as the products that autograd would take: what autograd and modules put
around products as small as these costs as much as the products (``docs/results/benchmarks.md``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.client.training.shares import Gradients, Outer, Share, Slopes, gathered
from sottovoce.shared.models.bodies import Hidden, Vector
from sottovoce.shared.models.network import Body, Network

Slope = Callable[[Tensor, float], Tensor]
"""From logits, (utterances, classes), to the slopes in them of the summed losses, scaled."""

_through_relu = torch.ops.aten.threshold_backward


class Dense:
    """A head on weights whose present values it always reads.

    Args:
        model: Says what the last layer's bias weighs, and refuses features that do not fit.
        hidden: Weight (outputs, inputs) and bias (outputs,) of each hidden layer, lowest first.
        last: The same of the last layer.
    """

    def __init__(
        self, model: Network, hidden: list[tuple[Tensor, Tensor]], last: tuple[Tensor, Tensor]
    ) -> None:
        self._model = model
        self._hidden = hidden
        self._last = last

    @classmethod
    def of(cls, model: Network, weights: Mapping[str, Tensor]) -> Self | None:
        """A model on these weights, by name, none of which asks for gradients.

        Returns:
            None where the model is more than a head on vectors.
        """
        names = _layers(model.body)
        if names is None:
            return None
        layers = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in (*names, "head")]
        return cls(model, layers[:-1], layers[-1])

    def gradients(self, features: Tensor, keep: Tensor | None, slope: Slope) -> Gradients:
        """Of each utterance's loss; see ``Recorder.gradients``."""
        shares: list[Share] = []
        for slopes, read, weighed in self._factors(features, keep, slope, 1.0):
            weight = Outer(slopes, read)
            shares += weight, Slopes(weight, weighed)
        return gathered(tuple(shares))

    def add_mean(
        self,
        sums: Sequence[Tensor],
        features: Tensor,
        keep: Tensor | None,
        slope: Slope,
        *,
        kept: float,
        scale: float,
    ) -> None:
        """Add the gradients of the mean loss to what a share of is kept.

        Args:
            sums: What is added to, in place, shaped as the weights, which they may be.
            features: Shape (utterances, inputs), of one utterance or more.
            keep: Dropout mask, or None.
            slope: Of whichever loss; one utterance's may depend on all.
            kept: What the sums are multiplied by before.
            scale: What the gradients are multiplied by.
        """
        factors = self._factors(features, keep, slope, 1 / len(features))
        pairs = zip(sums[::2], sums[1::2], factors, strict=True)
        for matrix, bias, (slopes, read, weighed) in pairs:
            matrix.addmm_(slopes.mT, read, beta=kept, alpha=scale)
            bias.mul_(kept).add_(slopes.sum(0), alpha=scale * weighed)

    def _factors(
        self, features: Tensor, keep: Tensor | None, slope: Slope, scale: float
    ) -> list[tuple[Tensor, Tensor, float]]:
        """Slopes in what each layer said, what it read, what its bias weighs; lowest first."""
        self._model.check(features)
        reads = [features]
        for matrix, bias in self._hidden:
            reads.append(F.linear(reads[-1], matrix, bias).relu_())
        vectors = reads[-1]
        if keep is not None:
            reads[-1] = vectors * keep
        matrix, bias = self._last
        weighed = self._model.head.bias_feature
        logits = F.linear(reads[-1], matrix, bias * weighed)
        slopes = slope(logits, scale)
        factors = [(slopes, reads.pop(), weighed)]
        for lower, _ in reversed(self._hidden):
            slopes = slopes @ matrix
            if len(factors) == 1 and keep is not None:
                slopes = slopes * keep
            slopes = _through_relu(slopes, vectors, 0)
            vectors = reads.pop()
            factors.append((slopes, vectors, 1.0))
            matrix = lower
        return factors[::-1]


def is_dense(model: Network) -> bool:
    """Whether a model is a head on vectors and nothing more."""
    return _layers(model.body) is not None


def _layers(body: Body) -> list[str] | None:
    """Names of the hidden layers, lowest first; None where the body does more."""
    names, path = [], "body"
    while isinstance(body, Hidden):
        names.append(f"{path}.layer")
        body, path = body.below, f"{path}.below"
    return names[::-1] if isinstance(body, Vector) else None
