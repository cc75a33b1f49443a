"""Masks: pseudorandom vectors that cancel in pairs, and one that each device keeps to itself."""

from collections.abc import Iterable

import numpy as np

from sottovoce.shared import crypto
from sottovoce.shared.secure_aggregation.quantisation import RingVector

_DOMAIN = "sottovoce secure aggregation"


def expand_mask(seed: bytes, parameters: int, bits: int) -> RingVector:
    """A mask: ChaCha20's stream from ``seed`` as integers below 2^bits, shape (parameters,).

    Args:
        seed: 32 secret bytes that make this mask and nothing else.
        parameters: How long.
        bits: From 8 to 32.

    Guarantees:
        - To whoever lacks the seed, the mask cannot be told from uniform values (ChaCha20).
    """
    words = np.frombuffer(crypto.expand_keystream(seed, 4 * parameters), dtype="<u4").astype(
        np.uint32
    )
    return words & _low_bits(bits)


def pair_seed(session_id: bytes, private: bytes, public: bytes, *, users: Iterable[str]) -> bytes:
    """The seed of the mask that two users share, 32 bytes; the same from either side.

    Args:
        session_id: See ``transcript.compute_session_id``.
        private: Mask key of one of them.
        public: Mask key of the other.
        users: Both of them, in any order.

    Raises:
        PrivacyError: A public key that gives no secret.
    """
    context = crypto.encode_context(_DOMAIN, "mask", session_id.hex(), *sorted(users))
    return crypto.derive_shared_secret(private, public, context=context)


def pair_mask(seed: bytes, user: str, other: str, *, parameters: int, bits: int) -> RingVector:
    """What ``user`` adds for the pair: the mask, or its negative; both users' add up to 0."""
    mask = expand_mask(seed, parameters, bits)
    return mask if user < other else negate_mask(mask, bits)


def add_mask(vector: RingVector, mask: RingVector, bits: int) -> RingVector:
    """The sum of two vectors modulo 2^bits.

    Guarantees:
        - Where ``mask`` is uniform and unknown, the sum is uniform and says nothing of ``vector``.
    """
    return (vector + mask) & _low_bits(bits)


def negate_mask(mask: RingVector, bits: int) -> RingVector:
    """The negative of a mask, which removes it again, modulo 2^bits."""
    return (~mask + np.uint32(1)) & _low_bits(bits)


def _low_bits(bits: int) -> np.uint32:
    """The ``bits`` low bits set."""
    return np.uint32((1 << bits) - 1)
