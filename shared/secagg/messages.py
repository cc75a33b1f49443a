"""The ten messages of a secure sum, as frozen records and as bytes.

Every message begins with a mark, a version and its kind, and has exactly one form as bytes. What
does not read back is a ``MessageError``; whether it is *true* (signatures, membership, thresholds)
is for the two sides to check.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError
from sottovoce.shared.secagg import codec
from sottovoce.shared.secagg.quantise import Ring

VERSION: Final = 1
_MARK: Final = b"svsa"
_LONGEST: Final = 128
_HASH: Final = 32
SEED, KEY = b"\x00", b"\x01"
"""Which secret a share is of: the seed of a device's self mask, or its mask key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvertiseRequest:
    """Server to device: a round begins.

    Attributes:
        round: The round's name, unique over all runs.
    """

    round: str

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _framed(b"A", self.round.encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        (name,) = _opened(data, b"A", 1)
        return cls(round=codec.text(name, _LONGEST, "the round's name"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Advertisement:
    """Device to server, and on to all devices: fresh keys of one user for one round.

    Attributes:
        user: Whose.
        round: The round's name.
        agreement_key: X25519, 32 bytes: shares travel sealed under what it agrees on.
        mask_key: X25519, 32 bytes: pairwise masks come from what it agrees on.
        seed_commitment: SHA-256 that fixes the seed of the self mask, 32 bytes.
        signature: Ed25519 under the user's identity key, 64 bytes.
    """

    user: str
    round: str
    agreement_key: bytes
    mask_key: bytes
    seed_commitment: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        names = self.user.encode(), self.round.encode()
        keys = self.agreement_key, self.mask_key, self.seed_commitment
        return _framed(b"a", *names, *keys, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        user, name, agreement, mask, commitment, signature = _opened(data, b"a", 6)
        return cls(
            user=_user(user),
            round=codec.text(name, _LONGEST, "the round's name"),
            agreement_key=codec.exact(agreement, crypto.KEY_BYTES, "an agreement key"),
            mask_key=codec.exact(mask, crypto.KEY_BYTES, "a mask key"),
            seed_commitment=codec.exact(commitment, _HASH, "a commitment"),
            signature=codec.exact(signature, crypto.SIGNATURE_BYTES, "a signature"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareRequest:
    """Server to device: everybody's advertisements, in the order of users."""

    advertisements: tuple[Advertisement, ...]

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _framed(b"S", *(each.to_bytes() for each in self.advertisements))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        found = tuple(Advertisement.from_bytes(part) for part in _opened(data, b"S"))
        codec.ascending([each.user for each in found], "advertisements")
        return cls(advertisements=found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """Two shares from one user for another, sealed, with what fixes them.

    Attributes:
        sender: Whose secrets.
        receiver: Who holds the shares.
        sealed: Both shares; opens for the receiver only.
        seed_commitment: SHA-256 that fixes the share of the seed, 32 bytes.
        key_commitment: SHA-256 that fixes the share of the mask key, 32 bytes.
    """

    sender: str
    receiver: str
    sealed: bytes
    seed_commitment: bytes
    key_commitment: bytes

    def to_bytes(self) -> bytes:
        """As it travels, inside of other messages."""
        names = self.sender.encode(), self.receiver.encode()
        return codec.pack(*names, self.sealed, self.seed_commitment, self.key_commitment)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        sender, receiver, sealed, seed, key = codec.unpack(data, 5)
        return cls(
            sender=_user(sender),
            receiver=_user(receiver),
            sealed=codec.exact(sealed, crypto.LEAST_SEALED, "a pair of sealed shares"),
            seed_commitment=codec.exact(seed, _HASH, "a commitment"),
            key_commitment=codec.exact(key, _HASH, "a commitment"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcels:
    """Device to server: a parcel for each neighbour. Server to device: one from each."""

    parcels: tuple[Parcel, ...]

    def to_bytes(self) -> bytes:
        """As they travel."""
        return _framed(b"p", *(each.to_bytes() for each in self.parcels))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read them, or raise ``MessageError``."""
        return cls(parcels=tuple(Parcel.from_bytes(part) for part in _opened(data, b"p")))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Masked:
    """Device to server: the masked update.

    Attributes:
        vector: Shape (parameters,), uint32, each below 2^bits.
        signature: Ed25519 under the user's identity key, 64 bytes.
    """

    vector: Ring
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels, four bytes a value, the least first."""
        return _framed(b"m", vector_bytes(self.vector), self.signature)

    @classmethod
    def from_bytes(cls, data: bytes, *, parameters: int, bits: int) -> Self:
        """Read it; ``MessageError`` also where it has another length or a value out of range."""
        words, signature = _opened(data, b"m", 2)
        vector = np.frombuffer(codec.exact(words, 4 * parameters, "a masked vector"), dtype="<u4")
        if int(vector.max()) >> bits:
            raise MessageError(f"a masked vector has a value of {vector.max()}; below 2^{bits}")
        return cls(
            vector=vector.astype(np.uint32),
            signature=codec.exact(signature, crypto.SIGNATURE_BYTES, "a signature"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors:
    """Server to device: whose masked updates are summed, in the order of users."""

    users: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _framed(b"U", *(user.encode() for user in self.users))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        users = [_user(part) for part in _opened(data, b"U")]
        return cls(users=codec.ascending(users, "survivors"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Device to server: its signature on the survivors it was told, 64 bytes."""

    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _framed(b"g", self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        (signature,) = _opened(data, b"g", 1)
        return cls(signature=codec.exact(signature, crypto.SIGNATURE_BYTES, "a signature"))


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskRequest:
    """Server to device: the neighbours' signatures on the survivors, by user."""

    agreements: dict[str, bytes]

    def to_bytes(self) -> bytes:
        """As it travels."""
        pairs = sorted(self.agreements.items())
        return _framed(b"R", *(codec.pack(user.encode(), signed) for user, signed in pairs))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        pairs = [codec.unpack(part, 2) for part in _opened(data, b"R")]
        codec.ascending([_user(user) for user, _ in pairs], "agreements")
        length = crypto.SIGNATURE_BYTES
        return cls(agreements={_user(u): codec.exact(s, length, "a signature") for u, s in pairs})


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmasking:
    """Device to server: one share for each neighbour.

    Attributes:
        shares: From a neighbour's name to which of its secrets (``SEED`` or ``KEY``) and the share
            of it, 32 bytes. There is no room for both.
    """

    shares: dict[str, tuple[bytes, bytes]]

    def to_bytes(self) -> bytes:
        """As it travels."""
        rows = sorted(self.shares.items())
        return _framed(b"r", *(codec.pack(user.encode(), *share) for user, share in rows))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read it, or raise ``MessageError``."""
        rows = [codec.unpack(part, 3) for part in _opened(data, b"r")]
        codec.ascending([_user(user) for user, _, _ in rows], "shares")
        if any(kind not in (SEED, KEY) for _, kind, _ in rows):
            raise MessageError("a share is of no known kind; it must be of a seed or of a key")
        return cls(shares={_user(u): (k, codec.exact(s, 32, "a share")) for u, k, s in rows})


def vector_bytes(vector: Ring) -> bytes:
    """A vector as it travels and is signed: four bytes a value, the least first."""
    return vector.astype("<u4").tobytes()


def _framed(kind: bytes, *parts: bytes) -> bytes:
    """A message's mark, version and kind before its parts."""
    return _MARK + bytes([VERSION]) + kind + codec.pack(*parts)


def _opened(data: bytes, kind: bytes, count: int | None = None) -> list[bytes]:
    """The parts of a message of one kind."""
    frame = _framed(kind)
    if data[: len(frame)] != frame:
        raise MessageError(
            f"{len(data)} bytes are no message of kind {kind.decode()!r}, version {VERSION};"
            " both sides must run the same release, and answer in turn"
        )
    return codec.unpack(data[len(frame) :], count)


def _user(part: bytes) -> str:
    """A user's name."""
    return codec.text(part, _LONGEST, "a user's name")
