"""Secure sums under any bytes: a message is read or refused, and one bad device ends no sum."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, mutated_bytes

from sottovoce.client.federation.secagg_client import DeviceRound
from sottovoce.client.federation.secagg_state import SecAggState
from sottovoce.server.aggregation.secagg_server import ServerRound
from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, MessageError
from sottovoce.shared.secure_aggregation import messages
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import SeededRandomWords

PARAMETERS, ROUND = 3, "run 7, round 3"
USERS = ("ada", "bob", "cem", "dee")
CONFIG = SecureAggregationConfig(
    devices=len(USERS),
    parameters=PARAMETERS,
    degree=len(USERS) - 1,
    threshold=2,
    quorum=3,
    clip_norm=1.0,
    granularity=1e-4,
)
STEPS = ("advertise", "share", "mask", "agree", "unmask")
FOLLOWING = ("broadcast_keys", "route_shares", "announce_survivors", "route_signatures")
KEYS = {user: crypto.new_key() for user in USERS}
ROSTER = {user: crypto.identity_public_key(key) for user, key in KEYS.items()}


def new_device(user: str) -> DeviceRound:
    return DeviceRound(
        user=user, identity=KEYS[user], roster=ROSTER, settings=CONFIG, round_name=ROUND
    )


def answer(device: DeviceRound, step: str, request: bytes) -> bytes:
    if step != "mask":
        reply: bytes = getattr(device, step)(request)
        return reply
    return device.mask(
        request, lambda: (np.full(PARAMETERS, 0.1), SeededRandomWords(np.random.default_rng(1)))
    )


def run_sum(
    change: Callable[[str, bytes], bytes | None],
) -> tuple[Any, dict[str, bytes], dict[str, bytes]]:
    """A sum in which one device's replies are changed; what it was asked and what it replied."""
    server = ServerRound(settings=CONFIG, round_name=ROUND, roster=ROSTER)
    devices = {user: new_device(user) for user in USERS}
    requests = server.request_keys()
    asked, replied = {}, {}
    for step, following in zip(STEPS, (*FOLLOWING, "unmask_sum"), strict=True):
        replies: dict[str, bytes] = {}
        for user, request in requests.items():
            try:
                reply: bytes | None = answer(devices[user], step, request)
            except AggregationError:
                reply = None  # a device that refuses drops out
            if user == USERS[0] and reply is not None:
                asked[step], replied[step] = request, reply
                reply = change(step, reply)
            if reply is not None:
                replies[user] = reply
        requests = getattr(server, following)(replies)
    return requests, asked, replied


SUM, ASKED, REPLIED = run_sum(lambda _step, reply: reply)
READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "advertise request": (ASKED["advertise"], messages.AdvertiseRequest.from_bytes),
    "advertisement": (REPLIED["advertise"], messages.KeyAdvertisement.from_bytes),
    "share request": (ASKED["share"], messages.ShareRequest.from_bytes),
    "shares": (REPLIED["share"], messages.EncryptedSharesBatch.from_bytes),
    "masked update": (
        REPLIED["mask"],
        lambda data: messages.MaskedUpdate.from_bytes(
            data, parameters=PARAMETERS, bits=CONFIG.bits
        ),
    ),
    "survivors": (ASKED["agree"], messages.Survivors.from_bytes),
    "signature": (REPLIED["agree"], messages.ConsistencySignature.from_bytes),
    "unmask request": (ASKED["unmask"], messages.UnmaskRequest.from_bytes),
    "unmask shares": (REPLIED["unmask"], messages.UnmaskShares.from_bytes),
}


@pytest.mark.parametrize("kind", READERS)
def test_any_bytes_are_read_or_refused(kind: str) -> None:
    valid, read = READERS[kind]

    @FUZZ
    @given(data=mutated_bytes(valid, *(other for other, _ in READERS.values())))
    def check(data: bytes) -> None:
        try:
            found = read(data)
        except MessageError:
            return
        assert found.to_bytes() == data  # what is read has one encoding

    check()


@FUZZ
@given(data=st.data())
def test_one_device_that_sends_anything_is_left_out_and_the_sum_opens(data: st.DataObject) -> None:
    bad_step = data.draw(st.sampled_from(STEPS))

    def change(step: str, reply: bytes) -> bytes | None:
        return data.draw(mutated_bytes(reply, *REPLIED.values())) if step == bad_step else reply

    try:
        opened, _, _ = run_sum(change)
    except AggregationError:
        # Shares that do not open may be the server's doing: neighbours refuse, nothing is opened.
        assert bad_step == "share"
        return
    assert np.allclose(opened.total, 0.1 * len(opened.survivors), atol=0.01)
    assert bad_step == "share" or set(USERS[1:]) <= set(opened.survivors)


@FUZZ
@given(data=st.data())
def test_a_device_answers_or_refuses_whatever_it_is_asked(data: st.DataObject) -> None:
    device, bad_step = new_device(USERS[0]), data.draw(st.sampled_from(STEPS))
    # Shares of another sum do not open for this device: the steps before take what they can.
    for step in STEPS[: STEPS.index(bad_step) + 1]:
        request = ASKED[step]
        if step == bad_step:
            request = data.draw(mutated_bytes(request, *ASKED.values()))
        try:
            answer(device, step, request)
        except (MessageError, AggregationError):
            break


@FUZZ
@given(data=mutated_bytes(SecAggState(users=USERS, session=b"s" * 32).to_bytes()))
def test_a_stored_state_is_read_or_refused(data: bytes) -> None:
    try:
        SecAggState.from_bytes(data)
    except MessageError:
        return
