"""What a disk's or a database's error means for whoever has to act on it: its cause, a way out."""

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

_ALMOST_FULL_BYTES: Final = 2**18
_SPACE: Final = (
    "the disk is full, or the quota is used up",
    "free some space; an interrupted run goes on with --resume",
)
_FOLDER_THERE: Final = ("a folder of that name is there", "choose another name, or remove it")
_GONE: Final = (
    "it was moved or removed while it was in use",
    "put its folder back; where that cannot be, begin anew in another folder",
)
_RIGHTS: Final = (
    "it may not be written here",
    "check the permissions of its folder, or choose another",
)
_READ_ONLY: Final = (
    "its disk can only be read",
    "choose a folder on a disk that can be written, or copy it there",
)
_NO_FOLDER: Final = ("its folder is missing, or is no folder", "check the path and run again")
_DAMAGED: Final = (
    "the file is damaged, or no database of this kind",
    "restore the file from a backup",
)
_BUSY: Final = ("another process holds it", "wait until that one is done, or end it")
_WRITTEN_TWICE: Final = (
    "another process has written the same entries",
    "end one of the two, and go on with --resume",
)
_OTHER: Final = (
    "the disk refuses",
    "free some space, or check the disk and the path, and run again",
)

_BY_CODE: Final = {
    sqlite3.SQLITE_FULL: _SPACE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_ERROR: _DAMAGED,  # a statement that its tables do not fit
    sqlite3.SQLITE_MISMATCH: _DAMAGED,
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_CONSTRAINT: _WRITTEN_TWICE,
    sqlite3.SQLITE_PERM: _RIGHTS,
    sqlite3.SQLITE_READONLY: _RIGHTS,
    sqlite3.SQLITE_CANTOPEN: _RIGHTS,
}
_BY_ERRNO: Final = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _READ_ONLY,
    errno.ENOENT: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: _FOLDER_THERE,
}


def explain_error(error: sqlite3.Error | OSError, path: Path) -> str:
    """Explain why a file cannot be written: its cause, the system's own words, the way out.

    Args:
        error: What SQLite or the system raised.
        path: The file or database.

    Returns:
        A part of a sentence, such as ``the disk is full (database or disk is full); free ...``.

    Example:
        >>> explain_error(OSError(28, "No space left on device"), Path("a.sqlite"))
        'the disk is full, or the quota is used up (No space left on device); free some space; an...
    """
    cause, way_out = _find_cause(error, path)
    words = error.strerror if isinstance(error, OSError) else None
    return f"{cause} ({words or error}); {way_out}"


def _find_cause(error: sqlite3.Error | OSError, path: Path) -> tuple[str, str]:
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno or 0, _OTHER)
    # Errors of the module itself, such as a type it cannot bind, have no code.
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return _DAMAGED
    family = code & 0xFF  # extended codes have theirs in the upper bytes
    reached = family in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
    if reached and not path.exists():
        return (
            _GONE
            if not path.parent.exists() or code == sqlite3.SQLITE_READONLY_DBMOVED
            else (_RIGHTS)
        )
    if family == sqlite3.SQLITE_IOERR and _is_full(path.parent):
        return _SPACE
    return _BY_CODE.get(family, _OTHER)


def _is_full(folder: Path) -> bool:
    """Whether next to nothing is left: SQLite calls some of what follows from that an I/O error."""
    try:
        free = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return free.f_bavail * free.f_frsize < _ALMOST_FULL_BYTES
