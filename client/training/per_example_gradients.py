"""Gradients of single utterances, from one pass over all of them.

One batched pass forward and back gives every layer's input, and the gradient of each utterance's
loss in the layer's output; the gradient of an utterance in the layer's weights is their product
(Goodfellow 2015, https://arxiv.org/abs/1510.01799).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.client.training.gradient_factors import (
    BiasGradients,
    MaterialisedGradients,
    OuterProductGradients,
    ParameterGradients,
    PerExampleGradients,
    collect_gradients,
)
from sottovoce.client.training.lstm_gradients import run_lstm
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.layers import BidirectionalLstm
from sottovoce.shared.models.network import Network, ScaledBiasLinear
from sottovoce.shared.models.parameters import unflatten_parameters

_L = TypeVar("_L", bound=nn.Module)
ModelInputs = tuple[Tensor, Tensor, Tensor | None]
"""Arguments of a model: features, frames and a dropout mask."""

_OutputRule = Callable[[Tensor], Iterator[tuple[str, ParameterGradients]]]
"""From the gradients in a layer's output, to those in its weights and their names."""


@dataclass(slots=True, eq=False)
class _Tape:
    """Outputs of the layers in one pass, and the rules from their gradients to the weights'."""

    outputs: list[Tensor] = field(default_factory=list)
    rules: list[_OutputRule] = field(default_factory=list)

    def watch(self, output: Tensor, rule: _OutputRule) -> None:
        """Ask for the gradient in ``output``; the first layers' outputs require none yet."""
        if not output.requires_grad:
            output.requires_grad_()
        self.outputs.append(output)
        self.rules.append(rule)

    def drain(self) -> tuple[list[Tensor], list[_OutputRule]]:
        """Take the outputs and rules off the tape, which would keep the batch alive."""
        outputs, rules = self.outputs, self.rules
        self.outputs, self.rules = [], []
        return outputs, rules


class GradientRecorder:
    """A twin of a model, on views of the flat weights, that finds per-utterance gradients.

    Args:
        model: Which model; it is not changed.
        weights: Shape (params,), float32. The twin always reads their present values.

    Raises:
        ModelError: A layer with weights whose gradients nobody has written down.
    """

    def __init__(self, model: Network, weights: Tensor) -> None:
        views = unflatten_parameters(model, weights.detach())
        self._names = tuple(views)
        self._tape = _Tape()
        self._twin = rebind_weights(model, views, wrap=self._recorded_layer)

    def _recorded_layer(self, path: str, layer: _L) -> _L:
        """Wrap a layer so that it records its inputs and outputs, where it has weights.

        The wrapper knows nothing of the recorder, or only a search for garbage would ever free the
        two.
        """
        # Containers have no weights of their own: their children are wrapped.
        if not layer._parameters:
            return layer
        forward: Callable[..., Tensor]
        if type(layer) in LAYER_RULES:
            forward = _recording_forward(self._tape, path, layer)
        elif type(layer) is nn.LayerNorm:
            forward = _layer_norm_forward(self._tape, path, cast(nn.LayerNorm, layer))
        elif isinstance(layer, BidirectionalLstm):
            forward = _lstm_forward(self._tape, path, layer)
        else:
            known = [kind.__name__ for kind in (*LAYER_RULES, nn.LayerNorm, BidirectionalLstm)]
            raise ModelError(
                f"no rule for the gradients of {path[:-1]}, a {type(layer).__name__}; layers with "
                f"weights must be one of {known}: add a rule in "
                "client/training/per_example_gradients.py"
            )
        # Past the constructor, which would draw new weights.
        around = type(layer).__new__(type(layer))
        around.__dict__.update(layer.__dict__, forward=forward)
        return around

    def per_example_gradients(
        self, inputs: ModelInputs, losses: Callable[[Tensor], Tensor]
    ) -> PerExampleGradients:
        """Differentiate each utterance's loss, at the present weights.

        Args:
            inputs: What the model is called with, of one utterance or more.
            losses: From logits to one loss each, shape (utterances,); none may depend on another
                utterance.

        Guarantees:
            An utterance whose gradient holds a NaN or an infinity counts as zeros, and leaves the
            gradients of all others as they were.
        """
        each = losses(self._twin(*inputs))
        outputs, rules = self._tape.drain()
        # Losses are independent, so the gradient of their sum has each one's own in its row.
        gradients = torch.autograd.grad(each, outputs, torch.ones_like(each))
        found: dict[str, ParameterGradients] = {}
        for rule, gradient in zip(rules, gradients, strict=True):
            found.update(rule(gradient))
        return collect_gradients(tuple(found[name] for name in self._names))


