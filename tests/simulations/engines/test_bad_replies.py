"""A bad reply counts as no reply: it neither kills the round nor moves the model."""

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from sottovoce.client.app import app as product
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared.errors import EngineError, MessageError
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.simulations.engines import local
from sottovoce.simulations.engines.device_host import SimulatedNodes

PARAMS = 15
SIZES = {messages.ENROL: 3 + 4, messages.TRAIN: PARAMS, messages.FINAL_MODEL: 0}
ADA, DAN, EVERYONE = 100, 103, 0
Spoil = Callable[[messages.Reply], RecordDict]


def _with(value: torch.Tensor) -> Spoil:
    """A reply with another update."""
    return lambda reply: flower_records.encode_reply(replace(reply, value=value))


def _nan() -> torch.Tensor:
    """All numbers but one."""
    value = torch.zeros(PARAMS)
    value[3] = torch.nan
    return value


def _with_facts(**facts: Any) -> Spoil:
    """A reply with other facts."""

    def spoil(reply: messages.Reply) -> RecordDict:
        record = flower_records.encode_reply(reply)
        record["sottovoce"] = ConfigRecord(dict(record.config_records["sottovoce"]) | facts)
        return record

    return spoil


def _with_array(data: bytes, kind: str = "numpy.ndarray") -> Spoil:
    """A reply whose array is not what it says."""

    def spoil(reply: messages.Reply) -> RecordDict:
        record = flower_records.encode_reply(reply)
        array = Array(dtype="float32", shape=(PARAMS,), stype=kind, data=data)
        record["release"] = ArrayRecord({"value": array})
        return record

    return spoil


def _claims(shape: str) -> bytes:
    """The bytes of an array that claims a shape."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(PARAMS, np.float32))
    return buffer.getvalue().replace(b"(15,), }".ljust(40), f"({shape},), }}".encode().ljust(40))


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, value=np.zeros(PARAMS, np.float32))
    return buffer.getvalue()


def _saved(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


SPOILT: dict[str, Spoil] = {
    "too short": _with(torch.zeros(PARAMS - 1)),
    "too long": _with(torch.zeros(PARAMS + 1)),
    "two axes": _with(torch.zeros(PARAMS, 1)),
    "float64": _with(torch.zeros(PARAMS, dtype=torch.float64)),
    "whole numbers": _with(torch.zeros(PARAMS, dtype=torch.int32)),
    "a NaN": _with(_nan()),
    "infinite": _with(torch.full((PARAMS,), torch.inf)),
    "too large": _with(torch.full((PARAMS,), 1e3)),
    "so large that its norm overflows": _with(torch.full((PARAMS,), 3e38)),
    "no honest counts": _with(torch.tensor([3e38, *[0.0] * 6])),
    "another schema": _with_facts(schema=999),
    "a schema of text": _with_facts(schema="1"),
    "an unknown status": _with_facts(status="splendid"),
    "no user": _with_facts(user=""),
    "a user without end": _with_facts(user="a" * 1000),
    "another user": _with_facts(user="ben"),
    "an unknown user": _with_facts(user="mallory"),
    "no version": _with_facts(version="first"),
    "no facts": lambda _reply: RecordDict(),
    "no array": lambda reply: flower_records.encode_reply(replace(reply, value=None)),
    "bytes that are no array": _with_array(b"nothing of the kind"),
    "no bytes": _with_array(b""),
    "a tensor of another library": _with_array(_claims("15"), kind="torch.Tensor"),
    "terabytes, by its own word": _with_array(_claims("1000000000000")),
    "more than can be counted": _with_array(_claims("99999999999999999999")),
    "an archive": _with_array(_archive()),
    "a pickle": _with_array(_saved(np.array([{}] * PARAMS, dtype=object))),
    "another byte order": _with_array(_saved(np.zeros(PARAMS, ">f4"))),
    "a user who clears the screen": _with_facts(user="ada\x1b[2J"),
    "a reason that is a number": _with_facts(reason=7),
    "a version of 400 digits": _with_facts(version=10**400),
    "a header cut off": _with_array(_claims("15").replace(b"}", b" ")),
}


@pytest.fixture(scope="module")
def without_ada(make_federation_at: Any, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The model where one device's updates never arrive, shape (params,)."""
    federation = make_federation_at(tmp_path_factory.mktemp("without"), rounds=2)
    federation.run(tamper=_without_ada)
    weights: torch.Tensor = federation.released()
    return weights


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_update_counts_as_none(
    make_federation: Any, without_ada: torch.Tensor, name: str
) -> None:
    spoilt = make_federation("spoilt", rounds=2)

    spoilt.run(tamper=_spoiling(SPOILT[name], messages.TRAIN))

    assert torch.equal(without_ada, spoilt.released())


