"""The anchor of a device's ledger, sealed in the device's vault."""

import json
from dataclasses import asdict
from typing import Final

from sottovoce.client.device.vault import Vault
from sottovoce.shared.errors import LedgerError, SottovoceError
from sottovoce.shared.privacy.hash_chain import Anchor

_NAME: Final = "ledger-anchor"
_SEALS_PROFILE: Final = "profile"
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
        durable: Whether a new one must survive a power cut all the same, as where it takes the
            place of one that disagrees with the ledger.
    """

    def __init__(self, vault: Vault, *, required: bool, durable: bool = False) -> None:
        self._vault = vault
        self._required = required
        self._durable = durable

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
        # Whoever removes the sealed profile, to edit the plain one, would have to remove this too.
        record = asdict(anchor) | {_SEALS_PROFILE: True}
        data = json.dumps(record).encode()
        if self._durable:
            self._vault.put(_NAME, data)
        else:
            self._vault.overwrite(_NAME, data)


def is_profile_sealed(vault: Vault) -> bool:
    """Whether the anchor says that the vault must hold a sealed profile.

    Anchors of earlier releases, and those that do not open, say nothing; the latter are refused
    where the ledger is opened.
    """
    if not vault.has_blob(_NAME):
        return False
    try:
        record = json.loads(vault.get(_NAME))
    except (SottovoceError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get(_SEALS_PROFILE) is True
