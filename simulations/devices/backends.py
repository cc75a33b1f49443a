"""Storage of a fold's devices: in folders, or in one database for the local engine."""

import shutil
from pathlib import Path
from typing import Final, Protocol

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.simulations.devices.device_pool import DevicePool

_FOLDERS, _DATABASE = "devices", "devices.sqlite"
LOCAL_ENGINE: Final = "local"


class DeviceBackend(Protocol):
    """Storage of the devices of one fold, by index from 0."""

    @property
    def engine_config(self) -> dict[str, str]:
        """Configuration by which an engine finds the devices."""

    def has_device(self, index: int) -> bool:
        """Tell whether there is a device of this index."""

    def create_device(self, index: int, profile: DeviceProfile, features: LabelledFeatures) -> None:
        """Create a device, in place of an incomplete one; it exists once it is committed."""

    def open_device(self, index: int) -> Device:
        """Open a device in the state of the last run."""

    def commit_changes(self) -> None:
        """Write to disk the devices created, and the changes of those that were opened."""

    def close(self) -> None:
        """Close every file that is open."""

    def delete_devices(self) -> None:
        """Delete all devices for good."""


def open_backend(folder: Path, engine: str) -> DeviceBackend:
    """Open the storage of a fold's devices.

    Args:
        folder: Folder of the fold.
        engine: Engine that runs it. Only the local engine's processes share one database; any other
            may run elsewhere and opens a folder each.

    Example:
        >>> config = open_backend(Path("fold1"), "local").engine_config
        >>> Path(config["device_database"]).name
        'devices.sqlite'
    """
    return (
        DatabaseBackend(folder / _DATABASE)
        if engine == LOCAL_ENGINE
        else FolderBackend(folder / _FOLDERS)
    )


class FolderBackend:
    """A folder for each device, sealed and synced like a real device's."""

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
        # A crash may have left half a device, which would be refused.
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
    """One database for all devices, opened when it is first used; see ``DevicePool``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: DevicePool | None = None

    @property
    def _pool(self) -> DevicePool:
        """The database, opened."""
        if self._open is None:
            self._open = DevicePool(self._path)
        # Opened late: a process that only asks for the configuration must not create the file.
        return self._open

    @property
    def engine_config(self) -> dict[str, str]:
        """See ``DeviceBackend``."""
        return {"device_database": str(self._path.resolve())}

    def has_device(self, index: int) -> bool:
        """See ``DeviceBackend``."""
        # The path first: asking must not create a database.
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
        # The journal and the shared-memory file beside the database go with it.
        for path in self._path.parent.glob(f"{self._path.name}*"):  # with what SQLite lays beside
            path.unlink()
