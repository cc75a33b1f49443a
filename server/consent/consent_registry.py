"""The register of users' consent: whose key signs it, and which enrolments have ended.

It holds no pseudonym: a user is a hash under a salt of the register's own. That is enough to know a
user who comes back, and all that a server keeps of one who has withdrawn.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from sottovoce.shared import crypto
from sottovoce.shared.atomic_files import make_folder
from sottovoce.shared.errors import MessageError, PrivacyError
from sottovoce.shared.identity import identity_key
from sottovoce.shared.printable import get_logger
from sottovoce.shared.protocol.consent import ConsentStatement
from sottovoce.shared.storage_errors import explain_error

LOG = get_logger("sottovoce.server")

LOCK_TIMEOUT_S: Final = 30.0
"""Longest wait for another program that writes to the register."""

REGISTRY_FILE: Final = "consents.sqlite"
_SCHEMA: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS register (salt BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS consents (
    user BLOB PRIMARY KEY, public_key BLOB NOT NULL, enrolment INTEGER NOT NULL,
    withdrawn INTEGER NOT NULL
) STRICT;
"""


class _Consent(NamedTuple):
    """What is known of one user."""

    public_key: bytes
    enrolment: int
    withdrawn: bool


class ConsentRegistry:
    """One sqlite database of consents, for all runs that share a store of heads.

    Args:
        path: The file; made if missing (mode 0600).

    Guarantees:
        - What a call recorded is on the disk when it returns.
        - The first key that signs for a user is the user's for good: a statement under another one
          is refused.
        - A withdrawn enrolment stays withdrawn. Only a consent to a later one, signed under the
          user's key, brings the user back.
        - Not promised: that the first statement under a name comes from its user. That is for the
          transport to establish, as with heads.

    Raises:
        PrivacyError: It cannot be used, or is of a newer release.

    Example:
        >>> import tempfile
        >>> registry = ConsentRegistry(Path(tempfile.mkdtemp()) / REGISTRY_FILE)
        >>> key = crypto.new_key()
        >>> word = ConsentStatement.sign_withdrawal(key, user="ada", enrolment=1, challenge=b"7")
        >>> registry.record_withdrawal("ada", word, challenge=b"7"), registry.is_withdrawn("ada")
        (True, True)
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        try:
            make_folder(path.parent)
            path.touch(mode=0o600)
        except OSError as error:
            raise PrivacyError(f"the register {path} cannot be written: {error}") from error
        with self._database() as database:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if found not in range(_SCHEMA + 1):
                raise PrivacyError(f"{path} has schema {found}, not {_SCHEMA}; update the server")
            for statement in _TABLES.strip().split(";\n"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_SCHEMA}")
            row = database.execute("SELECT salt FROM register").fetchone()
            self._salt: bytes = row[0] if row else crypto.new_key()
            if not row:
                database.execute("INSERT INTO register VALUES (?)", (self._salt,))

    def admit_enrolments(self, statements: Mapping[str, bytes], plan_hash: str) -> set[str]:
        """Admit users who enrol, by their statements of consent.

        Args:
            statements: What each user sent; nothing from devices that state no consent.
            plan_hash: SHA-256 of the plan that they enrol for.

        Returns:
            The users whose enrolment counts; of the others nothing may be used.
        """
        with self._database() as database:
            return {
                user
                for user, data in statements.items()
                if self._admit(database, user, data, plan_hash)
            }

    def _admit(self, database: sqlite3.Connection, user: str, data: bytes, plan_hash: str) -> bool:
        """Admit one user."""
        known = self._read(database, user)
        if not data:
            # Devices of earlier releases state nothing; whoever stated it once, states it always.
            return known is None
        try:
            statement = ConsentStatement.from_bytes(data)
        except MessageError as error:
            LOG.warning("%s states no consent that can be read: %s", user, error)
            return False
        if not statement.is_consent_of(user, plan_hash) or not _follows(statement, known):
            LOG.warning("the consent of %s is not theirs, or of an enrolment that ended", user)
            return False
        if known is None or statement.enrolment > known.enrolment:
            self._write(database, user, statement, withdrawn=False)
        return True

    def record_withdrawal(self, user: str, proof: ConsentStatement, *, challenge: bytes) -> bool:
        """Record that a user has withdrawn consent, if the proof is theirs.

        Args:
            user: The pseudonym.
            proof: What the user's device signed.
            challenge: The bytes that this server drew for it.

        Returns:
            Whether it is: signed under the user's key, for this challenge, and of the newest
            enrolment that is known. A user who is not known yet is believed.
        """
        if not proof.is_withdrawal_of(user, challenge):
            return False
        with self._database() as database:
            known = self._read(database, user)
            if known and (
                proof.public_key != known.public_key or proof.enrolment < known.enrolment
            ):
                return False
            self._write(database, user, proof, withdrawn=True)
        return True

    def is_withdrawn(self, user: str) -> bool:
        """Whether a user has withdrawn consent and not consented anew."""
        with self._database() as database:
            known = self._read(database, user)
        return known is not None and known.withdrawn

    def forget_user(self, user: str) -> bool:
        """Forget a user's key, so that another can sign for the name; whether there was one.

        For an operator who has established by other means who asks. Whoever has withdrawn is not
        forgotten: their enrolment has ended.
        """
        with self._database() as database:
            found = database.execute(
                "DELETE FROM consents WHERE user = ? AND NOT withdrawn", (self._hash(user),)
            )
            return found.rowcount > 0

    @property
    def has_withdrawals(self) -> bool:
        """Whether anybody has withdrawn consent."""
        with self._database() as database:
            query = "SELECT EXISTS (SELECT 1 FROM consents WHERE withdrawn)"
            return bool(database.execute(query).fetchone()[0])

    def select_withdrawn(self, users: Iterable[str]) -> set[str]:
        """Select those among some users who have withdrawn; quick where nobody has."""
        with self._database() as database:
            rows = database.execute("SELECT user FROM consents WHERE withdrawn").fetchall()
        withdrawn = {row[0] for row in rows}
        return {user for user in users if self._hash(user) in withdrawn} if withdrawn else set()

    def _hash(self, user: str) -> bytes:
        """Hash a pseudonym; spellings that are one name have one hash."""
        return hashlib.sha256(self._salt + identity_key(user).encode()).digest()

    def _read(self, database: sqlite3.Connection, user: str) -> _Consent | None:
        query = "SELECT public_key, enrolment, withdrawn FROM consents WHERE user = ?"
        row = database.execute(query, (self._hash(user),)).fetchone()
        return None if row is None else _Consent(row[0], row[1], bool(row[2]))

    def _write(
        self,
        database: sqlite3.Connection,
        user: str,
        statement: ConsentStatement,
        *,
        withdrawn: bool,
    ) -> None:
        database.execute(
            "INSERT OR REPLACE INTO consents VALUES (?, ?, ?, ?)",
            (self._hash(user), statement.public_key, statement.enrolment, withdrawn),
        )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction on a connection of its own: done at the end, or not at all."""
        try:
            with closing(
                sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            ) as database:
                database.execute("PRAGMA synchronous = EXTRA")
                # Taken before the read: two servers must not judge by the same old record.
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise PrivacyError(
                f"the register of consents {self._path} cannot be used: "
                f"{explain_error(error, self._path)}; put it back from a backup: without it "
                "nobody knows who has withdrawn"
            ) from error


def _follows(statement: ConsentStatement, known: _Consent | None) -> bool:
    """Whether a consent may come after what is known of its user."""
    if known is None:
        return True
    least = known.enrolment + known.withdrawn
    return statement.public_key == known.public_key and statement.enrolment >= least
