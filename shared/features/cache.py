"""Feature cache on disk, keyed by the audio content and by the extractor's fingerprint.

One SQLite database in write-ahead mode: several processes may read and write, and a process
that is killed loses at most what it had not committed. Every entry carries a checksum over its
key and its bytes. An entry that fails it, or a database that is damaged as a whole, is counted and
computed again; it is never returned.
"""

import hashlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.shared.errors import FeatureError
from sottovoce.shared.storage_errors import explain_error

DATABASE_FILE = "features.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS features (
    content TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    value BLOB NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (content, fingerprint)
)
"""
_LOCK_TIMEOUT_S = 60.0
_MAX_AXES = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CacheEntry:
    """One cached value with a note.

    Attributes:
        features: Float32, one or two axes; None if the recording was examined and refused.
        note: Free text, such as a quality report of the recording.
    """

    features: Tensor | None
    note: str = ""


class FeatureCache:
    """Cache of features by (content, fingerprint).

    May be shared by threads and opened by several processes at once. Open one again after a
    fork; a spawned process opens its own.

    Args:
        folder: Where the database lies, made if need be.

    Raises:
        FeatureError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / DATABASE_FILE
        self.corrupt_count = 0
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._connection = self._open()

    def get_entry(self, content: str, fingerprint: str) -> CacheEntry | None:
        """Look up an entry; None if there is none or it is corrupt.

        A corrupt entry adds 1 to ``corrupt_count``; so does a corrupt database, which is moved
        aside and begun anew.

        Raises:
            FeatureError: The database cannot be read for another reason.
        """
        with self._lock:
            row = self._row(content, fingerprint)
        if row is None:
            return None
        value, checksum = row
        entry = None
        if isinstance(value, bytes) and checksum == _checksum(content, fingerprint, value):
            entry = _decode(value)
        if entry is None:
            self.corrupt_count += 1
        return entry

    def put_entry(self, content: str, fingerprint: str, entry: CacheEntry) -> None:
        """Store a single entry; see :meth:`put_entries`."""
        self.put_entries([(content, fingerprint, entry)])

    def put_entries(self, entries: Iterable[tuple[str, str, CacheEntry]]) -> None:
        """Store entries, all of them or none; entries under the same keys are replaced.

        Args:
            entries: Content key, fingerprint and entry of each.

        Raises:
            FeatureError: The disk is full or cannot be written, another process holds the
                database for a minute, or a tensor is not finite float32 of one or two axes.
        """
        rows = []
        for content, fingerprint, entry in entries:
            value = _encode(entry)
            rows.append((content, fingerprint, value, _checksum(content, fingerprint, value)))
        with self._lock:
            for attempt in (1, 2):
                try:
                    self._insert(rows)
                except sqlite3.DatabaseError as error:
                    if attempt == 2 or not self._moved_aside(error):
                        raise self._unusable(error) from error
                else:
                    return

    def close(self) -> None:
        """Close the database; the cache cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _row(self, content: str, fingerprint: str) -> tuple[object, object] | None:
        """Value and checksum as they are on the disk."""
        query = "SELECT value, checksum FROM features WHERE content = ? AND fingerprint = ?"
        try:
            row: tuple[object, object] | None = self._connection.execute(
                query, (content, fingerprint)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            if not self._moved_aside(error):
                raise self._unusable(error) from error
            return None
        return row

    def _insert(self, rows: list[tuple[str, str, bytes, bytes]]) -> None:
        """Write rows in one transaction."""
        with self._connection:  # commits, or rolls back when it raises
            self._connection.executemany(
                "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows
            )

    def _open(self) -> sqlite3.Connection:
        """Connect; a file that is no database is moved aside first."""
        for attempt in (1, 2):
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if attempt == 2 or not _is_corruption(error):
                    raise self._unusable(error) from error
                self._set_aside()
        raise FeatureError(f"the feature cache {self.path} cannot be opened; remove the file")

    def _connect(self) -> sqlite3.Connection:
        """One connection, the table made if need be."""
        connection = sqlite3.connect(self.path, timeout=_LOCK_TIMEOUT_S, check_same_thread=False)
        connection.text_factory = bytes  # what damage turned into text must still come out
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last transactions, never damage the database.
            connection.execute("PRAGMA synchronous = NORMAL")
            with connection:
                connection.execute(_SCHEMA)
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _moved_aside(self, error: sqlite3.DatabaseError) -> bool:
        """Begin anew if the database is corrupt; False if something else is wrong."""
        if not _is_corruption(error):
            return False
        with suppress(sqlite3.Error):
            self._connection.close()
        self._set_aside()
        self._connection = self._open()
        return True

    def _set_aside(self) -> None:
        """Rename the damaged database, so that it can be looked at, and count it."""
        self.corrupt_count += 1
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError), self._reported():
                os.replace(f"{self.path}{suffix}", f"{self.path}.corrupt{suffix}")  # noqa: PTH105

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Convert errors of the file system to ``FeatureError``."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error | OSError) -> FeatureError:
        """The error that names the database, what is wrong, and the way out."""
        waited = f" for {_LOCK_TIMEOUT_S:.0f} s" if "locked" in str(error) else ""
        return FeatureError(
            f"the feature cache {self.path} cannot be used{waited}: "
            f"{explain_error(error, self.path)}, or choose another folder (SOTTOVOCE_CACHE)"
        )


def _is_corruption(error: sqlite3.DatabaseError) -> bool:
    """Whether the database itself is damaged, or is none, or has another table's columns."""
    if isinstance(error, sqlite3.OperationalError):
        return (
            "no such" in str(error) or "has no column" in str(error) or "columns but" in str(error)
        )
    # Exactly this class: its subclasses report other faults, such as wrong SQL.
    return type(error) is sqlite3.DatabaseError


def _checksum(content: str, fingerprint: str, value: bytes) -> bytes:
    """BLAKE2b over the key and the value: an entry under a wrong key fails, too."""
    key = f"{content}\n{fingerprint}\n".encode()
    return hashlib.blake2b(key + value, digest_size=16).digest()


def _encode(entry: CacheEntry) -> bytes:
    """One line of JSON (shape, note), then the numbers, little-endian."""
    head = {"shape": None, "note": entry.note}
    features = entry.features
    if features is None:
        return json.dumps(head).encode() + b"\n"
    sound = features.dtype == torch.float32 and 1 <= features.dim() <= _MAX_AXES
    if not sound or not bool(features.isfinite().all()):
        raise FeatureError(
            f"features of {features.dtype} and shape {tuple(features.shape)} cannot be cached; "
            "need finite float32 of one or two axes"
        )
    # Little-endian, so that a cache can be copied between machines.
    numbers = features.detach().contiguous().numpy().astype("<f4", copy=False).tobytes()
    return json.dumps(head | {"shape": list(features.shape)}).encode() + b"\n" + numbers


def _decode(value: bytes) -> CacheEntry | None:
    """The reverse of ``_encode``; None for bytes that it did not write."""
    try:
        line, _, numbers = value.partition(b"\n")
        head = json.loads(line)
        note, shape = str(head["note"]), head["shape"]
        if shape is None:
            return CacheEntry(features=None, note=note)
        # A checksum proves the bytes are those stored, not that this release wrote them.
        if math.prod(shape) * 4 != len(numbers):
            return None
        # A copy, because the bytes of the database row are read-only.
        flat = torch.frombuffer(bytearray(numbers), dtype=torch.float32) if numbers else None
    except (KeyError, TypeError, ValueError):
        return None
    features = torch.zeros(tuple(shape)) if flat is None else flat.reshape(shape)
    return CacheEntry(features=features, note=note)
