"""Anchor of a server's ledger: how far it had come, and which of its sums were released.

Lines dropped at a ledger's end leave its chain whole, so a ledger alone cannot tell. A device seals
its anchor under its vault's key; a server has none, and stores it in the job's folder. That holds
against a ledger that was lost, cut, or put back from a backup; not against whoever can write both.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import LedgerError, PrivacyError, StorageError
from sottovoce.shared.privacy.hash_chain import Anchor

ANCHOR_FILE: Final = "anchor.json"

STATE_FILE: Final = "state.safetensors"
"""The newest checkpoint, in the job's folder: where one is, rounds were made."""

RECOVERY_HINT: Final = (
    "Put the newest copy of the server's whole folder back. Without one, what these users were "
    "charged is unknown, and nothing more may be released from this run: begin a new run, in "
    "another folder"
)


class ServerAnchor:
    """Anchor of a real server's ledger (see ``shared.privacy.hash_chain.AnchorStore``).

    Guarantees:
        - What was written survives a power cut, and a crash leaves the old one or the new one.
        - A folder with a ledger or a checkpoint and no anchor is refused: the first anchor is
          written before the first booking.

    Args:
        folder: The job's.
        ledger: The ledger's name in it.
    """

    def __init__(self, folder: Path, *, ledger: str) -> None:
        self._path = folder / ANCHOR_FILE
        self._run_files = [folder / ledger, folder / STATE_FILE]

    def read(self) -> Anchor | None:
        """Read the anchor; see ``AnchorStore.read``."""
        record = self._read()
        return Anchor(releases=record["releases"], head=record["head"]) if record else None

    def write(self, anchor: Anchor) -> None:
        """Write the anchor; see ``AnchorStore.write``."""
        self._write(asdict(anchor) | {"let_out": self.released_bookings})

    @property
    def released_bookings(self) -> list[str]:
        """Bookings whose sums were released, or were about to be."""
        # The key in the file does not follow the property: anchors of earlier runs have it.
        return list((self._read() or {}).get("let_out", []))

    def record_release(self, booking: str) -> None:
        """Record that a booking's sum is released now.

        Args:
            booking: Its name in the ledger.

        Raises:
            PrivacyError: The disk refuses; nothing may be released.
        """
        record = self._read()
        if record is None:
            raise LedgerError(f"{self._path} is gone. {RECOVERY_HINT}")
        if booking not in record["let_out"]:
            self._write(record | {"let_out": [*record["let_out"], booking]})

    def _read(self) -> dict[str, Any] | None:
        """Read the record; None before anything was booked."""
        if not self._path.exists():
            signs = [path.name for path in self._run_files if path.exists()]
            if signs:
                raise LedgerError(
                    f"{self._path.parent} holds {' and '.join(signs)} without {ANCHOR_FILE}, which "
                    f"tells how far the ledger had come. {RECOVERY_HINT}"
                )
            return None
        try:
            record = json.loads(self._path.read_bytes())
            Anchor(releases=record["releases"], head=record["head"])
            known = {"releases": record["releases"], "head": record["head"]}
            return known | {"let_out": [str(name) for name in record["let_out"]]}
        except (PrivacyError, OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{self._path} is damaged ({error}). {RECOVERY_HINT}") from error

    def _write(self, record: dict[str, Any]) -> None:
        """Write a record in place of the last one."""
        try:
            replace_file(self._path, json.dumps(record, sort_keys=True, indent=1).encode())
        except StorageError as error:
            raise PrivacyError(str(error)) from error
