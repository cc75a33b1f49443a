"""Pretraining results, kept between runs: the same corpora and recipe are learned from once.

Runs that differ in their budget, seed or rounds start from the same projection, speaker statistics
and weights. They lie beside the cached features, under the hash of all that decides them, code
included, so a run that takes them is the run that would have learned them, bit for bit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import ModelError, StorageError
from sottovoce.shared.features.fingerprint import hash_source, hash_sources
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

_PROJECTION_FIELDS: Final = ("mean", "matrix")
_DIGEST_BYTES: Final = 32
_FAMILIAR: Final = "familiar_speech."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PretrainingResult:
    """Results of pretraining on public corpora that a run uses.

    Attributes:
        projection: The public projection.
        speaker_statistics: How public speakers differ.
        familiar_speech: Where public speech lies; None where there is too little of it.
        initial_weights: Where training starts, shape (params,), float32.
        held_out: The file of public speakers for the heads' prior; None without.
        exclusion_messages: What was said of public clips that could not be used.
    """

    projection: PublicProjection
    speaker_statistics: SpeakerStatistics
    familiar_speech: FamiliarSpeech | None
    initial_weights: Tensor
    held_out: bytes | None
    exclusion_messages: Sequence[str] = ()


def cache_key(facts: Mapping[str, object], *, learned_by: str, called_by: str) -> str:
    """Hash all that decides a pretraining result, as the name it is stored under.

    Args:
        facts: Everything that decides it but code, libraries and processor; fit for JSON.
        learned_by: Module that learns it, which counts with all that it imports.
        called_by: Module that hands the facts over, which counts alone: what it imports is a run's
            business, and what of that matters here is among the facts.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    alone = (called_by, __name__)
    described = {
        "facts": dict(facts),
        "code": hash_sources(learned_by) | {name: hash_source(name) for name in alone},
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    text = json.dumps(described, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def store_result(folder: Path, name: str, result: PretrainingResult) -> None:
    """Store it under its name; a disk that refuses costs the next run its time and no more."""
    facts = {
        "row_norm": result.projection.row_norm,
        "exclusion_messages": list(result.exclusion_messages),
    }
    tensors = {
        "initial_weights": result.initial_weights,
        "facts": _bytes_to_tensor(json.dumps(facts).encode()),
    }
    tensors |= {
        f"projection.{field}": getattr(result.projection, field) for field in _PROJECTION_FIELDS
    }
    statistics = result.speaker_statistics.to_tensors()
    tensors |= {f"speaker_statistics.{field}": value for field, value in statistics.items()}
    if result.familiar_speech is not None:
        familiar = result.familiar_speech.to_tensors()
        tensors |= {_FAMILIAR + field: value for field, value in familiar.items()}
    if result.held_out is not None:
        tensors["held_out"] = _bytes_to_tensor(result.held_out)
    data = save({field: tensor.contiguous() for field, tensor in tensors.items()})
    with suppress(StorageError):
        replace_file(_entry_path(folder, name), hashlib.sha256(data).digest() + data, durable=False)


def load_result(folder: Path, name: str) -> PretrainingResult | None:
    """Load a cached result by name; None where it is missing or damaged."""
    try:
        blob = _entry_path(folder, name).read_bytes()
        digest, data = blob[:_DIGEST_BYTES], blob[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            return None
        return _unpack_result(load(data))
    except (OSError, KeyError, ValueError, TypeError, SafetensorError, ModelError):
        return None


def _unpack_result(tensors: Mapping[str, Tensor]) -> PretrainingResult:
    """From named tensors."""
    facts = json.loads(tensors["facts"].numpy().tobytes())
    names = [entry.name for entry in fields(SpeakerStatistics)]
    held_out = tensors.get("held_out")
    return PretrainingResult(
        projection=PublicProjection(
            **{n: tensors[f"projection.{n}"] for n in _PROJECTION_FIELDS},
            row_norm=float(facts["row_norm"]),
        ),
        speaker_statistics=SpeakerStatistics(
            **{name: tensors[f"speaker_statistics.{name}"] for name in names}
        ),
        familiar_speech=FamiliarSpeech.from_tensors(
            {
                name.removeprefix(_FAMILIAR): tensor
                for name, tensor in tensors.items()
                if name.startswith(_FAMILIAR)
            }
        ),
        initial_weights=tensors["initial_weights"],
        held_out=None if held_out is None else held_out.numpy().tobytes(),
        exclusion_messages=tuple(map(str, facts["exclusion_messages"])),
    )


def _bytes_to_tensor(data: bytes) -> Tensor:
    """Bytes as a tensor."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _entry_path(folder: Path, name: str) -> Path:
    """Where it lies."""
    return folder / "learned" / f"{name}.safetensors"
