"""What a ledger's lines hang on: whose they are, where they end, and how they reach the disk.

The first line of a chain names a genesis that is derived from the owner, so that two users who
let out the same things have different ledgers. An anchor (how many releases, and the hash of the
last line) is kept elsewhere by whoever can: lines dropped at the end leave a chain whole, and only
an anchor tells.
"""

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sottovoce.shared import check, crypto
from sottovoce.shared.errors import LedgerError

GENESIS: Final = "0" * 64
"""Where a ledger without a named owner begins, and where the first ones did."""

SALT_BYTES: Final = 16


def genesis(owner: str, salt: bytes = b"") -> str:
    """Where an owner's ledger begins.

    Args:
        owner: The user's pseudonym.
        salt: Random bytes that hide the pseudonym from whoever sees only hashes; none in a
            simulation, which must repeat.

    Returns:
        SHA-256 over a tag, owner and salt, 64 hexadecimal digits.
    """
    return digest(crypto.bind("sottovoce ledger", owner, salt.hex()))


def opening(owner: str) -> dict[str, str]:
    """The first line of a new ledger: fresh random bytes, and the genesis that they lead to."""
    salt = secrets.token_bytes(SALT_BYTES)
    return {"owner": genesis(owner, salt), "salt": salt.hex()}


def digest(data: bytes) -> str:
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
        check.not_negative(releases=self.releases)
        if not is_digest(self.head):
            raise LedgerError(f"the anchor's head is {self.head!r}; it must be a SHA-256 in hex")


class Keeper(Protocol):
    """Who keeps a ledger's anchor, out of reach of whoever can change the ledger's file."""

    def read(self) -> Anchor | None:
        """The anchor; None where there never was one.

        Raises:
            LedgerError: There was one, and it is gone or damaged.
        """
        ...

    def write(self, anchor: Anchor) -> None:
        """Keep an anchor in place of the last one: a crash leaves the old one or the new one.

        Raises:
            PrivacyError: It cannot be kept; the old one stays.
        """
        ...


def is_digest(text: object) -> bool:
    """Whether this is a SHA-256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and not set(text) - set("0123456789abcdef")


def append_synced(path: Path, data: bytes) -> None:
    """Append bytes in one call and sync them, and the folder when the file is new."""
    new = not path.exists()
    _write(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, data)
    if new:
        _sync_folder(path.parent)


def replace_synced(path: Path, data: bytes) -> None:
    """Replace a file, synced: after a crash it is the old one or the new one."""
    fresh = path.with_suffix(".new")
    _write(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, data)
    fresh.replace(path)
    _sync_folder(path.parent)


def _write(path: Path, flags: int, data: bytes) -> None:
    """Write bytes in one call (mode 0600) and sync them."""
    handle = os.open(path, flags, 0o600)
    try:
        if os.write(handle, data) != len(data):
            raise OSError(28, "no space left on device")
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Make new names in a folder last; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
