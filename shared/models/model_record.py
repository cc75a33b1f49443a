"""What the files of a model hold: the record ``model.json``, and the header of its tensors.

Everything is compared with the description of the model before anything is allocated for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sottovoce.shared import codec
from sottovoce.shared.codec import LongName, Name, Sha256
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.spec import ModelSpec, count_spec_parameters

SCHEMA: Final = 3
"""Since 3 a manifest covers the whole folder; 2 and 1 are of earlier releases."""

_HEADER_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 1 << 18
_MAX_TENSORS: Final = 64
_STATISTICS: Final = "speaker_statistics."

_SCHEMA_1_METADATA = {"length": "row_norm", "user_mean": "subtracts_user_mean"}
_SCHEMA_1_TENSORS = {
    "front.mean": "projection.mean",
    "front.matrix": "projection.matrix",
    "neutral": "neutral_direction",
    "population.between": _STATISTICS + "between",
    "population.within": _STATISTICS + "within",
    "population.neutral_offset": _STATISTICS + "neutral_offset",
    "population.neutral_within": _STATISTICS + "neutral_within",
    "population.offset_spread": _STATISTICS + "offset_variance",
}
"""Names of schema 1, which devices still hold, and their present names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """Record of ``model.json``, under its present names.

    Attributes:
        schema: 3; 2 and 1 of earlier releases.
        labels: Emotions in the order of the classes.
        extractor: Name of the feature extractor.
        model: Description of the shared model; see :class:`ModelSpec`.
        row_norm: Norm of every row of inputs, 0 for none.
        subtracts_user_mean: Whether the model expects the user's mean to be subtracted.
        prior: Numbers of the heads' prior.
        model_hash: SHA-256 to which heads are bound.
        sha256: SHA-256 of ``model.safetensors``.
        feature_version: Version of the features that it reads; 1 in records of earlier releases.
        unknown_voice_temperature: See :class:`ModelPackage`; 1 in records of earlier releases.
        fold: The fold that the model is of, in a run; "" elsewhere.
        trained_without: Speakers that the model was not trained on, in a run.
    """

    schema: Literal[1, 2, 3]
    labels: tuple[Name, ...]
    extractor: LongName
    model: dict[str, str | int | float]
    row_norm: float
    subtracts_user_mean: bool
    prior: dict[str, float | list[float]]
    model_hash: Sha256
    sha256: Sha256
    feature_version: int = 1
    unknown_voice_temperature: float = 1.0
    fold: str = ""
    trained_without: tuple[str, ...] = ()


def decode_record(data: bytes, *, name: str) -> ModelRecord:
    """Read ``model.json`` of the present schema, or of an earlier one under its present names.

    Raises:
        ModelError: Not such a record.
    """
    content = codec.decode_json(data, dict[str, Any], name=name, error=ModelError)
    schema = content.get("schema")
    if schema not in (1, 2, SCHEMA) or isinstance(schema, bool):
        raise ModelError(f"its schema is {schema!r:.20}, this release reads 1 to {SCHEMA}")
    if schema == 1:
        content = {_SCHEMA_1_METADATA.get(key, key): value for key, value in content.items()}
    return codec.convert_record(content, ModelRecord, name=name, error=ModelError)


def load_tensors(data: bytes, record: ModelRecord, spec: ModelSpec) -> dict[str, Tensor]:
    """Load the tensors of a model, if their names, types and shapes are those of its description.

    Args:
        data: Content of ``model.safetensors``.
        record: Content of ``model.json``.
        spec: The model that it describes.

    Guarantees:
        Nothing is allocated for a tensor before its type and shape were compared; what is loaded
        is as large as ``data``, whatever its header says.

    Raises:
        ModelError: A header that is damaged, a tensor that is missing, or of another type or shape.
    """
    shapes = _read_header(data)
    if record.schema == 1:
        shapes = {_SCHEMA_1_TENSORS.get(name, name): shape for name, shape in shapes.items()}
    _check_shapes(shapes, spec)
    try:
        tensors = load(data)
    # The header is read by two parsers: what the library refuses is refused.
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"the tensors cannot be read ({error})") from error
    if record.schema == 1:
        tensors = {_SCHEMA_1_TENSORS.get(name, name): one for name, one in tensors.items()}
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class _TensorHeader:
    dtype: str
    shape: tuple[codec.Count, ...]
    data_offsets: tuple[codec.Count, codec.Count]


def _read_header(data: bytes) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, which must be float32, by name."""
    size = int.from_bytes(data[:_HEADER_BYTES], "little")
    if len(data) < _HEADER_BYTES + size or size > _MAX_HEADER_BYTES:
        raise ModelError(
            f"the header of the tensors has {size} bytes; at most {_MAX_HEADER_BYTES}, all there"
        )
    text = data[_HEADER_BYTES : _HEADER_BYTES + size]
    content = codec.decode_json(text, dict[str, Any], name="the tensors' header", error=ModelError)
    content.pop("__metadata__", None)
    if len(content) > _MAX_TENSORS:
        raise ModelError(f"there are {len(content)} tensors; at most {_MAX_TENSORS}")
    headers = codec.convert_record(
        content, dict[str, _TensorHeader], name="the tensors' header", error=ModelError
    )
    for name, header in headers.items():
        if header.dtype != "F32":
            raise ModelError(f"the tensor {name[:80]} is of type {header.dtype[:8]}; needed: F32")
    return {name: header.shape for name, header in headers.items()}


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], spec: ModelSpec) -> None:
    """Refuse shapes that the model's description does not lead to."""
    features = shapes.get("projection.mean", (0,))[:1]
    for name, needed in _needed_shapes(spec, features[0] if features else 0):
        if name not in shapes:
            raise ModelError(f"the tensor {name} is missing")
        if shapes[name] != needed:
            raise ModelError(f"the tensor {name} has shape {shapes[name]}; needed: {needed}")
    # Their other shapes are compared by the objects that hold them; what they take is in the file.
    direction = shapes.get("neutral_direction", (spec.inputs,))
    if direction != (spec.inputs,):
        raise ModelError(
            f"the tensor neutral_direction has shape {direction}; needed: {(spec.inputs,)}"
        )


def _needed_shapes(spec: ModelSpec, features: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "weights", (count_spec_parameters(spec),)
    yield "projection.mean", (features,)
    yield "projection.matrix", (features, spec.inputs)
    yield "centre", (spec.inputs,)
    for name in ("between", "within", "neutral_offset", "neutral_within"):
        yield _STATISTICS + name, (spec.inputs,)
