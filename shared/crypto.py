"""Authenticated encryption of blobs; keys, signatures and key streams of secure aggregation.

Others may store a sealed blob, but cannot read, alter or exchange it. Its layout is::

    version (1 byte) | nonce (12) | ChaCha20-Poly1305 of: length (4) | plaintext | zeros | tag (16)

Its length is a power of two, from 512 bytes up, so it reveals the order of magnitude of the
plaintext's length and nothing more. Plaintexts whose length is sensitive use a common ``min_size``.

Users sign under an identity key (Ed25519, RFC 8032) and agree on secrets by X25519 (RFC 7748) and
HKDF-SHA256 (RFC 5869); a secret becomes a stream of masks by ChaCha20.

ChaCha20-Poly1305 (RFC 8439) runs in constant time on devices without AES instructions. Nonces are
random: with up to 2^32 blobs under one key, two nonces collide with a probability below 2^-32.
"""

import os
import unicodedata
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from sottovoce.shared.errors import PrivacyError, SettingError

KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
SIGNATURE_BYTES: Final = 64
MIN_SEALED_BYTES: Final = 512
MAX_SEALED_BYTES: Final = 1 << 30
SCRYPT_LOG2_COST: Final = 17
"""Scrypt's N = 2^17, with r = 8 and p = 1: 128 MiB, some half a second (OWASP's advice)."""

_VERSION: Final = b"\x01"
_NONCE: Final = 12
_TAG: Final = 16
_LENGTH: Final = 4
_OVERHEAD: Final = len(_VERSION) + _NONCE + _LENGTH + _TAG
_SCRYPT_LOG2_COSTS: Final = range(14, 21)
_MIN_PASSPHRASE_LENGTH: Final = 8


def new_key() -> bytes:
    """Draw a fresh key of 32 bytes from the operating system.

    Example:
        >>> len(new_key()), new_key() == new_key()
        (32, False)
    """
    return os.urandom(KEY_BYTES)


def new_salt() -> bytes:
    """Draw a fresh salt of 16 bytes from the operating system.

    Example:
        >>> len(new_salt())
        16
    """
    return os.urandom(SALT_BYTES)


