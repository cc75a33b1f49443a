"""Length-prefixed framing: several byte strings in one, with nothing left over."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from sottovoce.shared.errors import MessageError

_LENGTH: Final = 4


def pack(*parts: bytes) -> bytes:
    """Join parts into one byte string, each after its length (4 bytes, big-endian).

    Example:
        >>> unpack(pack(b"a", b"", b"bc"))
        [b'a', b'', b'bc']
    """
    return b"".join(len(part).to_bytes(_LENGTH, "big") + part for part in parts)


def unpack(data: bytes, count: int | None = None) -> list[bytes]:
    r"""Split a byte string into the parts that :func:`pack` joined.

    Args:
        data: The joined parts, as received.
        count: Required number of parts; None for any number.

    Raises:
        MessageError: A part is cut off, or the number of parts is wrong.

    Example:
        >>> unpack(b"\x00\x00\x00\x01a")
        [b'a']
        >>> unpack(b"\x00\x00\x00\x09a")
        Traceback (most recent call last):
        sottovoce.shared.errors.MessageError: a message of 5 bytes is cut off inside part 0
    """
    parts: list[bytes] = []
    end = 0
    while end < len(data):
        start = end + _LENGTH
        end = start + int.from_bytes(data[end:start], "big")
        # Slices past the end do not raise in Python, so a cut-off length would read as a short one.
        if start > len(data) or end > len(data):
            raise MessageError(
                f"a message of {len(data)} bytes is cut off inside part {len(parts)}"
            )
        parts.append(data[start:end])
    if count is not None and len(parts) != count:
        raise MessageError(f"a message has {len(parts)} parts; needed: {count}")
    return parts


def require_length(part: bytes, length: int, what: str) -> bytes:
    """Return a part if it has the required length, else raise ``MessageError``.

    Example:
        >>> require_length(b"abc", 3, "a tag")
        b'abc'
    """
    if len(part) != length:
        raise MessageError(f"{what} has {len(part)} bytes; needed: {length}")
    return part


def decode_text(part: bytes, max_length: int, what: str) -> str:
    """Decode a part as text of 1 to ``max_length`` characters, else raise ``MessageError``.

    Example:
        >>> decode_text("Zoë".encode(), 10, "a name")
        'Zoë'
    """
    try:
        found = part.decode()
    except UnicodeDecodeError:
        raise MessageError(f"{what} is no text in UTF-8") from None
    if not 0 < len(found) <= max_length:
        raise MessageError(f"{what} has {len(found)} characters; 1 to {max_length}")
    return found


def require_ascending(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return names if they are in strictly ascending order, else raise ``MessageError``.

    A set of names then has exactly one encoding.

    Example:
        >>> require_ascending(["ada", "bob"], "survivors")
        ('ada', 'bob')
        >>> require_ascending(["bob", "ada"], "survivors")
        Traceback (most recent call last):
        sottovoce.shared.errors.MessageError: survivors must be sorted and name nobody twice
    """
    if any(one >= other for one, other in pairwise(names)):
        raise MessageError(f"{what} must be sorted and name nobody twice")
    return tuple(names)
