"""Sums open exactly, bear dropouts down to the threshold, and name whoever spoils them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sottovoce.client.federation.secagg_client import DeviceRound
from sottovoce.client.federation.secagg_state import SecAggState
from sottovoce.server.aggregation.secagg_server import ServerRound, UnmaskedSum
from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError
from sottovoce.shared.secure_aggregation import (
    framing,
    messages,
    quantisation,
    secret_sharing,
    transcript,
)
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import (
    RandomWords,
    SeededRandomWords,
    SystemRandomWords,
)

PARAMETERS, ROUND = 50, "run 7, round 3"
SPARSE = SecureAggregationConfig(
    devices=12,
    parameters=PARAMETERS,
    degree=6,
    threshold=4,
    quorum=8,
    clip_norm=1.0,
    granularity=1e-7,
)
COMPLETE = replace(SPARSE, degree=11, threshold=7)
STAGES = ("advertise", "share", "mask", "agree", "unmask")
FOLLOWING = ("broadcast_keys", "route_shares", "announce_survivors", "route_signatures")
"""The server's methods that make the requests of all stages but the first."""
Change = Callable[[str, str, bytes], bytes | None]
"""From stage, user and reply to what the server gets of it; nothing is a dropout."""


def untouched(_stage: str, _user: str, reply: bytes) -> bytes | None:
    return reply


@dataclass
class Cohort:
    """Devices and their updates; every message reaches a device restored from its bytes."""

    settings: SecureAggregationConfig
    seed: int | None = None

    def __post_init__(self) -> None:
        count, size = self.settings.devices, self.settings.parameters
        self.keys = {f"user {number:02d}": crypto.new_key() for number in range(count)}
        self.roster = {user: crypto.identity_public_key(key) for user, key in self.keys.items()}
        random = np.random.default_rng(11)
        self.updates = {user: random.normal(size=size) * 0.1 for user in self.keys}
        self.server = ServerRound(settings=self.settings, round_name=ROUND, roster=self.roster)
        self.states: dict[str, bytes] = {}
        self.seen: dict[str, dict[str, bytes]] = {}

    def device(self, user: str) -> DeviceRound:
        facts = {
            "user": user,
            "identity": self.keys[user],
            "roster": self.roster,
            "settings": self.settings,
            "round_name": ROUND,
        }
        if user in self.states:
            return DeviceRound.from_bytes(self.states[user], **facts)  # type: ignore[arg-type]
        return DeviceRound(**facts)  # type: ignore[arg-type]

    def words(self, user: str) -> RandomWords:
        if self.seed is None:
            return SystemRandomWords()
        return SeededRandomWords(np.random.default_rng([self.seed, int(user[-2:])]))

    def answer(self, stage: str, user: str, request: bytes) -> bytes:
        device = self.device(user)
        if stage == "mask":
            reply = device.mask(request, lambda: (self.updates[user], self.words(user)))
        else:
            reply = getattr(device, stage)(request)
        self.states[user] = device.to_bytes()
        return reply

    def run(self, change: Change = untouched) -> UnmaskedSum:
        requests = self.server.request_keys()
        for stage, after in zip(STAGES, (*FOLLOWING, "unmask_sum"), strict=True):
            replies = {}
            for user, request in requests.items():
                reply = change(stage, user, self.answer(stage, user, request))
                if reply is not None:
                    replies[user] = reply
            self.seen[stage] = replies
            requests = getattr(self.server, after)(replies)
        return requests  # type: ignore[return-value]

    def expected(self, users: tuple[str, ...]) -> np.ndarray:
        return sum(  # type: ignore[return-value]
            quantisation.clip_update(self.updates[user], self.settings) for user in users
        )


def dropping(at: str, *users: str) -> Change:
    return lambda stage, user, reply: None if (stage, user) in [(at, u) for u in users] else reply


def replacing(at: str, whose: str, reply: Callable[[bytes], bytes]) -> Change:
    return lambda stage, user, old: reply(old) if (stage, user) == (at, whose) else old


def check_sum(cohort: Cohort, opened: UnmaskedSum) -> None:
    error = np.abs(opened.total - cohort.expected(opened.survivors)).max()
    assert error <= len(opened.survivors) * cohort.settings.granularity


