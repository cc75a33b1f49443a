"""What public corpora taught, kept between runs: the same corpora and recipe teach it once.

Runs that differ in their budget, seed or rounds start from the same front, population and weights.
They lie beside the cached features, under the hash of all that decides them, code included, so a
run that takes them is the run that would have learned them, bit for bit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared.errors import ModelError
from sottovoce.shared.features.fingerprint import code
from sottovoce.shared.front import Front
from sottovoce.shared.normaliser import Population

_CODE: Final = (
    "sottovoce.server.public",
    "sottovoce.shared.examples",
    "sottovoce.shared.front",
    "sottovoce.shared.models.bodies",
    "sottovoce.shared.models.flat",
    "sottovoce.shared.models.layers",
    "sottovoce.shared.models.network",
    "sottovoce.shared.models.spec",
    "sottovoce.shared.normaliser",
    "sottovoce.simulations.learned",
    "sottovoce.simulations.material",
    "sottovoce.simulations.preparation",
)
"""Whose code decides what is learned."""

_FRONT: Final = ("mean", "matrix")
_DIGEST: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learned:
    """What a run takes from public corpora.

    Attributes:
        front: The public front.
        population: How public speakers differ.
        start: Where training starts, shape (params,), float32.
        held_out: The file of public speakers for the heads' prior; None without.
        left_out: What was said of public clips that could not be used.
    """

    front: Front
    population: Population
    start: Tensor
    held_out: bytes | None
    left_out: Sequence[str] = ()


def key(facts: Mapping[str, object]) -> str:
    """The name of what is learned.

    Args:
        facts: Everything that decides it but code, libraries and processor; fit for JSON.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    described = {
        "facts": dict(facts),
        "code": {name: code(name)[name] for name in _CODE},
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    text = json.dumps(described, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def keep(folder: Path, name: str, learned: Learned) -> None:
    """Keep it under its name; a disk that refuses costs the next run its time and no more."""
    facts = {"length": learned.front.length, "left_out": list(learned.left_out)}
    tensors = {"start": learned.start, "facts": _packed(json.dumps(facts).encode())}
    tensors |= {f"front.{field}": getattr(learned.front, field) for field in _FRONT}
    people = asdict(learned.population)
    tensors |= {f"population.{field}": tensor for field, tensor in people.items()}
    if learned.held_out is not None:
        tensors["held_out"] = _packed(learned.held_out)
    data = save({field: tensor.contiguous() for field, tensor in tensors.items()})
    with suppress(ModelError, OSError):
        replace_file(_path(folder, name), hashlib.sha256(data).digest() + data, durable=False)


def find(folder: Path, name: str) -> Learned | None:
    """What was kept under this name; None where there is nothing, or nothing to be trusted."""
    try:
        blob = _path(folder, name).read_bytes()
        digest, data = blob[:_DIGEST], blob[_DIGEST:]
        if hashlib.sha256(data).digest() != digest:
            return None
        return _read(load(data))
    except (OSError, KeyError, ValueError, TypeError, SafetensorError, ModelError):
        return None


def _read(tensors: Mapping[str, Tensor]) -> Learned:
    """From named tensors."""
    facts = json.loads(tensors["facts"].numpy().tobytes())
    names = [entry.name for entry in fields(Population)]
    aside = tensors.get("held_out")
    return Learned(
        front=Front(**{n: tensors[f"front.{n}"] for n in _FRONT}, length=float(facts["length"])),
        population=Population(**{name: tensors[f"population.{name}"] for name in names}),
        start=tensors["start"],
        held_out=None if aside is None else aside.numpy().tobytes(),
        left_out=tuple(map(str, facts["left_out"])),
    )


def _packed(data: bytes) -> Tensor:
    """Bytes as a tensor."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _path(folder: Path, name: str) -> Path:
    """Where it lies."""
    return folder / "learned" / f"{name}.safetensors"
