"""What a file's own headers promise, and whether the file ends before.

libsndfile corrects the headers of uncompressed formats in silence and stops at the last whole page
of an Ogg file, so their headers are read here, by the layouts that the formats' documents give.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

_MISSING_BYTES: Final = 256
"""Fewer missing bytes are a sloppy writer's header, some milliseconds at most."""

_UNKNOWN_FROM: Final = 0x7FFF_0000
"""Sizes from here on stand in headers that were written before the sound, into a pipe."""

_MOST_CHUNKS: Final = 1_000
_OGG_TAIL: Final = 1 << 17  # two pages of the largest size
_OGG_HEADER: Final = 27
_OGG_LAST_PAGE: Final = 4
_OGG_WHOLE_SEGMENT: Final = 255
_OGG_POLYNOMIAL: Final = 0x04C1_1DB7
_W64_RIFF, _W64_WAVE, _W64_DATA = b"riff\x2e\x91\xcf\x11", b"wave\xf3\xac\xd3\x11", b"data\xf3\xac"


def is_cut_short(path: Path) -> bool:
    """Whether a WAV, AIFF, AU, W64 or Ogg file ends before its headers promise.

    Args:
        path: Any file; of other formats nothing is said here.

    Returns:
        True where sound is missing at the end; False for headers that promise nothing, as those
        that were written into a pipe.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
        size = os.fstat(file.fileno()).st_size
        reader = _READERS.get(start)
        if reader is None:
            return False
        file.seek(0)
        return reader(file, size)


def mend_ogg_end(data: bytes) -> bytes:
    """Shorten the last page of an Ogg file to the packets that are there, so that it is read.

    A page holds up to a second or more; of a file of seconds that breaks off, decoders would leave
    out the better part. The page's time is shortened in proportion to its bytes.

    Args:
        data: The file, whose last page is not whole.

    Returns:
        The file with a shorter last page; without that page where no packet of it is whole.
    """
    start = data.rfind(b"OggS")
    page = data[start:]
    if start < 0 or len(page) < _OGG_HEADER:
        return data[: max(0, start)]
    table = page[_OGG_HEADER : _OGG_HEADER + page[_OGG_HEADER - 1]]
    body = page[_OGG_HEADER + page[_OGG_HEADER - 1] :]
    count = used = size = 0
    for number, length in enumerate(table, start=1):
        size += length
        if size > len(body):
            break
        if length < _OGG_WHOLE_SEGMENT:  # a shorter segment ends its packet
            count, used = number, size
    if not count:
        return data[:start]
    before = data.rfind(b"OggS", 0, start)
    time = max(0, int.from_bytes(data[before + 6 : before + 14], "little", signed=True))
    last = int.from_bytes(page[6:14], "little", signed=True)
    head = bytearray(page[:_OGG_HEADER])
    promised = max(1, sum(table))  # a page may hold nothing but empty packets
    head[6:14] = (time + max(0, last - time) * used // promised).to_bytes(8, "little")
    if time:  # the first page of sound may not be marked as the last: Opus takes it for empty
        head[5] |= _OGG_LAST_PAGE
    head[22:26] = bytes(4)
    head[26] = count
    shorter = bytes(head) + table[:count] + body[:used]
    check = _ogg_checksum(shorter).to_bytes(4, "little")
    return data[:start] + shorter[:22] + check + shorter[26:]


def has_length_in_header(path: Path) -> bool:
    """Whether an MP3 file says how long it is; of others the length is an estimate.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
    return any(mark in start for mark in (b"Xing", b"Info", b"VBRI"))


def _is_riff_cut(file: BinaryIO, size: int) -> bool:
    start = file.read(12)
    order = "big" if start[:4] == b"RIFX" else "little"
    large = 0
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return False  # no sound is announced yet
        promised = int.from_bytes(head[4:], order)  # type: ignore[arg-type]
        if head[:4] == b"data":
            promised = large if large and promised == 0xFFFF_FFFF else promised
            unknown = _UNKNOWN_FROM <= promised <= 0xFFFF_FFFF
            return not unknown and _is_missing(file, size, promised)
        if head[:4] == b"ds64":
            body = file.read(16)
            large = int.from_bytes(body[8:], "little")
            promised -= len(body)
        file.seek(promised + promised % 2, os.SEEK_CUR)
    return False


def _is_aiff_cut(file: BinaryIO, size: int) -> bool:
    file.read(12)
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return False
        promised = int.from_bytes(head[4:], "big")
        if head[:4] == b"SSND":
            return promised < _UNKNOWN_FROM and _is_missing(file, size, promised)
        file.seek(promised + promised % 2, os.SEEK_CUR)
    return False


def _is_au_cut(file: BinaryIO, size: int) -> bool:
    start = file.read(12)
    order = "big" if start[:4] == b".snd" else "little"
    offset = int.from_bytes(start[4:8], order)  # type: ignore[arg-type]
    promised = int.from_bytes(start[8:], order)  # type: ignore[arg-type]
    file.seek(offset)
    return promised < _UNKNOWN_FROM and _is_missing(file, size, promised)


def _is_w64_cut(file: BinaryIO, size: int) -> bool:
    start = file.read(40)
    if start[:8] != _W64_RIFF or start[24:32] != _W64_WAVE:
        return False
    for _ in range(_MOST_CHUNKS):
        head = file.read(24)
        # A chunk's size counts its own header.
        promised = int.from_bytes(head[16:], "little") - 24
        if len(head) < 24 or not 0 <= promised < 1 << 62:
            return False
        if head[:6] == _W64_DATA:
            return _is_missing(file, size, promised)
        file.seek(promised + -promised % 8, os.SEEK_CUR)
    return False


def _is_ogg_cut(file: BinaryIO, size: int) -> bool:
    """Whether the last page is not whole, or is not marked as the last of its stream."""
    file.seek(max(0, size - _OGG_TAIL))
    tail = file.read(_OGG_TAIL)
    page = tail[tail.rfind(b"OggS") :]
    if not page.startswith(b"OggS") or len(page) < _OGG_HEADER:
        return True
    segments = page[_OGG_HEADER - 1]
    table = page[_OGG_HEADER : _OGG_HEADER + segments]
    is_whole = len(table) == segments and len(page) >= _OGG_HEADER + segments + sum(table)
    return not (is_whole and page[5] & _OGG_LAST_PAGE)


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 as Ogg has it (RFC 3533): not reflected, from zero."""
    check = 0
    for byte in page:
        check ^= byte << 24
        for _ in range(8):
            carry = check & 0x8000_0000
            check = (check << 1 ^ (_OGG_POLYNOMIAL if carry else 0)) & 0xFFFF_FFFF
    return check


def _is_missing(file: BinaryIO, size: int, promised: int) -> bool:
    """Whether more than a few bytes of what is promised from here on are not there."""
    return promised - max(0, size - file.tell()) > _MISSING_BYTES


_READERS: Final[dict[bytes, Callable[[BinaryIO, int], bool]]] = {
    b"RIFF": _is_riff_cut,
    b"RIFX": _is_riff_cut,
    b"RF64": _is_riff_cut,
    b"FORM": _is_aiff_cut,
    b".snd": _is_au_cut,
    b"dns.": _is_au_cut,
    b"riff": _is_w64_cut,
    b"OggS": _is_ogg_cut,
}
