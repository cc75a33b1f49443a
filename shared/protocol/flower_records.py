"""Flower's records: the codec of ``messages``, and the only part of it that knows Flower.

Whoever reads checks schema, names, shapes, dtypes and finiteness. A ``decode`` function raises
``MessageError`` and nothing else, whatever a peer sends, so that a bad peer is left out and never a
crash. Arrays have one encoding, which is compared and not parsed: no pickle, no archive, no other
type or byte order is ever looked into.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from sottovoce.shared import codec
from sottovoce.shared.calibration import UnverifiedHead, prior_from_dict
from sottovoce.shared.calibration.head_statistics import CalibrationQuery
from sottovoce.shared.errors import MessageError, ModelError
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.printable import clean_text
from sottovoce.shared.protocol.messages import (
    EnrolRequest,
    FinalModelRequest,
    HeadStatisticsRequest,
    Reply,
    Request,
    SecureSumRequest,
    Status,
    TrainRequest,
    WithdrawalConfirmation,
    WithdrawalRequest,
)
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

SCHEMA: Final = 1
CONFIG_KEY: Final = "sottovoce"
_Decoded = TypeVar("_Decoded")
ConfigValue = str | int | float | bool | bytes
"""What Flower's configuration records can hold, of which we use these."""

_FLOAT: Final = "<f4"
_SUM, _BASIS, _MODEL, _NEUTRAL = "sum", "basis", "model", "neutral"
_MAX_USER_LENGTH: Final = 128
_MAX_REASON_LENGTH: Final = 200
_MAX_DELETED: Final = 20
_MAX_COUNT: Final = 1 << 63
_MAX_AXIS: Final = 1 << 31
_FLOAT_NAME: Final = "float32"

_ENROL_CACHE, _TRAIN_CACHE, _STATISTICS_CACHE = (
    LastValueCache[EnrolRequest](),
    LastValueCache[TrainRequest](),
    LastValueCache[HeadStatisticsRequest](),
)
"""The last requests: where one process answers for many devices, all are sent the same."""


def encode_request(request: Request) -> RecordDict:
    """Encode a request as a Flower ``RecordDict``."""
    match request:
        case EnrolRequest():
            return _encode_enrol(request)
        case TrainRequest():
            return _encode_train(request)
        case SecureSumRequest():
            return _encode_secure_sum(request)
        case HeadStatisticsRequest():
            return _encode_head_statistics(request)
        case FinalModelRequest():
            return _encode_final_model(request)
        case WithdrawalRequest():
            return _encode_withdrawal(request)


def _encode_enrol(request: EnrolRequest) -> RecordDict:
    config: dict[str, ConfigValue] = {
        "plan": request.plan.to_json(),
        "length": request.projection.row_norm,
    }
    if not request.report_statistics:  # sent only where it is not the default
        config["tells"] = False
    arrays = {
        "front": {"mean": request.projection.mean, "matrix": request.projection.matrix},
        "population": request.speaker_statistics.to_tensors(),
    }
    return build_record(config, arrays)


def decode_enrol_request(content: RecordDict) -> EnrolRequest:
    """Decode a request to enrol.

    Raises:
        MessageError: It breaks the schema, or the projection is not the plan's.
    """
    return _read_or_refuse(
        lambda: _ENROL_CACHE.get(content_key(content), lambda: _decode_enrol(content))
    )


def _decode_enrol(content: RecordDict) -> EnrolRequest:
    config = read_config(content)
    plan = Plan.from_json(read_text(config, "plan"))
    names = SpeakerStatistics.__dataclass_fields__
    statistics = {name: read_tensor(content, "population", name, 1) for name in names}
    try:
        projection = PublicProjection(
            mean=read_tensor(content, "front", "mean", 1),
            matrix=read_tensor(content, "front", "matrix", 2),
            row_norm=read_number(config, "length"),
        )
        speaker_statistics = SpeakerStatistics(**statistics)
    except ModelError as error:
        raise MessageError(
            f"the projection or the speaker statistics cannot be used: {error}"
        ) from error
    if projection.content_hash() != plan.projection_hash:
        raise MessageError(
            "the projection is not the one that the plan names; nothing was enrolled"
        )
    widths = {projection.output_size, len(speaker_statistics.between), plan.model.inputs}
    if len(widths) != 1:
        raise MessageError(
            f"projection, speaker statistics and model are {sorted(widths)} inputs wide; all "
            "must be equally wide"
        )
    report_statistics = config.get("tells", True)
    if not isinstance(report_statistics, bool):
        raise MessageError(
            f"the message's tells is {_show(report_statistics)}; it must be true or false"
        )
    return EnrolRequest(
        plan=plan,
        projection=projection,
        speaker_statistics=speaker_statistics,
        report_statistics=report_statistics,
    )


