"""Users' heads on the server: ciphertext it cannot read, each user's newest and the one before.

The store sees a user's name, a model's hash, a version and a sealed blob; neither a key nor a
plaintext ever reaches it. That a request comes from the user it names is for the transport to
establish. Until it does, whoever answers under a user's name can displace the user's head by one
that opens for nobody: so the head before is kept, and an operator can bring it back.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from sottovoce.shared import crypto
from sottovoce.shared.atomic_files import make_folder
from sottovoce.shared.calibration import MAX_HEAD_BYTES, SealedHead
from sottovoce.shared.errors import MessageError, ModelError, PrivacyError
from sottovoce.shared.storage_errors import explain_error

_SCHEMA: Final = 2
_MAX_VERSION_JUMP: Final = 2**20
"""How far a version may be ahead of the stored one: it counts heads, and a version near the largest
number would leave the user none to come."""
_MAX_USER_LENGTH: Final = 128
LOCK_TIMEOUT_S: Final = 30.0
"""Longest wait for another program that writes to the store."""

_TABLES: Final = ("heads", "displaced")
_COLUMNS: Final = (
    "user TEXT PRIMARY KEY, model_hash TEXT NOT NULL, version INTEGER NOT NULL, blob BLOB NOT NULL"
)


class HeadStore:
    """One sqlite database of sealed heads, safe to share between threads and processes.

    Guarantees:
        - A put that returned survives a crash; one that did not leaves the old head.
        - A user's version only grows, by at most 2**20: an older or equal one is refused, and one
          further ahead.
        - The head before the newest is kept, until the next one or :meth:`rollback`.
        - Nothing over 4 KiB, and nothing without a sealed blob's version and length, is kept.
        - A forgotten head is overwritten in the database file (sqlite's ``secure_delete``).
        - Not promised: backups of the file. Whoever puts one back rolls heads back; devices that
          still know their version notice, new ones cannot.

    Example:
        >>> import tempfile
        >>> from sottovoce.shared.crypto import new_key, seal
        >>> store = HeadStore(Path(tempfile.mkdtemp()) / "heads.sqlite")
        >>> blob = seal(new_key(), b"a head", context=b"ada")
        >>> store.put("ada", SealedHead(model_hash="0" * 64, version=1, blob=blob))
        >>> store.list_users(), store.get("ada").version
        (['ada'], 1)
    """

    def __init__(self, path: Path) -> None:
        """Open the database, or make it (mode 0600).

        Raises:
            PrivacyError: It cannot be written, is damaged, or is of a newer release.
        """
        self._path: Final = path
        try:
            make_folder(path.parent)
            # Created with rights for the owner alone, before SQLite writes to it.
            path.touch(mode=0o600)
        except OSError as error:
            raise PrivacyError(f"the head store {path} cannot be written: {error}") from error
        with self._database() as database:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if found not in range(_SCHEMA + 1):
                raise PrivacyError(f"{path} has schema {found}, not {_SCHEMA}; update the server")
            for table in _TABLES:
                database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({_COLUMNS}) STRICT")
            database.execute(f"PRAGMA user_version = {_SCHEMA}")

    def put(self, user: str, sealed: SealedHead) -> None:
        """Store a user's newer head in place of the older one.

        Args:
            user: Whose head, 1 to 128 printable characters.
            sealed: The ciphertext with its model and version.

        Raises:
            MessageError: An unusable user, or bytes that are no sealed blob of at most 4 KiB.
            PrivacyError: A version that is not newer than the stored one, or too far ahead of it,
                or a damaged store.
        """
        _validate_entry(user, sealed.blob)
        with self._database() as database:
            stored = database.execute(
                "SELECT version FROM heads WHERE user = ?", (user,)
            ).fetchone()
            # Equal is refused as well: a replayed head must not displace the stored one.
            if stored is not None and sealed.version <= stored[0]:
                raise PrivacyError(
                    f"head version {sealed.version} of {user!r} is not newer than {stored[0]}, "
                    "which is kept; restore the newest head, then fit again"
                )
            known = 0 if stored is None else stored[0]
            if sealed.version > known + _MAX_VERSION_JUMP:
                raise PrivacyError(
                    f"head version {sealed.version} of {user!r} is more than "
                    f"{_MAX_VERSION_JUMP} ahead of {known}, which is kept; versions count heads, "
                    "so this is no head of a device of theirs"
                )
            # The head before is one step of undo against a head stored under somebody else's name.
            database.execute(
                "INSERT OR REPLACE INTO displaced SELECT * FROM heads WHERE user = ?", (user,)
            )
            database.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?)",
                (user, sealed.model_hash, sealed.version, sealed.blob),
            )

    def get(self, user: str) -> SealedHead | None:
        """Read a user's newest head, or None.

        Raises:
            PrivacyError: A damaged store or row.
        """
        return self._get(user, "SELECT model_hash, version, blob FROM heads WHERE user = ?")

    def previous(self, user: str) -> SealedHead | None:
        """Read the head before the newest, or None; errors as for :meth:`get`."""
        return self._get(user, "SELECT model_hash, version, blob FROM displaced WHERE user = ?")

    def rollback(self, user: str) -> bool:
        """Put the head before in place of a newest that opens for nobody; whether there was one.

        The user's devices refuse a version older than one that they know: this is for a head that
        was put under their name by somebody else.
        """
        with self._database() as database:
            found = database.execute(
                "INSERT OR REPLACE INTO heads SELECT * FROM displaced WHERE user = ?", (user,)
            )
            database.execute("DELETE FROM displaced WHERE user = ?", (user,))
            return found.rowcount > 0

    def _get(self, user: str, query: str) -> SealedHead | None:
        """Read one stored head."""
        with self._database() as database:
            row = database.execute(query, (user,)).fetchone()
        if row is None:
            return None
        try:
            return SealedHead(model_hash=row[0], version=row[1], blob=row[2])
        except ModelError as error:
            raise PrivacyError(f"the kept head of {user!r} is damaged: {error}") from error

    def delete_user(self, user: str) -> bool:
        """Remove a user's head and every trace of the user; whether there was one."""
        with self._database() as database:
            # Both tables: the previous head is the user's as well.
            database.execute("DELETE FROM displaced WHERE user = ?", (user,))
            return database.execute("DELETE FROM heads WHERE user = ?", (user,)).rowcount > 0

    def list_users(self) -> list[str]:
        """List all users with a head, in order."""
        with self._database() as database:
            rows = database.execute("SELECT user FROM heads ORDER BY user").fetchall()
        return [row[0] for row in rows]

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction on a connection of its own: done at the end, or not at all."""
        try:
            with closing(
                sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            ) as database:
                database.execute("PRAGMA synchronous = EXTRA")
                database.execute("PRAGMA secure_delete = ON")
                # Taken before the read, so that no other put slips in between read and write.
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise PrivacyError(
                f"the head store {self._path} cannot be used: {explain_error(error, self._path)}; "
                "where there is no backup, remove it and let devices put their heads again"
            ) from error


def _validate_entry(user: str, blob: bytes) -> None:
    """Raise unless a put can be kept."""
    if not (0 < len(user) <= _MAX_USER_LENGTH and user.isprintable()):
        raise MessageError(
            f"user is {user[:_MAX_USER_LENGTH]!r}; it must be 1 to {_MAX_USER_LENGTH} printable"
            " characters"
        )
    if len(blob) > MAX_HEAD_BYTES or not crypto.looks_sealed(blob):
        raise MessageError(
            f"the head of {user!r} has {len(blob)} bytes and is no sealed blob of at most"
            f" {MAX_HEAD_BYTES}; seal it on the device"
        )
