"""Session identifier of one round, to which signatures, commitments and ciphertexts are bound.

The identifier is a hash over the round's name, the settings and all advertisements. A device that
was shown other advertisements, or runs with other settings, has another identifier: its ciphertexts
do not decrypt, its signatures do not verify. Nothing from one round can be replayed in another.
"""

import hashlib
from collections.abc import Iterable, Sequence

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.messages import KeyAdvertisement, encode_vector
from sottovoce.shared.secure_aggregation.quantisation import RingVector

_DOMAIN = "sottovoce secure aggregation"


def compute_session_id(
    settings: SecureAggregationConfig, advertisements: Iterable[KeyAdvertisement]
) -> bytes:
    """Compute SHA-256 over settings and advertisements (which name the round), 32 bytes.

    It is also the seed of the graph: see ``neighbour_graph.harary_graph``.
    """
    digest = hashlib.sha256(crypto.encode_context(_DOMAIN, "session", settings.config_hash().hex()))
    # Sorted: devices may receive the advertisements in different orders.
    for each in sorted(advertisements, key=lambda each: each.user):
        digest.update(hashlib.sha256(each.to_bytes()).digest())
    return digest.digest()


def evaluation_points(users: Iterable[str]) -> dict[str, int]:
    """Assign the point of every user's shares: 1, 2, ... in the order of names.

    Example:
        >>> evaluation_points(["cem", "ada", "bob"])
        {'ada': 1, 'bob': 2, 'cem': 3}
    """
    return {user: point for point, user in enumerate(sorted(users), start=1)}


def advertisement_payload(
    settings: SecureAggregationConfig, advertisement: KeyAdvertisement
) -> bytes:
    """Encode an advertisement for its signature."""
    return crypto.encode_context(
        _DOMAIN,
        "advertise",
        settings.config_hash().hex(),
        advertisement.user,
        advertisement.round_name,
        advertisement.agreement_key.hex(),
        advertisement.mask_key.hex(),
        advertisement.seed_commitment.hex(),
    )


def verify_advertisement(
    settings: SecureAggregationConfig,
    advertisement: KeyAdvertisement,
    *,
    identity: bytes,
    round_name: str,
) -> None:
    """Refuse an advertisement that the user did not sign for this round.

    Args:
        settings: Settings of the round.
        advertisement: The advertisement, as received.
        identity: The user's public identity key (Ed25519), known beforehand.
        round_name: Name of the round.

    Raises:
        AggregationError: Another round, or a signature that is not the user's.

    Guarantees:
        - Without the user's private identity key nobody can impersonate the user: a server that
          substitutes keys of its own is detected (if Ed25519 is secure).
    """
    if advertisement.round_name != round_name:
        raise AggregationError(
            f"{advertisement.user!r} advertises for round {advertisement.round_name!r}, this is"
            f" {round_name!r}: a replayed message; nothing is sent"
        )
    if not crypto.verify_signature(
        identity, advertisement.signature, advertisement_payload(settings, advertisement)
    ):
        raise AggregationError(
            f"the keys of {advertisement.user!r} are not signed by the identity known for that"
            " user under these settings: somebody is in the middle, or the identity changed;"
            " compare identities before going on"
        )


def masked_update_payload(session_id: bytes, user: str, vector: RingVector) -> bytes:
    """Encode a masked update for its signature."""
    # Hashed first, to sign a short payload instead of megabytes.
    digest = hashlib.sha256(encode_vector(vector)).hexdigest()
    return crypto.encode_context(_DOMAIN, "masked", session_id.hex(), user, digest)


def survivors_payload(session_id: bytes, users: Sequence[str]) -> bytes:
    """Encode the list of survivors for a consistency signature.

    Example:
        >>> survivors_payload(b"s", ["ada", "bob"]) == survivors_payload(b"s", ["adab", "ob"])
        False
    """
    return crypto.encode_context(_DOMAIN, "survivors", session_id.hex(), *users)


def commit_to_seed(user: str, round_name: str, seed: bytes) -> bytes:
    """Commit to the seed of a self mask without revealing it: SHA-256, 32 bytes.

    The seed has 256 bits of entropy, so its hash hides it.

    Example:
        >>> seed = bytes(range(32))
        >>> commit_to_seed("ada", "round 1", seed) == commit_to_seed("bob", "round 1", seed)
        False
    """
    return hashlib.sha256(crypto.encode_context(_DOMAIN, "seed", user, round_name) + seed).digest()


def commit_to_share(
    session_id: bytes, owner: str, holder: str, *, kind: bytes, share: bytes
) -> bytes:
    r"""Commit to a share without revealing it: SHA-256, 32 bytes.

    Example:
        >>> len(commit_to_share(b"s", "ada", "bob", kind=b"\x00", share=bytes(32)))
        32
    """
    # A share has 256 bits of entropy, so the hash hides it without a salt.
    bound = crypto.encode_context(_DOMAIN, "share", session_id.hex(), owner, holder, kind.hex())
    return hashlib.sha256(bound + share).digest()
