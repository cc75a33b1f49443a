"""The ten messages of a secure sum, as frozen records and as bytes.

Every message begins with a magic number, a version and its kind, and has exactly one encoding.
Bytes that cannot be decoded raise ``MessageError``. Whether a message is *true* (signatures,
membership, thresholds) is checked by the two sides of the protocol.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError
from sottovoce.shared.secure_aggregation import framing
from sottovoce.shared.secure_aggregation.quantisation import RingVector

PROTOCOL_VERSION: Final = 1
# The magic number of all messages; with the version it keeps releases from misreading another.
_MARK: Final = b"svsa"
_MAX_NAME_LENGTH: Final = 128
_HASH_BYTES: Final = 32
SEED_SHARE, KEY_SHARE = b"\x00", b"\x01"
"""Kinds of shares: of the seed of a device's self mask, and of its mask key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvertiseRequest:
    """Server to device: the start of a round.

    Attributes:
        round_name: The round's name, unique over all runs.
    """

    round_name: str

    def to_bytes(self) -> bytes:
        """Encode the message for sending.

        Example:
            >>> request = AdvertiseRequest(round_name="run-7/round-3")
            >>> AdvertiseRequest.from_bytes(request.to_bytes()) == request
            True
        """
        return _frame(b"A", self.round_name.encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        (name,) = _unframe(data, b"A", 1)
        return cls(round_name=framing.decode_text(name, _MAX_NAME_LENGTH, "the round's name"))


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyAdvertisement:
    """Device to server, and on to all devices: one user's fresh keys for one round.

    Attributes:
        user: Name of the user.
        round_name: The round's name.
        agreement_key: X25519 public key, 32 bytes, for the encryption of shares.
        mask_key: X25519 public key, 32 bytes, for the seeds of pairwise masks.
        seed_commitment: SHA-256 commitment to the seed of the self mask, 32 bytes.
        signature: Ed25519 under the user's identity key, 64 bytes.
    """

    user: str
    round_name: str
    agreement_key: bytes
    mask_key: bytes
    seed_commitment: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Encode the message for sending."""
        names = self.user.encode(), self.round_name.encode()
        keys = self.agreement_key, self.mask_key, self.seed_commitment
        return _frame(b"a", *names, *keys, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        user, name, agreement, mask, commitment, signature = _unframe(data, b"a", 6)
        return cls(
            user=_decode_user(user),
            round_name=framing.decode_text(name, _MAX_NAME_LENGTH, "the round's name"),
            agreement_key=framing.require_length(agreement, crypto.KEY_BYTES, "an agreement key"),
            mask_key=framing.require_length(mask, crypto.KEY_BYTES, "a mask key"),
            seed_commitment=framing.require_length(commitment, _HASH_BYTES, "a commitment"),
            signature=framing.require_length(signature, crypto.SIGNATURE_BYTES, "a signature"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareRequest:
    """Server to device: everybody's advertisements, in the order of users."""

    advertisements: tuple[KeyAdvertisement, ...]

    def to_bytes(self) -> bytes:
        """Encode the message for sending."""
        return _frame(b"S", *(each.to_bytes() for each in self.advertisements))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        found = tuple(KeyAdvertisement.from_bytes(part) for part in _unframe(data, b"S"))
        framing.require_ascending([each.user for each in found], "advertisements")
        return cls(advertisements=found)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedShares:
    """Two encrypted shares from one user for another, with commitments to both.

    Attributes:
        sender: User whose secrets are shared.
        receiver: User who will hold the shares.
        ciphertext: Both shares, encrypted for the receiver.
        seed_commitment: SHA-256 commitment to the share of the seed, 32 bytes.
        key_commitment: SHA-256 commitment to the share of the mask key, 32 bytes.
    """

    sender: str
    receiver: str
    ciphertext: bytes
    seed_commitment: bytes
    key_commitment: bytes

    def to_bytes(self) -> bytes:
        """Encode the shares as part of other messages."""
        names = self.sender.encode(), self.receiver.encode()
        return framing.pack(*names, self.ciphertext, self.seed_commitment, self.key_commitment)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the shares, or raise ``MessageError``."""
        sender, receiver, sealed, seed, key = framing.unpack(data, 5)
        return cls(
            sender=_decode_user(sender),
            receiver=_decode_user(receiver),
            ciphertext=framing.require_length(
                sealed, crypto.MIN_SEALED_BYTES, "a pair of sealed shares"
            ),
            seed_commitment=framing.require_length(seed, _HASH_BYTES, "a commitment"),
            key_commitment=framing.require_length(key, _HASH_BYTES, "a commitment"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedSharesBatch:
    """Device to server: encrypted shares for each neighbour. Server to device: those from each."""

    encrypted_shares: tuple[EncryptedShares, ...]

    def to_bytes(self) -> bytes:
        """Encode the message for sending."""
        return _frame(b"p", *(each.to_bytes() for each in self.encrypted_shares))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        return cls(
            encrypted_shares=tuple(
                EncryptedShares.from_bytes(part) for part in _unframe(data, b"p")
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MaskedUpdate:
    """Device to server: the masked update, signed.

    Attributes:
        vector: Shape (parameters,), uint32, each below 2^bits.
        signature: Ed25519 under the user's identity key, 64 bytes.
    """

    vector: RingVector
    signature: bytes

    def to_bytes(self) -> bytes:
        """Encode the message; vector values take four bytes, little-endian.

        Example:
            >>> update = MaskedUpdate(vector=np.array([1, 2], dtype=np.uint32), signature=bytes(64))
            >>> data = update.to_bytes()
            >>> MaskedUpdate.from_bytes(data, parameters=2, bits=16).vector
            array([1, 2], dtype=uint32)
        """
        return _frame(b"m", encode_vector(self.vector), self.signature)

    @classmethod
    def from_bytes(cls, data: bytes, *, parameters: int, bits: int) -> Self:
        """Decode the message; ``MessageError`` also for a wrong length or a value out of range."""
        words, signature = _unframe(data, b"m", 2)
        vector = np.frombuffer(
            framing.require_length(words, 4 * parameters, "a masked vector"), dtype="<u4"
        )
        # Values beyond the ring would make two different messages stand for the same vector.
        if int(vector.max()) >> bits:
            raise MessageError(f"a masked vector has a value of {vector.max()}; below 2^{bits}")
        return cls(
            # A copy in native byte order: arrays over received bytes are read-only.
            vector=vector.astype(np.uint32),
            signature=framing.require_length(signature, crypto.SIGNATURE_BYTES, "a signature"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors:
    """Server to device: users whose masked updates are summed, in ascending order."""

    users: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Encode the message for sending.

        Example:
            >>> survivors = Survivors(users=("ada", "bob", "cem"))
            >>> Survivors.from_bytes(survivors.to_bytes()).users
            ('ada', 'bob', 'cem')
        """
        return _frame(b"U", *(user.encode() for user in self.users))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        users = [_decode_user(part) for part in _unframe(data, b"U")]
        return cls(users=framing.require_ascending(users, "survivors"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencySignature:
    """Device to server: a signature on the survivors, 64 bytes."""

    signature: bytes

    def to_bytes(self) -> bytes:
        """Encode the message for sending.

        Example:
            >>> signed = ConsistencySignature(signature=bytes(64))
            >>> ConsistencySignature.from_bytes(signed.to_bytes()) == signed
            True
        """
        return _frame(b"g", self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        (signature,) = _unframe(data, b"g", 1)
        return cls(
            signature=framing.require_length(signature, crypto.SIGNATURE_BYTES, "a signature")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskRequest:
    """Server to device: the neighbours' signatures on the survivors, by user."""

    consistency_signatures: dict[str, bytes]

    def to_bytes(self) -> bytes:
        """Encode the message for sending.

        Example:
            >>> request = UnmaskRequest(consistency_signatures={"ada": bytes(64)})
            >>> UnmaskRequest.from_bytes(request.to_bytes()) == request
            True
        """
        # Sorted, so that one message has one encoding.
        pairs = sorted(self.consistency_signatures.items())
        return _frame(b"R", *(framing.pack(user.encode(), signed) for user, signed in pairs))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        pairs = [framing.unpack(part, 2) for part in _unframe(data, b"R")]
        framing.require_ascending([_decode_user(user) for user, _ in pairs], "agreements")
        length = crypto.SIGNATURE_BYTES
        return cls(
            consistency_signatures={
                _decode_user(u): framing.require_length(s, length, "a signature") for u, s in pairs
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskShares:
    """Device to server: one share for each neighbour.

    Attributes:
        shares: For each neighbour's name the kind of secret (``SEED_SHARE`` or ``KEY_SHARE``) and
            the share of it, 32 bytes. The format cannot hold both kinds.
    """

    shares: dict[str, tuple[bytes, bytes]]

    def to_bytes(self) -> bytes:
        """Encode the message for sending.

        Example:
            >>> shares = UnmaskShares(shares={"ada": (SEED_SHARE, bytes(32))})
            >>> UnmaskShares.from_bytes(shares.to_bytes()) == shares
            True
        """
        rows = sorted(self.shares.items())
        return _frame(b"r", *(framing.pack(user.encode(), *share) for user, share in rows))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode the message, or raise ``MessageError``."""
        rows = [framing.unpack(part, 3) for part in _unframe(data, b"r")]
        framing.require_ascending([_decode_user(user) for user, _, _ in rows], "shares")
        if any(kind not in (SEED_SHARE, KEY_SHARE) for _, kind, _ in rows):
            raise MessageError("a share is of no known kind; it must be of a seed or of a key")
        return cls(
            shares={
                _decode_user(u): (k, framing.require_length(s, 32, "a share")) for u, k, s in rows
            }
        )


def encode_vector(vector: RingVector) -> bytes:
    """Encode a vector as it is sent and signed: four bytes per value, little-endian.

    Example:
        >>> encode_vector(np.array([1, 256], dtype=np.uint32)).hex()
        '0100000000010000'
    """
    return vector.astype("<u4").tobytes()


def _frame(kind: bytes, *parts: bytes) -> bytes:
    """A message's mark, version and kind before its parts."""
    return _MARK + bytes([PROTOCOL_VERSION]) + kind + framing.pack(*parts)


def _unframe(data: bytes, kind: bytes, count: int | None = None) -> list[bytes]:
    """The parts of a message of one kind."""
    frame = _frame(kind)
    if data[: len(frame)] != frame:
        raise MessageError(
            f"{len(data)} bytes are no message of kind {kind.decode()!r}, version"
            f" {PROTOCOL_VERSION}; both sides must run the same release, and answer in turn"
        )
    return framing.unpack(data[len(frame) :], count)


def _decode_user(part: bytes) -> str:
    """A user's name."""
    return framing.decode_text(part, _MAX_NAME_LENGTH, "a user's name")
