"""Gradients of single utterances, from one pass over all of them.

One batched pass forward and back gives what every layer read, and the slope of each utterance's
loss in what the layer said; the gradient of an utterance in the layer's weights is their product
(Goodfellow 2015, https://arxiv.org/abs/1510.01799). How the product is kept is chosen per layer
kind, by measurement (``docs/results/benchmarks.md``):

- A linear layer on one vector an utterance: as its two factors. The norm is the product of their
  norms, the clipped sum one small product of matrices; the gradients are never written out (ghost
  clipping, Li et al. 2022, https://arxiv.org/abs/2110.05679).
- Layers over frames: written out, (utterances, weights). Their norm has a closed form too, but it
  adds large terms of both signs, so that in float32 a small norm can come out far too small, and
  the clip would not hold. A norm that is taken from what is summed cannot be wrong about it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.client.recurrence import recall
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.flat import unflatten
from sottovoce.shared.models.layers import Memory
from sottovoce.shared.models.network import Network, Reader

_L = TypeVar("_L", bound=nn.Module)

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
        squares: Square norms, (utterances,), float64, where they are known already.
    """

    each: Tensor
    order: tuple[int, ...] | None = None
    squares: Tensor | None = None

    def square_norms(self) -> Tensor:
        """In float32 over one output's weights, which is quick, in float64 over all outputs."""
        if self.squares is not None:
            return self.squares
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


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """One outer product an utterance, kept as its factors.

    Attributes:
        slopes: Shape (utterances, outputs), float32.
        read: Shape (utterances, inputs), float32.
        squares: Square norms of both, each (utterances,), float64.
    """

    slopes: Tensor
    read: Tensor
    squares: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "squares", (_squares(self.slopes), _squares(self.read)))

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


def _gathered(shares: tuple[Share, ...]) -> Gradients:
    """Norms, and zeros for what is no number."""
    squares = sum((share.square_norms() for share in shares[1:]), shares[0].square_norms())
    # A sum that is a number says that all are: squares of float32 are far from float64's limit.
    if math.isfinite(squares.sum()):
        return Gradients(shares, squares.sqrt())
    broken = ~squares.isfinite()
    spared = tuple(share.without(broken) for share in shares)
    return Gradients(spared, squares.masked_fill(broken, 0).sqrt(), int(broken.sum()))


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
                f"weights must be one of {known}: add a rule in client/gradients.py"
            )
        around = type(layer).__new__(type(layer))
        around.__dict__.update(layer.__dict__, forward=forward)
        return around

    def gradients(self, losses: Callable[[Network], Tensor]) -> Gradients:
        """Of each utterance's loss, at the present weights.

        Args:
            losses: Calls the model it is given once, on one utterance or more, and returns one
                loss each, shape (utterances,); none may depend on another utterance.

        Guarantees:
            An utterance whose gradient holds a NaN or an infinity counts as zeros, and leaves the
            gradients of all others as they were.
        """
        each = losses(self._twin)
        said, rules = self._tape.emptied()
        slopes = torch.autograd.grad(each, said, torch.ones_like(each))
        found: dict[str, Share] = {}
        for rule, slope in zip(rules, slopes, strict=True):
            found.update(rule(slope))
        return _gathered(tuple(found[name] for name in self._names))


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
        yield "bias", Rows(slopes, squares=weight.squares[0])
    else:
        yield "weight", Rows(torch.bmm(slopes.mT, read))
        yield "bias", Rows(slopes.sum(dim=1))


def _reader(layer: Reader, read: Tensor, slopes: Tensor) -> Iterator[tuple[str, Share]]:
    """A linear layer whose bias weighs a constant input of its own."""
    yield "weight", Outer(slopes, read)
    yield "bias", Rows(slopes * layer.bias_feature)


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
