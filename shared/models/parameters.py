"""A model's weights as one flat vector, which is sent, clipped, summed and noised."""

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor, nn

from sottovoce.shared.errors import ModelError
from sottovoce.shared.memo import LastValueCache


def count_parameters(model: nn.Module) -> int:
    """Count the weights of a model: the length of the axis ``params``.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(weight.numel() for weight in model.parameters())


def flatten_parameters(model: nn.Module) -> Tensor:
    """Copy all weights of a model into one vector, in the model's own order.

    Returns:
        Shape (params,), float32.

    Example:
        >>> flatten_parameters(nn.Linear(3, 2)).shape
        torch.Size([8])
    """
    return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()]).float()


def unflatten_parameters(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Make views of a flat vector, named and shaped as the weights of ``model``.

    The model itself is not changed; the views are for ``torch.func.functional_call``.

    Args:
        model: The model that says which weights there are.
        vector: Shape (params,); gradients flow back into it.

    Raises:
        ModelError: The vector is not as long as the model's weights.

    Example:
        >>> views = unflatten_parameters(nn.Linear(2, 1), torch.arange(3.0))
        >>> views["weight"], views["bias"]
        (tensor([[0., 1.]]), tensor([2.]))
    """
    shapes = _SHAPES.get((model,), lambda: _shapes(model))
    sizes = [shape.numel() for shape in shapes.values()]
    if vector.shape != (sum(sizes),):
        raise ModelError(_shape_error(tuple(vector.shape), sum(sizes)))
    parts = vector.split_with_sizes(sizes)
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


_SHAPES = LastValueCache[dict[str, torch.Size]]()
"""Shapes of the last model: for a small one, listing them would take longer than a step."""


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of a model's weights."""
    return {name: weight.shape for name, weight in model.named_parameters()}


def load_parameters(model: nn.Module, vector: Tensor) -> None:
    """Copy a flat vector into the weights of a model.

    Args:
        model: Its weights are overwritten in place.
        vector: Shape (params,), any float dtype, finite.

    Raises:
        ModelError: Wrong shape, or a NaN or an infinity; the model is then unchanged.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> load_parameters(model, torch.arange(3.0))
        >>> flatten_parameters(model)
        tensor([0., 1., 2.])
    """
    views = unflatten_parameters(model, vector.detach())
    # Everything is checked before the first weight is written, so that a refusal changes nothing.
    check_finite(vector)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(views[name])


def check_finite(vector: Tensor) -> None:
    """Refuse a vector of weights that holds a NaN or an infinity.

    Raises:
        ModelError: There is a NaN or an infinity among them.

    Example:
        >>> check_finite(torch.tensor([1.0, math.nan]))
        Traceback (most recent call last):
        sottovoce.shared.errors.ModelError: 1 of 2 weights are NaN or infinite;...
    """
    # A finite sum has finite terms; the fast path needs no mask of the whole vector.
    if math.isfinite(vector.sum()):
        return
    broken = int((~vector.isfinite()).sum())
    if broken:
        raise ModelError(
            f"{broken} of {vector.numel()} weights are NaN or infinite; all must be finite: "
            "use an earlier checkpoint"
        )


class HasDigest(Protocol):
    """Anything with a SHA-256 of its own, such as a training plan."""

    def content_hash(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits."""
        ...


def hash_model(vector: Tensor, plan: HasDigest) -> str:
    """Hash a model: its weights and the training plan.

    Args:
        vector: Shape (params,), any float dtype; hashed as little-endian float32.
        plan: The training plan of the weights.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Example:
        >>> class Plan:
        ...     def content_hash(self) -> str:
        ...         return "00"
        >>> hash_model(torch.zeros(2), Plan())[:8]
        'd5e28a59'
    """
    # The same bytes on every machine, whatever its byte order.
    weights = vector.detach().cpu().float().numpy().astype("<f4")
    return hashlib.sha256(plan.content_hash().encode() + weights.tobytes()).hexdigest()


def _shape_error(shape: tuple[int, ...], params: int) -> str:
    return (
        f"weights of shape {shape} do not fit a model of {params}, which needs ({params},): "
        "check that both were made for the same ModelSpec"
    )
