"""The anchor of a device's ledger, sealed in the device's vault."""

import json
from dataclasses import asdict
from typing import Final

from sottovoce.client.device.vault import Vault
from sottovoce.shared.errors import LedgerError, SottovoceError
from sottovoce.shared.privacy.hash_chain import Anchor

_NAME: Final = "ledger-anchor"
_WAY_OUT: Final = (
    "Put vault and ledger back from one backup. Without one, what this device spent is unknown: "
    "`sottovoce device retire FOLDER` lets it only receive models"
)


class VaultAnchor:
    """A ledger's anchor under the vault's key (see ``shared.privacy.hash_chain.AnchorStore``).

    It is written over in place and not synced, so that booking stays quick. After a power cut it
    may be older than the ledger, whose lines are synced; a ledger ahead of its anchor counts in
    full, so all that is lost is that the newest lines could be dropped unseen until the device is
    opened again.

    Args:
        vault: The device's vault.
        required: Whether there must be one; devices made before there were anchors have none.
    """

    def __init__(self, vault: Vault, *, required: bool) -> None:
        self._vault = vault
        self._required = required

    def read(self) -> Anchor | None:
        """Read the anchor; see ``AnchorStore.read``."""
        if not self._vault.has_blob(_NAME):
            if self._required:
                raise LedgerError(f"the ledger's anchor is gone from the vault. {_WAY_OUT}")
            return None
        try:
            record = json.loads(self._vault.get(_NAME))
            return Anchor(releases=record["releases"], head=record["head"])
        except (SottovoceError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"the ledger's anchor is damaged ({error}). {_WAY_OUT}") from error

    def write(self, anchor: Anchor) -> None:
        """Write the anchor; see ``AnchorStore.write``."""
        self._vault.overwrite(_NAME, json.dumps(asdict(anchor)).encode())
