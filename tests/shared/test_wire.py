"""Messages: what was sent is what is read, and whatever else comes is a MessageError."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from sottovoce.shared import records, wire
from sottovoce.shared.calibration import LEVELS, Question
from sottovoce.shared.errors import MessageError
from sottovoce.shared.front import Front
from sottovoce.shared.heads import Basis, HeadPrior, identity
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.normaliser import CentreRelease, NormaliserRelease, unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.training import LocalTraining, UtteranceNoise

FEATURES, INPUTS, PARAMS = 6, 4, 10
FRONT = Front(mean=torch.zeros(FEATURES), matrix=torch.ones(FEATURES, INPUTS), length=1.0)
PLAN = Plan(
    run="r",
    labels=("angry", "sad"),
    extractor="descriptors",
    front=FRONT.digest(),
    model=ModelSpec(kind="linear", inputs=INPUTS, classes=2),
    rounds=2,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    mechanism=UtteranceNoise(clip_norm=0.5, noise_multiplier=1.5),
    centre=CentreRelease(radius=1.5, noise_multiplier=4.0),
    normaliser=NormaliserRelease(radius=0.8, count_weight=0.24, noise_multiplier=3.0),
    count_noise=10.0,
)
ENROL = wire.EnrolRequest(plan=PLAN, front=FRONT, population=unknown(INPUTS))
TRAIN = wire.TrainRequest(
    plan=PLAN.digest(),
    round=2,
    weights=torch.randn(PARAMS),
    class_weights=torch.ones(2),
    centre=torch.zeros(INPUTS),
    denominator=7.5,
)
PERSONAL = wire.PersonalRequest(
    plan=PLAN.digest(),
    weights=torch.randn(PARAMS),
    centre=torch.zeros(INPUTS),
    prior=HeadPrior(mean=identity(2), basis=Basis(centre=torch.zeros(3), matrix=torch.randn(2, 3))),
)
HEARD = replace(PERSONAL, neutral=torch.eye(INPUTS)[0])
CALIBRATE = wire.CalibrateRequest(
    plan=PLAN.digest(),
    weights=torch.randn(PARAMS),
    centre=torch.zeros(INPUTS),
    question=Question(
        log_temperature=-0.2,
        bend=0.7,
        edges=torch.linspace(0.1, 0.9, len(LEVELS)),
        shares=torch.full((len(LEVELS) + 1,), 1 / (len(LEVELS) + 1)),
    ),
)
REPLY = wire.Reply(user="ada", status=wire.Status.OK, value=torch.arange(5.0))

Read = Callable[[RecordDict], Any]


def _read_reply(content: RecordDict) -> wire.Reply:
    return wire.Reply.read(content, size=5)


MESSAGES: list[tuple[Any, Read]] = [
    (ENROL, wire.EnrolRequest.read),
    (TRAIN, wire.TrainRequest.read),
    (CALIBRATE, wire.CalibrateRequest.read),
    (PERSONAL, wire.PersonalRequest.read),
    (REPLY, _read_reply),
]


def test_an_enrolment_is_read_as_it_was_sent() -> None:
    again = wire.EnrolRequest.read(ENROL.record())
    assert again.plan == PLAN
    assert again.front.digest() == FRONT.digest()
    assert torch.equal(again.population.between, ENROL.population.between)


def test_whether_counts_are_asked_for_is_read_as_it_was_sent() -> None:
    assert wire.EnrolRequest.read(ENROL.record()).tells
    late = replace(ENROL, tells=False).record()
    assert not wire.EnrolRequest.read(late).tells

    late.config_records["sottovoce"]["tells"] = "no"
    with pytest.raises(MessageError, match="tells is 'no'"):
        wire.EnrolRequest.read(late)


def test_a_round_is_read_as_it_was_sent() -> None:
    again = wire.TrainRequest.read(TRAIN.record())
    assert (again.plan, again.round, again.denominator) == (TRAIN.plan, 2, 7.5)
    for name in ("weights", "class_weights", "centre"):
        assert torch.equal(getattr(again, name), getattr(TRAIN, name))


def test_a_question_is_read_as_it_was_sent() -> None:
    again = wire.CalibrateRequest.read(CALIBRATE.record())
    asked = again.question
    assert (asked.log_temperature, asked.bend) == (-0.2, 0.7)
    assert torch.equal(asked.edges, CALIBRATE.question.edges)
    assert torch.equal(asked.shares, CALIBRATE.question.shares)
    assert torch.equal(again.weights, CALIBRATE.weights)


@pytest.mark.parametrize("what", ["train", "calibrate"])
def test_a_secure_sum_carries_what_it_sums_at_one_step_only(what: str) -> None:
    carried = {"train": TRAIN, "calibrate": CALIBRATE}[what]
    facts: dict[str, Any] = {"plan": PLAN.digest(), "name": "x", "body": b""}
    masked = wire.SumRequest(**facts, step="mask", **{what: carried})
    other = wire.SumRequest(**facts, step="share", **{what: carried})

    again = wire.SumRequest.read(masked.record())

    assert (again.train is None, again.calibrate is None) == (what != "train", what == "train")
    nothing = wire.SumRequest.read(other.record())
    assert (nothing.train, nothing.calibrate) == (None, None)


def test_a_model_is_read_as_it_was_sent() -> None:
    again = wire.PersonalRequest.read(PERSONAL.record())
    assert torch.equal(again.weights, PERSONAL.weights)
    assert again.prior.as_dict() == PERSONAL.prior.as_dict()
    assert again.prior.basis is not None
    assert PERSONAL.prior.basis is not None
    assert again.prior.basis.tag == PERSONAL.prior.basis.tag
    plain = replace(PERSONAL, prior=HeadPrior(mean=identity(2)))
    assert wire.PersonalRequest.read(plain.record()).prior.basis is None
    assert again.neutral is None
    heard = wire.PersonalRequest.read(HEARD.record()).neutral
    assert heard is not None
    assert torch.equal(heard, torch.eye(INPUTS)[0])


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [(torch.full((INPUTS,), float("nan")), "NaN"), (torch.eye(INPUTS), "2 axes")],
)
def test_a_direction_that_cannot_be_is_refused(wrong: torch.Tensor, complaint: str) -> None:
    with pytest.raises(MessageError, match=rf"model/neutral.*{complaint}"):
        wire.PersonalRequest.read(replace(PERSONAL, neutral=wrong).record())


def test_a_basis_that_cannot_be_is_refused() -> None:
    content = PERSONAL.record()
    del content.array_records["basis"]["matrix"]

    with pytest.raises(MessageError, match="lacks the array basis/matrix"):
        wire.PersonalRequest.read(content)


@pytest.mark.parametrize(
    "reply",
    [
        REPLY,
        wire.Reply(user="ada", status=wire.Status.RECEIVES, reason="spent"),
        wire.Reply(user="ada", status=wire.Status.REFUSED, reason="PrivacyError"),
        wire.Reply(user="zoë " * 20, status=wire.Status.REFUSED),
    ],
)
def test_a_reply_is_read_as_it_was_sent(reply: wire.Reply) -> None:
    again = wire.Reply.read(reply.record(), size=5)
    assert (again.user, again.status, again.reason) == (reply.user, reply.status, reply.reason)
    assert (again.value is None) == (reply.value is None)


def test_a_sealed_head_travels() -> None:
    reply = wire.Reply(user="ada", status=wire.Status.OK, head=b"\x00\xff" * 9, version=3)
    again = wire.Reply.read(reply.record(), size=0)
    assert (again.head, again.version, again.value) == (reply.head, 3, None)


def test_a_reply_has_room_for_nothing_but_facts_and_one_release() -> None:
    """No loss, no accuracy, no example count; ``test_wire_of_a_run`` looks into what travels."""
    content = REPLY.record()
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
        read(_spoil_facts(message.record(), "schema", records.SCHEMA + 1))


@pytest.mark.parametrize(("message", "read"), MESSAGES)
def test_every_fact_is_needed(message: Any, read: Read) -> None:
    for name in set(message.record().config_records["sottovoce"]) - {"reason"}:
        content = message.record()
        del content.config_records["sottovoce"][name]
        with pytest.raises(MessageError):
            read(content)


@pytest.mark.parametrize(("message", "read"), MESSAGES)
def test_every_array_is_needed_whole(message: Any, read: Read) -> None:
    for group, arrays in message.record().array_records.items():
        for name in arrays:
            good = message.record().array_records[group][name].numpy()
            for bad in (
                None,
                good.astype(np.float64),
                good.astype(np.int32),
                good[None],
                np.full_like(good, np.nan),
                np.full_like(good, np.inf),
            ):
                content = message.record()
                del content.array_records[group][name]
                if bad is not None:
                    content.array_records[group][name] = Array(bad)
                with pytest.raises(MessageError, match=rf"{group}/{name}"):
                    read(content)


@pytest.mark.parametrize(
    "bytes_", [b"", b"junk", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', "]
)
def test_bytes_that_are_no_array_are_refused(bytes_: bytes) -> None:
    content = REPLY.record()
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
    content = REPLY.record()
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
        _read_reply(_spoil_facts(REPLY.record(), name, value))


@pytest.mark.parametrize("size", [4, 6])
def test_a_vector_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(MessageError, match=f"5 numbers where {size}"):
        wire.Reply.read(REPLY.record(), size=size)


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
        wire.TrainRequest.read(_spoil_facts(TRAIN.record(), name, value))


def test_a_front_that_the_plan_does_not_name_is_refused() -> None:
    other = replace(ENROL, front=replace(FRONT, length=2.0))
    with pytest.raises(MessageError, match="front"):
        wire.EnrolRequest.read(other.record())
    with pytest.raises(MessageError):
        wire.EnrolRequest.read(_spoil_facts(ENROL.record(), "plan", "{}"))
    with pytest.raises(MessageError):
        wire.EnrolRequest.read(_spoil_facts(ENROL.record(), "length", -1.0))


def test_parts_of_different_widths_are_a_message_error() -> None:
    content = ENROL.record()
    content.array_records["population"]["within"] = Array(np.ones(INPUTS + 1, dtype=np.float32))
    with pytest.raises(MessageError):
        wire.EnrolRequest.read(content)

    content = ENROL.record()
    content.array_records["front"]["mean"] = Array(np.zeros(FEATURES + 1, dtype=np.float32))
    with pytest.raises(MessageError):
        wire.EnrolRequest.read(content)


@pytest.mark.parametrize(
    "prior", ["", "{", "[]", "3", "null", "{}", json.dumps({"bias": [float("nan")]})]
)
def test_a_prior_that_is_none_is_refused(prior: str) -> None:
    with pytest.raises(MessageError):
        wire.PersonalRequest.read(_spoil_facts(PERSONAL.record(), "prior", prior))
