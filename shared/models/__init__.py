"""The shared models, by name.

What a model does stands in ``spec``, what all models share in ``network``, the loss in ``loss``,
and the flat view of the weights, which is what travels, in ``flat``.
"""

from sottovoce.shared.models.flat import flatten, load_flat, unflatten
from sottovoce.shared.models.loss import cross_entropy
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.spec import ModelSpec, build

__all__ = [
    "ModelSpec",
    "Network",
    "build",
    "cross_entropy",
    "flatten",
    "load_flat",
    "unflatten",
]
