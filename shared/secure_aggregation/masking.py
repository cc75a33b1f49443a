"""Masks: pseudorandom vectors that cancel in pairs, and a private one for each device."""

from collections.abc import Iterable

import numpy as np

from sottovoce.shared import crypto
from sottovoce.shared.secure_aggregation.quantisation import RingVector

_DOMAIN = "sottovoce secure aggregation"


def expand_mask(seed: bytes, parameters: int, bits: int) -> RingVector:
    """Expand a seed to a mask: ChaCha20's stream as integers below 2^bits, shape (parameters,).

    Args:
        seed: 32 secret bytes that are used for this mask only.
        parameters: Length of the mask.
        bits: Size of the ring, from 8 to 32.

    Guarantees:
        - Without the seed, the mask is indistinguishable from uniform values (ChaCha20).

    Example:
        >>> mask = expand_mask(bytes(32), parameters=5, bits=8)
        >>> mask.shape, mask.dtype, bool((mask < 256).all())
        ((5,), dtype('uint32'), True)
    """
    # Little-endian on every machine, or masks of two devices would not cancel.
    words = np.frombuffer(crypto.expand_keystream(seed, 4 * parameters), dtype="<u4").astype(
        np.uint32
    )
    return words & _low_bits(bits)


def pair_seed(session_id: bytes, private: bytes, public: bytes, *, users: Iterable[str]) -> bytes:
    """Derive the seed of the mask that two users share, 32 bytes; the same on either side.

    Args:
        session_id: See ``transcript.compute_session_id``.
        private: Private mask key of one user.
        public: Public mask key of the other user.
        users: Names of both users, in any order.

    Raises:
        PrivacyError: A public key that gives no secret.

    Example:
        >>> ada, bob = crypto.new_key(), crypto.new_key()
        >>> one = pair_seed(b"s", ada, crypto.agreement_public_key(bob), users=("ada", "bob"))
        >>> other = pair_seed(b"s", bob, crypto.agreement_public_key(ada), users=("bob", "ada"))
        >>> one == other
        True
    """
    context = crypto.encode_context(_DOMAIN, "mask", session_id.hex(), *sorted(users))
    return crypto.derive_shared_secret(private, public, context=context)


def pair_mask(seed: bytes, user: str, other: str, *, parameters: int, bits: int) -> RingVector:
    """Compute the mask that ``user`` adds for a pair; the masks of both users add up to 0.

    Example:
        >>> ada = pair_mask(bytes(32), "ada", "bob", parameters=3, bits=16)
        >>> bob = pair_mask(bytes(32), "bob", "ada", parameters=3, bits=16)
        >>> add_mask(ada, bob, bits=16)
        array([0, 0, 0], dtype=uint32)
    """
    mask = expand_mask(seed, parameters, bits)
    # The order of names decides the sign, so the pair needs no message to agree on it.
    return mask if user < other else negate_mask(mask, bits)


def add_mask(vector: RingVector, mask: RingVector, bits: int) -> RingVector:
    """Add a mask to a vector modulo 2^bits.

    Guarantees:
        - If ``mask`` is uniform and unknown, the sum is uniform and independent of ``vector``.

    Example:
        >>> add_mask(np.array([250], dtype=np.uint32), np.array([10], dtype=np.uint32), bits=8)
        array([4], dtype=uint32)
    """
    return (vector + mask) & _low_bits(bits)


def negate_mask(mask: RingVector, bits: int) -> RingVector:
    """Negate a mask modulo 2^bits; adding the result removes the mask again.

    Example:
        >>> negate_mask(np.array([1, 0], dtype=np.uint32), bits=8)
        array([255,   0], dtype=uint32)
    """
    return (~mask + np.uint32(1)) & _low_bits(bits)


def _low_bits(bits: int) -> np.uint32:
    """The ``bits`` low bits set."""
    return np.uint32((1 << bits) - 1)