def _encode_train(request: TrainRequest) -> RecordDict:
    config: dict[str, ConfigValue] = {
        "plan": request.plan_hash,
        "round": request.round,
        "denominator": request.denominator,
        "clip": request.clip_norm,
        "share": request.update_scale,
    }
    arrays = {
        "weights": request.weights,
        "class_weights": request.class_weights,
        "centre": request.centre,
    }
    return build_record(config, {_MODEL: arrays})


def decode_train_request(content: RecordDict) -> TrainRequest:
    """Decode a request to train for one round.

    Raises:
        MessageError: It breaks the schema, or a number is out of its range.
    """
    return _read_or_refuse(
        lambda: _TRAIN_CACHE.get(content_key(content), lambda: _decode_train(content))
    )


def _decode_train(content: RecordDict) -> TrainRequest:
    config = read_config(content)
    denominator, clip_norm = config.get("denominator"), config.get("clip")
    if not isinstance(denominator, float):
        raise MessageError(f"the denominator is {_show(denominator)}; it must be a number above 0")
    if not isinstance(clip_norm, float):
        raise MessageError(f"the clip norm is {_show(clip_norm)}; it must be a number")
    return TrainRequest(
        plan_hash=read_text(config, "plan"),
        round=read_count(config, "round"),
        weights=read_tensor(content, _MODEL, "weights", 1),
        class_weights=read_tensor(content, _MODEL, "class_weights", 1),
        centre=read_tensor(content, _MODEL, "centre", 1),
        denominator=denominator,
        clip_norm=clip_norm,
        update_scale=read_number(config, "share"),
    )


def _encode_secure_sum(request: SecureSumRequest) -> RecordDict:
    config: dict[str, ConfigValue] = {
        "plan": request.plan_hash,
        "name": request.name,
        "step": request.step,
        "body": request.body,
    }
    summed = request.train_request or request.statistics_request
    # The request travels inside, as it does alone, so that both are validated by one reader.
    record = encode_request(summed) if summed else build_record({}, {})
    record.config_records[_SUM] = ConfigRecord({**config})
    return record


def decode_secure_sum_request(content: RecordDict) -> SecureSumRequest:
    """Decode a request to take one step of a secure sum.

    Raises:
        MessageError: It breaks the schema, or there is no such step.
    """
    return _read_or_refuse(lambda: _decode_secure_sum(content))


def _decode_secure_sum(content: RecordDict) -> SecureSumRequest:
    read_config(content)
    config = content.config_records.get(_SUM)
    if config is None:
        raise MessageError("the message names no secure sum")
    step, body = read_text(config, "step"), config.get("body")
    if not isinstance(body, bytes):
        raise MessageError(f"the body of the step {_show(step)} is {_show(body)}; it must be bytes")
    has_query = step == "mask" and "question" in content.array_records
    has_model = step == "mask" and _MODEL in content.array_records and not has_query
    return SecureSumRequest(
        plan_hash=read_text(config, "plan"),
        name=read_text(config, "name"),
        step=step,
        body=body,
        train_request=decode_train_request(content) if has_model else None,
        statistics_request=decode_statistics_request(content) if has_query else None,
    )


def _encode_head_statistics(request: HeadStatisticsRequest) -> RecordDict:
    config: dict[str, ConfigValue] = {
        "plan": request.plan_hash,
        "log_temperature": request.query.log_temperature,
        "bend": request.query.curvature,
    }
    query = {"edges": request.query.edges, "shares": request.query.shares}
    model = {"weights": request.weights, "centre": request.centre}
    return build_record(config, {_MODEL: model, "question": query})


def decode_statistics_request(content: RecordDict) -> HeadStatisticsRequest:
    """Decode a query about the final model.

    Raises:
        MessageError: It breaks the schema.
    """
    return _read_or_refuse(
        lambda: _STATISTICS_CACHE.get(content_key(content), lambda: _decode_statistics(content))
    )


def _decode_statistics(content: RecordDict) -> HeadStatisticsRequest:
    config = read_config(content)
    temperature = config.get("log_temperature")
    if not isinstance(temperature, float):
        raise MessageError(f"the log temperature is {_show(temperature)}; it must be a number")
    query = CalibrationQuery(
        log_temperature=temperature,
        curvature=read_number(config, "bend"),
        edges=read_tensor(content, "question", "edges", 1),
        shares=read_tensor(content, "question", "shares", 1),
    )
    return HeadStatisticsRequest(
        plan_hash=read_text(config, "plan"),
        weights=read_tensor(content, _MODEL, "weights", 1),
        centre=read_tensor(content, _MODEL, "centre", 1),
        query=query,
    )


