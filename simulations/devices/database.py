"""One database for many simulated devices: ledgers, anchors and persistent vault entries.

A device may be created anew for each message; what must not be forgotten in between is here. The
entries of a slice of messages are staged in memory and written in one synced transaction by
:meth:`DeviceDatabase.commit`, which the engine calls before any reply of the slice leaves.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sottovoce.shared.checksums import decode_record, encode_record
from sottovoce.shared.errors import LedgerError, ModelError, PrivacyError, SottovoceError
from sottovoce.shared.privacy.hash_chain import Anchor
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.storage_errors import explain_error
from sottovoce.simulations.results.schema import Json

_LOCK_TIMEOUT_S: Final = 60.0
_MAX_STAGED_BYTES: Final = 2**26
"""Bytes of recordings that are staged before they are written."""
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS lines (
    user INTEGER NOT NULL, n INTEGER NOT NULL, line BLOB NOT NULL, PRIMARY KEY (user, n)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS lines_stay BEFORE UPDATE ON lines
    BEGIN SELECT RAISE(ABORT, 'a ledger is only appended to'); END;
CREATE TRIGGER IF NOT EXISTS lines_remain BEFORE DELETE ON lines
    BEGIN SELECT RAISE(ABORT, 'a ledger is only appended to'); END;
CREATE TABLE IF NOT EXISTS anchors (
    user INTEGER PRIMARY KEY, releases INTEGER NOT NULL, head TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS kept (
    user INTEGER NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (user, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (
    user INTEGER PRIMARY KEY, facts TEXT NOT NULL, clips BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds (name TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT;
"""


_CHECKSUM_BYTES: Final = 16
_FEATURES: Final = "features"


def _with_checksum(value: bytes, user: int, name: str) -> bytes:
    """A value behind a checksum of it and of where it belongs."""
    where = f"{user}\n{name}\n".encode()
    return hashlib.blake2b(where + value, digest_size=_CHECKSUM_BYTES).digest() + value


