"""Encryption of the two secret shares that one user sends to another, with commitments."""

from dataclasses import replace

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, PrivacyError
from sottovoce.shared.secure_aggregation import secret_sharing, transcript
from sottovoce.shared.secure_aggregation.messages import KEY_SHARE, SEED_SHARE, EncryptedShares

_DOMAIN = "sottovoce secure aggregation"


def encrypt_shares(
    session_id: bytes,
    private: bytes,
    public: bytes,
    *,
    names: tuple[str, str],
    seed: bytes,
    key: bytes,
) -> EncryptedShares:
    """Encrypt the shares of a seed and of a mask key for a neighbour.

    Args:
        session_id: See ``transcript.compute_session_id``.
        private: The sender's agreement key.
        public: The receiver's agreement key, signed by the receiver's identity.
        names: Sender and receiver.
        seed: Share of the sender's seed, 32 bytes.
        key: Share of the sender's mask key, 32 bytes.

    Raises:
        PrivacyError: A public key that gives no secret.

    Guarantees:
        - They decrypt for this receiver, from this sender, in this session only, and not at all
          once a bit of them or of their commitments has changed.
        - The commitments let the server recognise a wrong share and reveal nothing (SHA-256 of
          256 bits of entropy).
    """
    sender, receiver = names
    unsealed = EncryptedShares(
        sender=sender,
        receiver=receiver,
        ciphertext=b"",
        seed_commitment=transcript.commit_to_share(
            session_id, sender, receiver, kind=SEED_SHARE, share=seed
        ),
        key_commitment=transcript.commit_to_share(
            session_id, sender, receiver, kind=KEY_SHARE, share=key
        ),
    )
    secret = _key(session_id, private, public, names)
    # Commitments are bound as associated data: the server cannot exchange them.
    sealed = crypto.seal(secret, seed + key, context=_context(session_id, unsealed))
    return replace(unsealed, ciphertext=sealed)


def decrypt_shares(
    session_id: bytes, private: bytes, public: bytes, encrypted: EncryptedShares
) -> tuple[bytes, bytes]:
    """Decrypt the shares of seed and mask key, 32 bytes each, and check the commitments.

    Args:
        session_id: See ``transcript.compute_session_id``.
        private: The receiver's agreement key.
        public: The sender's agreement key, signed by the sender's identity.
        encrypted: The message from the sender, relayed by the server.

    Returns:
        The share of the sender's seed and the share of its mask key.

    Raises:
        AggregationError: It does not decrypt, or holds other shares than it commits to.

    Example:
        >>> ada, bob = crypto.new_key(), crypto.new_key()
        >>> encrypted = encrypt_shares(
        ...     b"session",
        ...     ada,
        ...     crypto.agreement_public_key(bob),
        ...     names=("ada", "bob"),
        ...     seed=bytes(32),
        ...     key=b"k" * 32,
        ... )
        >>> public = crypto.agreement_public_key(ada)
        >>> decrypt_shares(b"session", bob, public, encrypted) == (bytes(32), b"k" * 32)
        True
    """
    names = encrypted.sender, encrypted.receiver
    try:
        secret = _key(session_id, private, public, names)
        pair = crypto.open_sealed(
            secret, encrypted.ciphertext, context=_context(session_id, encrypted)
        )
    except PrivacyError as error:
        raise AggregationError(
            f"the shares of {encrypted.sender!r} for {encrypted.receiver!r} do not open: they were"
            " altered or replayed, or the two were shown other keys; nothing is sent"
        ) from error
    seed, key = pair[: secret_sharing.FIELD_BYTES], pair[secret_sharing.FIELD_BYTES :]
    # The seal proves who sent the shares, not that they match what the server was shown.
    for kind, share, committed in (
        (SEED_SHARE, seed, encrypted.seed_commitment),
        (KEY_SHARE, key, encrypted.key_commitment),
    ):
        if transcript.commit_to_share(session_id, *names, kind=kind, share=share) != committed:
            raise AggregationError(f"{encrypted.sender!r} committed to other shares than it sent")
    return seed, key


def _key(session_id: bytes, private: bytes, public: bytes, names: tuple[str, str]) -> bytes:
    """Key under which a pair of users seals shares, in either direction."""
    # "parcel" is what the first release wrote here; another word would change every key.
    context = crypto.encode_context(_DOMAIN, "parcel", session_id.hex(), *sorted(names))
    return crypto.derive_shared_secret(private, public, context=context)


def _context(session_id: bytes, encrypted: EncryptedShares) -> bytes:
    """Associated data of the ciphertext: session, direction and commitments."""
    commitments = encrypted.seed_commitment.hex(), encrypted.key_commitment.hex()
    names = encrypted.sender, encrypted.receiver
    return crypto.encode_context(_DOMAIN, "parcel", session_id.hex(), *names, *commitments)
