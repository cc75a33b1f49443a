"""Gradients of single utterances, from one pass over all of them.

One batched pass forward and back gives what every layer read, and the slope of each utterance's
loss in what the layer said; the gradient of an utterance in the layer's weights is their product
(Goodfellow 2015, https://arxiv.org/abs/1510.01799).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.client.training.recurrence import recall
from sottovoce.client.training.shares import Gradients, Outer, Rows, Share, Slopes, gathered
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.flat import unflatten
from sottovoce.shared.models.layers import Memory
from sottovoce.shared.models.network import Network, Reader

_L = TypeVar("_L", bound=nn.Module)
Read = tuple[Tensor, Tensor, Tensor | None]
"""What a model is called with: features, frames and a dropout mask."""

_Told = Callable[[Tensor], Iterator[tuple[str, Share]]]
"""From the slopes in what a layer said, to the shares of its weights and their names."""


@dataclass(slots=True, eq=False)
class _Tape:
    """What the layers of one pass said, and how slopes there become gradients."""

    said: list[Tensor] = field(default_factory=list)
    rules: list[_Told] = field(default_factory=list)

    def watch(self, said: Tensor, rule: _Told) -> None:
        """Ask for the slope in ``said``; the first layers must be told to let it through."""
        if not said.requires_grad:
            said.requires_grad_()
        self.said.append(said)
        self.rules.append(rule)

    def emptied(self) -> tuple[list[Tensor], list[_Told]]:
        """What was said, and let go of it: it keeps the batch alive."""
        said, rules = self.said, self.rules
        self.said, self.rules = [], []
        return said, rules


class Recorder:
    """A twin of a model, on views of the flat weights, that finds per-utterance gradients.

    Args:
        model: Which model; it is not changed.
        weights: Shape (params,), float32. The twin always reads their present values.

    Raises:
        ModelError: A layer with weights whose gradients nobody has written down.
    """

    def __init__(self, model: Network, weights: Tensor) -> None:
        views = unflatten(model, weights.detach())
        self._names = tuple(views)
        self._tape = _Tape()
        self._twin = twin(model, views, heard=self._heard)

    def _heard(self, path: str, layer: _L) -> _L:
        """A layer that reports what it reads and says, where it has weights.

        It lies around the layer and knows nothing of the recorder, or only a search for garbage
        would ever free the two.
        """
        if not layer._parameters:
            return layer
        forward: Callable[..., Tensor]
        if type(layer) in _RULES:
            forward = _saying(self._tape, path, layer)
        elif type(layer) is nn.LayerNorm:
            forward = _norming(self._tape, path, cast(nn.LayerNorm, layer))
        elif isinstance(layer, Memory):
            forward = _remembering(self._tape, path, layer)
        else:
            known = [kind.__name__ for kind in (*_RULES, nn.LayerNorm, Memory)]
            raise ModelError(
                f"no rule for the gradients of {path[:-1]}, a {type(layer).__name__}; layers with "
                f"weights must be one of {known}: add a rule in client/training/gradients.py"
            )
        around = type(layer).__new__(type(layer))
        around.__dict__.update(layer.__dict__, forward=forward)
        return around

    def gradients(self, read: Read, losses: Callable[[Tensor], Tensor]) -> Gradients:
        """Of each utterance's loss, at the present weights.

        Args:
            read: What the model is called with, of one utterance or more.
            losses: From logits to one loss each, shape (utterances,); none may depend on another
                utterance.

        Guarantees:
            An utterance whose gradient holds a NaN or an infinity counts as zeros, and leaves the
            gradients of all others as they were.
        """
        each = losses(self._twin(*read))
        said, rules = self._tape.emptied()
        slopes = torch.autograd.grad(each, said, torch.ones_like(each))
        found: dict[str, Share] = {}
        for rule, slope in zip(rules, slopes, strict=True):
            found.update(rule(slope))
        return gathered(tuple(found[name] for name in self._names))


def _saying(tape: _Tape, path: str, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """In place of a layer's forward pass, one that notes what it read and said."""
    inner, rule = layer.forward, _RULES[type(layer)]

    def forward(read: Tensor) -> Tensor:
        said: Tensor = inner(read)
        there = read.detach()
        tape.watch(said, lambda slopes: _named(path, rule(layer, there, slopes)))
        return said

    return forward


