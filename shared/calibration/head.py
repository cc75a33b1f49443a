"""Calibration heads: their effect on a model's logits, and their binary format.

A head divides the logits by a temperature, adds a bias to every class, and may change the last
layer by an adapter of low rank::

    calibrated = logits * exp(-log_temperature) + bias + weights @ coordinates

Temperature scaling is Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; with the
bias it is the many-class form of Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
The coordinates say where an utterance lies in the public directions of a
:class:`~sottovoce.shared.calibration.adapter_basis.AdapterBasis`.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.calibration.adapter_basis import MAX_RANK, TAG_BYTES
from sottovoce.shared.calibration.portable_head import PortableHead, calibrate_values
from sottovoce.shared.errors import ModelError

MAX_HEAD_BYTES: Final = 4096
"""Largest head that is sent, sealed or not."""

MAX_LOG_TEMPERATURE: Final = 50.0
MAX_LOGIT: Final = 1e6
"""Logits beyond this are refused: the recording or the model is broken."""

_MAGIC: Final = b"SVHD"
_SCHEMA_PLAIN, _SCHEMA_ADAPTER = 1, 2
"""Schemas of a head without an adapter, and with one."""

_HEADER: Final = struct.Struct("<4sB32sHd")
_ADAPTER: Final = struct.Struct(f"<H{TAG_BYTES}s")
_MAX_CLASSES: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadAdapter:
    """Low-rank change of the model's last layer.

    Attributes:
        weights: Shape (classes, rank); kept as float32 on the CPU, as it travels.
        basis_tag: Tag of the basis whose coordinates it weighs.

    Raises:
        ModelError: Values that are not finite, a rank of 0 or above ``MAX_RANK``, or no tag.
    """

    weights: Tensor
    basis_tag: bytes

    def __post_init__(self) -> None:
        # A copy: a record that shared memory with a trained tensor would change with it.
        weights = self.weights.detach().to("cpu", torch.float32, copy=True)
        object.__setattr__(self, "weights", weights)
        if weights.dim() != 2 or not 1 <= weights.shape[1] <= MAX_RANK:
            raise ModelError(
                f"an adapter has shape {tuple(weights.shape)}; it must be (classes, rank), of rank "
                f"1 to {MAX_RANK}"
            )
        if not bool(weights.isfinite().all()):
            raise ModelError("an adapter holds a NaN or an infinity; fit the head again")
        if len(self.basis_tag) != TAG_BYTES:
            raise ModelError(
                f"a basis' tag has {len(self.basis_tag)} bytes; it must have {TAG_BYTES}"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibrationHead:
    """Calibration of one user: a temperature, biases and an optional adapter.

    Attributes:
        log_temperature: Natural log of the temperature; 0 changes nothing, above 0 makes the
            model less sure.
        bias: Added to each class's logit, shape (classes,); kept as float64 on the CPU.
        adapter: Changes the last layer; None leaves it as it is.

    Raises:
        ModelError: A value that is not finite, a bias that is not a vector of 2 to 256 classes, or
            an adapter of other classes.
    """

    log_temperature: float
    bias: Tensor
    adapter: HeadAdapter | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", self.bias.detach().to("cpu", torch.float64, copy=True))
        # Written so that NaN fails it.
        if not abs(self.log_temperature) <= MAX_LOG_TEMPERATURE:
            raise ModelError(
                f"log_temperature is {self.log_temperature}; it must lie within"
                f" ±{MAX_LOG_TEMPERATURE}; fit the head again"
            )
        if self.bias.dim() != 1 or not 2 <= len(self.bias) <= _MAX_CLASSES:
            raise ModelError(
                f"bias has shape {tuple(self.bias.shape)}; it must be one number for each of 2 to"
                f" {_MAX_CLASSES} classes"
            )
        if not bool(self.bias.isfinite().all()):
            raise ModelError(f"bias is {self.bias.tolist()}; it must be finite; fit the head again")
        if self.adapter and len(self.adapter.weights) != self.classes:
            raise ModelError(
                f"the adapter is for {len(self.adapter.weights)} classes, the bias for "
                f"{self.classes}; fit the head again"
            )

    @property
    def classes(self) -> int:
        """Number of classes of the head.

        Example:
            >>> identity_head(6).classes
            6
        """
        return len(self.bias)


def identity_head(classes: int) -> CalibrationHead:
    """Make the head that leaves logits unchanged.

    Example:
        >>> calibrate_logits(identity_head(2), torch.tensor([[3.0, -1.0]]))
        tensor([[ 3., -1.]])
    """
    return CalibrationHead(log_temperature=0.0, bias=torch.zeros(classes, dtype=torch.float64))


def is_same_head(one: CalibrationHead, other: CalibrationHead) -> bool:
    """Whether two heads hold the same numbers and basis tag.

    Example:
        >>> is_same_head(identity_head(2), identity_head(2))
        True
        >>> is_same_head(identity_head(2), identity_head(3))
        False
    """
    if one.log_temperature != other.log_temperature or not torch.equal(one.bias, other.bias):
        return False
    if one.adapter is None or other.adapter is None:
        return one.adapter is other.adapter
    same = one.adapter.basis_tag == other.adapter.basis_tag
    return same and torch.equal(one.adapter.weights, other.adapter.weights)


def calibrate_logits(
    head: CalibrationHead, logits: Tensor, coordinates: Tensor | None = None
) -> Tensor:
    """Apply a user's head to the logits of the shared model.

    Args:
        head: The user's head.
        logits: Shape (..., classes), floating point; NaN stays NaN.
        coordinates: Coordinates of the utterances in the head's basis, shape (..., rank); ignored
            by a head without an adapter.

    Returns:
        Calibrated logits, same shape, dtype and device.

    Raises:
        ModelError: Another number of classes, or coordinates that the adapter needs and that are
            missing or do not fit.

    Example:
        >>> warm = 0.6931471805599453  # the log of a temperature of 2
        >>> head = CalibrationHead(log_temperature=warm, bias=torch.tensor([0.0, 1.0]))
        >>> calibrate_logits(head, torch.tensor([[4.0, 0.0]]))
        tensor([[2., 1.]])
    """
    require_class_count(head.classes, logits)
    bias = head.bias.to(logits)
    if head.adapter is None:
        straight: Tensor = calibrate_values(logits, head.log_temperature, bias)
        return straight
    wanted = (*logits.shape[:-1], head.adapter.weights.shape[1])
    if coordinates is None or coordinates.shape != wanted:
        shape = None if coordinates is None else tuple(coordinates.shape)
        raise ModelError(
            f"the head's adapter needs coordinates of shape {wanted}, not {shape}: "
            "compute them in the basis of the model's prior"
        )
    bent: Tensor = calibrate_values(
        logits, head.log_temperature, bias, head.adapter.weights.to(logits), coordinates.to(logits)
    )
    return bent


def make_portable(head: CalibrationHead) -> PortableHead:
    """Convert a head to plain numbers, for prediction without torch.

    Example:
        >>> make_portable(identity_head(2)).bias.tolist()
        [0.0, 0.0]
    """
    return PortableHead(
        log_temperature=head.log_temperature,
        bias=head.bias.numpy(),
        weights=head.adapter.weights.numpy() if head.adapter else None,
        basis_tag=head.adapter.basis_tag.hex() if head.adapter else "",
    )


def to_bytes(head: CalibrationHead, model_hash: str) -> bytes:
    """Encode a head, bound to its model: at most 3,129 bytes for 256 classes, 1,145 for 8.

    Args:
        head: The head.
        model_hash: SHA-256 of the model it was fitted for, 64 hexadecimal digits.

    Raises:
        ModelError: A hash that is none.

    Example:
        >>> data = to_bytes(identity_head(4), "ab" * 32)
        >>> len(data), from_bytes(data, "ab" * 32).classes
        (79, 4)
    """
    schema = _SCHEMA_ADAPTER if head.adapter else _SCHEMA_PLAIN
    header = _HEADER.pack(
        _MAGIC, schema, parse_model_hash(model_hash), head.classes, head.log_temperature
    )
    # Biases in full precision: the fit goes on from them. Weights of an adapter are float32.
    data = header + head.bias.numpy().astype("<f8").tobytes()
    if head.adapter is None:
        return data
    weights = head.adapter.weights
    words = _ADAPTER.pack(weights.shape[1], head.adapter.basis_tag)
    return data + words + weights.numpy().astype("<f4").tobytes()


def from_bytes(data: bytes, model_hash: str) -> CalibrationHead:
    """Decode the head that :func:`to_bytes` encoded for the same model.

    Raises:
        ModelError: Damaged bytes, a newer schema, or a head of another model: it must be fitted
            again, never applied.

    Example:
        >>> data = to_bytes(identity_head(4), "ab" * 32)
        >>> is_same_head(from_bytes(data, "ab" * 32), identity_head(4))
        True
        >>> from_bytes(data, "cd" * 32)
        Traceback (most recent call last):
        sottovoce.shared.errors.ModelError: the head belongs to model abababababab, not to ...
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ModelError(f"{len(data)} bytes are not a calibration head; fit the head again")
    _, schema, whose, classes, log_temperature = _HEADER.unpack_from(data)
    if schema not in (_SCHEMA_PLAIN, _SCHEMA_ADAPTER):
        raise ModelError(
            f"head schema {schema} is not {_SCHEMA_ADAPTER}; update, or fit the head again"
        )
    # A head corrects one model's errors; on another model it would add errors.
    if whose != parse_model_hash(model_hash):
        raise ModelError(
            f"the head belongs to model {whose.hex()[:12]}, not to {model_hash[:12]};"
            " fit it again for this model"
        )
    # Lengths are checked before NumPy reads: the class count comes out of untrusted bytes.
    end = _HEADER.size + 8 * classes
    if len(data) < end or (schema == _SCHEMA_PLAIN and len(data) != end):
        raise ModelError(f"a head of {classes} classes has {len(data)} bytes; fit the head again")
    bias = np.frombuffer(data[:end], dtype="<f8", offset=_HEADER.size)
    return CalibrationHead(
        log_temperature=log_temperature,
        # A copy: an array over bytes is read-only, which torch does not support.
        bias=torch.from_numpy(bias.copy()),
        adapter=_decode_adapter(data[end:], classes) if schema == _SCHEMA_ADAPTER else None,
    )


