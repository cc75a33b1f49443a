"""Byte strings inside byte strings: each part behind its length, nothing left over."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from sottovoce.shared.errors import MessageError

_LENGTH: Final = 4


def pack(*parts: bytes) -> bytes:
    """Parts as one byte string, each behind its length (4 bytes, big-endian).

    Example:
        >>> unpack(pack(b"a", b"", b"bc"))
        [b'a', b'', b'bc']
    """
    return b"".join(len(part).to_bytes(_LENGTH, "big") + part for part in parts)


def unpack(data: bytes, count: int | None = None) -> list[bytes]:
    """The parts that :func:`pack` joined.

    Args:
        data: What came.
        count: How many there must be; any number without it.

    Raises:
        MessageError: A part is cut off, or there are more or fewer.
    """
    parts: list[bytes] = []
    end = 0
    while end < len(data):
        start = end + _LENGTH
        end = start + int.from_bytes(data[end:start], "big")
        if start > len(data) or end > len(data):
            raise MessageError(
                f"a message of {len(data)} bytes is cut off inside part {len(parts)}"
            )
        parts.append(data[start:end])
    if count is not None and len(parts) != count:
        raise MessageError(f"a message has {len(parts)} parts; needed: {count}")
    return parts


def require_length(part: bytes, length: int, what: str) -> bytes:
    """A part of a fixed length, or ``MessageError``."""
    if len(part) != length:
        raise MessageError(f"{what} has {len(part)} bytes; needed: {length}")
    return part


def decode_text(part: bytes, max_length: int, what: str) -> str:
    """A part as text of 1 to ``max_length`` characters, or ``MessageError``."""
    try:
        found = part.decode()
    except UnicodeDecodeError:
        raise MessageError(f"{what} is no text in UTF-8") from None
    if not 0 < len(found) <= max_length:
        raise MessageError(f"{what} has {len(found)} characters; 1 to {max_length}")
    return found


def require_ascending(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Names in strictly ascending order, so that one set has one form; or ``MessageError``."""
    if any(one >= other for one, other in pairwise(names)):
        raise MessageError(f"{what} must be sorted and name nobody twice")
    return tuple(names)
