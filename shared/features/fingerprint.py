"""What decides a feature's value, as one hash: settings, weights, code and library versions."""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import soundfile
import torch
import torchaudio

from sottovoce.shared.errors import FeatureError

_HASHED_MODULES = (
    "sottovoce.shared.audio",
    "sottovoce.shared.features.",
)


def compute_fingerprint(
    name: str, *, module: str, settings: Mapping[str, object], weights: str = ""
) -> str:
    """Hash everything that decides what an extractor returns.

    The code that counts is the module itself and, through its imports, whatever it uses of
    ``shared/audio/`` and ``shared/features/``: nobody has to remember to raise a version number,
    and an edit elsewhere does not empty the cache.

    Args:
        name: The extractor's name.
        module: Import name of the module that computes it (``__name__``).
        settings: Everything that can be set; must be fit for JSON.
        weights: SHA-256 of the weights, "" where there are none.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        FeatureError: The source code of a module cannot be found.
    """
    described = {
        "name": name,
        "settings": dict(settings),
        "weights": weights,
        "code": hash_sources(module),
        "versions": _versions(),
    }
    text = json.dumps(described, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def hash_sources(module: str) -> dict[str, str]:
    """SHA-256 of the sources of a module and of the counted modules that it uses, by name."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        source = _source(name).read_bytes()
        found[name] = hashlib.sha256(source).hexdigest()
        waiting += [used for used in _imports(source) if used.startswith(_HASHED_MODULES)]
    return found


def _imports(source: bytes) -> list[str]:
    """Modules that a source imports, at the top or within functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [node.module, *(name for name in inner if _is_module(name))]
    return names


def _is_module(name: str) -> bool:
    """Whether a dotted name of this house is a module and not something within one."""
    if not name.startswith("sottovoce."):
        return False
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> Path:
    """The file that holds a module's source."""
    spec = find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise FeatureError(
            f"the source of {module} is not installed, so cached features cannot be told apart; "
            "install sottovoce with its .py files"
        )
    return Path(spec.origin)


def _versions() -> dict[str, str]:
    """Versions of the libraries that do the arithmetic and the decoding."""
    return {
        "torch": torch.__version__,
        "torchaudio": torchaudio.__version__,
        "libsndfile": str(soundfile.__libsndfile_version__),
    }
