"""The archive of a fold's ledgers: written when it ends, verified whenever one is read."""

from pathlib import Path

from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import LedgerError
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.simulations.results.path_names import file_name
from sottovoce.simulations.runs.fold_spec import FoldSpec


class LedgerArchive:
    """Ledgers of one fold's devices and server.

    Args:
        spec: The fold.
    """

    def __init__(self, spec: FoldSpec) -> None:
        self._spec = spec

    def archive_user_ledger(self, user: str, ledger: Ledger) -> str:
        """Archive a user's ledger; returns its head hash."""
        replace_file(self._user_path(user), ledger.raw_bytes)
        return ledger.head_hash

    def archive_server_ledger(self) -> str:
        """Archive the ledger of the fold's server; returns its head hash."""
        path = self._spec.server_folder / LEDGER_FILE
        # Opened only to be verified: bytes are copied as they are, or the hash would change.
        ledger = Ledger(path, owner=LEDGER_OWNER, read_only=True)
        replace_file(self._server_path, ledger.path.read_bytes())
        return ledger.head_hash

    def open_user_ledger(self, user: str, head: str | None) -> Ledger:
        """Open a user's archived ledger.

        Args:
            user: Whose.
            head: Head hash that it had when the fold ended; None where the fold names none.

        Raises:
            LedgerError: It is gone, or ends otherwise.
        """
        return self._open(self._user_path(user), user, head)

    def open_server_ledger(self, head: str | None) -> Ledger:
        """Open the server's archived ledger; errors as for :meth:`open_user_ledger`.

        Args:
            head: Head hash that it had when the fold ended; None where the fold names none.
        """
        return self._open(self._server_path, LEDGER_OWNER, head)

    def _open(self, path: Path, owner: str, head: str | None) -> Ledger:
        ledger = Ledger(path, owner=owner, read_only=True)
        if ledger.head_hash != head:
            raise LedgerError(
                f"the ledger of {owner} in {path.parent} is not the one that "
                f"{self._spec.fold.name} ended with; restore it, or remove {self._spec.folder} and "
                "go on with --resume"
            )
        return ledger

    def _user_path(self, user: str) -> Path:
        return self._spec.ledgers / f"{file_name(user)}.jsonl"

    @property
    def _server_path(self) -> Path:
        """Beside its users' folder, not among them: a user may be called "server"."""
        folder = self._spec.ledgers
        return folder.with_name(f"{folder.name}.server.jsonl")
