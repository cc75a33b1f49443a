"""Hash chain of a ledger: whose it is, where it ends, and how its lines reach the disk.

The first line of a chain names a genesis that is derived from the owner, so that two users with
the same releases have different ledgers. An anchor (how many releases, and the hash of the
last line) is kept elsewhere by whoever can: lines dropped at the end leave a chain whole, and only
an anchor tells.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sottovoce.shared import crypto, validation
from sottovoce.shared.errors import LedgerError

GENESIS: Final = "0" * 64
"""Where a ledger without a named owner begins, and where the first ones did."""

SALT_BYTES: Final = 16


def genesis_hash(owner: str, salt: bytes = b"") -> str:
    """Where an owner's ledger begins.

    Args:
        owner: The user's pseudonym.
        salt: Random bytes that hide the pseudonym from whoever sees only hashes; none in a
            simulation, which must repeat.

    Returns:
        SHA-256 over a tag, owner and salt, 64 hexadecimal digits.
    """
    return sha256_hex(crypto.encode_context("sottovoce ledger", owner, salt.hex()))


def opening_record(owner: str) -> dict[str, str]:
    """The first line of a new ledger: fresh random bytes, and the genesis that they lead to."""
    salt = secrets.token_bytes(SALT_BYTES)
    return {"owner": genesis_hash(owner, salt), "salt": salt.hex()}


def sha256_hex(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """How far a ledger had come.

    Attributes:
        releases: How many releases it held, 0 or above.
        head: SHA-256 of its last line, 64 hexadecimal digits.
    """

    releases: int
    head: str

    def __post_init__(self) -> None:
        validation.require_non_negative(releases=self.releases)
        if not is_sha256_hex(self.head):
            raise LedgerError(f"the anchor's head is {self.head!r}; it must be a SHA-256 in hex")


class AnchorStore(Protocol):
    """Storage of a ledger's anchor, out of reach of whoever can change the ledger's file."""

    def read(self) -> Anchor | None:
        """The anchor; None where there never was one.

        Raises:
            LedgerError: There was one, and it is gone or damaged.
        """
        ...

    def write(self, anchor: Anchor) -> None:
        """Store an anchor in place of the last one: a crash leaves the old one or the new one.

        Raises:
            PrivacyError: It cannot be stored; the old one stays.
        """
        ...


def is_sha256_hex(text: object) -> bool:
    """Whether this is a SHA-256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and not set(text) - set("0123456789abcdef")


def append_synced(path: Path, data: bytes, *, expected_size: int | None = None) -> None:
    """Append bytes in one call and sync them, and the folder when the file is new.

    Args:
        path: The file.
        data: What is appended.
        expected_size: How many bytes its writer knows it to have; None appends to whatever is
            there.

    Guarantees:
        - Of two writers who know the same bytes one appends and the other is refused: a file that
          has grown, shrunk or been replaced since it was read is left alone. Writers wait for each
          other where the system has ``flock``; elsewhere two that write within the same instant
          leave a broken chain, after which nothing is released.

    Raises:
        LedgerError: The file is not as its writer knows it; nothing was written.
        OSError: The disk refuses.
    """
    new = not path.exists()
    with open_exclusive(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as handle:
        _check_known(handle, path, expected_size)
        whole = os.fstat(handle).st_size
        try:
            _write(handle, data)
        except OSError:
            # Half a line would spoil the next one. Where this fails too, it is charged as torn.
            with suppress(OSError):
                os.truncate(handle, whole)
            raise
    if new:
        sync_folder(path.parent)


def replace_synced(path: Path, data: bytes, *, expected_size: int | None = None) -> None:
    """Replace a file, synced: after a crash it is the old one or the new one.

    Arguments, guarantees and errors as for :func:`append_synced`.
    """
    with open_exclusive(path, os.O_WRONLY) if path.exists() else nullcontext() as old:
        if old is not None:
            _check_known(old, path, expected_size)
        fresh = path.with_suffix(".new")
        with open_exclusive(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) as handle:
            _write(handle, data)
        fresh.replace(path)
    sync_folder(path.parent)


@contextmanager
def open_exclusive(path: Path, flags: int) -> Iterator[int]:
    """A file to write (mode 0600) that no other writer writes meanwhile.

    Writers, threads and processes alike, wait for each other where the system has ``flock``.
    """
    handle = os.open(path, flags, 0o600)
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed, by a crash too
        yield handle
    finally:
        os.close(handle)


def _check_known(handle: int, path: Path, expected_size: int | None) -> None:
    """Refuse a file that another writer has changed since it was read."""
    if expected_size is None:
        return
    found, there = os.fstat(handle), path.stat()
    if found.st_size != expected_size or (found.st_ino, found.st_dev) != (
        there.st_ino,
        there.st_dev,
    ):
        raise LedgerError(
            f"{path.name} has {there.st_size} bytes and had {expected_size} when it was read: "
            "another program books on this device. Nothing leaves; ask again once that one is done"
        )


def _write(handle: int, data: bytes) -> None:
    """Write bytes in one call and sync them."""
    if os.write(handle, data) != len(data):
        raise OSError(28, "no space left on device")
    os.fsync(handle)


def sync_folder(path: Path) -> None:
    """Make new names in a folder last; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
