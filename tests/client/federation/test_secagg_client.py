"""A device refuses whatever would unmask it, and takes every step once."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sottovoce.client.federation.secagg_client import DeviceRound
from sottovoce.client.federation.secagg_state import SecAggStage, SecAggState
from sottovoce.server.aggregation.secagg_server import ServerRound
from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, MessageError, SettingError
from sottovoce.shared.secure_aggregation import framing, transcript
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import SystemRandomWords
from sottovoce.shared.secure_aggregation.messages import (
    KEY_SHARE,
    SEED_SHARE,
    AdvertiseRequest,
    EncryptedSharesBatch,
    KeyAdvertisement,
    ShareRequest,
    Survivors,
    UnmaskRequest,
    UnmaskShares,
)

ROUND = "run 1, round 2"
SETTINGS = SecureAggregationConfig(
    devices=8,
    parameters=20,
    degree=7,
    threshold=5,
    quorum=6,
    clip_norm=1.0,
    granularity=1e-6,
    noise=10.0,
)
USERS = [f"user {number}" for number in range(8)]
ME = USERS[0]
STEPS = ("advertise", "share", "mask", "agree", "unmask")
FOLLOWING = {
    "share": "broadcast_keys",
    "mask": "route_shares",
    "agree": "announce_survivors",
    "unmask": "route_signatures",
}
"""The server's method that makes a step's requests."""


class House:
    """Eight honest devices; messages are kept, so that a test can alter them."""

    def __init__(
        self, settings: SecureAggregationConfig = SETTINGS, round_name: str = ROUND
    ) -> None:
        self.settings, self.round_name = settings, round_name
        self.keys = {user: crypto.new_key() for user in USERS}
        self.roster = {user: crypto.identity_public_key(key) for user, key in self.keys.items()}
        self.start()

    def start(self) -> None:
        self.devices = {
            user: DeviceRound(
                user=user,
                identity=key,
                roster=self.roster,
                settings=self.settings,
                round_name=self.round_name,
            )
            for user, key in self.keys.items()
        }
        self.server = ServerRound(
            settings=self.settings, round_name=self.round_name, roster=self.roster
        )

    def step(self, name: str, user: str, request: bytes) -> bytes:
        device = self.devices[user]
        if name == "mask":
            return device.mask(request, lambda: (np.ones(20), SystemRandomWords()))
        return getattr(device, name)(request)  # type: ignore[no-any-return]

    def until(self, name: str, lost: str = "") -> dict[str, bytes]:
        """Everybody's requests for a step, once all before it are done."""
        requests = self.server.request_keys()
        for before, after in pairwise(STEPS):
            if before == name:
                break
            replies = {
                user: self.step(before, user, asked)
                for user, asked in requests.items()
                if not (before == "mask" and user == lost)
            }
            requests = getattr(self.server, FOLLOWING[after])(replies)
        return requests


@pytest.fixture
def house() -> House:
    return House()


def refused(house: House, step: str, request: bytes, match: str) -> None:
    """The device refuses, and says nothing more in this round."""
    with pytest.raises(AggregationError, match=match):
        house.step(step, ME, request)
    with pytest.raises(AggregationError, match="every step is taken once"):
        house.step(step, ME, request)


def advertisements(request: bytes) -> list[KeyAdvertisement]:
    return list(ShareRequest.from_bytes(request).advertisements)


def asking(found: list[KeyAdvertisement]) -> bytes:
    return ShareRequest(advertisements=tuple(found)).to_bytes()


@pytest.mark.parametrize("key", ["agreement_key", "mask_key", "seed_commitment"])
def test_a_server_in_the_middle_is_caught(house: House, key: str) -> None:
    """It puts a key of its own in place of a neighbour's, unsigned or signed by itself."""
    found = advertisements(house.until("share")[ME])
    own = crypto.agreement_public_key(crypto.new_key())
    found[3] = replace(found[3], **{key: own})  # type: ignore[arg-type]
    signed = crypto.sign_message(
        crypto.new_key(), transcript.advertisement_payload(SETTINGS, found[3])
    )
    state = house.devices[ME].to_bytes()

    refused(house, "share", asking(found), "somebody is in the middle")
    house.devices[ME] = DeviceRound.from_bytes(
        state,
        user=ME,
        identity=house.keys[ME],
        roster=house.roster,
        settings=SETTINGS,
        round_name=ROUND,
    )
    found[3] = replace(found[3], signature=signed)
    refused(house, "share", asking(found), "'user 3'.*somebody is in the middle")


