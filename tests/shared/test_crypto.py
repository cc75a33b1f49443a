"""Sealed blobs open for the right key and context only; keys and signatures follow standards."""

import hashlib
from collections.abc import Callable
from inspect import signature

import pytest

from sottovoce.shared import crypto
from sottovoce.shared.errors import PrivacyError, SettingError

CONTEXT = crypto.encode_context("user 7", "head", 3)
CHEAP = 14
PHRASE = "quiet as a mouse"


@pytest.fixture
def key() -> bytes:
    return crypto.new_key()


@pytest.mark.parametrize("plaintext", [b"", b"x", b"\x00" * 40, bytes(range(256)) * 40])
def test_what_was_sealed_comes_back(key: bytes, plaintext: bytes) -> None:
    blob = crypto.seal(key, plaintext, context=CONTEXT)

    assert crypto.open_sealed(key, blob, context=CONTEXT) == plaintext


def test_every_flipped_bit_is_noticed(key: bytes) -> None:
    blob = crypto.seal(key, b"mine", context=CONTEXT)

    for index in range(len(blob)):
        flipped = bytearray(blob)
        flipped[index] ^= 1 << index % 8
        with pytest.raises(PrivacyError):
            crypto.open_sealed(key, bytes(flipped), context=CONTEXT)
    assert crypto.open_sealed(key, blob, context=CONTEXT) == b"mine"


def test_every_cut_is_noticed(key: bytes) -> None:
    blob = crypto.seal(key, b"m" * 600, context=CONTEXT)

    for length in range(len(blob)):
        with pytest.raises(PrivacyError):
            crypto.open_sealed(key, blob[:length], context=CONTEXT)


def test_another_key_does_not_open(key: bytes) -> None:
    blob = crypto.seal(key, b"mine", context=CONTEXT)

    with pytest.raises(PrivacyError, match="key is wrong"):
        crypto.open_sealed(crypto.new_key(), blob, context=CONTEXT)


@pytest.mark.parametrize(
    "other",
    [
        crypto.encode_context("user 8", "head", 3),
        crypto.encode_context("user 7", "head", 2),
        crypto.encode_context("user 7head", "", 3),
        b"",
    ],
)
def test_another_context_does_not_open(key: bytes, other: bytes) -> None:
    blob = crypto.seal(key, b"mine", context=CONTEXT)

    with pytest.raises(PrivacyError, match="belongs to"):
        crypto.open_sealed(key, blob, context=other)


def test_parts_of_a_binding_cannot_slide() -> None:
    assert crypto.encode_context("ab", "c") != crypto.encode_context("a", "bc")
    assert crypto.encode_context("a") != crypto.encode_context("a", "")
    assert crypto.encode_context("a", 1) == crypto.encode_context("a", 1)


def test_nothing_repeats(key: bytes) -> None:
    blobs = {crypto.seal(key, b"mine", context=CONTEXT) for _ in range(100)}

    assert len({blob[1:13] for blob in blobs}) == 100


def test_lengths_within_a_class_tell_nothing(key: bytes) -> None:
    lengths = {len(crypto.seal(key, b"x" * size, context=b"")) for size in range(480)}

    assert lengths == {512}
    assert len(crypto.seal(key, b"x" * 480, context=b"")) == 1024
    assert len(crypto.seal(key, b"", context=b"", min_size=4096)) == 4096


def test_plaintext_does_not_shine_through(key: bytes) -> None:
    assert b"plain words" not in crypto.seal(key, b"plain words", context=b"plain words")


@pytest.mark.parametrize("size", [0, -512, 256, 700, 1 << 31])
def test_odd_sizes_are_refused(key: bytes, size: int) -> None:
    with pytest.raises(SettingError, match="power of two"):
        crypto.seal(key, b"", context=b"", min_size=size)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(SettingError, match="must have 32"):
        crypto.seal(b"k" * length, b"", context=b"")
    with pytest.raises(SettingError, match="must have 32"):
        crypto.open_sealed(b"k" * length, b"", context=b"")


