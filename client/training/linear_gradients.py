"""Gradients of heads on frozen features, in closed form.

A head is a chain of linear layers on one vector an utterance, with a ReLU between two of them. Its
gradients are written down as the products that autograd would take: what autograd and modules put
around products as small as these costs as much as the products (``docs/results/benchmarks.md``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.client.training.gradient_factors import (
    BiasGradients,
    OuterProductGradients,
    ParameterGradients,
    PerExampleGradients,
    collect_gradients,
)
from sottovoce.shared.models.backbones import HiddenLayerBackbone, IdentityBackbone
from sottovoce.shared.models.network import Backbone, Network

LogitGradient = Callable[[Tensor, float], Tensor]
"""From logits, (utterances, classes), to the gradient of the summed losses in them, scaled."""

_through_relu = torch.ops.aten.threshold_backward


class DenseGradients:
    """Gradients of a head on weights whose present values it always reads.

    Args:
        model: Has the last layer's bias feature, and refuses features that do not fit.
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
    def from_model(cls, model: Network, weights: Mapping[str, Tensor]) -> Self | None:
        """Read a model's layers from these weights, by name, none of which requires gradients.

        Returns:
            None where the model is more than a head on vectors.
        """
        names = _layers(model.backbone)
        if names is None:
            return None
        layers = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in (*names, "head")]
        return cls(model, layers[:-1], layers[-1])

    def per_example_gradients(
        self, features: Tensor, dropout_mask: Tensor | None, logit_gradient: LogitGradient
    ) -> PerExampleGradients:
        """Differentiate each utterance's loss; see ``GradientRecorder.per_example_gradients``."""
        found: list[ParameterGradients] = []
        factors = self._factors(features, dropout_mask, logit_gradient, 1.0)
        for gradients, inputs, bias_feature in factors:
            weight = OuterProductGradients(gradients, inputs)
            found += weight, BiasGradients(weight, bias_feature)
        return collect_gradients(tuple(found))

    def add_mean_gradient(
        self,
        sums: Sequence[Tensor],
        features: Tensor,
        dropout_mask: Tensor | None,
        logit_gradient: LogitGradient,
        *,
        decay: float,
        scale: float,
    ) -> None:
        """Decay some sums, and add the gradients of the mean loss.

        Args:
            sums: Added to in place, shaped as the weights, which they may be.
            features: Shape (utterances, inputs), of one utterance or more.
            dropout_mask: Of the last layer's inputs, or None.
            logit_gradient: Of whichever loss; one utterance's may depend on all.
            decay: What the sums are multiplied by before.
            scale: What the gradients are multiplied by.
        """
        factors = self._factors(features, dropout_mask, logit_gradient, 1 / len(features))
        pairs = zip(sums[::2], sums[1::2], factors, strict=True)
        for matrix, bias, (gradients, inputs, bias_feature) in pairs:
            matrix.addmm_(gradients.mT, inputs, beta=decay, alpha=scale)
            # Bias gradients are the output gradients themselves, summed over utterances.
            bias.mul_(decay).add_(gradients.sum(0), alpha=scale * bias_feature)

    def _factors(
        self,
        features: Tensor,
        dropout_mask: Tensor | None,
        logit_gradient: LogitGradient,
        scale: float,
    ) -> list[tuple[Tensor, Tensor, float]]:
        """Compute each layer's output gradient, input and bias feature; lowest first."""
        self._model.check_features(features)
        inputs = [features]
        for matrix, bias in self._hidden:
            inputs.append(F.linear(inputs[-1], matrix, bias).relu_())
        vectors = inputs[-1]
        if dropout_mask is not None:
            # The ReLU's own output is needed below, before dropout.
            inputs[-1] = vectors * dropout_mask
        matrix, bias = self._last
        bias_feature = self._model.head.bias_feature
        logits = F.linear(inputs[-1], matrix, bias * bias_feature)
        gradients = logit_gradient(logits, scale)
        factors = [(gradients, inputs.pop(), bias_feature)]
        for lower, _ in reversed(self._hidden):
            gradients = gradients @ matrix
            if len(factors) == 1 and dropout_mask is not None:
                gradients = gradients * dropout_mask
            # The derivative at 0 is 0, as torch has it.
            gradients = _through_relu(gradients, vectors, 0)
            vectors = inputs.pop()
            factors.append((gradients, vectors, 1.0))
            matrix = lower
        return factors[::-1]


def is_dense(model: Network) -> bool:
    """Whether a model is a head on vectors and nothing more."""
    return _layers(model.backbone) is not None


def _layers(backbone: Backbone) -> list[str] | None:
    """Name the hidden layers, lowest first; None where the backbone does more."""
    names, path = [], "backbone"
    # Walks down the wrappers; names come out from the top layer on.
    while isinstance(backbone, HiddenLayerBackbone):
        names.append(f"{path}.layer")
        backbone, path = backbone.inner, f"{path}.inner"
    return names[::-1] if isinstance(backbone, IdentityBackbone) else None
