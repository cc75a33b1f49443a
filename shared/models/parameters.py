"""The weights of a model as one flat vector: what is sent, clipped, summed and noised."""

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor, nn

from sottovoce.shared.errors import ModelError
from sottovoce.shared.memo import LastValueCache


def count_parameters(model: nn.Module) -> int:
    """How many weights a model has: the axis ``params``."""
    return sum(weight.numel() for weight in model.parameters())


def flatten_parameters(model: nn.Module) -> Tensor:
    """All weights of a model, in the model's own order.

    Returns:
        A copy, shape (params,), float32.
    """
    return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()]).float()


def unflatten_parameters(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Views of a flat vector, named and shaped as the weights of ``model``.

    The model itself is not changed: hand the views to ``torch.func.functional_call``.

    Args:
        model: The model that says which weights there are.
        vector: Shape (params,); gradients flow back into it.

    Raises:
        ModelError: The vector is not as long as the model's weights.
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
"""Of the last model: a step of a small one is quicker than a walk through its layers."""


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
    """
    views = unflatten_parameters(model, vector.detach())
    check_finite(vector)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(views[name])


def check_finite(vector: Tensor) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: There is a NaN or an infinity among them.
    """
    if math.isfinite(vector.sum()):  # which a single one would not let it be
        return
    broken = int((~vector.isfinite()).sum())
    if broken:
        raise ModelError(
            f"{broken} of {vector.numel()} weights are NaN or infinite; all must be finite: "
            "use an earlier checkpoint"
        )


class HasDigest(Protocol):
    """Something with a SHA-256 of its own, such as a plan."""

    def content_hash(self) -> str:
        """SHA-256, 64 hex digits."""
        ...


def hash_model(vector: Tensor, plan: HasDigest) -> str:
    """SHA-256 of a model: of its weights and of the plan that says how to read them.

    Args:
        vector: Shape (params,), any float dtype; hashed as little-endian float32.
        plan: What the weights were trained under.

    Returns:
        64 hex digits.
    """
    weights = vector.detach().cpu().float().numpy().astype("<f4")
    return hashlib.sha256(plan.content_hash().encode() + weights.tobytes()).hexdigest()


def _shape_error(shape: tuple[int, ...], params: int) -> str:
    """What to say of a vector that does not fit."""
    return (
        f"weights of shape {shape} do not fit a model of {params}, which needs ({params},): "
        "check that both were made for the same ModelSpec"
    )
