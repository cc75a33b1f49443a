"""Messages of the protocol under anything a peer can send: decoded, or refused as a message."""

import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_noised_plan, make_plan
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from mutations import EXTREME_NUMBERS, FUZZ, HOSTILE_TEXTS, mutated_bytes, mutated_json_texts

from sottovoce.shared.calibration import HeadPrior, UnverifiedHead, identity_head
from sottovoce.shared.calibration.head_statistics import CalibrationQuery
from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import default_statistics

SIZE = 5
PLAN = make_noised_plan(projection_hash=identity_projection(2).content_hash())
TRAIN = messages.TrainRequest(
    plan_hash="0" * 64,
    round=1,
    weights=torch.zeros(6),
    class_weights=torch.ones(2),
    centre=torch.zeros(2),
    denominator=4.0,
)
STATISTICS = messages.HeadStatisticsRequest(
    plan_hash="0" * 64,
    weights=torch.zeros(6),
    centre=torch.zeros(2),
    query=CalibrationQuery(
        log_temperature=0.0,
        curvature=1.0,
        edges=torch.linspace(0.1, 0.9, 6),
        shares=torch.full((7,), 1 / 7),
    ),
)
EXAMPLES: dict[str, tuple[Any, Callable[[RecordDict], Any]]] = {
    "enrol": (
        messages.EnrolRequest(
            plan=PLAN,
            projection=identity_projection(2),
            speaker_statistics=default_statistics(2),
        ),
        flower_records.decode_enrol_request,
    ),
    "train": (TRAIN, flower_records.decode_train_request),
    "statistics": (STATISTICS, flower_records.decode_statistics_request),
    "sum": (
        messages.SecureSumRequest(
            plan_hash="0" * 64, name="r/round-1", step="mask", body=b"b", train_request=TRAIN
        ),
        flower_records.decode_secure_sum_request,
    ),
    "final model": (
        messages.FinalModelRequest(
            plan_hash="0" * 64,
            weights=torch.zeros(6),
            centre=torch.zeros(2),
            prior=HeadPrior(mean=identity_head(2)),
            neutral_direction=torch.tensor([1.0, 0.0]),
            stored_head=UnverifiedHead(model_hash="0" * 64, version=1, blob=b"x" * 512),
        ),
        flower_records.decode_final_model_request,
    ),
    "proof": (
        messages.WithdrawalRequest(challenge=b"c" * 32),
        flower_records.decode_withdrawal_request,
    ),
    "confirmation": (
        messages.WithdrawalRequest(
            confirmation=messages.WithdrawalConfirmation(
                run="r", enrolment=1, deleted=("calibration heads", "membership of the run")
            )
        ),
        flower_records.decode_withdrawal_request,
    ),
}
REPLY = messages.Reply(
    user="ada", status=messages.Status.OK, value=torch.ones(SIZE), consent=b"c" * 104
)


def read_reply(content: RecordDict) -> messages.Reply:
    return flower_records.decode_reply(content, size=SIZE)


VALUES = st.one_of(
    st.sampled_from(HOSTILE_TEXTS),
    st.sampled_from(EXTREME_NUMBERS),
    st.booleans(),
    st.binary(max_size=40),
    st.sampled_from(([1, 2], [0.5], ["a"], [b"a"], [True])),
)
SHAPES = st.one_of(
    st.lists(st.sampled_from((0, 1, 2, 5, 6, 7)), max_size=3),
    st.lists(st.sampled_from((-1, 2**31, 2**62, 10**30, True, 0)), max_size=4),
    st.integers(0, 2_000).map(lambda axes: [1] * axes),
)


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def npz(**values: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **values)
    return file.getvalue()


FOREIGN_ARRAYS = (
    npz(value=np.zeros(SIZE, np.float32)),
    npy(np.array([{"a": 1}], dtype=object)),
    npy(np.zeros(SIZE, ">f4")),
    npy(np.asfortranarray(np.zeros((3, 2), np.float32))),
    npy(np.zeros(SIZE, "<f8")),
    npy(np.zeros(SIZE, "<U3")),
    npy(np.zeros(SIZE, [("a", "<f4")])),
    npy(np.zeros((), np.float32)),
    npy(np.full(SIZE, np.nan, np.float32)),
    b"\x80\x04\x95" + b"." * 20,
    b"PK\x05\x06" + bytes(18),
    b"",
)