class DeviceDatabase:
    """Database of devices, with the entries that this process has staged.

    Args:
        path: The file; made if missing.
        read_only: Whether to open it for reading only.

    Guarantees:
        - When :meth:`commit` returns, all that was staged is on disk and synced; when it raises,
          nothing of it is. A crash leaves all of a slice's lines or none.
        - A line is written once: another line of the same number is refused, and so is a change.
        - What is staged is seen by this process at once, by others once it is committed.

    Raises:
        PrivacyError: It cannot be used.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path: Final = path
        self._lines: dict[int, list[tuple[int, bytes]]] = {}
        self._anchors: dict[int, Anchor] = {}
        self._vault_entries: dict[tuple[int, str], bytes] = {}
        self._profiles: list[tuple[int, str, bytes]] = []
        with self._convert_errors():
            if read_only:
                self._database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            # Created with rights for the owner alone before SQLite opens it: users' data goes in.
            path.touch(mode=0o600)
            self._identity = _identity(path)
            self._database = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
            # WAL lets a reader work beside the writer; FULL syncs every commit.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_TABLES)

    def close(self) -> None:
        """Close the file and discard what was staged."""
        self._discard_staged()
        self._database.close()

    def merge_journal(self) -> None:
        """Merge the journal into the file, once no other process has it open."""
        with self._convert_errors():
            self._database.execute("PRAGMA journal_mode = DELETE")

    def ledger_lines(self, user: int) -> list[bytes]:
        """Read a user's ledger, first line to last."""
        rows = self._read("SELECT line FROM lines WHERE user = ? ORDER BY n", user)
        lines = [self._require_bytes(row[0]) for row in rows]
        return lines + [line for _, line in self._lines.get(user, [])]

    def stage_line(self, user: int, number: int, line: bytes) -> None:
        """Stage a line of a user's ledger under its number, from 0."""
        self._lines.setdefault(user, []).append((number, line))

    def ledger_anchor(self, user: int) -> Anchor | None:
        """Read the anchor of a user's ledger; None before its first line."""
        if user in self._anchors:
            return self._anchors[user]
        rows = self._read("SELECT releases, head FROM anchors WHERE user = ?", user)
        try:
            return Anchor(releases=rows[0][0], head=rows[0][1]) if rows else None
        except SottovoceError as error:
            raise LedgerError(f"the anchor of user {user} in {self.path} is damaged") from error

    def stage_anchor(self, user: int, anchor: Anchor) -> None:
        """Stage the anchor of a user's ledger."""
        self._anchors[user] = anchor

    def vault_entries(self, user: int) -> dict[str, bytes]:
        """Read the stored vault entries of a user's device, by name."""
        rows = self._read("SELECT name, value FROM kept WHERE user = ?", user)
        values = {str(name): self._verify(value, user, name) for name, value in rows}
        return values | {
            name: value for (own, name), value in self._vault_entries.items() if own == user
        }

    def committed_vault_entry(self, user: int, name: str) -> bytes | None:
        """Read one stored vault entry of a user's device, once it is on disk."""
        rows = self._read("SELECT value FROM kept WHERE user = ? AND name = ?", user, name)
        return self._verify(rows[0][0], user, name) if rows else None

    def stage_vault_entry(self, user: int, name: str, value: bytes) -> None:
        """Stage a vault entry of a user's device."""
        self._vault_entries[user, name] = value

    def stage_device(self, user: int, profile: Mapping[str, object], features: bytes) -> None:
        """Stage a device's owner, and its recordings as features; many are committed at once."""
        facts = encode_record(profile).decode()
        self._profiles.append((user, facts, _with_checksum(features, user, _FEATURES)))
        # Features of a million devices do not fit into memory.
        if sum(len(entry[2]) for entry in self._profiles) > _MAX_STAGED_BYTES:
            self.commit()

    def device_profile(self, user: int) -> Json | None:
        """Read the owner of a device, once it is on disk; None where there is none."""
        rows = self._read("SELECT facts FROM owners WHERE user = ?", user)
        return self._decode_facts(rows[0][0]) if rows else None

    def device_features(self, user: int) -> bytes:
        """Read the recordings of a device, as features."""
        rows = self._read("SELECT clips FROM owners WHERE user = ?", user)
        if not rows:
            raise self._damaged(f"it holds no recordings of user {user}")
        return self._verify(rows[0][0], user, _FEATURES)

    def commit(self) -> None:
        """Write to disk all that was staged, or nothing.

        Raises:
            PrivacyError: It cannot be written; what was staged is forgotten.
        """
        profiles = self._profiles
        lines = [(user, *line) for user, own in sorted(self._lines.items()) for line in own]
        anchors = [(user, one.releases, one.head) for user, one in sorted(self._anchors.items())]
        blobs = [
            (*key, _with_checksum(value, *key))
            for key, value in sorted(self._vault_entries.items())
        ]
        # Discarded before writing: if that fails, no later commit may write it after all.
        self._discard_staged()
        if not (lines or anchors or blobs or profiles):
            return
        with self._transaction() as database:
            database.executemany("INSERT INTO owners VALUES (?, ?, ?)", profiles)
            database.executemany("INSERT INTO lines VALUES (?, ?, ?)", lines)
            database.executemany("INSERT OR REPLACE INTO anchors VALUES (?, ?, ?)", anchors)
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", blobs)

    def write_round_notes(self, name: str, notes: Mapping[str, object]) -> None:
        """Write the notes on a round, in place of earlier ones."""
        with self._transaction() as database:
            row = (name, encode_record(notes).decode())
            database.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?)", row)

    def round_notes(self) -> dict[str, Json]:
        """Read all notes that :meth:`write_round_notes` wrote, by round."""
        with self._convert_errors():
            rows = self._database.execute("SELECT name, facts FROM rounds").fetchall()
        return {name: self._decode_facts(facts) for name, facts in rows}

    def iterate_users(self) -> Iterator[int]:
        """Iterate over all users with a ledger, in rising order, without holding them in memory."""
        last = -1
        while rows := self._read("SELECT MIN(user) FROM lines WHERE user > ?", last):
            if rows[0][0] is None:
                return
            last = int(rows[0][0])
            yield last

    def _read(self, query: str, *about: int | str) -> list[tuple[Any, ...]]:
        """Rows about one user."""
        with self._convert_errors():
            return self._database.execute(query, about).fetchall()

    def _verify(self, value: object, user: int, name: str) -> bytes:
        """Take off the checksum that :func:`_with_checksum` put before a value."""
        stored = self._require_bytes(value)
        content = stored[_CHECKSUM_BYTES:]
        if stored != _with_checksum(content, user, name):
            raise self._damaged(f"{name!r} of user {user} does not match its checksum")
        return content

    def _require_bytes(self, value: object) -> bytes:
        if not isinstance(value, bytes):
            raise self._damaged("it holds another type where bytes belong")
        return value

    def _decode_facts(self, text: object) -> Json:
        try:
            return decode_record(str(text).encode())
        except (ModelError, UnicodeEncodeError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> PrivacyError:
        return PrivacyError(
            f"the devices' database {self.path} is damaged, or of an earlier release ({what}); "
            "restore it, or remove its folder and go on with --resume: what is in it is made again"
        )

    def _discard_staged(self) -> None:
        """Drop what was staged."""
        self._lines, self._anchors, self._vault_entries = {}, {}, {}
        self._profiles = []

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, synced."""
        with self._convert_errors():
            self._require_same_file()
            # IMMEDIATE takes the write lock now: a lock taken later could fail half-way.
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            # BaseException: Ctrl-C must roll back as well.
            except BaseException:
                # SQLite may have rolled back by itself, as on a full disk; and no error of this
                # must hide the one that matters.
                with suppress(sqlite3.Error):
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                raise

    def _require_same_file(self) -> None:
        """Refuse to write to a file that was removed or replaced: what is in it is lost."""
        if _identity(self.path) != self._identity:
            raise PrivacyError(
                f"the devices' database {self.path} was moved, removed or replaced while it was in "
                "use; put its folder back, or begin anew in another: nothing leaves a device "
                "before its ledger is written"
            )

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        """Errors of the database as our own."""
        try:
            yield
        except (OverflowError, UnicodeError) as error:  # of values that no release wrote
            raise self._damaged(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise PrivacyError(
                f"the devices' database {self.path} cannot be used: "
                f"{explain_error(error, self.path)}. Nothing leaves a device before its ledger is "
                "written"
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class DatabaseAnchor:
    """A ledger's anchor in the database (see ``shared.privacy.hash_chain.AnchorStore``).

    Shows lines that were removed from a ledger's end. Whoever can change the database can change
    both; a simulated population has nobody to protect from that.
    """

    def __init__(self, database: DeviceDatabase, user: int) -> None:
        self._database, self._user = database, user

    def read(self) -> Anchor | None:
        """See ``AnchorStore.read``."""
        found = self._database.ledger_anchor(self._user)
        if found is None and self._database.ledger_lines(self._user):
            raise LedgerError(
                f"the anchor of user {self._user} is gone; restore {self._database.path.name}"
            )
        return found

    def write(self, anchor: Anchor) -> None:
        """See ``AnchorStore.write``; on disk with the line that it anchors, or not at all."""
        self._database.stage_anchor(self._user, anchor)


class DatabaseLedger(Ledger):
    """One user's ledger in the database: the same lines, the same chain, the same accounting.

    Args:
        database: Where it is.
        user: Whose it is, by index.
        owner: Whose it is, by name.

    Guarantees:
        - As ``Ledger``, but that a line is on disk when :meth:`DeviceDatabase.commit` returns,
          which is before a reply leaves and not before its release is computed.
    """

    def __init__(
        self, database: DeviceDatabase, user: int, *, owner: str, read_only: bool = False
    ) -> None:
        self._database, self._user = database, user
        anchor_store = DatabaseAnchor(database, user)
        super().__init__(database.path, owner=owner, anchor_store=anchor_store, read_only=read_only)

    def _load(self) -> bytes:
        """See ``Ledger``; a transaction leaves no torn lines."""
        return b"".join(self._database.ledger_lines(self._user))

    def _write_line(self, line: bytes) -> None:
        """See ``Ledger``."""
        self._database.stage_line(self._user, len(self.releases), line)
