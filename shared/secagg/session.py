"""What signatures, commitments and seals of one round are bound to.

A session is a hash over the round's name, the settings and everybody's advertisements. Whoever was
shown other advertisements, or runs with other settings, has another session: their seals do not
open, their signatures do not verify. Nothing of one round is of use in another.
"""

import hashlib
from collections.abc import Iterable, Sequence

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError
from sottovoce.shared.secagg.messages import Advertisement, vector_bytes
from sottovoce.shared.secagg.quantise import Ring
from sottovoce.shared.secagg.settings import SecureAggregation

_HOUSE = "sottovoce secure aggregation"


def session(settings: SecureAggregation, advertisements: Iterable[Advertisement]) -> bytes:
    """SHA-256 over settings and advertisements (which name the round), 32 bytes.

    It is the seed of the graph too: see ``graph.harary``.
    """
    digest = hashlib.sha256(crypto.bind(_HOUSE, "session", settings.digest().hex()))
    for each in sorted(advertisements, key=lambda each: each.user):
        digest.update(hashlib.sha256(each.to_bytes()).digest())
    return digest.digest()


def places(users: Iterable[str]) -> dict[str, int]:
    """Where every user's shares are evaluated: 1, 2, ... in the order of names."""
    return {user: place for place, user in enumerate(sorted(users), start=1)}


def advertised(settings: SecureAggregation, advertisement: Advertisement) -> bytes:
    """What an advertisement's signature is over."""
    return crypto.bind(
        _HOUSE,
        "advertise",
        settings.digest().hex(),
        advertisement.user,
        advertisement.round,
        advertisement.agreement_key.hex(),
        advertisement.mask_key.hex(),
        advertisement.seed_commitment.hex(),
    )


def check_advertisement(
    settings: SecureAggregation, advertisement: Advertisement, *, identity: bytes, round_name: str
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
    if advertisement.round != round_name:
        raise AggregationError(
            f"{advertisement.user!r} advertises for round {advertisement.round!r}, this is"
            f" {round_name!r}: a replayed message; nothing is sent"
        )
    if not crypto.verify(identity, advertisement.signature, advertised(settings, advertisement)):
        raise AggregationError(
            f"the keys of {advertisement.user!r} are not signed by the identity known for that"
            " user under these settings: somebody is in the middle, or the identity changed;"
            " compare identities before going on"
        )


def masked(session_id: bytes, user: str, vector: Ring) -> bytes:
    """What a masked update's signature is over."""
    digest = hashlib.sha256(vector_bytes(vector)).hexdigest()
    return crypto.bind(_HOUSE, "masked", session_id.hex(), user, digest)


def survivors(session_id: bytes, users: Sequence[str]) -> bytes:
    """What a signature on the survivors is over."""
    return crypto.bind(_HOUSE, "survivors", session_id.hex(), *users)


def seed_commitment(user: str, round_name: str, seed: bytes) -> bytes:
    """Fixes the seed of a self mask without telling it: SHA-256, 32 bytes.

    The seed has 256 bits of entropy, so that its hash hides it.
    """
    return hashlib.sha256(crypto.bind(_HOUSE, "seed", user, round_name) + seed).digest()


def share_commitment(
    session_id: bytes, owner: str, holder: str, *, kind: bytes, share: bytes
) -> bytes:
    """Fixes one share without telling it: SHA-256, 32 bytes; a share has 256 bits of entropy."""
    bound = crypto.bind(_HOUSE, "share", session_id.hex(), owner, holder, kind.hex())
    return hashlib.sha256(bound + share).digest()
