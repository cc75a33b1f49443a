"""The shared models: their description, layers, losses and parameters.

``spec`` describes a model, ``network`` holds what all models share, ``losses`` the losses, and
``parameters`` converts weights to the flat vector that is sent. ``projection`` computes the inputs
of a model from features; ``model_package`` is a trained model as it is published.

The names of this package are loaded when they are first used (PEP 562): ``model_folder``, which
prediction without torch needs, loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.shared.models.losses import cross_entropy
    from sottovoce.shared.models.network import Network
    from sottovoce.shared.models.parameters import (
        flatten_parameters,
        load_parameters,
        unflatten_parameters,
    )
    from sottovoce.shared.models.spec import ModelSpec, build_network

__all__ = [
    "ModelSpec",
    "Network",
    "build_network",
    "cross_entropy",
    "flatten_parameters",
    "load_parameters",
    "unflatten_parameters",
]

_MODULES = {
    "ModelSpec": "spec",
    "Network": "network",
    "build_network": "spec",
    "cross_entropy": "losses",
    "flatten_parameters": "parameters",
    "load_parameters": "parameters",
    "unflatten_parameters": "parameters",
}
"""By public name, the module of this package that defines it."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    # In the module from now on, so that this is called once a name.
    return globals().setdefault(name, value)