def encode_context(*parts: str | int) -> bytes:
    """Encode associated data from several parts, unambiguously: each part after its length.

    Args:
        parts: Texts or numbers that say what the data belongs to.

    Returns:
        The encoded parts; different parts give different bytes.

    Example:
        >>> encode_context("ab", "c") == encode_context("a", "bc")
        False
    """
    encoded = [str(part).encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def seal(
    key: bytes, plaintext: bytes, *, context: bytes, min_size: int = MIN_SEALED_BYTES
) -> bytes:
    """Encrypt and authenticate bytes for one purpose.

    Args:
        key: 32 bytes.
        plaintext: Bytes to encrypt.
        context: Associated data: what the blob belongs to (owner, name, version: see
            :func:`encode_context`). It is authenticated, not stored: opening needs the same bytes.
        min_size: Least length of the blob, a power of two. Use the same value for all blobs that
            must be indistinguishable.

    Returns:
        The blob; its length is a power of two, at least ``min_size``.

    Raises:
        SettingError: A key of another length, a size that is no power of two, or a plaintext
            of a GiB or more.

    Guarantees:
        - Without the key, nothing but the length class can be learned from the blob.
        - :func:`open_sealed` refuses it under another key or context, or with any bit changed.
        - Sealing the same plaintext twice gives two unrelated blobs.
        - Not guaranteed: key commitment (an attacker who knows two keys can make a blob that opens
          under both), and freshness (an older blob of the same context opens too).

    Example:
        >>> key = new_key()
        >>> blob = seal(key, b"mine", context=encode_context("user 7", "head"))
        >>> len(blob), open_sealed(key, blob, context=encode_context("user 7", "head"))
        (512, b'mine')
    """
    cipher = _cipher(key)
    length = _sealed_length(len(plaintext), min_size)
    padding = bytes(length - _OVERHEAD - len(plaintext))
    nonce = os.urandom(_NONCE)
    # The length is inside: outside it would reveal what the padding hides.
    padded = len(plaintext).to_bytes(_LENGTH, "big") + plaintext + padding
    return _VERSION + nonce + cipher.encrypt(nonce, padded, _VERSION + context)


def open_sealed(key: bytes, blob: bytes, *, context: bytes) -> bytes:
    """Decrypt and verify a blob that :func:`seal` made.

    Args:
        key: The key it was sealed with, 32 bytes.
        blob: The sealed blob.
        context: The context it was sealed for.

    Returns:
        The plaintext.

    Raises:
        PrivacyError: The blob is not a sealed blob, was altered or cut, or belongs to another key
            or context.
        SettingError: A key of another length.

    Example:
        >>> key = new_key()
        >>> blob = seal(key, b"mine", context=encode_context("user 7"))
        >>> open_sealed(key, blob, context=encode_context("user 7"))
        b'mine'
    """
    cipher = _cipher(key)
    if not looks_sealed(blob):
        raise PrivacyError(
            f"{len(blob)} bytes are not a sealed blob of version {_VERSION[0]} (cut or overwritten,"
            " or made by a newer release); restore an intact copy"
        )
    nonce, body = blob[1 : 1 + _NONCE], blob[1 + _NONCE :]
    try:
        padded = cipher.decrypt(nonce, body, _VERSION + context)
    except InvalidTag:
        raise PrivacyError(
            f"a sealed blob of {len(blob)} bytes does not open: the key is wrong, it belongs to"
            " something else, or it was altered; use the key and the copy that belong together"
        ) from None
    return _remove_padding(padded)


def looks_sealed(blob: bytes) -> bool:
    """Whether bytes have the version and length of a sealed blob; the key is not needed.

    Example:
        >>> looks_sealed(seal(new_key(), b"mine", context=b"")), looks_sealed(b"mine")
        (True, False)
    """
    length = len(blob)
    in_class = MIN_SEALED_BYTES <= length <= MAX_SEALED_BYTES and length.bit_count() == 1
    return in_class and blob[:1] == _VERSION


def derive_key(passphrase: str, salt: bytes, *, log2_cost: int = SCRYPT_LOG2_COST) -> bytes:
    """Derive a key from a passphrase, by scrypt (RFC 7914) with N = 2^log2_cost, r = 8, p = 1.

    Args:
        passphrase: At least 8 characters (NIST SP 800-63B); normalised to NFKC, so that it does
            not depend on the keyboard.
        salt: 16 random bytes, stored beside the data that the key seals.
        log2_cost: From 14 to 20; each step doubles time and memory.

    Returns:
        32 bytes.

    Raises:
        SettingError: A short passphrase, a salt of another length, or a cost out of range.

    Example:
        >>> len(derive_key("correct horse", new_salt(), log2_cost=14))
        32
    """
    # Keyboards type the same character as different code points.
    text = unicodedata.normalize("NFKC", passphrase)
    if len(text) < _MIN_PASSPHRASE_LENGTH:
        raise SettingError(
            f"the passphrase has {len(text)} characters; it needs at least {_MIN_PASSPHRASE_LENGTH}"
        )
    if len(salt) != SALT_BYTES:
        raise SettingError(f"salt has {len(salt)} bytes; it must have {SALT_BYTES}")
    if log2_cost not in _SCRYPT_LOG2_COSTS:
        raise SettingError(
            f"log2_cost is {log2_cost}; it must be from {_SCRYPT_LOG2_COSTS[0]} "
            f"to {_SCRYPT_LOG2_COSTS[-1]}"
        )
    kdf = Scrypt(salt=salt, length=KEY_BYTES, n=1 << log2_cost, r=8, p=1)
    return kdf.derive(text.encode())


def wrap_key(key: bytes, passphrase: str, *, context: bytes, log2_cost: int | None = None) -> bytes:
    """Encrypt a key under a passphrase: cost (1 byte) | salt (16) | sealed blob (512).

    An attacker with the wrapped key can try passphrases, at half a second and 128 MiB each: it is
    only as strong as the passphrase.

    Args:
        key: 32 bytes.
        passphrase: As in :func:`derive_key`.
        context: What the wrapping is bound to; :func:`unwrap_key` must be called with the same.
        log2_cost: As in :func:`derive_key`; None takes ``SCRYPT_LOG2_COST``.

    Raises:
        SettingError: As in :func:`derive_key`, or a key of another length.
    """
    if len(key) != KEY_BYTES:
        raise SettingError(f"a key has {len(key)} bytes; it must have {KEY_BYTES}")
    log2_cost = SCRYPT_LOG2_COST if log2_cost is None else log2_cost
    header = bytes([log2_cost]) + new_salt()
    # The header is bound as context below, so that a lowered cost does not go unnoticed.
    outer = derive_key(passphrase, header[1:], log2_cost=log2_cost)
    return header + seal(outer, key, context=header + context)


def unwrap_key(wrapped: bytes, passphrase: str, *, context: bytes) -> bytes:
    """Decrypt a key that :func:`wrap_key` encrypted.

    Raises:
        PrivacyError: A wrong passphrase, another context, or a damaged wrapping.
        SettingError: A passphrase too short to be the right one.
    """
    header, blob = wrapped[: 1 + SALT_BYTES], wrapped[1 + SALT_BYTES :]
    if len(blob) != MIN_SEALED_BYTES or header[0] not in _SCRYPT_LOG2_COSTS:
        raise PrivacyError(
            f"{len(wrapped)} bytes are not a wrapped key of {1 + SALT_BYTES + MIN_SEALED_BYTES};"
            " restore an intact copy"
        )
    outer = derive_key(passphrase, header[1:], log2_cost=header[0])
    try:
        return open_sealed(outer, blob, context=header + context)
    except PrivacyError:
        raise PrivacyError(
            "the wrapped key does not open: the passphrase is wrong, or the wrapping belongs to"
            " another user or was altered"
        ) from None


def derive_signing_key(key: bytes, *, context: bytes) -> bytes:
    """Derive a private signing key (Ed25519) from a symmetric key, by HKDF-SHA256.

    Args:
        key: 32 random secret bytes.
        context: Its purpose and owner; see :func:`encode_context`.

    Returns:
        32 bytes, unrelated for every other context, from which ``key`` cannot be learned.

    Raises:
        SettingError: A key of another length.

    Example:
        >>> key = new_key()
        >>> derive_signing_key(key, context=b"a") == derive_signing_key(key, context=b"b")
        False
    """
    return HKDF(SHA256(), KEY_BYTES, None, context).derive(_validated_key(key))


def identity_public_key(private: bytes) -> bytes:
    """Compute the public half of an identity key (Ed25519), 32 bytes.

    Any 32 random bytes are a private key.

    Raises:
        SettingError: A key of another length.

    Example:
        >>> len(identity_public_key(new_key()))
        32
    """
    return (
        Ed25519PrivateKey.from_private_bytes(_validated_key(private))
        .public_key()
        .public_bytes_raw()
    )


def sign_message(private: bytes, message: bytes) -> bytes:
    """Sign a message with an identity key (Ed25519): 64 bytes, deterministic.

    The message must state its purpose (see :func:`encode_context`), so that a signature made for
    one purpose is invalid for any other.

    Raises:
        SettingError: A key of another length.

    Example:
        >>> private = new_key()
        >>> signature = sign_message(private, b"round 3")
        >>> public = identity_public_key(private)
        >>> verify_signature(public, signature, b"round 3")
        True
        >>> verify_signature(public, signature, b"round 4")
        False
    """
    return Ed25519PrivateKey.from_private_bytes(_validated_key(private)).sign(message)


def verify_signature(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature is valid for exactly this message; a malformed one is not."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    # ValueError: a public key of another length, which a server may have sent.
    except (InvalidSignature, ValueError):
        return False
    return True


def agreement_public_key(private: bytes) -> bytes:
    """Compute the public half of an agreement key (X25519), 32 bytes.

    Any 32 random bytes are a private key.

    Raises:
        SettingError: A key of another length.

    Example:
        >>> len(agreement_public_key(new_key()))
        32
    """
    return (
        X25519PrivateKey.from_private_bytes(_validated_key(private)).public_key().public_bytes_raw()
    )


def derive_shared_secret(private: bytes, public: bytes, *, context: bytes) -> bytes:
    """Derive a secret of two parties: X25519, then HKDF-SHA256 over ``context``.

    Args:
        private: One party's private key, 32 bytes.
        public: The other party's public key, 32 bytes. It must be authenticated by other means,
            such as a signature.
        context: The purpose of the secret.

    Returns:
        32 bytes, the same for both parties, unrelated for every other context.

    Raises:
        PrivacyError: A public key that would make the secret known to everybody (RFC 7748,
            section 6.1), or that is not a key.
        SettingError: A private key of another length.

    Guarantees:
        - Whoever has neither private key learns nothing of the secret (as long as X25519 and
          SHA-256 hold).

    Example:
        >>> ada, bob = new_key(), new_key()
        >>> one = derive_shared_secret(ada, agreement_public_key(bob), context=b"masks")
        >>> other = derive_shared_secret(bob, agreement_public_key(ada), context=b"masks")
        >>> one == other
        True
    """
    own = X25519PrivateKey.from_private_bytes(_validated_key(private))
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PrivacyError(
            f"{len(public)} bytes are no agreement key that gives a secret; its owner must draw"
            " another"
        ) from None
    return HKDF(SHA256(), KEY_BYTES, None, context).derive(shared)


def is_valid_agreement_key(public: bytes) -> bool:
    """Whether an agreement key (X25519) gives a secret with every private key.

    See :func:`derive_shared_secret`.

    Example:
        >>> public = agreement_public_key(new_key())
        >>> is_valid_agreement_key(public), is_valid_agreement_key(bytes(32))
        (True, False)
    """
    try:
        # A key of low order gives all zeros with any private key, this one included.
        X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES)).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        return False
    return True