@st.composite
def changed_arrays(draw: st.DrawFn, array: Array) -> Array:
    """One array with other bytes, or that says other things of itself."""
    data = draw(st.just(array.data) | mutated_bytes(array.data) | st.sampled_from(FOREIGN_ARRAYS))
    return Array(
        dtype=draw(st.sampled_from((array.dtype, "float64", "object", ">f4", "\x1b[2J", ""))),
        shape=tuple(draw(st.just(array.shape) | SHAPES)),
        stype=draw(st.sampled_from((array.stype, "torch.Tensor", "pickle", ""))),
        data=data,
    )


@st.composite
def changed_records(draw: st.DrawFn, content: RecordDict) -> RecordDict:
    """A message with one to four of its values, arrays or groups changed."""
    changed = RecordDict({name: _copy(record) for name, record in content.items()})
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        group = draw(st.sampled_from(sorted(changed)))
        record, kind = changed[group], draw(st.sampled_from("vvvrkg"))
        if kind == "g":
            other = draw(
                st.sampled_from((ConfigRecord({"a": 1}), MetricRecord({"a": 1}), ArrayRecord()))
            )
            changed[group] = other
        elif kind == "r":
            del changed[group]
        elif kind == "k" and record:
            del record[draw(st.sampled_from(sorted(record)))]
        elif isinstance(record, ConfigRecord) and record:
            record[draw(st.sampled_from(sorted(record)))] = draw(VALUES)
        elif isinstance(record, ArrayRecord) and record:
            name = draw(st.sampled_from(sorted(record)))
            record[name] = draw(changed_arrays(record[name]))
    return changed


def _copy(record: Any) -> Any:
    copied = type(record)()
    for key, value in record.items():
        copied[key] = value
    return copied


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_device_decodes_or_refuses_whatever_a_server_sends(kind: str) -> None:
    request, decode = EXAMPLES[kind]
    valid = flower_records.encode_request(request)
    assert decode(valid).message_type == request.message_type

    @FUZZ
    @given(content=changed_records(valid))
    def check(content: RecordDict) -> None:
        with contextlib.suppress(MessageError):
            decode(content)

    check()


@FUZZ
@given(content=changed_records(flower_records.encode_reply(REPLY)))
def test_a_server_decodes_or_refuses_whatever_a_device_sends(content: RecordDict) -> None:
    try:
        reply = read_reply(content)
    except MessageError:
        return
    assert reply.value is None or (reply.value.shape == (SIZE,) and reply.value.isfinite().all())
    assert len(reply.reason) <= 200
    assert reply.user.isprintable()


@pytest.mark.parametrize("data", FOREIGN_ARRAYS, ids=lambda data: repr(data[:14]))
def test_an_array_in_any_other_form_is_refused(data: bytes) -> None:
    content = flower_records.encode_reply(REPLY)
    content["release"] = ArrayRecord(
        {"value": Array(dtype="float32", shape=(SIZE,), stype="numpy.ndarray", data=data)}
    )

    with pytest.raises(MessageError, match="array release/value"):
        read_reply(content)


def test_an_array_that_numpy_wrote_is_read() -> None:
    content = flower_records.encode_reply(REPLY)
    content["release"] = ArrayRecord({"value": Array(np.arange(SIZE, dtype=np.float32))})

    assert read_reply(content).value.tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]


@pytest.mark.parametrize("plan", [make_plan(), PLAN], ids=["plain", "noised"])
def test_a_plan_is_read_or_refused(plan: Plan) -> None:
    @FUZZ
    @given(text=mutated_json_texts(json.loads(plan.to_json())))
    def check(text: bytes) -> None:
        try:
            found = Plan.from_json(text.decode("utf-8", "replace"))
        except MessageError:
            return
        # What was accepted travels on, and is asked for its releases.
        assert Plan.from_json(found.to_json()) == found
        with contextlib.suppress(SettingError):  # numbers that no ledger books
            found.counts_release(), found.gradient_release(1), found.centre_release()

    check()