@pytest.mark.parametrize("settings", [SPARSE, COMPLETE, replace(SPARSE, bits=28)])
def test_the_sum_is_exact_to_quantisation(settings: SecureAggregationConfig) -> None:
    cohort = Cohort(settings)
    opened = cohort.run()

    assert opened.survivors == tuple(sorted(cohort.keys))
    assert opened.faults == {}
    check_sum(cohort, opened)
    assert np.abs(opened.total).max() > 0.1


def test_the_sum_is_the_sum_of_what_each_encoded() -> None:
    """Noise and all, to the last bit; a seeded run repeats, another does not."""
    settings = replace(SPARSE, noise=1000.0)
    cohort = Cohort(settings, seed=1)
    total = cohort.run().total
    encoded = [
        quantisation.encode_update(cohort.updates[user], settings, cohort.words(user))
        for user in cohort.keys
    ]
    plain = quantisation.decode_sum(np.sum(encoded, axis=0, dtype=np.uint32), settings)

    assert (total == plain).all()
    assert (Cohort(settings, seed=1).run().total == total).all()
    assert (Cohort(settings, seed=2).run().total != total).any()
    assert (Cohort(settings).run().total != Cohort(settings).run().total).any()


def test_the_noise_of_all_adds_up() -> None:
    settings = replace(SPARSE, noise=3000.0, parameters=20_000)
    cohort = Cohort(settings)
    cohort.updates = dict.fromkeys(cohort.keys, np.zeros(20_000))
    found = cohort.run().total.std() / settings.granularity

    assert abs(found / (3000 * math.sqrt(12)) - 1) < 6 / math.sqrt(2 * 20_000)


@pytest.mark.parametrize("settings", [SPARSE, COMPLETE])
@pytest.mark.parametrize("stage", STAGES)
def test_dropouts_are_borne_at_every_stage(settings: SecureAggregationConfig, stage: str) -> None:
    cohort = Cohort(settings)
    opened = cohort.run(dropping(stage, "user 03", "user 08"))

    in_the_sum = STAGES.index(stage) > STAGES.index("mask")
    assert ("user 03" in opened.survivors) is in_the_sum
    assert len(opened.survivors) == (12 if in_the_sum else 10)
    assert opened.faults == dict.fromkeys(["user 03", "user 08"], "no answer")
    check_sum(cohort, opened)


def test_dropouts_at_all_stages_together() -> None:
    cohort = Cohort(replace(COMPLETE, threshold=6))
    lost = dict(zip(STAGES, sorted(cohort.keys), strict=False))
    opened = cohort.run(lambda stage, user, reply: None if lost[stage] == user else reply)

    assert len(opened.survivors) == 9
    check_sum(cohort, opened)


@pytest.mark.parametrize("stage", ["advertise", "share", "mask"])
def test_below_the_quorum_nothing_opens(stage: str) -> None:
    lost = [f"user {number:02d}" for number in range(5)]

    with pytest.raises(AggregationError, match=r"7 devices .* quorum is 8.*start a new round"):
        Cohort(COMPLETE).run(dropping(stage, *lost))


@pytest.mark.parametrize("stage", ["agree", "unmask"])
def test_below_the_threshold_nothing_opens(stage: str) -> None:
    lost = [f"user {number:02d}" for number in range(5)]

    with pytest.raises(AggregationError, match=r"only 6 .* threshold is 7.*start a new round"):
        Cohort(COMPLETE).run(dropping(stage, *lost))


def test_a_device_without_enough_neighbours_closes_the_sum() -> None:
    """In a sparse graph a quorum is not enough: who loses whom depends on the graph."""
    settings = replace(SPARSE, degree=4, threshold=3, quorum=5)
    outcomes = set()
    for _ in range(40):
        cohort = Cohort(settings)
        try:
            opened = cohort.run(dropping("share", "user 00", "user 01"))
        except AggregationError as error:
            outcomes.add(str(error).partition(" only ")[2][:32])
        else:
            outcomes.add("open")
            check_sum(cohort, opened)
    assert outcomes == {"open", "2 share, the threshold is 3: the"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "share"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda reply: b"",
        lambda reply: b"\xff" * 100,
        lambda reply: reply[:-1],
        lambda reply: reply[:-1] + bytes([reply[-1] ^ 1]),
    ],
)
def test_a_spoilt_reply_is_named_and_left_out(stage: str, spoil: Callable[[bytes], bytes]) -> None:
    cohort = Cohort(COMPLETE)
    opened = cohort.run(replacing(stage, "user 05", spoil))

    assert set(opened.faults) == {"user 05"}
    check_sum(cohort, opened)


