"""Session of one round, to which signatures, commitments and ciphertexts are bound.

A session is a hash over the round's name, the settings and everybody's advertisements. Whoever was
shown other advertisements, or runs with other settings, has another session: their seals do not
open, their signatures do not verify. Nothing of one round is of use in another.
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
    """SHA-256 over settings and advertisements (which name the round), 32 bytes.

    It is the seed of the graph too: see ``neighbour_graph.harary_graph``.
    """
    digest = hashlib.sha256(crypto.encode_context(_DOMAIN, "session", settings.config_hash().hex()))
    for each in sorted(advertisements, key=lambda each: each.user):
        digest.update(hashlib.sha256(each.to_bytes()).digest())
    return digest.digest()


def evaluation_points(users: Iterable[str]) -> dict[str, int]:
    """Where every user's shares are evaluated: 1, 2, ... in the order of names."""
    return {user: point for point, user in enumerate(sorted(users), start=1)}


def advertisement_payload(
    settings: SecureAggregationConfig, advertisement: KeyAdvertisement
) -> bytes:
    """What an advertisement's signature is over."""
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
    """Refuse an advertisement that is not this user's own for this round.

    Args:
        settings: The round's.
        advertisement: What came.
        identity: The user's identity key (Ed25519, public), known beforehand.
        round_name: The round.

    Raises:
        AggregationError: Another round, or a signature that is not the user's.

    Guarantees:
        - Whoever does not hold the user's private identity key cannot pass as the user: a server
          that puts keys of its own in between is found out (as long as Ed25519 holds).
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
    """What a masked update's signature is over."""
    digest = hashlib.sha256(encode_vector(vector)).hexdigest()
    return crypto.encode_context(_DOMAIN, "masked", session_id.hex(), user, digest)


def survivors_payload(session_id: bytes, users: Sequence[str]) -> bytes:
    """What a signature on the survivors is over."""
    return crypto.encode_context(_DOMAIN, "survivors", session_id.hex(), *users)


def commit_to_seed(user: str, round_name: str, seed: bytes) -> bytes:
    """Commit to the seed of a self mask without revealing it: SHA-256, 32 bytes.

    The seed has 256 bits of entropy, so that its hash hides it.
    """
    return hashlib.sha256(crypto.encode_context(_DOMAIN, "seed", user, round_name) + seed).digest()


def commit_to_share(
    session_id: bytes, owner: str, holder: str, *, kind: bytes, share: bytes
) -> bytes:
    """Commit to a share without revealing it: SHA-256, 32 bytes; it has 256 bits of entropy."""
    bound = crypto.encode_context(_DOMAIN, "share", session_id.hex(), owner, holder, kind.hex())
    return hashlib.sha256(bound + share).digest()
