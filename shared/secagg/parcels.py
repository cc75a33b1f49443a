"""Two shares from one user for another, sealed and fixed."""

from dataclasses import replace

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, PrivacyError
from sottovoce.shared.secagg import session, shamir
from sottovoce.shared.secagg.messages import KEY, SEED, Parcel

_HOUSE = "sottovoce secure aggregation"


def seal(
    session_id: bytes,
    private: bytes,
    public: bytes,
    *,
    names: tuple[str, str],
    seed: bytes,
    key: bytes,
) -> Parcel:
    """Seal the shares of a seed and of a mask key for a neighbour.

    Args:
        session_id: See ``session.session``.
        private: The sender's agreement key.
        public: The receiver's agreement key, signed by the receiver's identity.
        names: Sender and receiver.
        seed: Share of the sender's seed, 32 bytes.
        key: Share of the sender's mask key, 32 bytes.

    Raises:
        PrivacyError: A public key that gives no secret.

    Guarantees:
        - It opens for this receiver, from this sender, in this session only, and not at all once
          a bit of it or of its commitments has changed.
        - The commitments let the server recognise a wrong share and tell it nothing (SHA-256 of
          256 bits of entropy).
    """
    sender, receiver = names
    unsealed = Parcel(
        sender=sender,
        receiver=receiver,
        sealed=b"",
        seed_commitment=session.share_commitment(
            session_id, sender, receiver, kind=SEED, share=seed
        ),
        key_commitment=session.share_commitment(session_id, sender, receiver, kind=KEY, share=key),
    )
    secret = _key(session_id, private, public, names)
    sealed = crypto.seal(secret, seed + key, context=_context(session_id, unsealed))
    return replace(unsealed, sealed=sealed)


def unseal(session_id: bytes, private: bytes, public: bytes, parcel: Parcel) -> tuple[bytes, bytes]:
    """The shares of seed and mask key, 32 bytes each, once they are as committed.

    Args:
        session_id: See ``session.session``.
        private: The receiver's agreement key.
        public: The sender's agreement key, signed by the sender's identity.
        parcel: What came.

    Raises:
        AggregationError: It does not open, or holds other shares than it commits to.
    """
    names = parcel.sender, parcel.receiver
    try:
        secret = _key(session_id, private, public, names)
        pair = crypto.open_sealed(secret, parcel.sealed, context=_context(session_id, parcel))
    except PrivacyError as error:
        raise AggregationError(
            f"the shares of {parcel.sender!r} for {parcel.receiver!r} do not open: they were"
            " altered or replayed, or the two were shown other keys; nothing is sent"
        ) from error
    seed, key = pair[: shamir.BYTES], pair[shamir.BYTES :]
    for kind, share, committed in (
        (SEED, seed, parcel.seed_commitment),
        (KEY, key, parcel.key_commitment),
    ):
        if session.share_commitment(session_id, *names, kind=kind, share=share) != committed:
            raise AggregationError(f"{parcel.sender!r} committed to other shares than it gave")
    return seed, key


def _key(session_id: bytes, private: bytes, public: bytes, names: tuple[str, str]) -> bytes:
    """The key that a pair of users seals shares under, in either direction."""
    context = crypto.bind(_HOUSE, "parcel", session_id.hex(), *sorted(names))
    return crypto.agree(private, public, context=context)


def _context(session_id: bytes, parcel: Parcel) -> bytes:
    """What the seal is bound to: session, direction and commitments."""
    commitments = parcel.seed_commitment.hex(), parcel.key_commitment.hex()
    names = parcel.sender, parcel.receiver
    return crypto.bind(_HOUSE, "parcel", session_id.hex(), *names, *commitments)