def test_an_altered_masked_update_is_named() -> None:
    def alter(reply: bytes) -> bytes:
        found = messages.MaskedUpdate.from_bytes(reply, parameters=PARAMETERS, bits=32)
        return replace(found, vector=found.vector + np.uint32(1)).to_bytes()

    opened = Cohort(SPARSE).run(replacing("mask", "user 05", alter))

    assert "altered on the way" in opened.faults["user 05"]
    assert "user 05" not in opened.survivors


@pytest.mark.parametrize("liars", [1, 4, 5])
def test_wrong_shares_are_named_and_done_without(liars: int) -> None:
    names = [f"user {number:02d}" for number in range(liars)]

    def lie(stage: str, user: str, reply: bytes) -> bytes:
        if stage != "unmask" or user not in names:
            return reply
        shares = messages.UnmaskShares.from_bytes(reply).shares
        kind, _ = shares["user 11"]
        return messages.UnmaskShares(
            shares=shares | {"user 11": (kind, secret_sharing.new_secret())}
        ).to_bytes()

    cohort = Cohort(COMPLETE)
    if liars == 5:
        with pytest.raises(AggregationError, match=r"only 6 give .*wrong share for 'user 11'"):
            cohort.run(lie)
        return
    opened = cohort.run(lie)
    assert set(opened.faults) == set(names)
    assert all("wrong share for 'user 11'" in fault for fault in opened.faults.values())
    check_sum(cohort, opened)


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("kind", "wrong share for 'user 11'"),
        ("less", "a share for each neighbour, and for nobody else"),
        ("more", "a share for each neighbour, and for nobody else"),
    ],
)
def test_shares_of_another_kind_or_of_other_neighbours_are_named(how: str, fault: str) -> None:
    """A right share of a survivor's key would bare the survivor's update to whoever has enough."""
    cohort = Cohort(COMPLETE)
    held: dict[str, tuple[bytes, bytes]] = {}

    def lie(stage: str, user: str, reply: bytes) -> bytes:
        if (stage, user) == ("agree", "user 05"):
            *_, stored = framing.unpack(cohort.states[user])
            held.update(SecAggState.from_bytes(stored).shares)
        if (stage, user) != ("unmask", "user 05"):
            return reply
        shares = dict(messages.UnmaskShares.from_bytes(reply).shares)
        _, key_share = held["user 11"]
        if how == "kind":
            shares["user 11"] = (messages.KEY_SHARE, key_share)
        elif how == "less":
            del shares["user 11"]
        else:
            shares["user 99"] = shares["user 11"]
        return messages.UnmaskShares(shares=shares).to_bytes()

    opened = cohort.run(lie)

    assert set(opened.faults) == {"user 05"}
    assert fault in opened.faults["user 05"]
    check_sum(cohort, opened)


@pytest.mark.parametrize("secret", ["seed", "mask_key"])
def test_a_secret_that_was_not_committed_to_is_named(secret: str) -> None:
    """Its owner shares out another; for a mask key this shows once the owner drops out."""
    cohort = Cohort(COMPLETE)

    def swap(stage: str, user: str, reply: bytes) -> bytes | None:
        if stage == "advertise" and user == "user 05":
            *binding, stored = framing.unpack(cohort.states[user])
            state = SecAggState.from_bytes(stored)
            setattr(state, secret, secret_sharing.new_secret())
            cohort.states[user] = framing.pack(*binding, state.to_bytes())
        lost = stage == "mask" and user == "user 05" and secret == "mask_key"
        return None if lost else reply

    with pytest.raises(AggregationError, match=r"'user 05' shared out another secret"):
        cohort.run(swap)


def test_keys_of_another_round_or_another_user_are_left_out() -> None:
    before = Cohort(COMPLETE)
    before.run()
    cohort = Cohort(COMPLETE)
    cohort.keys, cohort.roster = before.keys, before.roster
    cohort.server = ServerRound(settings=COMPLETE, round_name=ROUND + "b", roster=before.roster)
    server, replies = cohort.server, before.seen["advertise"]

    with pytest.raises(AggregationError, match="0 devices advertise"):
        server.broadcast_keys(replies)
    assert all("replayed" in fault for fault in server.faults.values())

    server = ServerRound(settings=COMPLETE, round_name=ROUND, roster=before.roster)
    server.broadcast_keys(replies | {"user 05": replies["user 06"]})
    assert "advertises for 'user 06'" in server.faults["user 05"]