@pytest.mark.parametrize(
    "name", ["too short", "a NaN", "another schema", "no facts", "no array", "no honest counts"]
)
def test_a_spoilt_enrolment_leaves_the_device_out(make_federation: Any, name: str) -> None:
    federation = make_federation("a", rounds=1)

    federation.run(tamper=_spoiling(SPOILT[name], messages.ENROL))

    assert (
        federation.ledgers()["ada"].count(b"\n") == 2
    )  # it enrolled, and was never asked to train
    assert federation.ledgers()["ben"].count(b"\n") == 5


def test_a_good_update_would_have_counted(make_federation: Any, without_ada: torch.Tensor) -> None:
    """The tests above can fail: an update within all bounds moves the model."""
    moved = make_federation("moved", rounds=2)

    moved.run(tamper=_spoiling(_with(torch.ones(PARAMS)), messages.TRAIN))

    assert not torch.equal(without_ada, moved.released())


def test_when_all_updates_are_spoilt_the_round_misses_its_quorum(make_federation: Any) -> None:
    tamper = _spoiling(SPOILT["a NaN"], messages.TRAIN, node=EVERYONE)

    with pytest.raises(EngineError, match="round 1: 0 of 3 devices"):
        make_federation("a").run(tamper=tamper)


def test_two_devices_of_one_user_count_once(
    make_federation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sottovoce.server")
    federation = make_federation("a", rounds=1, users=("ada", "ben", "cleo", "ben"))

    federation.run()

    assert "a second device answers for ben" in caplog.text
    assert federation.ledgers()["ada"].count(b"\n") == 5
    assert federation.ledgers()["ben"].count(b"\n") == 5
    assert federation.ledgers()["dan"].count(b"\n") == 2  # the folder of the second device of ben


@pytest.mark.parametrize(
    "facts",
    [{"head": b"plain words"}, {"head": b"x" * 100_000}, {"version": -1}, {"version": 2**62}],
    ids=str,
)
def test_a_spoilt_head_is_not_kept_and_harms_no_one(make_federation: Any, facts: Any) -> None:
    federation = make_federation("a", rounds=1)

    federation.run(tamper=_spoiling(_with_facts(**facts), messages.FINAL_MODEL, node=DAN))

    stored = HeadStore(federation.folder / "server" / "heads.sqlite").list_users()
    assert set(stored) - {"dan"} == {"ada", "ben", "cleo"}  # a version that is only odd may be kept
    assert federation.released().isfinite().all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _record: RecordDict(),
        lambda record: _changed(record, schema=7),
        lambda record: _changed(record, plan="{}"),
        lambda record: _changed(record, plan=3),
        lambda record: _changed(record, round=-1),
        lambda record: _changed(record, round=99),
        lambda record: _changed(record, denominator=float("nan")),
    ],
    ids=["nothing", "schema", "plan", "plan of another kind", "round", "far round", "denominator"],
)
def test_a_device_refuses_a_bad_request_and_books_nothing(make_federation: Any, spoil: Any) -> None:
    federation = make_federation("a", rounds=1)
    federation.run()
    before = federation.ledgers()
    request = messages.TrainRequest(
        plan_hash="0" * 64,
        round=1,
        weights=torch.zeros(PARAMS),
        class_weights=torch.ones(3),
        centre=torch.zeros(4),
        denominator=1.0,
    )
    local.set_task_identity()
    context = SimulatedNodes(devices=4, config=federation.config).node_context(0)

    answer = product(
        Message(spoil(flower_records.encode_request(request)), 100, messages.TRAIN), context
    )

    reply = flower_records.decode_reply(answer.content, size=PARAMS)
    assert reply.status is messages.Status.REFUSED
    assert reply.reason == MessageError.__name__  # its text might name what the user said
    assert federation.ledgers() == before


def _changed(record: RecordDict, **facts: Any) -> RecordDict:
    """A request with other facts."""
    record["sottovoce"] = ConfigRecord(dict(record.config_records["sottovoce"]) | facts)
    return record


def _spoiling(spoil: Spoil, kind: str, *, node: int = ADA) -> Any:
    """Has one node answer one kind of exchange as a bad device would."""

    def tamper(found: str, replies: list[Message]) -> list[Message]:
        for reply in replies:
            if found == kind and node in (reply.metadata.src_node_id, EVERYONE):
                reply.content = spoil(flower_records.decode_reply(reply.content, size=SIZES[kind]))
        return replies

    return tamper


def _without_ada(kind: str, replies: list[Message]) -> list[Message]:
    """Loses one node's updates on the way back."""
    return [
        reply for reply in replies if kind != messages.TRAIN or reply.metadata.src_node_id != ADA
    ]