def without_own(found: list[KeyAdvertisement]) -> list[KeyAdvertisement]:
    return found[1:]


def own_exchanged(found: list[KeyAdvertisement]) -> list[KeyAdvertisement]:
    return [replace(found[0], mask_key=b"k" * 32), *found[1:]]


def stranger(found: list[KeyAdvertisement]) -> list[KeyAdvertisement]:
    return [*found[:-1], replace(found[-1], user="zoe")]


def twins(found: list[KeyAdvertisement]) -> list[KeyAdvertisement]:
    return [*found[:-1], replace(found[-1], mask_key=found[-2].mask_key)]


def too_few(found: list[KeyAdvertisement]) -> list[KeyAdvertisement]:
    return found[:5]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without_own, "own keys"),
        (own_exchanged, "own keys"),
        (stranger, "not in the roster"),
        (twins, "same"),
        (too_few, "5 devices advertise"),
    ],
)
def test_odd_rounds_are_refused(
    house: House, change: Callable[[list[KeyAdvertisement]], list[KeyAdvertisement]], match: str
) -> None:
    found = advertisements(house.until("share")[ME])

    refused(house, "share", asking(change(found)), match)


def test_keys_signed_for_another_round_are_refused(house: House) -> None:
    old = advertisements(house.until("share")[ME])
    house.round_name = "run 1, round 3"
    house.start()
    found = advertisements(house.until("share")[ME])
    found[4] = old[4]

    refused(house, "share", asking(found), "replayed")


def test_keys_signed_under_other_settings_are_refused(house: House) -> None:
    found = advertisements(house.until("share")[ME])
    weaker = replace(SETTINGS, noise=0.0)
    signature = crypto.sign_message(
        house.keys[USERS[2]], transcript.advertisement_payload(weaker, found[2])
    )
    found[2] = replace(found[2], signature=signature)

    refused(house, "share", asking(found), "under these settings")


def test_users_who_were_shown_different_keys_cannot_read_each_other(house: House) -> None:
    """The server leaves one user out for some: their sessions differ, so do their seals."""
    requests = house.until("share")
    found = advertisements(requests[ME])
    replies = {
        user: house.step("share", user, asking(found[:-1]) if user < USERS[4] else request)
        for user, request in list(requests.items())[:-1]
    }
    mine = [
        parcel
        for reply in replies.values()
        for parcel in EncryptedSharesBatch.from_bytes(reply).encrypted_shares
        if parcel.receiver == ME
    ]

    refused(
        house, "mask", EncryptedSharesBatch(encrypted_shares=tuple(mine)).to_bytes(), "do not open"
    )


@pytest.mark.parametrize("part", ["ciphertext", "seed_commitment", "key_commitment"])
def test_altered_shares_are_refused(house: House, part: str) -> None:
    parcels = list(EncryptedSharesBatch.from_bytes(house.until("mask")[ME]).encrypted_shares)
    old = getattr(parcels[2], part)
    parcels[2] = replace(parcels[2], **{part: old[:-1] + bytes([old[-1] ^ 1])})

    refused(
        house,
        "mask",
        EncryptedSharesBatch(encrypted_shares=tuple(parcels)).to_bytes(),
        "'user 3'.*do not open",
    )


def odd_parcels(old: list[Any], mine: list[Any]) -> dict[str, tuple[list[Any], str]]:
    return {
        "replayed": ([old[0], *mine[1:]], "do not open"),
        "in another's name": ([replace(mine[0], sender=USERS[2]), *mine[2:]], "do not open"),
        "for another": ([replace(mine[0], receiver=USERS[2]), *mine[1:]], "came here"),
        "twice": ([mine[0], *mine], "twice"),
        "from nobody": ([replace(mine[0], sender="zoe"), *mine[1:]], "no neighbour"),
        "too few": (mine[:4], "4 neighbours share, the threshold is 5"),
        "none": ([], "0 neighbours share"),
    }


