"""Secret sharing (Shamir 1979) over the prime field of 2^256 - 189."""

import secrets
from collections.abc import Collection, Mapping
from typing import Final

from sottovoce.shared.errors import AggregationError, SettingError

PRIME: Final = 2**256 - 189
"""The largest prime below 2^256: shares of secrets of up to 256 bits fit 32 bytes."""

FIELD_BYTES: Final = 32


def new_secret() -> bytes:
    """Draw a secret of 32 bytes from the operating system, an element of the field.

    Example:
        >>> len(new_secret())
        32
    """
    return _to_bytes(secrets.randbelow(PRIME))


def split_secret(secret: bytes, points: Collection[int], threshold: int) -> dict[int, bytes]:
    """Split a secret into shares, ``threshold`` of which are enough.

    Args:
        secret: At most 32 bytes, a big-endian number below the prime; a shorter secret is
            returned with leading zeros.
        points: Points at which the polynomial is evaluated, one number in [1, prime) for each
            holder, all different.
        threshold: Number of shares that reconstruct the secret, from 1 to the number of points.

    Returns:
        The share at every point, 32 bytes each.

    Raises:
        SettingError: A secret out of the field, points that repeat or are 0, or a threshold that
            cannot be met.

    Guarantees:
        - Fewer than ``threshold`` shares are uniform and independent of the secret, so they reveal
          nothing to an attacker of any power; randomness is from the operating system.
        - Not guaranteed: that a share is correct. Commitments to shares and secret show that.

    Example:
        >>> secret = new_secret()
        >>> shares = split_secret(secret, points=[1, 2, 3], threshold=2)
        >>> combine_shares({1: shares[1], 3: shares[3]}, threshold=2) == secret
        True
    """
    value = int.from_bytes(secret, "big")
    if len(secret) > FIELD_BYTES or value >= PRIME:
        raise SettingError(f"a secret of {len(secret)} bytes is not in the field; see new_secret()")
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise SettingError("points of shares must differ from each other and from 0")
    if not 1 <= threshold <= len(points):
        raise SettingError(f"threshold is {threshold}; it must be from 1 to {len(points)} shares")
    # The secret is the constant term; evaluation at 0, which no point may be, would reveal it.
    polynomial = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [value]
    return {point: _to_bytes(_evaluate(polynomial, point)) for point in points}


def combine_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Reconstruct a secret of 32 bytes from at least ``threshold`` shares.

    Raises:
        AggregationError: Fewer shares than the threshold.

    Example:
        >>> combine_shares({1: bytes(32)}, threshold=2)
        Traceback (most recent call last):
        sottovoce.shared.errors.AggregationError: 1 shares do not open a secret; 2 are needed:...
    """
    if len(shares) < threshold:
        raise AggregationError(
            f"{len(shares)} shares do not open a secret; {threshold} are needed: try a new round"
        )
    # Any ``threshold`` shares define the polynomial; a fixed choice makes errors reproducible.
    chosen = sorted(shares)[:threshold]
    total = 0
    for point in chosen:  # Lagrange interpolation at 0
        over, under = 1, 1
        for other in chosen:
            if other != point:
                over = over * other % PRIME
                under = under * (other - point) % PRIME
        # One modular inverse per share instead of one per factor: inverses are the slow part.
        total += int.from_bytes(shares[point], "big") * over * pow(under, -1, PRIME)
    return _to_bytes(total % PRIME)


def _evaluate(polynomial: list[int], point: int) -> int:
    """Horner's rule; the coefficient of the highest power comes first."""
    value = 0
    for coefficient in polynomial:
        value = (value * point + coefficient) % PRIME
    return value


def _to_bytes(value: int) -> bytes:
    """A field element as 32 bytes."""
    return value.to_bytes(FIELD_BYTES, "big")
