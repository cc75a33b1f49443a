"""Opening a device that a command only looks at, or that keeps its ledger as it is."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import FileVault


def open_to_look(folder: Path) -> "tuple[Device, FileVault]":
    """Open a device whose ledger stays as it is, and its vault, by the environment's passphrase."""
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import open_from_environment
    from sottovoce.client.personalisation.example_store import open_vault

    vault = open_vault(folder, open_from_environment(folder / "vault"))
    return Device.open(folder, read_only=True, vault=vault), vault
