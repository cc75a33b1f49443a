"""Erasing a device: the user's key first, then everything that it opened."""

from pathlib import Path
from typing import Final

from sottovoce.client.device.profile import PROFILE_FILE
from sottovoce.client.device.vault import FileVault
from sottovoce.shared import atomic_files
from sottovoce.shared.errors import PrivacyError, SettingError

_VAULT: Final = "vault"
_LEDGERS: Final = "ledger*"


def erase_device(folder: Path) -> tuple[Path, ...]:
    """Erase a device for good, whether or not it can be opened.

    What has left the device is not called back. An erased device cannot ask servers to delete what
    they hold: withdraw first (:meth:`Device.withdraw`), and wait for their confirmations.

    Args:
        folder: The device's.

    Returns:
        Files in the folder that are none of the device's, and stay.

    Guarantees:
        - The key goes first: if this is interrupted, what remains cannot be opened by anybody, and
          a second call finishes the first.

    Raises:
        SettingError: There is no device.
        PrivacyError: The disk refuses.
    """
    profile, vault = folder / PROFILE_FILE, folder / _VAULT
    if not profile.exists() and not vault.is_dir():
        raise SettingError(f"{folder} holds no device; there is nothing to erase")
    try:
        FileVault.erase_folder(vault)
        for pattern in (_LEDGERS, atomic_files.PARTIAL_FILES):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        # Last: until then a folder that was half erased is seen to be one.
        profile.unlink(missing_ok=True)
        _remove_if_empty(vault)
        atomic_files.sync_folder(folder)
        left = tuple(sorted(path for path in folder.rglob("*") if not path.is_dir()))
        _remove_if_empty(folder)
    except OSError as error:
        raise PrivacyError(
            f"{folder} cannot be erased ({error.strerror or error}); what is left of it cannot be "
            "opened once its key is gone. Erase it again"
        ) from error
    return left


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is left."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
