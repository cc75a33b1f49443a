"""The shared models: their description, layers, losses and parameters.

``spec`` describes a model, ``network`` holds what all models share, ``losses`` the losses, and
``parameters`` converts weights to the flat vector that is sent. ``projection`` computes the inputs
of a model from features; ``model_package`` is a trained model as it is published.
"""

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
