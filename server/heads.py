"""Where the server keeps users' heads: ciphertext it cannot read, one per user, newest only.

The store sees a user's name, a model's hash, a version and a sealed blob; neither a key nor a
plaintext ever reaches it. That a request comes from the user it names is for the transport to
establish; even so, a blob put under another user's name opens for nobody.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError, ModelError, PrivacyError
from sottovoce.shared.heads import MOST_BYTES, SealedHead

_SCHEMA: Final = 1
_LONGEST_USER: Final = 128
_WAIT_S: Final = 30.0
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS heads (
    user TEXT PRIMARY KEY, model_hash TEXT NOT NULL, version INTEGER NOT NULL, blob BLOB NOT NULL
) STRICT
"""


class HeadStore:
    """One sqlite database of sealed heads, safe to share between threads and processes.

    Guarantees:
        - A put that returned survives a crash; one that did not leaves the old head.
        - A user's version only grows: an older or equal one is refused.
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
        >>> store.users(), store.get("ada").version
        (['ada'], 1)
    """

    def __init__(self, path: Path) -> None:
        """Open the database, or make it (mode 0600).

        Raises:
            PrivacyError: It cannot be written, is damaged, or is of a newer release.
        """
        self._path: Final = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise PrivacyError(f"the head store {path} cannot be written: {error}") from error
        with self._database() as database:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _SCHEMA):
                raise PrivacyError(f"{path} has schema {found}, not {_SCHEMA}; update the server")
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {_SCHEMA}")

    def put(self, user: str, sealed: SealedHead) -> None:
        """Keep a user's newer head in place of the older one.

        Args:
            user: Whose head, 1 to 128 printable characters.
            sealed: The ciphertext with its model and version.

        Raises:
            MessageError: An unusable user, or bytes that are no sealed blob of at most 4 KiB.
            PrivacyError: A version that is not newer than the kept one, or a damaged store.
        """
        _check(user, sealed.blob)
        with self._database() as database:
            kept = database.execute("SELECT version FROM heads WHERE user = ?", (user,)).fetchone()
            if kept is not None and sealed.version <= kept[0]:
                raise PrivacyError(
                    f"head version {sealed.version} of {user!r} is not newer than {kept[0]}, which"
                    " is kept; restore the newest head, then fit again"
                )
            database.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?)",
                (user, sealed.model_hash, sealed.version, sealed.blob),
            )

    def get(self, user: str) -> SealedHead | None:
        """A user's newest head, or None.

        Raises:
            PrivacyError: A damaged store or row.
        """
        with self._database() as database:
            row = database.execute(
                "SELECT model_hash, version, blob FROM heads WHERE user = ?", (user,)
            ).fetchone()
        if row is None:
            return None
        try:
            return SealedHead(model_hash=row[0], version=row[1], blob=row[2])
        except ModelError as error:
            raise PrivacyError(f"the kept head of {user!r} is damaged: {error}") from error

    def forget(self, user: str) -> bool:
        """Remove a user's head and every trace of the user; whether there was one."""
        with self._database() as database:
            return database.execute("DELETE FROM heads WHERE user = ?", (user,)).rowcount > 0

    def users(self) -> list[str]:
        """All users with a head, in order."""
        with self._database() as database:
            rows = database.execute("SELECT user FROM heads ORDER BY user").fetchall()
        return [row[0] for row in rows]

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own: done at the end, or not at all."""
        try:
            with closing(
                sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            ) as database:
                database.execute("PRAGMA synchronous = EXTRA")
                database.execute("PRAGMA secure_delete = ON")
                # Taken before the read, so that no other put slips in between read and write.
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise PrivacyError(
                f"the head store {self._path} cannot be used ({error}); restore a backup, or remove"
                " it and let devices put their heads again"
            ) from error


def _check(user: str, blob: bytes) -> None:
    """Raise unless a put can be kept."""
    if not (0 < len(user) <= _LONGEST_USER and user.isprintable()):
        raise MessageError(
            f"user is {user[:_LONGEST_USER]!r}; it must be 1 to {_LONGEST_USER} printable"
            " characters"
        )
    if len(blob) > MOST_BYTES or not crypto.looks_sealed(blob):
        raise MessageError(
            f"the head of {user!r} has {len(blob)} bytes and is no sealed blob of at most"
            f" {MOST_BYTES}; seal it on the device"
        )