def _norming(tape: _Tape, path: str, layer: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """In place of a norm's forward pass, the same one, which keeps the moments that it found.

    Taken over one frame at a time: the shape of what is normed is that of the weights.
    """

    def forward(read: Tensor) -> Tensor:
        said, mean, scale = torch.native_layer_norm(
            read, list(layer.normalized_shape), layer.weight, layer.bias, layer.eps
        )
        moments = read.detach(), mean.detach(), scale.detach()
        tape.watch(said, lambda slopes: _named(path, _norm(slopes, *moments)))
        return said

    return forward


def _remembering(tape: _Tape, path: str, layer: Memory) -> Callable[[Tensor, Tensor], Tensor]:
    """In place of a memory's own forward pass, one that can be asked."""

    def forward(features: Tensor, frames: Tensor) -> Tensor:
        pass_ = recall(layer, features, frames)
        tape.watch(
            pass_.gates,
            lambda slopes: _named(path, _memory(slopes, pass_.read, pass_.before)),
        )
        return pass_.outputs

    return forward


def _as_it_is(_: str, layer: _L) -> _L:
    """Nobody listens."""
    return layer


def twin(
    layer: _L,
    weights: Mapping[str, Tensor],
    path: str = "",
    heard: Callable[[str, Any], Any] = _as_it_is,
) -> _L:
    """A layer of the same kind on other weights, which it shares; a deep copy costs more.

    Args:
        layer: Which; it is not changed.
        weights: By name, as the layer's own are shaped.
        path: What the names of its weights start with.
        heard: What takes the place of each new layer, given its path.
    """
    other = type(layer).__new__(type(layer))
    # Past nn.Module's own bookkeeping, which costs more and takes no constants for weights.
    inside = other.__dict__
    inside.update(layer.__dict__)
    inside["_parameters"] = {name: weights[path + name] for name in layer._parameters}
    inside["_modules"] = {
        name: child and twin(child, weights, f"{path}{name}.", heard)
        for name, child in layer._modules.items()
    }
    return cast(_L, heard(path, other))


def _named(path: str, shares: Iterator[tuple[str, Share]]) -> Iterator[tuple[str, Share]]:
    """Under the names of the model's weights."""
    return ((path + name, share) for name, share in shares)


_Rule = Callable[[Any, Tensor, Tensor], Iterator[tuple[str, Share]]]
"""From a layer, what it read and the slopes in what it said, to the shares of its weights."""


def _linear(_: nn.Linear, read: Tensor, slopes: Tensor) -> Iterator[tuple[str, Share]]:
    """One vector an utterance: factors. One a frame: products summed over frames."""
    if read.dim() == 2:
        weight = Outer(slopes, read)
        yield "weight", weight
        yield "bias", Slopes(weight)
    else:
        yield "weight", Rows(torch.bmm(slopes.mT, read))
        yield "bias", Rows(slopes.sum(dim=1))


def _reader(layer: Reader, read: Tensor, slopes: Tensor) -> Iterator[tuple[str, Share]]:
    """A linear layer whose bias weighs a constant input of its own."""
    weight = Outer(slopes, read)
    yield "weight", weight
    yield "bias", Slopes(weight, layer.bias_feature)


def _convolution(layer: nn.Conv1d, read: Tensor, slopes: Tensor) -> Iterator[tuple[str, Share]]:
    """A linear layer on windows of frames: (utterances, outputs, taps x inputs), summed over time.

    Windows are views of all utterances; PyTorch copies those of one at a time.
    """
    around, stride, dilation = int(layer.padding[0]), layer.stride[0], layer.dilation[0]
    padded = F.pad(read.mT, (0, 0, around, around))
    taps, longest = layer.kernel_size[0], slopes.shape[2]
    windows = padded.as_strided(
        (len(padded), longest, taps, padded.shape[2]),
        (padded.stride(0), stride * padded.stride(1), dilation * padded.stride(1), 1),
        padded.storage_offset(),
    )
    each = torch.bmm(slopes, windows.flatten(2))
    yield "weight", Rows(each.view(len(each), -1, taps, padded.shape[2]), order=(0, 2, 1))
    yield "bias", Rows(slopes.sum(dim=2))


def _norm(slopes: Tensor, read: Tensor, mean: Tensor, scale: Tensor) -> Iterator[tuple[str, Share]]:
    """The weight scales what has been normed, which follows from its moments, (B, T, 1)."""
    normed = (read - mean).mul_(scale)  # a seventh of what another layer norm would cost
    yield "weight", Rows(normed.mul_(slopes).sum(dim=1))
    yield "bias", Rows(slopes.sum(dim=1))


def _memory(slopes: Tensor, read: Tensor, before: Tensor) -> Iterator[tuple[str, Share]]:
    """Each gate is linear in what it reads and in what it remembered, in each direction.

    Slopes (T, D, B, gates), read (D, B, T, inputs), before (D, B, T, units).
    """
    for way, suffix in enumerate(("", "_reverse")):
        gates = slopes[:, way].permute(1, 2, 0)
        bias = Rows(gates.sum(dim=2))
        yield f"weight_ih_l0{suffix}", Rows(torch.bmm(gates, read[way]))
        yield f"weight_hh_l0{suffix}", Rows(torch.bmm(gates, before[way]))
        yield f"bias_ih_l0{suffix}", bias
        yield f"bias_hh_l0{suffix}", bias


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    Reader: _reader,
    nn.Conv1d: _convolution,
}
