"""Features of speech: acoustic descriptors, frozen encoders, and their cache.

``tabulate_descriptors`` and ``describe_speech`` need no torch; like the modules, they are loaded
when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.shared.features.acoustic.analysis import describe_speech
    from sottovoce.shared.features.acoustic.table import tabulate_descriptors

__all__ = [
    "acoustic",
    "cache",
    "describe_speech",
    "descriptors",
    "extractor",
    "fingerprint",
    "log_mel",
    "pitch",
    "pretrained",
    "registry",
    "rhythm",
    "spectral",
    "tabulate_descriptors",
    "version",
    "whisper",
    "whisper_weights",
]

_FUNCTIONS = {
    "describe_speech": "sottovoce.shared.features.acoustic.analysis",
    "tabulate_descriptors": "sottovoce.shared.features.acoustic.table",
}


def __getattr__(name: str) -> object:
    """Load a function when it is first used, so that a module alone brings no other."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FUNCTIONS[name]), name)
