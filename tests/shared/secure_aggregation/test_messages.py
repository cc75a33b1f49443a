"""Messages come back as they went; whatever else comes is a MessageError and never a crash."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.shared.errors import MessageError
from sottovoce.shared.secure_aggregation import framing, parameter_selection, transcript
from sottovoce.shared.secure_aggregation.messages import (
    KEY_SHARE,
    SEED_SHARE,
    AdvertiseRequest,
    ConsistencySignature,
    EncryptedShares,
    EncryptedSharesBatch,
    KeyAdvertisement,
    MaskedUpdate,
    ShareRequest,
    Survivors,
    UnmaskRequest,
    UnmaskShares,
)


def advertisement(user: str) -> KeyAdvertisement:
    return KeyAdvertisement(
        user=user,
        round_name="run, 1",
        agreement_key=b"a" * 32,
        mask_key=b"m" * 32,
        seed_commitment=b"c" * 32,
        signature=b"s" * 64,
    )


PARCEL = EncryptedShares(
    sender="ada",
    receiver="böb",
    ciphertext=b"x" * 512,
    seed_commitment=b"1" * 32,
    key_commitment=b"2" * 32,
)


def read_masked(data: bytes) -> MaskedUpdate:
    return MaskedUpdate.from_bytes(data, parameters=3, bits=10)


MASKED = MaskedUpdate(vector=np.array([0, 5, 1023], dtype=np.uint32), signature=b"s" * 64)
READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "advertise": (AdvertiseRequest(round_name="run, 1").to_bytes(), AdvertiseRequest.from_bytes),
    "advertisement": (advertisement("ada").to_bytes(), KeyAdvertisement.from_bytes),
    "share": (
        ShareRequest(advertisements=(advertisement("ada"), advertisement("bob"))).to_bytes(),
        ShareRequest.from_bytes,
    ),
    "parcels": (
        EncryptedSharesBatch(encrypted_shares=(PARCEL, PARCEL)).to_bytes(),
        EncryptedSharesBatch.from_bytes,
    ),
    "masked": (MASKED.to_bytes(), read_masked),
    "survivors": (Survivors(users=("ada", "bob")).to_bytes(), Survivors.from_bytes),
    "agreement": (
        ConsistencySignature(signature=b"s" * 64).to_bytes(),
        ConsistencySignature.from_bytes,
    ),
    "unmask": (
        UnmaskRequest(consistency_signatures={"ada": b"s" * 64, "bob": b"t" * 64}).to_bytes(),
        UnmaskRequest.from_bytes,
    ),
    "unmasking": (
        UnmaskShares(
            shares={"ada": (SEED_SHARE, b"s" * 32), "bob": (KEY_SHARE, b"k" * 32)}
        ).to_bytes(),
        UnmaskShares.from_bytes,
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_message_comes_back_as_it_went(kind: str) -> None:
    data, read = READERS[kind]

    assert read(data).to_bytes() == data  # type: ignore[attr-defined]


def test_messages_are_those_of_devices_in_use() -> None:
    """Pinned: another beginning is another protocol, and needs another version."""
    beginnings = [data[:6] for data, _ in READERS.values()]

    assert {one[:5] for one in beginnings} == {b"svsa\x01"}
    assert len(set(beginnings)) == len(READERS), "each kind has a letter of its own"
    survivors = b"svsa\x01U" + b"\x00\x00\x00\x03ada"
    assert Survivors(users=("ada",)).to_bytes() == survivors


@pytest.mark.parametrize("kind", READERS)
def test_every_cut_and_every_addition_is_noticed(kind: str) -> None:
    data, read = READERS[kind]
    lists = kind in ("share", "parcels", "survivors", "unmask", "unmasking")

    for length in range(len(data)):
        try:
            found = read(data[:length])
        except MessageError:
            continue
        assert lists  # cut between two members: a shorter list
        assert found.to_bytes() == data[:length]  # type: ignore[attr-defined]
    with pytest.raises(MessageError):
        read(data + b"\x00")


@pytest.mark.parametrize("kind", READERS)
@given(data=st.binary(max_size=200), place=st.integers(0, 10**6))
def test_rubbish_is_a_message_error(kind: str, data: bytes, place: int) -> None:
    good, read = READERS[kind]
    place %= len(good)
    for rubbish in (data, good[:6] + data, good[:place] + data + good[place + len(data) :]):
        try:
            found = read(rubbish)
        except MessageError:
            continue
        assert found.to_bytes() == rubbish, "what is read has one encoding"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", READERS)
def test_no_message_passes_for_another(kind: str) -> None:
    for other, (data, _) in READERS.items():
        if other != kind:
            with pytest.raises(MessageError, match="no message of kind"):
                READERS[kind][1](data)


def test_another_release_is_told_so() -> None:
    data, read = READERS["survivors"]

    with pytest.raises(MessageError, match="same release"):
        read(data[:4] + b"\x02" + data[5:])


@pytest.mark.parametrize(
    "data",
    [
        Survivors(users=("bob", "ada")).to_bytes(),
        Survivors(users=("ada", "ada")).to_bytes(),
        Survivors(users=("",)).to_bytes(),
        Survivors(users=("a" * 129,)).to_bytes(),
        READERS["survivors"][0][:6] + framing.pack(b"\xff"),
    ],
)
def test_survivors_have_one_form(data: bytes) -> None:
    with pytest.raises(MessageError):
        Survivors.from_bytes(data)


def test_a_user_advertises_once() -> None:
    twice = ShareRequest(advertisements=(advertisement("ada"), advertisement("ada")))

    with pytest.raises(MessageError, match="twice"):
        ShareRequest.from_bytes(twice.to_bytes())


@pytest.mark.parametrize("vector", [[0, 1], [0, 1, 2, 3], [0, 1, 1024], [0, 1, 2**32 - 1]])
def test_a_masked_vector_has_its_length_and_range(vector: list[int]) -> None:
    bad = MaskedUpdate(vector=np.array(vector, dtype=np.uint32), signature=b"s" * 64)

    with pytest.raises(MessageError, match="masked vector"):
        read_masked(bad.to_bytes())


def test_a_share_is_of_one_kind() -> None:
    bad = UnmaskShares(shares={"ada": (SEED_SHARE + KEY_SHARE, b"s" * 32)})

    with pytest.raises(MessageError, match="kind"):
        UnmaskShares.from_bytes(bad.to_bytes())


@given(st.lists(st.binary(max_size=20), max_size=6), st.lists(st.binary(max_size=20), max_size=6))
def test_parts_cannot_slide(one: list[bytes], other: list[bytes]) -> None:
    assert framing.unpack(framing.pack(*one)) == one
    assert (framing.pack(*one) == framing.pack(*other)) == (one == other)


def test_no_signature_of_one_step_serves_in_another() -> None:
    """What is signed names its step, whatever else is in it."""
    settings = parameter_selection.select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
    session, users = b"s" * 32, ("ada", "bob")
    signed = {
        "advertise": transcript.advertisement_payload(settings, advertisement("ada")),
        "masked": transcript.masked_update_payload(session, "ada", MASKED.vector),
        "survivors": transcript.survivors_payload(session, users),
    }

    for step, payload in signed.items():
        assert [other for other in signed if other.encode() in payload] == [step]
