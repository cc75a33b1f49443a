"""How far a server's ledger of sums had come, and which of them were let out: kept beside it.

Lines dropped at a ledger's end leave its chain whole, so a ledger alone cannot tell. A device keeps
its anchor under its vault's key; a server has none, and keeps it in the job's folder. That holds
against a ledger that was lost, cut, or put back from a backup; not against whoever can write both.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sottovoce.server.files import STATE, replace_file
from sottovoce.shared.errors import LedgerError, ModelError, PrivacyError
from sottovoce.shared.privacy.chain import Anchor

FILE: Final = "anchor.json"


WAY_OUT: Final = (
    "Put the newest copy of the server's whole folder back. Without one, what these users were "
    "charged is unknown, and nothing more may be let out of this run: begin a new run, in another "
    "folder"
)


class ServerAnchor:
    """The anchor of a real server's ledger (see ``shared.privacy.chain.Keeper``).

    Guarantees:
        - What was kept survives a power cut, and a crash leaves the old one or the new one.
        - A folder with a ledger or a checkpoint and no anchor is refused: the first anchor is
          written before the first booking.

    Args:
        folder: The job's.
        ledger: The ledger's name in it.
    """

    def __init__(self, folder: Path, *, ledger: str) -> None:
        self._path = folder / FILE
        self._signs = [folder / ledger, folder / STATE]

    def read(self) -> Anchor | None:
        """See ``Keeper.read``."""
        record = self._read()
        return Anchor(releases=record["releases"], head=record["head"]) if record else None

    def write(self, anchor: Anchor) -> None:
        """See ``Keeper.write``."""
        self._write(asdict(anchor) | {"let_out": self.let_out})

    @property
    def let_out(self) -> list[str]:
        """The bookings whose sums were let out, or were about to be."""
        return list((self._read() or {}).get("let_out", []))

    def note(self, booked: str) -> None:
        """Keep that a booking's sum is let out now.

        Args:
            booked: Its name in the ledger.

        Raises:
            PrivacyError: The disk refuses; nothing may be let out.
        """
        record = self._read()
        if record is None:
            raise LedgerError(f"{self._path} is gone. {WAY_OUT}")
        if booked not in record["let_out"]:
            self._write(record | {"let_out": [*record["let_out"], booked]})

    def _read(self) -> dict[str, Any] | None:
        """What is kept; None before anything was booked."""
        if not self._path.exists():
            signs = [path.name for path in self._signs if path.exists()]
            if signs:
                raise LedgerError(
                    f"{self._path.parent} holds {' and '.join(signs)} without {FILE}, which tells "
                    f"how far the ledger had come. {WAY_OUT}"
                )
            return None
        try:
            record = json.loads(self._path.read_bytes())
            Anchor(releases=record["releases"], head=record["head"])
            known = {"releases": record["releases"], "head": record["head"]}
            return known | {"let_out": [str(name) for name in record["let_out"]]}
        except (PrivacyError, OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{self._path} is damaged ({error}). {WAY_OUT}") from error

    def _write(self, record: dict[str, Any]) -> None:
        """Keep a record in place of the last one."""
        try:
            replace_file(self._path, json.dumps(record, sort_keys=True, indent=1).encode())
        except ModelError as error:
            raise PrivacyError(str(error)) from error
