"""The shared models, by name.

What a model does stands in ``spec``, what all models share in ``network``, the losses in
``losses``, and the weights as one flat vector, which is what travels, in ``parameters``. What goes
into a model is made by ``projection``; what is handed out is a ``model_package``.
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