def test_only_sealed_blobs_look_sealed(key: bytes) -> None:
    blob = crypto.seal(key, b"mine", context=b"")

    assert crypto.looks_sealed(blob)
    assert not crypto.looks_sealed(b"")
    assert not crypto.looks_sealed(blob[:-1])
    assert not crypto.looks_sealed(b"\x02" + blob[1:])
    assert not crypto.looks_sealed(blob[:256])


def test_a_passphrase_gives_one_key_a_salt() -> None:
    salt = crypto.new_salt()
    derived = crypto.derive_key(PHRASE, salt, log2_cost=CHEAP)

    assert len(derived) == 32
    assert derived == crypto.derive_key(PHRASE, salt, log2_cost=CHEAP)
    assert derived != crypto.derive_key(PHRASE, crypto.new_salt(), log2_cost=CHEAP)
    assert derived != crypto.derive_key(PHRASE + "!", salt, log2_cost=CHEAP)


def test_derivation_agrees_with_the_standard_library() -> None:
    salt = b"0123456789abcdef"
    expected = hashlib.scrypt(
        PHRASE.encode(), salt=salt, n=1 << CHEAP, r=8, p=1, dklen=32, maxmem=1 << 26
    )

    assert crypto.derive_key(PHRASE, salt, log2_cost=CHEAP) == expected


def test_a_passphrase_does_not_depend_on_the_keyboard() -> None:
    salt = crypto.new_salt()
    composed, decomposed = "caf\u00e9 au lait", "cafe\u0301 au lait"

    assert crypto.derive_key(composed, salt, log2_cost=CHEAP) == crypto.derive_key(
        decomposed, salt, log2_cost=CHEAP
    )


@pytest.mark.parametrize(
    ("phrase", "salt", "cost", "word"),
    [
        ("", b"s" * 16, CHEAP, "passphrase"),
        ("short", b"s" * 16, CHEAP, "passphrase"),
        (PHRASE, b"s" * 15, CHEAP, "salt"),
        (PHRASE, b"s" * 16, 13, "log2_cost"),
        (PHRASE, b"s" * 16, 63, "log2_cost"),
    ],
)
def test_unusable_derivations_are_refused(phrase: str, salt: bytes, cost: int, word: str) -> None:
    with pytest.raises(SettingError, match=word):
        crypto.derive_key(phrase, salt, log2_cost=cost)


def test_a_wrapped_key_opens_for_its_passphrase_and_context_only(key: bytes) -> None:
    wrapped = crypto.wrap_key(key, PHRASE, context=b"ada", log2_cost=CHEAP)

    assert crypto.unwrap_key(wrapped, PHRASE, context=b"ada") == key
    with pytest.raises(PrivacyError, match="passphrase is wrong"):
        crypto.unwrap_key(wrapped, "loud as a lion", context=b"ada")
    with pytest.raises(PrivacyError, match="another user"):
        crypto.unwrap_key(wrapped, PHRASE, context=b"bob")


