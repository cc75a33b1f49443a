"""Where a fold's devices are stored: in folders, or in one database for the local engine."""

import shutil
from pathlib import Path
from typing import Final, Protocol

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.simulations.devices.device_pool import DevicePool

_FOLDERS, _DATABASE = "devices", "devices.sqlite"
LOCAL_ENGINE: Final = "local"


class DeviceBackend(Protocol):
    """The devices of one fold, by index from 0."""

    @property
    def engine_config(self) -> dict[str, str]:
        """How an engine finds them."""

    def has_device(self, index: int) -> bool:
        """Whether there is a device of this index."""

    def create_device(self, index: int, profile: DeviceProfile, features: LabelledFeatures) -> None:
        """Make a device, in place of what was half made; it is there once that is committed."""

    def open_device(self, index: int) -> Device:
        """A device as the last run left it."""

    def commit_changes(self) -> None:
        """Bring to disk the devices created, and what changed on those that were opened."""

    def close(self) -> None:
        """Let go of what is open."""

    def delete_devices(self) -> None:
        """Delete all devices, for good."""


def open_backend(folder: Path, engine: str) -> DeviceBackend:
    """Where the devices of a fold are stored.

    Args:
        folder: The fold's.
        engine: What runs it. Only the local engine's processes share one database; whatever may
            run elsewhere opens a folder each.
    """
    return (
        DatabaseBackend(folder / _DATABASE)
        if engine == LOCAL_ENGINE
        else FolderBackend(folder / _FOLDERS)
    )


class FolderBackend:
    """A folder for each device, sealed and synced as every real one's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def engine_config(self) -> dict[str, str]:
        """See ``DeviceBackend``."""
        return {"devices": str(self._folder.resolve())}

    def has_device(self, index: int) -> bool:
        """See ``DeviceBackend``."""
        return Device.exists(self._device_folder(index))

    def create_device(self, index: int, profile: DeviceProfile, features: LabelledFeatures) -> None:
        """See ``DeviceBackend``."""
        shutil.rmtree(self._device_folder(index), ignore_errors=True)
        Device.create(self._device_folder(index), profile, features)

    def open_device(self, index: int) -> Device:
        """See ``DeviceBackend``."""
        return Device.open(self._device_folder(index))

    def commit_changes(self) -> None:
        """See ``DeviceBackend``; all is on disk at once."""

    def close(self) -> None:
        """See ``DeviceBackend``; nothing is open."""

    def delete_devices(self) -> None:
        """See ``DeviceBackend``."""
        shutil.rmtree(self._folder)

    def _device_folder(self, index: int) -> Path:
        """A device's folder."""
        return self._folder / f"{index:06d}"


class DatabaseBackend:
    """One database for all, opened while it is used; see ``DevicePool``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: DevicePool | None = None

    @property
    def _pool(self) -> DevicePool:
        """The database, opened."""
        if self._open is None:
            self._open = DevicePool(self._path)
        return self._open

    @property
    def engine_config(self) -> dict[str, str]:
        """See ``DeviceBackend``."""
        return {"device_database": str(self._path.resolve())}

    def has_device(self, index: int) -> bool:
        """See ``DeviceBackend``."""
        return self._path.exists() and self._pool.has_device(index)

    def create_device(self, index: int, profile: DeviceProfile, features: LabelledFeatures) -> None:
        """See ``DeviceBackend``."""
        self._pool.create_device(index, profile, features)

    def open_device(self, index: int) -> Device:
        """See ``DeviceBackend``."""
        return self._pool.open_device(index).device

    def commit_changes(self) -> None:
        """See ``DeviceBackend``."""
        self._pool.commit_changes()

    def close(self) -> None:
        """See ``DeviceBackend``."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def delete_devices(self) -> None:
        """See ``DeviceBackend``."""
        self.close()
        for path in self._path.parent.glob(f"{self._path.name}*"):  # with what SQLite lays beside
            path.unlink()