@pytest.mark.parametrize(
    "kind",
    ["replayed", "in another's name", "for another", "twice", "from nobody", "too few", "none"],
)
def test_odd_shares_are_refused(house: House, kind: str) -> None:
    old = list(EncryptedSharesBatch.from_bytes(house.until("mask")[ME]).encrypted_shares)
    house.start()
    mine = list(EncryptedSharesBatch.from_bytes(house.until("mask")[ME]).encrypted_shares)
    parcels, match = odd_parcels(old, mine)[kind]

    refused(house, "mask", EncryptedSharesBatch(encrypted_shares=tuple(parcels)).to_bytes(), match)


@pytest.mark.parametrize(
    ("users", "match"),
    [
        (USERS[1:], "lack this device"),
        ([*USERS, "zoe"], "strangers"),
        (USERS[:5], "5 devices survive, the quorum is 6"),
    ],
)
def test_odd_survivors_are_refused(house: House, users: list[str], match: str) -> None:
    house.until("agree")

    refused(house, "agree", Survivors(users=tuple(users)).to_bytes(), match)


def test_a_survivor_whose_shares_were_held_back_is_refused(house: House) -> None:
    """Its mask is not in this device's update: somebody's masks would not cancel."""
    parcels = EncryptedSharesBatch.from_bytes(house.until("mask")[ME]).encrypted_shares
    house.step("mask", ME, EncryptedSharesBatch(encrypted_shares=parcels[1:]).to_bytes())

    refused(house, "agree", Survivors(users=tuple(USERS)).to_bytes(), "shares never came")


def test_survivors_below_the_threshold_are_refused() -> None:
    """In a sparse graph a quorum may survive and hardly a neighbour."""
    house = House(replace(SETTINGS, degree=4, threshold=3, quorum=4))
    house.until("agree")
    near = set(house.devices[ME]._state.neighbours)
    far = sorted(set(USERS) - near - {ME})

    survivors = Survivors(users=tuple(sorted([ME, *far, min(near)]))).to_bytes()
    refused(house, "agree", survivors, "1 neighbours survive, the threshold is 3")


def test_a_server_that_tells_of_different_survivors_is_caught(house: House) -> None:
    """Half of the users learn that one dropped out: signatures do not fit, nothing opens."""
    requests = house.until("agree")
    fewer = Survivors(users=tuple(USERS[:-1])).to_bytes()
    replies = {
        user: house.step("agree", user, request if user < USERS[4] else fewer)
        for user, request in list(requests.items())[:-1]
    }
    signatures = {user: reply[-64:] for user, reply in replies.items() if user != ME}

    refused(
        house,
        "unmask",
        UnmaskRequest(consistency_signatures=signatures).to_bytes(),
        "'user 4' did not sign the survivors",
    )


def test_signatures_on_the_survivors_of_another_round_are_refused(house: House) -> None:
    old = house.until("unmask")[ME]
    house.start()
    house.until("unmask")

    refused(house, "unmask", old, "did not sign")


@pytest.mark.parametrize(
    ("pick", "match"),
    [
        (lambda signed: dict(list(signed.items())[:4]), "4 neighbours agree, the threshold is 5"),
        (lambda signed: {}, "0 neighbours agree"),
        (lambda signed: signed | {"zoe": b"s" * 64}, "no surviving neighbour"),
        (lambda signed: signed | {ME: b"s" * 64}, "no surviving neighbour"),
    ],
)
def test_too_few_or_odd_agreements_are_refused(
    house: House, pick: Callable[[dict[str, bytes]], dict[str, bytes]], match: str
) -> None:
    signed = UnmaskRequest.from_bytes(house.until("unmask")[ME]).consistency_signatures

    refused(house, "unmask", UnmaskRequest(consistency_signatures=pick(signed)).to_bytes(), match)


def test_of_each_neighbour_one_share_is_given_and_never_both(house: House) -> None:
    request = house.until("unmask", lost=USERS[6])[ME]
    held = dict(house.devices[ME]._state.shares)
    shares = UnmaskShares.from_bytes(house.step("unmask", ME, request)).shares

    assert set(shares) == set(USERS[1:])
    for user, (seed, key) in held.items():
        assert shares[user] == ((KEY_SHARE, key) if user == USERS[6] else (SEED_SHARE, seed))
    with pytest.raises(AggregationError, match="every step is taken once"):
        house.step("unmask", ME, request)


