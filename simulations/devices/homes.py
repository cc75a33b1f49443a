"""Where a world's devices are at home: in folders, or on a shelf for the local engine."""

import shutil
from pathlib import Path
from typing import Final, Protocol

from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.simulations.devices.shelf import Shelf

_FOLDERS, _SHELF = "devices", "devices.sqlite"
LOCAL: Final = "local"


class Home(Protocol):
    """The devices of one world, by place from 0."""

    @property
    def config(self) -> dict[str, str]:
        """How an engine finds them."""

    def holds(self, place: int) -> bool:
        """Whether there is a device of this place."""

    def put(self, place: int, facts: Facts, clips: Clips) -> None:
        """Make a device, in place of what was half made; it is there once that is committed."""

    def device(self, place: int) -> Device:
        """A device as the last run left it."""

    def commit(self) -> None:
        """Bring to disk what was put here, and changed on the devices that were handed out."""

    def close(self) -> None:
        """Let go of what is open."""

    def remove(self) -> None:
        """Forget all devices, for good."""


def home(folder: Path, engine: str) -> Home:
    """Where the devices of a world live.

    Args:
        folder: The world's.
        engine: What runs it. Only the local engine's processes share one database; whatever may
            run elsewhere opens a folder each.
    """
    return Shelved(folder / _SHELF) if engine == LOCAL else Folders(folder / _FOLDERS)


class Folders:
    """A folder a device, sealed and synced as every real one's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def config(self) -> dict[str, str]:
        """See ``Home``."""
        return {"devices": str(self._folder.resolve())}

    def holds(self, place: int) -> bool:
        """See ``Home``."""
        return Device.exists(self._place(place))

    def put(self, place: int, facts: Facts, clips: Clips) -> None:
        """See ``Home``."""
        shutil.rmtree(self._place(place), ignore_errors=True)
        Device.create(self._place(place), facts, clips)

    def device(self, place: int) -> Device:
        """See ``Home``."""
        return Device(self._place(place))

    def commit(self) -> None:
        """See ``Home``; all is on disk at once."""

    def close(self) -> None:
        """See ``Home``; nothing is open."""

    def remove(self) -> None:
        """See ``Home``."""
        shutil.rmtree(self._folder)

    def _place(self, place: int) -> Path:
        """A device's folder."""
        return self._folder / f"{place:06d}"


class Shelved:
    """One database for all, opened while it is used; see ``Shelf``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: Shelf | None = None

    @property
    def _shelf(self) -> Shelf:
        """The database, opened."""
        if self._open is None:
            self._open = Shelf(self._path)
        return self._open

    @property
    def config(self) -> dict[str, str]:
        """See ``Home``."""
        return {"shelf": str(self._path.resolve())}

    def holds(self, place: int) -> bool:
        """See ``Home``."""
        return self._path.exists() and self._shelf.holds(place)

    def put(self, place: int, facts: Facts, clips: Clips) -> None:
        """See ``Home``."""
        self._shelf.put(place, facts, clips)

    def device(self, place: int) -> Device:
        """See ``Home``."""
        return self._shelf.device(place)

    def commit(self) -> None:
        """See ``Home``."""
        self._shelf.commit()

    def close(self) -> None:
        """See ``Home``."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def remove(self) -> None:
        """See ``Home``."""
        self.close()
        for path in self._path.parent.glob(f"{self._path.name}*"):  # with what SQLite lays beside
            path.unlink()
