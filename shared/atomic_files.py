"""The one way a file is replaced whole, appended to, written over or locked.

A file that a program writes in place can be cut short by a crash, and one that is renamed over
another can come back as the old one after a power cut. Every module writes its files through the
functions below, which say what a crash and a power cut leave
(``tests/shared/test_file_writes.py`` holds every module to it).
"""

import errno
import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import FileChangedError, FolderInUseError, StorageError
from sottovoce.shared.storage_errors import explain_error

PARTIAL_FILES: Final = ".*.tmp"
"""Pattern of the names under which files are written before they replace others."""


_MAX_NOTE_BYTES: Final = 512


def replace_file(
    path: Path,
    data: bytes,
    *,
    durable: bool = True,
    secret: bool = False,
    expected_size: int | None = None,
) -> None:
    """Write a file whole, in place of the one that is there.

    Args:
        path: The file; its folder is made where it is missing.
        data: All of it.
        durable: Whether it must also survive a power cut once this returns.
        secret: Whether nobody else on this machine may read it (mode 0600).
        expected_size: How many bytes its writer knows the old file to have; None replaces whatever
            is there.

    Guarantees:
        - After a crash of the program the file is the old one or the new one, whole.
        - Where ``durable``, it is the old one or the new one after a power cut too, and the new one
          once this returns, in folders that last as well. Elsewhere a power cut may leave an older
          file, none, or a part of the new one: whoever reads it must notice.
        - Of two writers who know the same old bytes one replaces them and the other is refused;
          see :func:`append_to_file`.

    Raises:
        StorageError: The disk refuses; the old file is there still.
        FileChangedError: The old file is not as its writer knows it; nothing was written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> replace_file(path, b"old")
        >>> replace_file(path, b"new")
        >>> path.read_bytes()
        b'new'
    """
    with _convert_errors(path):
        make_folder(path.parent, durable=durable)
        known = expected_size is not None and path.exists()
        with _open_locked(path, os.O_WRONLY) if known else nullcontext() as old:
            if old is not None:
                _require_unchanged(old, path, expected_size)
            _write_and_rename(path, data, durable=durable, mode=0o600 if secret else 0o666)
        if durable:  # or a power cut could bring the old file back
            sync_folder(path.parent)


def replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    r"""Write a UTF-8 text whole, lines ending in ``\n``; see :func:`replace_file`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "page.md"
        >>> replace_text(path, "# Results\n")
        >>> path.read_text()
        '# Results\n'
    """
    replace_file(path, text.encode(), durable=durable)


