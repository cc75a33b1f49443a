"""Description of a shared model, and the network built from a description."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import torch
from torch import nn

from sottovoce.shared import validation
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.backbones import (
    BilstmAttention,
    CnnAttention,
    HiddenLayerBackbone,
    IdentityBackbone,
    PoolingBackbone,
    Tcn,
)
from sottovoce.shared.models.layers import AttentivePooling, MeanStdPooling
from sottovoce.shared.models.network import Backbone, Network

MODEL_KINDS = ("linear", "mlp", "cnn-attention", "tcn", "bilstm-attention")
"""Two classifiers on frozen features, and three models that learn from log-mel."""
POOLINGS = ("none", "mean-std", "attentive")

MAX_WIDTH = 1 << 16
MAX_CLASSES = 1 << 10
MAX_PARAMETERS = 1 << 24
"""Bounds on a description that comes from elsewhere, in a model folder or a server's plan: 64 MiB
of weights. Without them a few digits of a file would take all of a device's memory."""

_FROZEN_FEATURE_KINDS = ("linear", "mlp")
_LOG_MEL_BACKBONES: dict[str, Callable[[int, int], Backbone]] = {
    "cnn-attention": CnnAttention,
    "tcn": Tcn,
    "bilstm-attention": BilstmAttention,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Architecture of the shared model; with a seed it determines every initial weight.

    Attributes:
        kind: One of ``MODEL_KINDS``.
        pooling: Pooling of frames before a ``linear`` or ``mlp`` model; ``none`` if an utterance
            is one vector already, and for the other kinds, which pool by themselves.
        inputs: Number of inputs, 1 or more.
        classes: Number of emotions, 2 or more.
        hidden: Width of the hidden layers (of the attention, for a ``linear`` model), 1 or more;
            even for ``bilstm-attention``, whose two directions share it.
        dropout: Probability that an input of the last layer is dropped in training, in [0, 1).
        bias_feature: Constant input of the last layer's bias, above 0.

    Raises:
        SettingError: A value out of its range, or a pooling that does not go with the kind.
    """

    kind: str
    pooling: str = "none"
    inputs: int
    classes: int
    hidden: int = 96
    dropout: float = 0.0
    bias_feature: float = 1.0

    def __post_init__(self) -> None:
        validation.require_one_of(MODEL_KINDS, kind=self.kind)
        validation.require_one_of(POOLINGS, pooling=self.pooling)
        for name, value, least in self._counts():
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                raise SettingError(f"{name} is {value!r}; it must be a whole number from {least}")
        validation.require_positive(bias_feature=self.bias_feature)
        if not (math.isfinite(self.dropout) and 0 <= self.dropout < 1):
            raise SettingError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.kind not in _FROZEN_FEATURE_KINDS and self.pooling != "none":
            raise SettingError(f"pooling is {self.pooling!r}; {self.kind} pools by itself: 'none'")
        if self.kind == "bilstm-attention" and self.hidden % 2:
            raise SettingError(f"hidden is {self.hidden}; bilstm-attention halves it: make it even")

    def _counts(self) -> tuple[tuple[str, int, int], ...]:
        """Name, value and least value of each count."""
        return ("inputs", self.inputs, 1), ("classes", self.classes, 2), ("hidden", self.hidden, 1)

    @property
    def reads_frames(self) -> bool:
        """Whether an utterance reaches the model as (frames, inputs), not as (inputs,).

        Example:
            >>> ModelSpec(kind="linear", inputs=64, classes=6).reads_frames
            False
            >>> ModelSpec(kind="tcn", inputs=64, classes=6).reads_frames
            True
        """
        return self.kind not in _FROZEN_FEATURE_KINDS or self.pooling != "none"

    def to_dict(self) -> dict[str, str | int | float]:
        """Convert the description to plain values, fit for JSON.

        Example:
            >>> spec = ModelSpec(kind="linear", inputs=64, classes=6)
            >>> ModelSpec.from_dict(spec.to_dict()) == spec
            True
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "ModelSpec":
        """Rebuild a description from ``to_dict``, or from a file that claims to hold one.

        Raises:
            ModelError: A key that is unknown or missing, or a value that cannot be used.

        Example:
            >>> ModelSpec.from_dict({"kind": "linear"})
            Traceback (most recent call last):
            sottovoce.shared.errors.ModelError: a model of ['kind'] is unknown; its keys must be ...
        """
        # Exactly the known keys: a setting that this release ignored would change predictions.
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ModelError(
                f"a model of {sorted(values)} is unknown; its keys must be {sorted(known)}: "
                "use a model.json of this version"
            )
        try:
            spec = cls(**values)  # type: ignore[arg-type]  # checked at birth
        except (SettingError, TypeError, OverflowError) as error:
            raise ModelError(
                f"a model that cannot be: {error}; use an intact model.json"
            ) from error
        spec.require_affordable()
        return spec

    def require_affordable(self) -> None:
        """Refuse a model that is larger than any that devices train, before it is built.

        Raises:
            ModelError: A width, a number of classes or of weights above its bound.

        Example:
            >>> ModelSpec(kind="mlp", inputs=64, classes=6, hidden=10**9).require_affordable()
            Traceback (most recent call last):
            sottovoce.shared.errors.ModelError: hidden of the model is 1000000000; at most 65536...
        """
        limits = {"inputs": MAX_WIDTH, "hidden": MAX_WIDTH, "classes": MAX_CLASSES}
        for name, limit in limits.items():
            if getattr(self, name) > limit:
                raise ModelError(f"{name} of the model is {getattr(self, name)}; at most {limit}")
        if (params := count_spec_parameters(self)) > MAX_PARAMETERS:
            raise ModelError(f"the model has {params} weights; at most {MAX_PARAMETERS}")


def build_network(spec: ModelSpec, seed: int) -> Network:
    """Build the network of a description, with its initial weights.

    The last layer of a ``linear`` model starts at 0: its loss is convex, and a random start would
    only take more steps to unlearn under noise.

    Args:
        spec: Description of the model.
        seed: Determines every weight; torch's global generator is left as it was.

    Example:
        >>> spec = ModelSpec(kind="mlp", inputs=4, classes=3, hidden=8)
        >>> one, other = build_network(spec, seed=1), build_network(spec, seed=1)
        >>> torch.equal(one.head.weight, other.head.weight)
        True
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it also records a traceback for every other device, slowly.
        torch.default_generator.manual_seed(seed)
        network = Network(_build_backbone(spec), spec.classes, spec.dropout, spec.bias_feature)
    if spec.kind == "linear":
        nn.init.zeros_(network.head.weight)
        nn.init.zeros_(network.head.bias)
    return network


def count_spec_parameters(spec: ModelSpec) -> int:
    """Count the weights of a description's network, without allocating memory.

    Example:
        >>> count_spec_parameters(ModelSpec(kind="linear", inputs=64, classes=6))
        390
    """
    return sum(shape.numel() for shape in _parameter_shapes(spec))


@lru_cache(maxsize=16)
def _parameter_shapes(spec: ModelSpec) -> tuple[torch.Size, ...]:
    with torch.device("meta"):
        network = Network(_build_backbone(spec), spec.classes, spec.dropout, spec.bias_feature)
    return tuple(weight.shape for weight in network.parameters())


def _build_backbone(spec: ModelSpec) -> Backbone:
    if spec.kind in _LOG_MEL_BACKBONES:
        return _LOG_MEL_BACKBONES[spec.kind](spec.inputs, spec.hidden)
    # Functions, so that only the chosen pooling draws initial weights from the generator.
    poolings: dict[str, Callable[[], Backbone]] = {
        "none": lambda: IdentityBackbone(spec.inputs),
        "mean-std": lambda: PoolingBackbone(spec.inputs, MeanStdPooling()),
        "attentive": lambda: PoolingBackbone(
            spec.inputs, AttentivePooling(spec.inputs, spec.hidden)
        ),
    }
    pooled = poolings[spec.pooling]()
    return pooled if spec.kind == "linear" else HiddenLayerBackbone(pooled, spec.hidden)