def _recording_forward(tape: _Tape, path: str, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Replace a layer's forward pass by one that records its input and output."""
    inner, rule = layer.forward, LAYER_RULES[type(layer)]

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = inner(inputs)
        detached = inputs.detach()
        tape.watch(
            output, lambda output_gradients: _named(path, rule(layer, detached, output_gradients))
        )
        return output

    return forward


def _layer_norm_forward(tape: _Tape, path: str, layer: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """Replace a norm's forward pass by the same one, which keeps the moments that it found.

    Taken over one frame at a time: the shape of what is normed is that of the weights.
    """

    def forward(inputs: Tensor) -> Tensor:
        output, mean, scale = torch.native_layer_norm(
            inputs, list(layer.normalized_shape), layer.weight, layer.bias, layer.eps
        )
        moments = inputs.detach(), mean.detach(), scale.detach()
        tape.watch(output, lambda output_gradients: _named(path, _norm(output_gradients, *moments)))
        return output

    return forward


def _lstm_forward(
    tape: _Tape, path: str, layer: BidirectionalLstm
) -> Callable[[Tensor, Tensor], Tensor]:
    """Replace an LSTM's own forward pass by one that can be differentiated by utterance."""

    def forward(features: Tensor, frames: Tensor) -> Tensor:
        lstm_pass = run_lstm(layer, features, frames)
        tape.watch(
            lstm_pass.gate_preactivations,
            lambda gate_gradients: _named(
                path, _lstm(gate_gradients, lstm_pass.inputs, lstm_pass.previous_states)
            ),
        )
        return lstm_pass.outputs

    return forward


def _unchanged(_: str, layer: _L) -> _L:
    """Leave a layer as it is."""
    return layer


def rebind_weights(
    layer: _L,
    weights: Mapping[str, Tensor],
    path: str = "",
    wrap: Callable[[str, Any], Any] = _unchanged,
) -> _L:
    """Copy a layer onto other weights, which it shares; a deep copy costs more.

    Args:
        layer: Which; it is not changed.
        weights: By name, as the layer's own are shaped.
        path: What the names of its weights start with.
        wrap: What takes the place of each new layer, given its path.
    """
    other = type(layer).__new__(type(layer))
    # Past nn.Module's own bookkeeping, which costs more and takes no constants for weights.
    inside = other.__dict__
    inside.update(layer.__dict__)
    inside["_parameters"] = {name: weights[path + name] for name in layer._parameters}
    inside["_modules"] = {
        name: child and rebind_weights(child, weights, f"{path}{name}.", wrap)
        for name, child in layer._modules.items()
    }
    return cast(_L, wrap(path, other))


def _named(
    path: str, gradients: Iterator[tuple[str, ParameterGradients]]
) -> Iterator[tuple[str, ParameterGradients]]:
    """Put gradients under the names of the model's weights."""
    return ((path + name, each) for name, each in gradients)


_LayerRule = Callable[[Any, Tensor, Tensor], Iterator[tuple[str, ParameterGradients]]]
"""From a layer, its input and the gradients in its output, to the gradients in its weights."""


def _linear(
    _: nn.Linear, inputs: Tensor, output_gradients: Tensor
) -> Iterator[tuple[str, ParameterGradients]]:
    """Take factors of one vector an utterance, or products summed over frames."""
    if inputs.dim() == 2:
        weight = OuterProductGradients(output_gradients, inputs)
        yield "weight", weight
        yield "bias", BiasGradients(weight)
    else:
        yield "weight", MaterialisedGradients(torch.bmm(output_gradients.mT, inputs))
        yield "bias", MaterialisedGradients(output_gradients.sum(dim=1))


def _reader(
    layer: ScaledBiasLinear, inputs: Tensor, output_gradients: Tensor
) -> Iterator[tuple[str, ParameterGradients]]:
    """Take factors of a linear layer whose bias weighs a constant input of its own."""
    weight = OuterProductGradients(output_gradients, inputs)
    yield "weight", weight
    yield "bias", BiasGradients(weight, layer.bias_feature)


def _convolution(
    layer: nn.Conv1d, inputs: Tensor, output_gradients: Tensor
) -> Iterator[tuple[str, ParameterGradients]]:
    """Sum a linear layer's products over windows of frames: (utterances, outputs, taps x inputs).

    Windows are views of all utterances; PyTorch copies those of one at a time.
    """
    # Zero padding as the layer itself does, so that windows at the ends are the same.
    padding, stride, dilation = int(layer.padding[0]), layer.stride[0], layer.dilation[0]
    padded = F.pad(inputs.mT, (0, 0, padding, padding))
    taps, longest = layer.kernel_size[0], output_gradients.shape[2]
    windows = padded.as_strided(
        (len(padded), longest, taps, padded.shape[2]),
        (padded.stride(0), stride * padded.stride(1), dilation * padded.stride(1), 1),
        padded.storage_offset(),
    )
    each = torch.bmm(output_gradients, windows.flatten(2))
    yield (
        "weight",
        MaterialisedGradients(
            each.view(len(each), -1, taps, padded.shape[2]), axis_order=(0, 2, 1)
        ),
    )
    yield "bias", MaterialisedGradients(output_gradients.sum(dim=2))


def _norm(
    output_gradients: Tensor, inputs: Tensor, mean: Tensor, scale: Tensor
) -> Iterator[tuple[str, ParameterGradients]]:
    """Sum over frames; the normed input follows from its moments, (B, T, 1)."""
    normed = (inputs - mean).mul_(scale)  # a seventh of what another layer norm would cost
    yield "weight", MaterialisedGradients(normed.mul_(output_gradients).sum(dim=1))
    yield "bias", MaterialisedGradients(output_gradients.sum(dim=1))


def _lstm(
    gate_gradients: Tensor, inputs: Tensor, previous_states: Tensor
) -> Iterator[tuple[str, ParameterGradients]]:
    """Sum over frames: each gate is linear in its input and in the state before, by direction.

    Shapes: ``gate_gradients`` (T, D, B, gates), ``inputs`` (D, B, T, inputs), ``previous_states``
    (D, B, T, units).
    """
    for direction, suffix in enumerate(("", "_reverse")):
        gates = gate_gradients[:, direction].permute(1, 2, 0)
        bias = MaterialisedGradients(gates.sum(dim=2))
        yield f"weight_ih_l0{suffix}", MaterialisedGradients(torch.bmm(gates, inputs[direction]))
        yield (
            f"weight_hh_l0{suffix}",
            MaterialisedGradients(torch.bmm(gates, previous_states[direction])),
        )
        yield f"bias_ih_l0{suffix}", bias
        # Both biases act as their sum and have the same gradient.
        yield f"bias_hh_l0{suffix}", bias


LAYER_RULES: dict[type[nn.Module], _LayerRule] = {
    nn.Linear: _linear,
    ScaledBiasLinear: _reader,
    nn.Conv1d: _convolution,
}
"""How the gradients of a layer's parameters are recorded, by the type of the layer."""