def append_to_file(path: Path, data: bytes, *, expected_size: int | None = None) -> None:
    """Append bytes in one call and sync them, and the folder when the file is new.

    Args:
        path: The file, made (mode 0600) where it is missing.
        data: What is appended.
        expected_size: How many bytes its writer knows it to have; None appends to whatever is
            there.

    Guarantees:
        - The bytes are on the disk when this returns.
        - Of two writers who know the same bytes one appends and the other is refused: a file that
          has grown, shrunk or been replaced since it was read is left alone. Writers wait for each
          other where the system has ``flock``; elsewhere two that write within the same instant
          may both append.

    Raises:
        StorageError: The disk refuses.
        FileChangedError: The file is not as its writer knows it; nothing was written.
    """
    with _convert_errors(path):
        new = not path.exists()
        with _open_locked(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as handle:
            _require_unchanged(handle, path, expected_size)
            whole = os.fstat(handle).st_size
            try:
                _write_once(handle, data)
                os.fsync(handle)
            except OSError:
                # Half a line would spoil the next one. Where this fails too, the reader finds it.
                with suppress(OSError):
                    os.truncate(handle, whole)
                raise
        if new:
            sync_folder(path.parent)


def overwrite_start(path: Path, data: bytes) -> None:
    """Write over an existing file's first bytes in one call, without waiting for the disk.

    For a blob of one sector that changes often: a disk writes a sector whole, so that a power cut
    leaves the old bytes or the new ones.

    Raises:
        StorageError: The disk refuses, or there is no such file.
    """
    with _convert_errors(path):
        handle = os.open(path, os.O_WRONLY)
        try:
            _write_once(handle, data)
        finally:
            os.close(handle)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file until the block ends; a file in a folder locks the folder.

    Args:
        path: The lock's own file, made (mode 0600) where it is missing.

    Guarantees:
        - Of several threads or processes one goes on and the others wait until it is done, or
          dead, where the system has ``flock``; elsewhere nobody waits.

    Raises:
        StorageError: The disk refuses.
    """
    with _convert_errors(path):
        handle = _lock(path, os.O_CREAT | os.O_RDWR)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def claim_file(path: Path, note: bytes) -> Iterator[None]:
    """Hold a file that only one process can hold, until the block ends or the process is dead.

    Args:
        path: The claim's own file (mode 0600), which is removed in the end.
        note: What others find in it.

    Guarantees:
        - Nobody waits: whoever comes second is refused, where the system has ``flock``.
        - What a killed process leaves behind claims nothing.

    Raises:
        FolderInUseError: Another process holds it; its text is that one's note.
        StorageError: The disk refuses.
    """
    with _convert_errors(path):
        handle = _claim(path)
        os.ftruncate(handle, 0)
        _write_once(handle, note)
    try:
        yield
    finally:
        # Removed before it is let go: whoever opened it meanwhile finds that the name is gone.
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _claim(path: Path) -> int:
    """Open and lock a file without waiting; the file that is locked is the one of that name."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        if not _try_lock(handle):
            note = os.read(handle, _MAX_NOTE_BYTES)
            os.close(handle)
            raise FolderInUseError(note.decode(errors="replace"))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its last holder has removed it


def _try_lock(handle: int) -> bool:
    """Lock an open file unless another process has; true where there is nothing to lock with."""
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Make a folder, and the missing ones above, so that they outlast a power cut.

    Args:
        path: The folder.
        durable: Whether new folders, with all that is synced in them, must also survive a power cut
            once this returns.

    Raises:
        OSError: The disk refuses.
    """
    missing = list(itertools.takewhile(lambda one: not one.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    if durable:
        for one in missing:  # a folder whose name is lost takes all files in it along
            sync_folder(one.parent)


def sync_folder(path: Path) -> None:
    """Make new, changed and removed names in a folder last.

    Windows has no such call and needs none.

    Raises:
        OSError: The disk refuses.
    """
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_and_rename(path: Path, data: bytes, *, durable: bool, mode: int) -> None:
    # A name of its own for every write: two writers never mix their bytes in one file.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    handle = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:  # also where the program is stopped: nothing half written stays behind
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


@contextmanager
def _open_locked(path: Path, flags: int) -> Iterator[int]:
    """Open a file (mode 0600) that no other writer writes meanwhile."""
    handle = _lock(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(path: Path, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed, by a crash too
        except BaseException:
            os.close(handle)
            raise
    return handle


def _require_unchanged(handle: int, path: Path, expected_size: int | None) -> None:
    """Refuse a file that another writer has changed since it was read."""
    if expected_size is None:
        return
    found, there = os.fstat(handle), path.stat()
    # A renamed file has another inode: the lock was then on what nobody reads any more.
    if found.st_size != expected_size or (found.st_ino, found.st_dev) != (
        there.st_ino,
        there.st_dev,
    ):
        raise FileChangedError(
            f"{path.name} has {there.st_size} bytes and had {expected_size} when it was read: "
            "another program writes it; try again once that one is done"
        )


def _write_once(handle: int, data: bytes) -> None:
    """Write bytes in one call: a second one could be cut off from the first."""
    if os.write(handle, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Errors of the system as our own."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {explain_error(error, path)}; what was written before is "
            "there still"
        ) from error