def test_a_passphrase_costs_an_attacker_what_is_advised(
    key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OWASP: scrypt with N = 2^17, r = 8, p = 1. Tests take less, a user's vault never."""
    assert crypto.SCRYPT_LOG2_COST == 17
    assert signature(crypto.derive_key).parameters["log2_cost"].default == 17
    monkeypatch.setattr(crypto, "SCRYPT_LOG2_COST", CHEAP + 1)
    wrapped = crypto.wrap_key(key, PHRASE, context=b"")

    assert wrapped[0] == CHEAP + 1, "the default, and not what tests ask for"
    assert crypto.unwrap_key(wrapped, PHRASE, context=b"") == key


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_no_key_of_another_length_is_wrapped(length: int) -> None:
    with pytest.raises(SettingError, match=f"a key has {length} bytes; it must have 32"):
        crypto.wrap_key(b"k" * length, PHRASE, context=b"", log2_cost=CHEAP)


@pytest.mark.parametrize("index", [0, 1, 16, 17, 100, -1])
def test_an_altered_wrapping_does_not_open(key: bytes, index: int) -> None:
    wrapped = bytearray(crypto.wrap_key(key, PHRASE, context=b"", log2_cost=CHEAP))
    wrapped[index] ^= 1

    with pytest.raises(PrivacyError):
        crypto.unwrap_key(bytes(wrapped), PHRASE, context=b"")


@pytest.mark.parametrize("wrapped", [b"", b"x", b"\xff" * 529, b"\x0e" * 528])
def test_rubbish_is_no_wrapped_key(wrapped: bytes) -> None:
    # A cost of 255 must be refused before scrypt asks for the memory.
    with pytest.raises(PrivacyError, match="not a wrapped key"):
        crypto.unwrap_key(wrapped, PHRASE, context=b"")


# --- signatures, agreement and key streams ----------------------------------------------------

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
    assert crypto.identity_public_key(PRIVATE) == PUBLIC
    assert crypto.sign_message(PRIVATE, b"\x72") == SIGNATURE
    assert crypto.verify_signature(PUBLIC, SIGNATURE, b"\x72")


@pytest.mark.parametrize(
    ("public", "signature", "message"),
    [
        (PUBLIC, SIGNATURE, b"\x73"),
        (PUBLIC, SIGNATURE[:-1], b"\x72"),
        (PUBLIC, bytes(64), b"\x72"),
        (PUBLIC[:-1], SIGNATURE, b"\x72"),
        (crypto.identity_public_key(ALICE), SIGNATURE, b"\x72"),
    ],
)
def test_what_is_not_signed_does_not_verify(
    public: bytes, signature: bytes, message: bytes
) -> None:
    assert not crypto.verify_signature(public, signature, message)


def test_two_parties_agree_for_one_purpose() -> None:
    other = crypto.new_key()
    publics = crypto.agreement_public_key(ALICE), crypto.agreement_public_key(other)
    secret = crypto.derive_shared_secret(ALICE, publics[1], context=b"one")

    assert len(secret) == 32
    assert secret == crypto.derive_shared_secret(other, publics[0], context=b"one")
    assert secret != crypto.derive_shared_secret(other, publics[0], context=b"other")
    assert secret != crypto.derive_shared_secret(crypto.new_key(), publics[0], context=b"one")


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"", bytes(31)])
def test_a_key_that_gives_no_secret_is_refused(public: bytes) -> None:
    with pytest.raises(PrivacyError, match="agreement key"):
        crypto.derive_shared_secret(ALICE, public, context=b"")


def test_the_key_stream_is_the_standards() -> None:
    """RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, block 0."""
    start = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")

    assert crypto.expand_keystream(bytes(32), 32) == start
    assert crypto.expand_keystream(bytes(32), 1000)[:32] == start
    assert crypto.expand_keystream(bytes(32), 0) == b""


@pytest.mark.parametrize("length", [0, 31, 33])
def test_secure_sums_refuse_keys_of_other_lengths(length: int) -> None:
    key = bytes(length)
    uses: list[Callable[[], object]] = [
        lambda: crypto.sign_message(key, b""),
        lambda: crypto.identity_public_key(key),
        lambda: crypto.agreement_public_key(key),
        lambda: crypto.derive_shared_secret(key, crypto.agreement_public_key(ALICE), context=b""),
        lambda: crypto.expand_keystream(key, 1),
    ]
    for use in uses:
        with pytest.raises(SettingError, match="must have 32"):
            use()
    with pytest.raises(SettingError, match="length"):
        crypto.expand_keystream(bytes(32), -1)


LOW_ORDER = (
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
)
"""Points whose multiples by eight are nothing (RFC 7748, section 6.1)."""


@pytest.mark.parametrize("public", LOW_ORDER)
def test_a_key_of_low_order_gives_no_secret(public: bytes) -> None:
    assert not crypto.is_valid_agreement_key(public)
    with pytest.raises(PrivacyError, match="no agreement key"):
        crypto.derive_shared_secret(crypto.new_key(), public, context=b"")


def test_other_keys_give_secrets() -> None:
    assert all(
        crypto.is_valid_agreement_key(crypto.agreement_public_key(crypto.new_key()))
        for _ in range(50)
    )
    assert not crypto.is_valid_agreement_key(b"short")
