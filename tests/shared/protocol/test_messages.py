"""Messages: what was sent is what is read, and whatever else comes is a MessageError."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_noised_plan
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from sottovoce.shared.calibration import AdapterBasis, HeadPrior, identity_head
from sottovoce.shared.calibration.head_statistics import SCORE_QUANTILES, CalibrationQuery
from sottovoce.shared.errors import MessageError
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.speaker.normalisation import (
    NormaliserRelease,
    default_statistics,
)

FEATURES, INPUTS, PARAMS = 6, 4, 10
PROJECTION = PublicProjection(
    mean=torch.zeros(FEATURES), matrix=torch.ones(FEATURES, INPUTS), row_norm=1.0
)
PLAN = make_noised_plan(
    labels=("angry", "sad"),
    extractor="descriptors",
    projection_hash=PROJECTION.content_hash(),
    model=ModelSpec(kind="linear", inputs=INPUTS, classes=2),
    rounds=2,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5),
    normaliser=NormaliserRelease(clip_norm=0.8, count_weight=0.24, noise_multiplier=3.0),
    count_noise=10.0,
)
ENROL = messages.EnrolRequest(
    plan=PLAN, projection=PROJECTION, speaker_statistics=default_statistics(INPUTS)
)
TRAIN = messages.TrainRequest(
    plan_hash=PLAN.content_hash(),
    round=2,
    weights=torch.randn(PARAMS),
    class_weights=torch.ones(2),
    centre=torch.zeros(INPUTS),
    denominator=7.5,
)
FINAL = messages.FinalModelRequest(
    plan_hash=PLAN.content_hash(),
    weights=torch.randn(PARAMS),
    centre=torch.zeros(INPUTS),
    prior=HeadPrior(
        mean=identity_head(2), basis=AdapterBasis(centre=torch.zeros(3), matrix=torch.randn(2, 3))
    ),
)
DIRECTED = replace(FINAL, neutral_direction=torch.eye(INPUTS)[0])
STATISTICS = messages.HeadStatisticsRequest(
    plan_hash=PLAN.content_hash(),
    weights=torch.randn(PARAMS),
    centre=torch.zeros(INPUTS),
    query=CalibrationQuery(
        log_temperature=-0.2,
        curvature=0.7,
        edges=torch.linspace(0.1, 0.9, len(SCORE_QUANTILES)),
        shares=torch.full((len(SCORE_QUANTILES) + 1,), 1 / (len(SCORE_QUANTILES) + 1)),
    ),
)
REPLY = messages.Reply(user="ada", status=messages.Status.OK, value=torch.arange(5.0))

Read = Callable[[RecordDict], Any]


def _read_reply(content: RecordDict) -> messages.Reply:
    return flower_records.decode_reply(content, size=5)


def _encode(message: messages.Request | messages.Reply) -> RecordDict:
    if isinstance(message, messages.Reply):
        return flower_records.encode_reply(message)
    return flower_records.encode_request(message)


MESSAGES: list[tuple[Any, Read]] = [
    (ENROL, flower_records.decode_enrol_request),
    (TRAIN, flower_records.decode_train_request),
    (STATISTICS, flower_records.decode_statistics_request),
    (FINAL, flower_records.decode_final_model_request),
    (REPLY, _read_reply),
]


def test_an_enrolment_is_read_as_it_was_sent() -> None:
    again = flower_records.decode_enrol_request(flower_records.encode_request(ENROL))
    assert again.plan == PLAN
    assert again.projection.content_hash() == PROJECTION.content_hash()
    assert torch.equal(again.speaker_statistics.between, ENROL.speaker_statistics.between)


def test_whether_counts_are_asked_for_is_read_as_it_was_sent() -> None:
    assert flower_records.decode_enrol_request(
        flower_records.encode_request(ENROL)
    ).report_statistics
    late = flower_records.encode_request(replace(ENROL, report_statistics=False))
    assert not flower_records.decode_enrol_request(late).report_statistics

    late.config_records["sottovoce"]["tells"] = "no"
    with pytest.raises(MessageError, match="tells is 'no'"):
        flower_records.decode_enrol_request(late)


def test_a_round_is_read_as_it_was_sent() -> None:
    again = flower_records.decode_train_request(flower_records.encode_request(TRAIN))
    assert (again.plan_hash, again.round, again.denominator) == (TRAIN.plan_hash, 2, 7.5)
    for name in ("weights", "class_weights", "centre"):
        assert torch.equal(getattr(again, name), getattr(TRAIN, name))


def test_a_query_is_read_as_it_was_sent() -> None:
    again = flower_records.decode_statistics_request(flower_records.encode_request(STATISTICS))
    asked = again.query
    assert (asked.log_temperature, asked.curvature) == (-0.2, 0.7)
    assert torch.equal(asked.edges, STATISTICS.query.edges)
    assert torch.equal(asked.shares, STATISTICS.query.shares)
    assert torch.equal(again.weights, STATISTICS.weights)


@pytest.mark.parametrize("what", ["train_request", "statistics_request"])
def test_a_secure_sum_carries_what_it_sums_at_one_step_only(what: str) -> None:
    carried = {"train_request": TRAIN, "statistics_request": STATISTICS}[what]
    names: dict[str, Any] = {"plan_hash": PLAN.content_hash(), "name": "x", "body": b""}
    masked = messages.SecureSumRequest(**names, step="mask", **{what: carried})
    other = messages.SecureSumRequest(**names, step="share", **{what: carried})

    again = flower_records.decode_secure_sum_request(flower_records.encode_request(masked))

    assert (again.train_request is None, again.statistics_request is None) == (
        what != "train_request",
        what == "train_request",
    )
    nothing = flower_records.decode_secure_sum_request(flower_records.encode_request(other))
    assert (nothing.train_request, nothing.statistics_request) == (None, None)


def test_a_model_is_read_as_it_was_sent() -> None:
    again = flower_records.decode_final_model_request(flower_records.encode_request(FINAL))
    assert torch.equal(again.weights, FINAL.weights)
    assert again.prior.as_dict() == FINAL.prior.as_dict()
    assert again.prior.basis is not None
    assert FINAL.prior.basis is not None
    assert again.prior.basis.tag == FINAL.prior.basis.tag
    plain = replace(FINAL, prior=HeadPrior(mean=identity_head(2)))
    assert (
        flower_records.decode_final_model_request(flower_records.encode_request(plain)).prior.basis
        is None
    )
    assert again.neutral_direction is None
    direction = flower_records.decode_final_model_request(
        flower_records.encode_request(DIRECTED)
    ).neutral_direction
    assert direction is not None
    assert torch.equal(direction, torch.eye(INPUTS)[0])


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [(torch.full((INPUTS,), float("nan")), "NaN"), (torch.eye(INPUTS), "2 axes")],
)
def test_a_direction_that_cannot_be_is_refused(wrong: torch.Tensor, complaint: str) -> None:
    with pytest.raises(MessageError, match=rf"model/neutral.*{complaint}"):
        flower_records.decode_final_model_request(
            flower_records.encode_request(replace(FINAL, neutral_direction=wrong))
        )


def test_a_basis_that_cannot_be_is_refused() -> None:
    content = flower_records.encode_request(FINAL)
    del content.array_records["basis"]["matrix"]

    with pytest.raises(MessageError, match="lacks the array basis/matrix"):
        flower_records.decode_final_model_request(content)


@pytest.mark.parametrize(
    "reply",
    [
        REPLY,
        messages.Reply(user="ada", status=messages.Status.RECEIVE_ONLY, reason="spent"),
        messages.Reply(user="ada", status=messages.Status.REFUSED, reason="PrivacyError"),
        messages.Reply(user="zoë " * 20, status=messages.Status.REFUSED),
    ],
)
def test_a_reply_is_read_as_it_was_sent(reply: messages.Reply) -> None:
    again = flower_records.decode_reply(flower_records.encode_reply(reply), size=5)
    assert (again.user, again.status, again.reason) == (reply.user, reply.status, reply.reason)
    assert (again.value is None) == (reply.value is None)


def test_a_sealed_head_travels() -> None:
    reply = messages.Reply(user="ada", status=messages.Status.OK, head=b"\x00\xff" * 9, version=3)
    again = flower_records.decode_reply(flower_records.encode_reply(reply), size=0)
    assert (again.head, again.version, again.value) == (reply.head, 3, None)


def test_a_reply_has_room_for_nothing_but_facts_and_one_release() -> None:
    """No loss, no accuracy, no example count; ``test_wire_of_a_run`` looks into what travels."""
    content = flower_records.encode_reply(REPLY)
    facts = content.config_records["sottovoce"]
    assert set(facts) == {"schema", "user", "status", "reason", "head", "version", "body"}
    assert {group: list(arrays) for group, arrays in content.array_records.items()} == {
        "release": ["value"]
    }
    assert not content.metric_records


# --- rubbish ----------------------------------------------------------------------------------


def _spoil_facts(content: RecordDict, name: str, value: Any) -> RecordDict:
    content.config_records["sottovoce"][name] = value
    return content


@pytest.mark.parametrize(("message", "read"), MESSAGES)
def test_a_message_of_somebody_else_is_refused(message: Any, read: Read) -> None:
    with pytest.raises(MessageError, match="not one of ours"):
        read(RecordDict())
    with pytest.raises(MessageError, match="schema"):
        read(RecordDict({"sottovoce": ConfigRecord({})}))
    with pytest.raises(MessageError, match="schema 2"):
        read(_spoil_facts(_encode(message), "schema", flower_records.SCHEMA + 1))


@pytest.mark.parametrize(("message", "read"), MESSAGES)
def test_every_fact_is_needed(message: Any, read: Read) -> None:
    for name in set(_encode(message).config_records["sottovoce"]) - {"reason"}:
        content = _encode(message)
        del content.config_records["sottovoce"][name]
        with pytest.raises(MessageError):
            read(content)


@pytest.mark.parametrize(("message", "read"), MESSAGES)
def test_every_array_is_needed_whole(message: Any, read: Read) -> None:
    for group, arrays in _encode(message).array_records.items():
        for name in arrays:
            good = _encode(message).array_records[group][name].numpy()
            for bad in (
                None,
                good.astype(np.float64),
                good.astype(np.int32),
                good[None],
                np.full_like(good, np.nan),
                np.full_like(good, np.inf),
            ):
                content = _encode(message)
                del content.array_records[group][name]
                if bad is not None:
                    content.array_records[group][name] = Array(bad)
                with pytest.raises(MessageError, match=rf"{group}/{name}"):
                    read(content)


@pytest.mark.parametrize(
    "bytes_", [b"", b"junk", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', "]
)
def test_bytes_that_are_no_array_are_refused(bytes_: bytes) -> None:
    content = flower_records.encode_reply(REPLY)
    spoilt = Array(dtype="float32", shape=(5,), stype="numpy.ndarray", data=bytes_)
    content["release"] = ArrayRecord({"value": spoilt})
    with pytest.raises(MessageError, match="release/value"):
        _read_reply(content)


def test_objects_in_an_array_are_never_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("it was unpickled",))

    spoilt = np.array([Bomb()] * 5, dtype=object)
    import io

    buffer = io.BytesIO()
    np.save(buffer, spoilt, allow_pickle=True)
    content = flower_records.encode_reply(REPLY)
    array = Array(dtype="object", shape=(5,), stype="numpy.ndarray", data=buffer.getvalue())
    content["release"] = ArrayRecord({"value": array})
    with pytest.raises(MessageError):
        _read_reply(content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", ""),
        ("user", "a" * 129),
        ("user", 3),
        ("status", "fine"),
        ("status", 1),
        ("head", "text"),
        ("version", "3"),
        ("version", 1.5),
    ],
)
def test_a_reply_with_a_foreign_fact_is_refused(name: str, value: Any) -> None:
    with pytest.raises(MessageError):
        _read_reply(_spoil_facts(flower_records.encode_reply(REPLY), name, value))


@pytest.mark.parametrize("size", [4, 6])
def test_a_vector_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(MessageError, match=f"5 numbers where {size}"):
        flower_records.decode_reply(flower_records.encode_reply(REPLY), size=size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round", 0),
        ("round", -1),
        ("round", 1.0),
        ("round", "1"),
        ("denominator", 0.0),
        ("denominator", -1.0),
        ("denominator", float("nan")),
        ("denominator", float("inf")),
        ("denominator", 1),
        ("clip", 0.0),
        ("clip", 5e-324),
        ("clip", 9e-13),
        ("clip", 1.1e12),
        ("clip", float("nan")),
        ("clip", float("inf")),
        ("clip", 1),
        ("plan", 3),
    ],
)
def test_a_round_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(MessageError):
        flower_records.decode_train_request(
            _spoil_facts(flower_records.encode_request(TRAIN), name, value)
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"round": 0},
        {"denominator": math.nan},
        {"denominator": 0.0},
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"update_scale": -1.0},
        {"update_scale": math.inf},
    ],
)
def test_no_round_that_makes_no_sense_can_be_asked(wrong: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        replace(TRAIN, **wrong)


def test_no_step_that_there_is_not_can_be_asked() -> None:
    with pytest.raises(MessageError, match="one of advertise, share"):
        messages.SecureSumRequest(plan_hash="", name="x", step="dance", body=b"")


def test_a_projection_that_the_plan_does_not_name_is_refused() -> None:
    other = replace(ENROL, projection=replace(PROJECTION, row_norm=2.0))
    with pytest.raises(MessageError, match="projection"):
        flower_records.decode_enrol_request(flower_records.encode_request(other))
    with pytest.raises(MessageError):
        flower_records.decode_enrol_request(
            _spoil_facts(flower_records.encode_request(ENROL), "plan", "{}")
        )
    with pytest.raises(MessageError):
        flower_records.decode_enrol_request(
            _spoil_facts(flower_records.encode_request(ENROL), "length", -1.0)
        )


def test_parts_of_different_widths_are_a_message_error() -> None:
    content = flower_records.encode_request(ENROL)
    content.array_records["population"]["within"] = Array(np.ones(INPUTS + 1, dtype=np.float32))
    with pytest.raises(MessageError):
        flower_records.decode_enrol_request(content)

    content = flower_records.encode_request(ENROL)
    content.array_records["front"]["mean"] = Array(np.zeros(FEATURES + 1, dtype=np.float32))
    with pytest.raises(MessageError):
        flower_records.decode_enrol_request(content)


@pytest.mark.parametrize(
    "prior", ["", "{", "[]", "3", "null", "{}", json.dumps({"bias": [float("nan")]})]
)
def test_a_prior_that_is_none_is_refused(prior: str) -> None:
    with pytest.raises(MessageError):
        flower_records.decode_final_model_request(
            _spoil_facts(flower_records.encode_request(FINAL), "prior", prior)
        )