def expand_keystream(key: bytes, length: int) -> bytes:
    """Expand a single-purpose key to pseudorandom bytes (ChaCha20 from block 0).

    Args:
        key: 32 uniformly random secret bytes.
        length: Number of bytes, from 0 to 2^32.

    Returns:
        The bytes; a longer stream begins with the shorter one.

    Raises:
        SettingError: A key or a stream of another length.

    Guarantees:
        - Without the key the bytes are indistinguishable from random ones. The same key always
          gives the same bytes, so use a key for one purpose only.

    Example:
        >>> expand_keystream(bytes(32), 4).hex()  # RFC 8439, A.1, test vector 1
        '76b8e0ad'
    """
    if not 0 <= length <= 1 << 32:
        raise SettingError(f"length is {length}; it must be from 0 to {1 << 32} bytes")
    # A nonce of zeros is safe only because each key makes a single stream.
    cipher = Cipher(algorithms.ChaCha20(_validated_key(key), bytes(16)), mode=None)
    return cipher.encryptor().update(bytes(length))


def _validated_key(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise SettingError(f"a key has {len(key)} bytes; it must have {KEY_BYTES}: see new_key()")
    return key


def _cipher(key: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_validated_key(key))


def _sealed_length(plain: int, min_size: int) -> int:
    """The smallest power of two, at least ``min_size``, that holds ``plain`` bytes once sealed."""
    if not (MIN_SEALED_BYTES <= min_size <= MAX_SEALED_BYTES and min_size.bit_count() == 1):
        raise SettingError(
            f"min_size is {min_size}; it must be a power of two from {MIN_SEALED_BYTES} "
            f"to {MAX_SEALED_BYTES}"
        )
    length = max(min_size, 1 << (plain + _OVERHEAD - 1).bit_length())
    if length > MAX_SEALED_BYTES:
        raise SettingError(
            f"{plain} bytes are too many to seal; "
            f"at most {MAX_SEALED_BYTES - _OVERHEAD} fit one blob"
        )
    return length


def _remove_padding(padded: bytes) -> bytes:
    """The plaintext without its length and zeros."""
    length = int.from_bytes(padded[:_LENGTH], "big")
    # Authenticated, so only a faulty sender can get here; a slice would hide the fault.
    if length > len(padded) - _LENGTH:
        raise PrivacyError(f"a sealed blob claims {length} bytes and holds {len(padded)}")
    return padded[_LENGTH : _LENGTH + length]
