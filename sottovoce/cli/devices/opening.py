"""A device that is named on the command line: its folder, and opening it to look at it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import FileVault


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the device's folder."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the device's folder")


def open_to_look(folder: Path) -> "tuple[Device, FileVault]":
    """Open a device whose ledger stays as it is, and its vault, by the environment's passphrase."""
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import open_from_environment
    from sottovoce.client.personalisation.example_store import open_vault

    vault = open_vault(folder, open_from_environment(folder / "vault"))
    return Device.open(folder, read_only=True, vault=vault), vault