@pytest.mark.parametrize("key", ["agreement_key", "mask_key"])
def test_a_key_of_low_order_is_named_and_left_out(key: str) -> None:
    """Its owner signed it, and everybody's secret with it would be known to all."""
    cohort, bad = Cohort(SPARSE), "user 03"

    def spoil(reply: bytes) -> bytes:
        weak = replace(messages.KeyAdvertisement.from_bytes(reply), **{key: bytes(32)})  # type: ignore[arg-type]
        signed = crypto.sign_message(
            cohort.keys[bad], transcript.advertisement_payload(SPARSE, weak)
        )
        return replace(weak, signature=signed).to_bytes()

    opened = cohort.run(replacing("advertise", bad, spoil))

    assert set(opened.survivors) == set(cohort.keys) - {bad}
    assert "makes no secret" in opened.faults[bad]
    check_sum(cohort, opened)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda parcels: parcels[1:],
        lambda parcels: parcels + parcels[:1],
        lambda parcels: tuple(replace(each, sender="user 06") for each in parcels),
        lambda parcels: (replace(parcels[0], receiver="stranger"), *parcels[1:]),
    ],
)
def test_shares_go_to_each_neighbour_once(
    wrong: Callable[..., tuple[messages.EncryptedShares, ...]],
) -> None:
    def alter(reply: bytes) -> bytes:
        parcels = messages.EncryptedSharesBatch.from_bytes(reply).encrypted_shares
        return messages.EncryptedSharesBatch(encrypted_shares=wrong(parcels)).to_bytes()

    cohort = Cohort(COMPLETE)
    opened = cohort.run(replacing("share", "user 05", alter))

    assert set(opened.faults) == {"user 05"}
    check_sum(cohort, opened)


def unlikely(vector: np.ndarray) -> float:
    """x such that uniform words come this far out with chance e^-x at most, by their top byte."""
    counts = np.bincount(vector.astype(np.uint32) >> np.uint32(24), minlength=256)
    expected = len(vector) / 256
    excess = max(float(((counts - expected) ** 2 / expected).sum()) - 255, 0.0)
    # Laurent and Massart 2000.
    return ((math.sqrt(255 + 2 * excess) - math.sqrt(255)) / 2) ** 2


def test_what_the_server_sees_of_one_user_is_uniform() -> None:
    settings = replace(SPARSE, parameters=50_000, noise=1e6)
    cohort = Cohort(settings)
    cohort.run()
    limit = math.log(1e9)

    for user, reply in cohort.seen["mask"].items():
        seen = messages.MaskedUpdate.from_bytes(reply, parameters=50_000, bits=32).vector
        bare = quantisation.encode_update(cohort.updates[user], settings, SystemRandomWords())
        assert unlikely(seen) < limit
        assert unlikely(seen - bare) < limit
        assert unlikely(bare) > limit


def test_two_users_masks_share_nothing_but_their_pair() -> None:
    cohort = Cohort(replace(SPARSE, parameters=50_000))
    cohort.run()
    seen = [
        messages.MaskedUpdate.from_bytes(reply, parameters=50_000, bits=32).vector
        for reply in cohort.seen["mask"].values()
    ]

    for other in seen[1:]:
        assert unlikely(seen[0] - other) < math.log(1e9)
        assert unlikely(seen[0] + other) < math.log(1e9)


def test_an_update_that_is_not_finite_counts_as_zeros_and_a_long_one_is_clipped() -> None:
    cohort = Cohort(SPARSE)
    cohort.updates["user 01"] = np.full(PARAMETERS, math.nan)
    cohort.updates["user 02"] = np.full(PARAMETERS, 1e9)
    cohort.updates["user 03"] = np.full(PARAMETERS, -math.inf)
    opened = cohort.run()

    others = [user for user in cohort.keys if user not in ("user 01", "user 02", "user 03")]
    rest = opened.total - cohort.expected(tuple(others))
    assert rest == pytest.approx(np.full(PARAMETERS, 1 / math.sqrt(PARAMETERS)), abs=1e-5)


@pytest.mark.parametrize("count", [7, 13])
def test_too_few_or_too_many_cannot_be_invited(count: int) -> None:
    roster = {str(number): b"k" * 32 for number in range(count)}

    with pytest.raises(AggregationError, match=str(count)):
        ServerRound(settings=SPARSE, round_name=ROUND, roster=roster)
