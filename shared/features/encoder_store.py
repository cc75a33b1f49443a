"""Pretrained encoders that this machine's owner installed: tensors only, under pinned hashes.

No model file and no scenario decides what is downloaded or read as weights: they can only name
what the owner added with ``sottovoce encoder add``. A downloaded checkpoint is added by the
SHA-256 that the owner gives; it is read as tensors alone and stored as safetensors, whose hash is
compared at every load.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.error import URLError
from urllib.request import urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.shared import codec
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.bounded_files import read_bounded_file
from sottovoce.shared.codec import Sha256
from sottovoce.shared.errors import FeatureError, ModelError, SettingError

FOLDER_VARIABLE: Final = "SOTTOVOCE_ENCODERS"
MAX_BYTES: Final = 4 << 30
"""Most bytes of one encoder's weights; the largest known takes 1.3 GB."""

_PINS, _MAX_PINS_BYTES = "encoders.json", 1 << 20
_URL: Final = "https://download.pytorch.org/torchaudio/models/"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderPins:
    """Record of ``encoders.json``: what the owner installed.

    Attributes:
        schema: Always 1.
        encoders: SHA-256 of each encoder's file, by its name or ``pipeline:`` and its path.
    """

    schema: Literal[1] = 1
    encoders: dict[str, Sha256]


def encoder_folder() -> Path:
    """Find where encoders are installed: ``$SOTTOVOCE_ENCODERS``, or the user's data folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "sottovoce" / "encoders"


def read_pins() -> Mapping[str, str]:
    """Read which encoders are installed: SHA-256 of each, by name.

    Raises:
        FeatureError: The record is damaged.
    """
    try:
        data = read_bounded_file(
            encoder_folder() / _PINS, max_bytes=_MAX_PINS_BYTES, error=FeatureError
        )
    except FileNotFoundError:
        return {}
    return codec.decode_json(data, EncoderPins, name=_PINS, error=FeatureError).encoders


def require_installed(source: str) -> str:
    """Return the pinned SHA-256 of an encoder.

    Args:
        source: Name of a pipeline, or ``pipeline:`` and a path.

    Raises:
        FeatureError: The owner of this machine never installed it; nothing was read.
    """
    try:
        return read_pins()[source]
    except KeyError:
        raise FeatureError(
            f"the encoder {source[:200]} is not installed here, and nothing is downloaded or read "
            f"unasked; if you trust it: sottovoce encoder add {source[:200]}"
        ) from None


def load_weights(name: str) -> dict[str, Tensor]:
    """Load the weights of an installed pipeline.

    Raises:
        FeatureError: It is not installed, or its file is gone.
        ModelError: Its file is not the one that was installed.
    """
    pinned = require_installed(name)
    try:
        data = read_bounded_file(_weights_path(name), max_bytes=MAX_BYTES, error=ModelError)
        if hashlib.sha256(data).hexdigest() != pinned:
            raise ModelError(
                f"the weights of {name} are not the ones that were installed; add them again"
            )
        return load(data)
    except FileNotFoundError as error:
        raise FeatureError(f"the weights of {name} are gone; add them again") from error
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"the weights of {name} are damaged ({error}); add them again") from error


def read_own_file(path: Path, *, pinned_as: str = "") -> bytes:
    """Read a file that the owner named; if it is pinned, it must be the same still.

    Raises:
        FeatureError: There is no such file.
        ModelError: It was pinned, and is another by now.
    """
    try:
        # The owner named it, and may have named a link.
        data = read_bounded_file(path.resolve(), max_bytes=MAX_BYTES, error=FeatureError)
    except (FileNotFoundError, RuntimeError, ValueError) as error:  # or a loop of links
        raise FeatureError(f"{path} is not a file; name one that is there") from error
    pinned = read_pins().get(pinned_as)
    if pinned and hashlib.sha256(data).hexdigest() != pinned:
        raise ModelError(f"{path} is not the file that was added; add it again if you trust it")
    return data


def pin_file(source: str, path: Path) -> str:
    """Record the hash of the owner's own file; returns the SHA-256.

    Raises:
        FeatureError: There is no such file.
    """
    digest = hashlib.sha256(read_own_file(path)).hexdigest()
    _write_pin(source, digest)
    return digest


def install_weights(name: str, data: bytes, *, sha256: str) -> str:
    """Install a checkpoint of PyTorch as tensors; nothing else in it is unpickled.

    Args:
        name: Name of the pipeline.
        data: The checkpoint's bytes.
        sha256: The hash that it must have, 64 hexadecimal digits.

    Returns:
        SHA-256 of what is stored.

    Raises:
        SettingError: It has another hash.
        ModelError: It holds anything but tensors.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SettingError(
            f"the weights of {name} have SHA-256 {found}, not {sha256 or 'one that you gave'}; "
            "compare it with what their publisher says, and give that as --sha256"
        )
    # Copies: safetensors refuses tensors that share memory.
    stored = save({key: one.clone().contiguous() for key, one in read_tensors(data, name).items()})
    replace_file(_weights_path(name), stored)
    digest = hashlib.sha256(stored).hexdigest()
    _write_pin(name, digest)
    return digest


def download_weights(file_name: str) -> bytes:
    """Download a checkpoint of torchaudio; called on the owner's word alone.

    Raises:
        FeatureError: It cannot be had.
    """
    try:
        with urlopen(_URL + file_name, timeout=60) as answer:  # noqa: S310  (https, and our own)
            data: bytes = answer.read(MAX_BYTES + 1)
    except (URLError, OSError, ValueError) as error:
        raise FeatureError(
            f"{_URL}{file_name} cannot be downloaded ({error}); fetch it elsewhere and add it with "
            "--file"
        ) from error
    if len(data) > MAX_BYTES:
        raise FeatureError(f"{_URL}{file_name} has more than {MAX_BYTES} bytes")
    return data


def read_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """Read a checkpoint that must map names to tensors, and unpickle nothing else.

    Raises:
        ModelError: It is anything else.
    """
    found = unpickle_tensors(data, name)
    if not all(isinstance(key, str) and isinstance(one, Tensor) for key, one in found.items()):
        raise ModelError(f"{name} holds more than tensors; it is no checkpoint of an encoder")
    return found


def unpickle_tensors(data: bytes, name: str) -> dict[str, Any]:
    """Read what ``torch.save`` wrote: tensors and plain values in a dictionary, no other class.

    Raises:
        ModelError: It is anything else.
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A hostile file makes the reader raise anything.
    except Exception as error:
        raise ModelError(f"{name} is damaged or holds more than tensors ({error})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{name} holds no dictionary of tensors")
    return found


def _weights_path(name: str) -> Path:
    return encoder_folder() / f"{name}.safetensors"


def _write_pin(source: str, digest: str) -> None:
    record = {"schema": 1, "encoders": {**read_pins(), source: digest}}
    replace_file(encoder_folder() / _PINS, (json.dumps(record, indent=1) + "\n").encode())
