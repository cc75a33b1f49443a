"""Signatures, agreement and key streams do what standards say."""

from collections.abc import Callable

import numpy as np
import pytest

from sottovoce.shared import crypto
from sottovoce.shared.errors import PrivacyError, SettingError
from sottovoce.shared.secagg import masks

# RFC 8032, section 7.1, test 2.
PRIVATE = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
ALICE = bytes(range(32))
"""Any 32 bytes are a private key."""


def test_signatures_are_the_standards() -> None:
    assert crypto.identity_public(PRIVATE) == PUBLIC
    assert crypto.sign(PRIVATE, b"\x72") == SIGNATURE
    assert crypto.verify(PUBLIC, SIGNATURE, b"\x72")


@pytest.mark.parametrize(
    ("public", "signature", "message"),
    [
        (PUBLIC, SIGNATURE, b"\x73"),
        (PUBLIC, SIGNATURE[:-1], b"\x72"),
        (PUBLIC, bytes(64), b"\x72"),
        (PUBLIC[:-1], SIGNATURE, b"\x72"),
        (crypto.identity_public(ALICE), SIGNATURE, b"\x72"),
    ],
)
def test_what_is_not_signed_does_not_verify(
    public: bytes, signature: bytes, message: bytes
) -> None:
    assert not crypto.verify(public, signature, message)


def test_two_parties_agree_for_one_purpose() -> None:
    other = crypto.new_key()
    publics = crypto.agreement_public(ALICE), crypto.agreement_public(other)
    secret = crypto.agree(ALICE, publics[1], context=b"one")

    assert len(secret) == 32
    assert secret == crypto.agree(other, publics[0], context=b"one")
    assert secret != crypto.agree(other, publics[0], context=b"other")
    assert secret != crypto.agree(crypto.new_key(), publics[0], context=b"one")


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"", bytes(31)])
def test_a_key_that_gives_no_secret_is_refused(public: bytes) -> None:
    with pytest.raises(PrivacyError, match="agreement key"):
        crypto.agree(ALICE, public, context=b"")


def test_the_key_stream_is_the_standards() -> None:
    """RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, block 0."""
    start = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")

    assert crypto.keystream(bytes(32), 32) == start
    assert crypto.keystream(bytes(32), 1000)[:32] == start
    assert crypto.keystream(bytes(32), 0) == b""


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    key = bytes(length)
    uses: list[Callable[[], object]] = [
        lambda: crypto.sign(key, b""),
        lambda: crypto.identity_public(key),
        lambda: crypto.agreement_public(key),
        lambda: crypto.agree(key, crypto.agreement_public(ALICE), context=b""),
        lambda: crypto.keystream(key, 1),
    ]
    for use in uses:
        with pytest.raises(SettingError, match="must have 32"):
            use()
    with pytest.raises(SettingError, match="length"):
        crypto.keystream(bytes(32), -1)


@pytest.mark.parametrize("bits", [8, 20, 32])
def test_masks_of_a_pair_cancel_and_nothing_else_does(bits: int) -> None:
    keys = {user: crypto.new_key() for user in ("ada", "bob")}
    public = {user: crypto.agreement_public(key) for user, key in keys.items()}

    def mask(user: str, other: str, session: bytes = b"s") -> np.ndarray:
        seed = masks.pair_seed(session, keys[user], public[other], users=(user, other))
        return masks.pair_mask(seed, user, other, parameters=500, bits=bits)

    one, two = mask("ada", "bob"), mask("bob", "ada")

    assert not masks.add(one, two, bits).any()
    assert masks.add(one, one, bits).any()
    assert masks.add(one, mask("bob", "ada", b"another session"), bits).any()
    assert int(one.max()) < 2**bits
    assert not masks.add(one, masks.negative(one, bits), bits).any()