def _decode_adapter(data: bytes, classes: int) -> HeadAdapter:
    """What follows the biases."""
    rank, basis = _ADAPTER.unpack_from(data) if len(data) >= _ADAPTER.size else (0, b"")
    if not rank or len(data) != _ADAPTER.size + 4 * classes * rank:
        raise ModelError(f"an adapter of {classes} classes has {len(data)} bytes; fit it again")
    weights = np.frombuffer(data, dtype="<f4", offset=_ADAPTER.size).reshape(classes, rank)
    return HeadAdapter(weights=torch.from_numpy(weights.copy()), basis_tag=basis)


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedHead:
    """A head as the server stores it: ciphertext and associated data.

    Attributes:
        model_hash: SHA-256 of the model it was fitted for, 64 hexadecimal digits.
        version: Counts a user's heads, from 1 up.
        blob: The ciphertext, at most 4 KiB.

    Raises:
        ModelError: A value out of these bounds.
    """

    model_hash: str
    version: int
    blob: bytes = field(repr=False)

    def __post_init__(self) -> None:
        parse_model_hash(self.model_hash)
        if not 1 <= self.version < 1 << 63:
            raise ModelError(f"a head's version is {self.version}; it must be from 1 to 2^63 - 1")
        if len(self.blob) > MAX_HEAD_BYTES:
            raise ModelError(f"a sealed head has {len(self.blob)} bytes; at most {MAX_HEAD_BYTES}")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnverifiedHead:
    """A head as a server sent it: only the types of its fields are checked.

    Attributes:
        model_hash: Claimed SHA-256 of the model it was fitted for.
        version: Claimed version.
        blob: Claimed ciphertext.
    """

    model_hash: str
    version: int
    blob: bytes = field(repr=False)

    def to_sealed_head(self) -> SealedHead:
        """Check the bounds of the claimed values and return them as a sealed head.

        Raises:
            ModelError: A value out of the bounds of :class:`SealedHead`.
        """
        return SealedHead(model_hash=self.model_hash, version=self.version, blob=self.blob)


def require_class_count(classes: int, logits: Tensor) -> None:
    """Raise ``ModelError`` unless the logits have this many classes."""
    if logits.dim() == 0 or logits.shape[-1] != classes:
        raise ModelError(
            f"logits have shape {tuple(logits.shape)}; the head is for {classes} classes"
        )


def parse_model_hash(model_hash: str) -> bytes:
    """Decode a SHA-256 of 64 hexadecimal digits to its 32 bytes; ``ModelError`` if it is none.

    Example:
        >>> len(parse_model_hash("ab" * 32))
        32
    """
    try:
        found = bytes.fromhex(model_hash)
    except ValueError:
        found = b""
    # Python's fromhex skips spaces, so the length of the text is checked as well.
    if len(found) != 32 or len(model_hash) != 64:
        raise ModelError(f"model_hash is {model_hash!r}; it must be a SHA-256 in 64 hex digits")
    return found
