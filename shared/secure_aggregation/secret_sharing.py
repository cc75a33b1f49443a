"""Secret sharing (Shamir 1979) over the prime field of 2^256 - 189."""

import secrets
from collections.abc import Collection, Mapping
from typing import Final

from sottovoce.shared.errors import AggregationError, SettingError

PRIME: Final = 2**256 - 189
"""The largest prime below 2^256: shares of secrets of up to 256 bits fit 32 bytes."""

FIELD_BYTES: Final = 32


def new_secret() -> bytes:
    """32 bytes from the operating system that are an element of the field."""
    return _to_bytes(secrets.randbelow(PRIME))


def split_secret(secret: bytes, points: Collection[int], threshold: int) -> dict[int, bytes]:
    """Share a secret.

    Args:
        secret: At most 32 bytes, a big-endian number below the prime; short ones of 16 bytes come
            back with zeros in front.
        points: Where the polynomial is evaluated, one number in [1, prime) for each holder, all
            different.
        threshold: How many shares give the secret back, from 1 to the number of points.

    Returns:
        The share at every point, 32 bytes each.

    Raises:
        SettingError: A secret out of the field, points that repeat or are 0, or a threshold that
            cannot be met.

    Guarantees:
        - Fewer than ``threshold`` shares are uniform and say nothing of the secret, to anybody of
          any power; the randomness is the operating system's.
        - Not promised: that a share is right. Commit to shares and secret to find out.
    """
    value = int.from_bytes(secret, "big")
    if len(secret) > FIELD_BYTES or value >= PRIME:
        raise SettingError(f"a secret of {len(secret)} bytes is not in the field; see new_secret()")
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise SettingError("points of shares must differ from each other and from 0")
    if not 1 <= threshold <= len(points):
        raise SettingError(f"threshold is {threshold}; it must be from 1 to {len(points)} shares")
    polynomial = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [value]
    return {point: _to_bytes(_evaluate(polynomial, point)) for point in points}


def combine_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret out of at least ``threshold`` shares, 32 bytes.

    Raises:
        AggregationError: Fewer shares than the threshold.
    """
    if len(shares) < threshold:
        raise AggregationError(
            f"{len(shares)} shares do not open a secret; {threshold} are needed: try a new round"
        )
    chosen = sorted(shares)[:threshold]
    total = 0
    for point in chosen:  # Lagrange interpolation at 0
        over, under = 1, 1
        for other in chosen:
            if other != point:
                over = over * other % PRIME
                under = under * (other - point) % PRIME
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
