"""Reading of files that a stranger may have written: regular ones, and no more than is allowed."""

import os
import stat
from pathlib import Path

from sottovoce.shared.errors import SottovoceError

_PART_BYTES = 1 << 20
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISLNK: "a link",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def read_bounded_file(path: Path, *, max_bytes: int, error: type[SottovoceError]) -> bytes:
    """Read a whole file, if it is a regular one of at most ``max_bytes``.

    Args:
        path: The file itself; links are not followed, for they may name a file of the reader's.
        max_bytes: The most that is read; a larger file is refused before its first byte is.
        error: Class of the error.

    Guarantees:
        Returns or raises at once, whatever stands at the path: a pipe, a socket, a device or a
        file that grows is refused.

    Raises:
        FileNotFoundError: There is no such file.
        SottovoceError: Of class ``error``: no regular file, a larger one, or one that the system
            does not let this program read.

    Example:
        >>> import tempfile
        >>> from sottovoce.shared.errors import ModelError
        >>> path = Path(tempfile.mkdtemp()) / "model.json"
        >>> _ = path.write_bytes(b"0123456789")
        >>> read_bounded_file(path, max_bytes=10, error=ModelError)
        b'0123456789'
        >>> read_bounded_file(path, max_bytes=9, error=ModelError)
        Traceback (most recent call last):
        sottovoce.shared.errors.ModelError: model.json has 10 bytes; at most 9 are read
    """
    try:
        found = path.lstat()
        _require_regular(path, found, error)
        # Not blocking, and no link: what stands there may have been exchanged since.
        flags = os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_NOFOLLOW") | _flag("O_BINARY")
        handle = os.open(path, flags | _flag("O_CLOEXEC"))
        try:
            found = os.fstat(handle)
            _require_regular(path, found, error)
            if found.st_size > max_bytes:
                raise error(f"{path.name} has {found.st_size} bytes; at most {max_bytes} are read")
            data = _read_at_most(handle, max_bytes + 1)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as fault:  # ValueError: a path with a null character
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path.name} cannot be read ({reason})") from fault
    if len(data) > max_bytes:
        raise error(f"{path.name} grows while it is read; at most {max_bytes} bytes are read")
    return data


def _read_at_most(handle: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit and (part := os.read(handle, min(_PART_BYTES, limit - len(data)))):
        data += part
    return bytes(data)


def _require_regular(path: Path, found: os.stat_result, error: type[SottovoceError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(found.st_mode)), "no file")
        raise error(f"{path.name} is {kind}; it must be a regular file: copy the file itself")


def _flag(name: str) -> int:
    """A flag of ``os.open`` where the system has it."""
    flag: int = getattr(os, name, 0)
    return flag