def _encode_final_model(request: FinalModelRequest) -> RecordDict:
    config: dict[str, ConfigValue] = {
        "plan": request.plan_hash,
        "prior": json.dumps(request.prior.as_dict()),
    }
    if request.stored_head:
        config |= {
            "kept": request.stored_head.blob,
            "kept_model": request.stored_head.model_hash,
            "kept_version": request.stored_head.version,
        }
    arrays = {_MODEL: request.named_tensors()}
    if request.prior.basis:
        arrays[_BASIS] = request.prior.basis_tensors()
    return build_record(config, arrays)


def decode_final_model_request(content: RecordDict) -> FinalModelRequest:
    """Decode a request to take the final model.

    Raises:
        MessageError: It breaks the schema, or the prior cannot be used.
    """
    return _read_or_refuse(lambda: _decode_final_model(content))


def _decode_final_model(content: RecordDict) -> FinalModelRequest:
    config = read_config(content)
    basis = {}
    if _BASIS in content.array_records:
        basis = {
            name: read_tensor(content, _BASIS, name, axes)
            for name, axes in (("centre", 1), ("matrix", 2))
        }
    try:
        numbers = codec.decode_json(
            read_text(config, "prior"), dict[str, float | list[float]], name="the prior"
        )
        prior = prior_from_dict(numbers, basis)
    except ModelError as error:
        raise MessageError(f"the prior of the heads cannot be used: {error}") from error
    has_direction = _NEUTRAL in content.array_records.get(_MODEL, {})
    return FinalModelRequest(
        plan_hash=read_text(config, "plan"),
        weights=read_tensor(content, _MODEL, "weights", 1),
        centre=read_tensor(content, _MODEL, "centre", 1),
        prior=prior,
        neutral_direction=read_tensor(content, _MODEL, _NEUTRAL, 1) if has_direction else None,
        stored_head=_read_stored_head(config) if "kept" in config else None,
    )


def _read_stored_head(config: ConfigRecord) -> UnverifiedHead:
    """The user's head, as the server claims to have stored it."""
    blob = config["kept"]
    if not isinstance(blob, bytes):
        raise MessageError("the message's stored head lacks its ciphertext")
    version = read_count(config, "kept_version")
    return UnverifiedHead(model_hash=read_text(config, "kept_model"), version=version, blob=blob)


def _encode_withdrawal(request: WithdrawalRequest) -> RecordDict:
    config: dict[str, ConfigValue] = {"challenge": request.challenge}
    if request.confirmation:
        config |= {
            "run": request.confirmation.run,
            "enrolment": request.confirmation.enrolment,
            "deleted": "\n".join(request.confirmation.deleted),
        }
    return build_record(config, {})


def decode_withdrawal_request(content: RecordDict) -> WithdrawalRequest:
    """Decode a step of a withdrawal.

    Raises:
        MessageError: It breaks the schema.
    """
    return _read_or_refuse(lambda: _decode_withdrawal(content))


def _decode_withdrawal(content: RecordDict) -> WithdrawalRequest:
    config = read_config(content)
    challenge = config.get("challenge")
    if not isinstance(challenge, bytes):
        raise MessageError(f"the challenge is {_show(challenge)}; it must be bytes")
    if "run" not in config:
        return WithdrawalRequest(challenge=challenge)
    deleted = read_text(config, "deleted").splitlines()[:_MAX_DELETED]
    return WithdrawalRequest(
        challenge=challenge,
        confirmation=WithdrawalConfirmation(
            run=clean_text(read_text(config, "run"), max_length=_MAX_USER_LENGTH),
            enrolment=read_count(config, "enrolment"),
            deleted=tuple(clean_text(one, max_length=_MAX_REASON_LENGTH) for one in deleted),
        ),
    )


def encode_reply(reply: Reply) -> RecordDict:
    """Encode a device's reply as a Flower ``RecordDict``."""
    config: dict[str, ConfigValue] = {
        "body": reply.body,
        "user": reply.user,
        "status": reply.status.value,
        "reason": reply.reason,
        "head": reply.head,
        "version": reply.version,
    }
    if reply.consent:  # sent only with enrolments and withdrawals
        config["consent"] = reply.consent
    return build_record(config, {} if reply.value is None else {"release": {"value": reply.value}})


def decode_reply(content: RecordDict, *, size: int) -> Reply:
    """Decode a device's reply.

    Args:
        content: What came.
        size: How long the released vector must be, where there is one.

    Raises:
        MessageError: Wrong schema, dtype, length, or a NaN or an infinity.

    Example:
        >>> content = encode_reply(Reply(user="ada", status=Status.OK, value=torch.ones(2)))
        >>> decode_reply(content, size=2).value
        tensor([1., 1.])
    """
    return _read_or_refuse(lambda: _decode_reply(content, size))