def test_secrets_go_as_soon_as_they_are_used(house: House) -> None:
    requests = house.until("mask")
    device = house.devices[ME]
    state = device._state
    secrets = [state.agreement_key, state.mask_key, state.seed]
    assert all(len(secret) == 32 and secret in device.to_bytes() for secret in secrets)
    assert all(repr(secret) not in repr(state) for secret in secrets)

    house.step("mask", ME, requests[ME])
    assert not any(secret in device.to_bytes() for secret in secrets)
    held = [share for pair in state.shares.values() for share in pair]
    assert all(share in device.to_bytes() for share in held)

    house.start()
    request = house.until("unmask")[ME]
    device = house.devices[ME]
    held = [share for pair in device._state.shares.values() for share in pair]
    house.step("unmask", ME, request)
    assert device.next_stage is SecAggStage.DONE
    assert not any(share in device.to_bytes() for share in held)


@pytest.mark.parametrize("count", [0, 1, 9, 11])
def test_a_state_of_another_number_of_parts_is_damaged(count: int) -> None:
    with pytest.raises(MessageError, match="needed: 10"):
        SecAggState.from_bytes(framing.pack(*[b""] * count))


def test_no_two_devices_or_rounds_share_a_secret(house: House) -> None:
    """A seed that somebody knows takes a device's own mask off."""
    found: list[bytes] = []
    for _ in range(2):
        house.start()
        house.until("share")
        for user in USERS[:2]:
            state = house.devices[user]._state
            found += [state.agreement_key, state.mask_key, state.seed]

    assert len(set(found)) == len(found) == 12
    assert all(len(set(one)) > 8 for one in found), "as random as 32 bytes look"


@pytest.mark.parametrize("step", STEPS)
def test_no_step_is_taken_twice_or_out_of_turn(house: House, step: str) -> None:
    requests = {name: House().until(name)[ME] for name in STEPS}
    request = house.until(step)[ME]

    for other in STEPS:
        if other != step:
            with pytest.raises(AggregationError, match=f"asked to {other}.*the next step"):
                house.step(other, ME, requests[other])
    house.step(step, ME, request)
    with pytest.raises(AggregationError, match="every step is taken once"):
        house.step(step, ME, request)


@pytest.mark.parametrize("step", STEPS)
def test_rubbish_does_not_cost_the_round(house: House, step: str) -> None:
    request = house.until(step)[ME]

    for rubbish in (b"", b"\xff" * 50, request[:-1], request + b"\x00"):
        with pytest.raises(MessageError):
            house.step(step, ME, rubbish)
    assert house.step(step, ME, request)


def test_another_round_is_not_begun(house: House) -> None:
    with pytest.raises(AggregationError, match="this is"):
        house.devices[ME].advertise(AdvertiseRequest(round_name="run 9, round 9").to_bytes())


@pytest.mark.parametrize("step", STEPS)
def test_a_kept_state_belongs_to_user_round_and_settings(house: House, step: str) -> None:
    house.until(step)
    state = house.devices[ME].to_bytes()
    facts: dict[str, Any] = {
        "user": ME,
        "identity": house.keys[ME],
        "roster": house.roster,
        "settings": SETTINGS,
        "round_name": ROUND,
    }
    other = {"user": USERS[1], "identity": house.keys[USERS[1]]}

    assert DeviceRound.from_bytes(state, **facts).to_bytes() == state
    assert DeviceRound.from_bytes(state, **facts).next_stage is SecAggStage[step.upper()]
    for change in (other, {"round_name": "x"}, {"settings": replace(SETTINGS, noise=11.0)}):
        with pytest.raises(AggregationError, match="belongs to another"):
            DeviceRound.from_bytes(state, **facts | change)
    for damaged in (b"", state[:-1], state + b"\x00", state[:100]):
        with pytest.raises(AggregationError, match="cannot be used"):
            DeviceRound.from_bytes(damaged, **facts)


def test_a_device_must_be_who_the_roster_says(house: House) -> None:
    with pytest.raises(SettingError, match="roster"):
        DeviceRound(
            user=ME,
            identity=crypto.new_key(),
            roster=house.roster,
            settings=SETTINGS,
            round_name=ROUND,
        )
