"""Flower's records: values and named arrays of a message, written, and validated when read.

Whoever reads checks schema, names, shapes, dtypes and finiteness, so that a bad peer is a
``MessageError`` and never a crash.
"""

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from sottovoce.shared.errors import MessageError

SCHEMA = 1
CONFIG_KEY = "sottovoce"
_FLOAT: Final = "<f4"
ConfigValue = str | int | float | bool | bytes
"""What Flower's configuration records can hold, of which we use these."""


def build_record(
    config: Mapping[str, ConfigValue], arrays: Mapping[str, Mapping[str, Tensor]]
) -> RecordDict:
    """Flower's record of values and named groups of arrays."""
    made = RecordDict({CONFIG_KEY: ConfigRecord({"schema": SCHEMA, **config})})
    for group, tensors in arrays.items():
        made[group] = ArrayRecord({name: _array(tensor) for name, tensor in tensors.items()})
    return made


def content_key(content: RecordDict) -> tuple[object, ...]:
    """All that a message holds, as a key that equal messages share."""
    parts: list[object] = []
    for name, record in content.items():
        parts.append(name)
        if isinstance(record, ConfigRecord):
            parts += [(key, type(value), value) for key, value in record.items()]
        elif isinstance(record, ArrayRecord):
            parts += [(key, one.dtype, one.shape, one.data) for key, one in record.items()]
        else:
            parts.append(record)
    return tuple(parts)


def read_config(content: RecordDict) -> ConfigRecord:
    """The values, once their schema was checked."""
    config = content.config_records.get(CONFIG_KEY)
    if config is None:
        raise MessageError("a message without our values; it is not one of ours")
    if config.get("schema") != SCHEMA:
        raise MessageError(
            f"a message of schema {config.get('schema')!r}; this version reads {SCHEMA}: "
            "update the older of the two sides"
        )
    return config


def read_text(config: ConfigRecord, name: str) -> str:
    """One value that must be text."""
    value = config.get(name)
    if not isinstance(value, str):
        raise MessageError(f"the message's {name} is {value!r}; it must be text")
    return value


def read_number(config: ConfigRecord, name: str) -> float:
    """One value that must be a finite number, 0 or above."""
    value = config.get(name)
    if not isinstance(value, float) or not 0 <= value < float("inf"):
        raise MessageError(f"the message's {name} is {value!r}; it must be finite, 0 or above")
    return value


def read_tensor(content: RecordDict, group: str, name: str, axes: int) -> Tensor:
    """One float32 array that must be finite and of ``axes`` axes."""
    arrays = content.array_records.get(group)
    if arrays is None or name not in arrays:
        raise MessageError(f"the message lacks the array {group}/{name}")
    try:
        value = _numbers(arrays[name], axes)
    except Exception as error:  # a hostile header makes NumPy raise far more than ValueError
        raise MessageError(f"the array {group}/{name} cannot be read: {error}") from error
    if value.dtype != np.float32 or value.ndim != axes:
        raise MessageError(
            f"the array {group}/{name} is {value.dtype} with {value.ndim} axes; "
            f"needed: float32 with {axes}"
        )
    numbers = torch.empty(value.shape, dtype=torch.float32)
    numbers.numpy()[...] = value  # a copy: what came cannot be written into
    # A sum that is a number says that all are, at a fraction of the cost of looking at each.
    if not (math.isfinite(numbers.sum()) or numbers.isfinite().all()):
        raise MessageError(f"the array {group}/{name} holds a NaN or an infinity")
    return numbers


def _array(tensor: Tensor) -> Array:
    """A tensor as Flower carries it, as the bytes of a .npy file; the numbers are copied once."""
    values = tensor.detach().contiguous().numpy()
    data = b"".join((_header(values.shape, values.dtype.str), values.data))
    kind = _dtype_name(values.dtype)
    return Array(dtype=kind, shape=values.shape, stype="numpy.ndarray", data=data)


@lru_cache(maxsize=64)
def _dtype_name(dtype: "np.dtype[Any]") -> str:
    """NumPy's name of a kind of number, which it makes up anew for whoever asks."""
    return str(dtype)


@lru_cache(maxsize=64)
def _header(shape: tuple[int, ...], kind: str) -> bytes:
    """What NumPy writes before numbers of this shape and kind."""
    file = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _numbers(array: Array, axes: int) -> "np.ndarray[Any, np.dtype[Any]]":
    """The numbers of an array, which may be any that NumPy reads.

    Those that this program wrote are found without a copy, by the header that it gives them.
    """
    shape = tuple(array.shape)
    ours = array.stype == "numpy.ndarray" and len(shape) == axes
    if ours and all(isinstance(size, int) and size >= 0 for size in shape):
        header = _header(shape, _FLOAT)
        size = len(header) + math.prod(shape) * 4
        if len(array.data) == size and array.data.startswith(header):
            return np.frombuffer(array.data, _FLOAT, offset=len(header)).reshape(shape)
    return array.numpy()