def _decode_reply(content: RecordDict, size: int) -> Reply:
    config = read_config(content)
    user = read_text(config, "user")
    head, body = config.get("head"), config.get("body")
    consent = config.get("consent", b"")
    # A peer chooses this text: unlimited, it would fill logs and databases.
    if not 0 < len(user) <= _MAX_USER_LENGTH:
        raise MessageError(f"a user's name has {len(user)} characters; 1 to {_MAX_USER_LENGTH}")
    if clean_text(user) != user:
        raise MessageError(f"a user's name is {user!r}; it must be of characters that are shown")
    try:
        status = Status(read_text(config, "status"))
    except ValueError as error:
        raise MessageError(f"the status of {user} is unknown: {error}") from error
    if not (isinstance(head, bytes) and isinstance(body, bytes) and isinstance(consent, bytes)):
        raise MessageError(f"the reply of {user} lacks its head or a body")
    value = None
    # Without a size nothing was asked for, and what was sent along is not even read.
    if status is Status.OK and size:
        value = read_tensor(content, "release", "value", 1, size=size)
    return Reply(
        user=user,
        status=status,
        reason=clean_text(read_text(config, "reason"), max_length=_MAX_REASON_LENGTH),
        value=value,
        head=head,
        version=read_count(config, "version"),
        body=body,
        consent=consent,
    )


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
            # With the type: 1, 1.0 and True are equal as keys, and not all of them are valid.
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
            f"a message of schema {_show(config.get('schema'))}; this version reads {SCHEMA}: "
            "update the older of the two sides"
        )
    return config


def read_text(config: ConfigRecord, name: str) -> str:
    """One value that must be text."""
    value = config.get(name)
    if not isinstance(value, str):
        raise MessageError(f"the message's {name} is {_show(value)}; it must be text")
    return value


def read_count(config: ConfigRecord, name: str) -> int:
    """One value that must be a whole number, 0 or above, of at most 63 bits."""
    value = config.get(name)
    # In Python a truth value is a number.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNT:
        raise MessageError(f"the message's {name} is {_show(value)}; it must be a whole number")
    return value


def read_number(config: ConfigRecord, name: str) -> float:
    """One value that must be a finite number, 0 or above."""
    value = config.get(name)
    if not isinstance(value, float) or not 0 <= value < float("inf"):
        raise MessageError(f"the message's {name} is {_show(value)}; it must be finite, 0 or above")
    return value


def read_tensor(
    content: RecordDict, group: str, name: str, axes: int, *, size: int | None = None
) -> Tensor:
    """One float32 array that must be finite.

    Args:
        content: The message.
        group: Name of the group of arrays.
        name: Name of the array in it.
        axes: How many axes it must have.
        size: How many numbers it must hold; None for any.
    """
    arrays = content.array_records.get(group)
    if arrays is None or name not in arrays:
        raise MessageError(f"the message lacks the array {group}/{name}")
    value = _numbers(arrays[name], axes, f"the array {group}/{name}")
    if size is not None and value.size != size:
        raise MessageError(
            f"the array {group}/{name} has {value.size} numbers where {size} were asked for"
        )
    numbers = torch.empty(value.shape, dtype=torch.float32)
    numbers.numpy()[...] = value  # a copy: what came cannot be written into
    # A sum that is a number says that all are, at a fraction of the cost of looking at each.
    if not (math.isfinite(numbers.sum()) or numbers.isfinite().all()):
        raise MessageError(f"the array {group}/{name} holds a NaN or an infinity")
    return numbers


def _read_or_refuse(read: Callable[[], _Decoded]) -> _Decoded:
    """Read a message; whatever goes wrong in it is the peer's, and one kind of error."""
    try:
        return read()
    except MessageError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise MessageError(
            f"the message cannot be read ({kind}: {clean_text(error, max_length=200)})"
        ) from error


def _show(value: object) -> str:
    """A peer's value in a message for people: short, whatever it is."""
    return (
        f"{value!r:.80}" if isinstance(value, str | bytes | int | float) else type(value).__name__
    )


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


def _numbers(array: Array, axes: int, what: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The numbers of an array, in place: behind the one header that its shape can have."""
    shape, data = tuple(array.shape), array.data
    if not all(type(length) is int and 0 <= length <= _MAX_AXIS for length in shape):
        raise MessageError(f"{what} has the shape {_show(str(shape))}, which no array has")
    if len(shape) != axes or array.dtype != _FLOAT_NAME or array.stype != "numpy.ndarray":
        raise MessageError(
            f"{what} is {_show(array.dtype)} with {len(shape)} axes; needed: float32 with {axes}"
        )
    header, count = _header(shape, _FLOAT), math.prod(shape)
    if not isinstance(data, bytes) or len(data) != len(header) + 4 * count:
        raise MessageError(f"{what} of shape {shape} has {len(data)} bytes; it cannot be read")
    if not data.startswith(header):
        raise MessageError(f"{what} is not in the one form that arrays travel in: cannot be read")
    return np.frombuffer(data, _FLOAT, offset=len(header)).reshape(shape)
