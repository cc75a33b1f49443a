"""Fingerprint of everything that decides a feature's value: settings, weights, code, versions."""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

import onnxruntime
import soundfile
import torch
import torchaudio

from sottovoce.shared.errors import FeatureError


def compute_fingerprint(
    name: str, *, module: str, settings: Mapping[str, object], weights: str = ""
) -> str:
    """Hash everything that decides what an extractor returns.

    The code is that of :func:`hash_sources`: nobody has to remember to raise a version number, and
    an edit elsewhere does not invalidate the cache.

    Args:
        name: The extractor's name.
        module: Import name of the module that computes it (``__name__``).
        settings: All settings of the extractor; must be fit for JSON.
        weights: SHA-256 of the weights, "" if there are none.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        FeatureError: The source code of a module cannot be found.

    Example:
        >>> module = "sottovoce.shared.features.rhythm"
        >>> one = compute_fingerprint("mine", module=module, settings={"bands": 8})
        >>> other = compute_fingerprint("mine", module=module, settings={"bands": 9})
        >>> len(one), one == other
        (64, False)
    """
    described = {
        "name": name,
        "settings": dict(settings),
        "weights": weights,
        "code": hash_sources(module),
        "versions": _versions(),
    }
    # Sorted keys and no NaN: equal settings must give equal texts.
    text = json.dumps(described, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def hash_sources(module: str) -> dict[str, str]:
    """Hash the sources of a module and of all modules of its package that it uses.

    Imports are followed wherever they stand, also within functions; those under
    ``if TYPE_CHECKING:`` are not, for they run no code. Other packages count by their versions.

    Args:
        module: Import name of a module.

    Returns:
        SHA-256 by module, 64 hexadecimal digits each.

    Raises:
        FeatureError: The source code of a module cannot be found.

    Example:
        >>> sorted(hash_sources("sottovoce.shared.audio.signal"))
        ['sottovoce.shared.audio.signal', 'sottovoce.shared.errors']
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = hash_source(name)
            waiting += _imports(ast.parse(_source(name).read_bytes()), module.partition(".")[0])
    return found


def hash_source(module: str) -> str:
    """Hash the source of one module alone: SHA-256, 64 hexadecimal digits.

    Raises:
        FeatureError: The source code cannot be found.

    Example:
        >>> len(hash_source("sottovoce.shared.features.rhythm"))
        64
    """
    return hashlib.sha256(_source(module).read_bytes()).hexdigest()


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Modules of a package that a source imports, at the top or within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.partition(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if _find_source(name)]
            yield from modules
            if len(modules) < len(inner):  # else the package only leads to its modules
                yield str(node.module)
        else:
            yield from _imports(node, package)


def _source(module: str) -> Path:
    """The file that holds a module's source."""
    path = _find_source(module)
    if path is None:
        raise FeatureError(
            f"the source of {module} is not installed, so cached features cannot be told apart; "
            "install sottovoce with its .py files"
        )
    return path


def _find_source(module: str) -> Path | None:
    """Like :func:`_source`, but None if a name is not a module."""
    top, *inner = module.split(".")
    try:
        package = import_module(top)
    except ModuleNotFoundError:
        return None
    if not inner:
        own = getattr(package, "__file__", None)
        return Path(own) if own else None
    # Not importlib's find_spec, which would run the code of every parent package.
    bases = [Path(folder).joinpath(*inner) for folder in getattr(package, "__path__", ())]
    files = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def _versions() -> dict[str, str]:
    """Versions of the libraries that do the arithmetic and the decoding."""
    return {
        "torch": torch.__version__,
        "torchaudio": torchaudio.__version__,
        "onnxruntime": onnxruntime.__version__,
        "libsndfile": str(soundfile.__libsndfile_version__),
    }
