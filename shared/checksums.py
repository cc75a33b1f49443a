"""Files whose content is compared with a checksum before anything is made of it.

Most name their own, so that a damaged one is never gone on from. It shows damage and careless
changes; whoever changes such a file on purpose can write a new one. The checksum of a file that an
installed package carries stands in the code instead.
"""

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sottovoce.shared.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_KEY: Final = "sha256"


def read_packaged_file(package: str, name: str, *, sha256: str, install_command: str) -> bytes:
    """Read a file that an installed package carries, after verifying its SHA-256.

    Args:
        package: Import name of the package.
        name: The file's path in it, with ``/``.
        sha256: Expected SHA-256 of its content, 64 hexadecimal digits.
        install_command: What installs the package, for the way out.

    Raises:
        ModelError: The package is not installed, or has no such file or a different one.
    """
    try:
        content = (importlib.resources.files(package) / name).read_bytes()
    except (ImportError, OSError) as error:
        raise ModelError(
            f"package {package} carries no readable {name} ({error}); {install_command}"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise ModelError(
            f"{name} of {package} has SHA-256 {actual}, expected {sha256}; "
            f"it is damaged or another version: {install_command} --force-reinstall"
        )
    return content


def encode_tensors(
    tensors: "Mapping[str, Tensor]", words: Mapping[str, str] | None = None
) -> bytes:
    """Encode tensors and words as a safetensors file that names its own checksum."""
    from safetensors.torch import save  # packaged files are read without torch

    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    words = dict(words or {})
    return save(ready, words | {_KEY: _hash_tensors(ready, words)})


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read the tensors and words that :func:`encode_tensors` encoded.

    Args:
        path: The file.

    Raises:
        ModelError: The file is missing, is no safetensors file, or does not match its checksum;
            the caller names the file and the way out.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            words = dict(file.metadata() or {})
        found = words.pop(_KEY, None)
        good = found == _hash_tensors(tensors, words)
    # A type that safetensors knows and this version of NumPy does not is a TypeError.
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(str(error)) from error
    if not good:
        raise _mismatch(found)
    return tensors, words


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Encode a JSON object that names its own checksum.

    Example:
        >>> decode_record(encode_record({"round": 3}))
        {'round': 3}
    """
    return json.dumps({**record, _KEY: _hash_record(record)}).encode()


def decode_record(data: bytes) -> dict[str, Any]:
    """Decode what :func:`encode_record` encoded; errors as for :func:`read_tensors`."""
    try:
        record: Any = json.loads(data)
        if not isinstance(record, dict):
            raise ModelError("it holds no JSON object")
        found = record.pop(_KEY, None)
        good = found == _hash_record(record)
    except (ValueError, RecursionError) as error:
        raise ModelError(str(error)) from error
    if not good:
        raise _mismatch(found)
    return record


def _hash_tensors(tensors: "Mapping[str, Tensor]", words: Mapping[str, str]) -> str:
    """SHA-256 over the words, and over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256(json.dumps(dict(words), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _hash_record(record: Mapping[str, Any]) -> str:
    """SHA-256 over the record in one spelling."""
    return hashlib.sha256(json.dumps(dict(record), sort_keys=True).encode()).hexdigest()


def _mismatch(found: object) -> ModelError:
    """The error of content that is not what was written."""
    if found is None:
        return ModelError("it names no checksum: it was changed, or an earlier release wrote it")
    return ModelError("its content does not match its checksum: it was changed")
