"""Members of a sampled run, and the outcomes of its rounds: in one database, not in memory.

A device is asked to enrol once, when it is first sampled. Which node is whose must outlive the
server, so that after a crash nobody answers for another.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import ModelError
from sottovoce.shared.storage_errors import explain_error

LOCK_TIMEOUT_S: Final = 30.0
"""Longest wait for another program that writes to the store."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS members (
    node INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE, joined INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, sampled INTEGER NOT NULL, newcomers INTEGER NOT NULL,
    silent INTEGER NOT NULL, refused INTEGER NOT NULL, used INTEGER NOT NULL
) STRICT;
"""


@dataclass(kw_only=True, slots=True)
class RoundOutcome:
    """Outcome of a round, counted by device; the operator's own figures, which nobody is sent.

    Attributes:
        sampled: Devices that were sampled.
        newcomers: Of them those who were no members when the round began.
        unresponsive: Those from whom nothing came in time.
        refused: Those who gave nothing, or nothing that could be used.
        used: Those whose reply is in the sum.
    """

    sampled: int = 0
    newcomers: int = 0
    unresponsive: int = 0
    refused: int = 0
    used: int = 0


class MembershipStore:
    """One sqlite database of members and rounds.

    Args:
        path: The file; made if missing.

    Guarantees:
        - What a call wrote is on disk when it returns.
        - A node has one user, and a user one node, for the whole run.
        - What is held in memory does not grow with the number of members.

    Raises:
        ModelError: It cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        with self._database() as database:
            database.executescript(_TABLES)

    def users_by_node(self, nodes: Sequence[int]) -> dict[int, str]:
        """Look up the members among some nodes, and their users' names."""
        marks = ",".join("?" * len(nodes))
        query = f"SELECT node, user FROM members WHERE node IN ({marks})"  # noqa: S608  (marks)
        with self._database() as database:
            return dict(database.execute(query, nodes).fetchall())

    def count_joined(self, nodes: Sequence[int], number: int) -> int:
        """Count those of some nodes who joined in a round, in this try of it or one before."""
        marks = ",".join("?" * len(nodes))
        query = f"SELECT COUNT(*) FROM members WHERE joined = ? AND node IN ({marks})"  # noqa: S608
        with self._database() as database:
            return int(database.execute(query, (number, *nodes)).fetchone()[0])

    def add_members(self, joined: Mapping[int, str], number: int) -> dict[int, str]:
        """Take members in; those whose user is a member by another node are left out.

        Args:
            joined: Who joined, by node.
            number: In which round.

        Returns:
            Who is a member now.
        """
        # Two context managers: the inner one commits, the outer one closes.
        with self._database() as database, database:
            return {
                node: user
                for node, user in joined.items()
                if database.execute(
                    # IGNORE keeps the first node of a user, and the first user of a node.
                    "INSERT OR IGNORE INTO members VALUES (?, ?, ?)",
                    (node, user, number),
                ).rowcount
            }

    def remove_user(self, user: str) -> bool:
        """Remove a user's membership; whether there was one."""
        with self._database() as database, database:
            database.execute("PRAGMA secure_delete = ON")
            found = database.execute("DELETE FROM members WHERE user = ?", (user,))
            return found.rowcount > 0

    def list_users(self) -> Iterator[str]:
        """List the members' users, one after the other."""
        with self._database() as database:
            for row in database.execute("SELECT user FROM members"):
                yield row[0]

    def count_members(self) -> int:
        """Count the members of the run."""
        with self._database() as database:
            return int(database.execute("SELECT COUNT(*) FROM members").fetchone()[0])

    def save_outcome(self, number: int, outcome: RoundOutcome) -> None:
        """Save a round's outcome, in place of what an interrupted try left."""
        with self._database() as database, database:
            row = (number, *asdict(outcome).values())
            database.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?)", row)

    def load_outcomes(self) -> dict[int, RoundOutcome]:
        """Load the outcomes of all rounds, the initial cohort's under 0."""
        query = "SELECT round, sampled, newcomers, silent, refused, used FROM rounds ORDER BY round"
        with self._database() as database:
            rows = database.execute(query).fetchall()
        return {
            number: RoundOutcome(sampled=a, newcomers=b, unresponsive=c, refused=d, used=e)
            for number, a, b, c, d, e in rows
        }

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open a connection of its own, so that nothing is held between rounds."""
        try:
            with closing(sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S)) as database:
                database.execute("PRAGMA synchronous = FULL")
                yield database
        except sqlite3.Error as error:
            raise ModelError(
                f"the members in {self._path} cannot be used: {explain_error(error, self._path)}"
            ) from error
