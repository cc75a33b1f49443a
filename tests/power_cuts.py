"""A disk that remembers what was synced, and what a power cut may leave of the rest.

A name lasts once its folder was synced, a file's bytes once the file was. What was not synced may
have reached the disk all the same, in any order: so a cut is told which names' changes did, and
bytes that nobody waited for are then there by half.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

SECTOR = 512
"""Bytes that a disk writes whole: what is no longer, and is written over, is old or new."""

Reached = Callable[[str], bool]
"""Whether the newest change of a name reached the disk, though its folder was not synced since."""


def nothing(_: str) -> bool:
    """Lose all that was not synced."""
    return False


def everything(_: str) -> bool:
    """Keep all names, synced or not; bytes that were not synced are there by half."""
    return True


class UnsyncedDisk:
    """Follows the calls of ``os.fsync`` below one folder.

    Args:
        folder: An existing folder, whose content counts as synced; its own name, too.
        patch: Puts this disk between the program and the system.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        # Hard links hold on to what is deleted: its number must not become another file's.
        self._links = folder.parent / f"{folder.name}-links"
        self._links.mkdir()
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._real_sync = os.fsync
        self._before_sync: Callable[[], None] | None = None
        for path in [folder, *folder.rglob("*")]:
            self._note(path)
        patch.setattr(os, "fsync", self._sync)

    def cut_at_each_sync(self, work: Callable[[], object], reached: Reached) -> list[Path]:
        """Do some work; what a power cut just before each of its syncs leaves, and one at its end.

        The last folder is what is found by those who were told that the work is done.
        """
        found = []
        self._before_sync = lambda: found.append(self.cut(reached))
        try:
            work()
        finally:
            self._before_sync = None
        return [*found, self.cut(reached)]

    def cut(self, reached: Reached = nothing) -> Path:
        """What a power cut now leaves, as a folder of its own."""
        number = len(list(self.folder.parent.glob(f"{self.folder.name}-cut-*")))
        target = self.folder.parent / f"{self.folder.name}-cut-{number:03d}"
        self._restore(self.folder.stat().st_ino, self.folder, target, reached)
        return target

    def _sync(self, handle: int) -> None:
        if self._before_sync:
            self._before_sync()
        self._real_sync(handle)
        number = os.fstat(handle).st_ino
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.stat().st_ino == number:
                self._note(path)

    def _note(self, path: Path) -> None:
        """A file's bytes, or a folder's names, last from now on."""
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            self._names[facts.st_ino] = self._entries(path)
        else:
            self._link(path)
            self._bytes[facts.st_ino] = path.read_bytes()

    def _entries(self, folder: Path) -> dict[str, int]:
        """Names in a folder, with what they stand for."""
        for path in folder.iterdir():
            self._link(path)
        return {path.name: path.stat().st_ino for path in folder.iterdir()}

    def _link(self, path: Path) -> None:
        link = self._links / str(path.stat().st_ino)
        if path.is_file() and not link.exists():
            os.link(path, link)

    def _restore(self, number: int, there: Path, target: Path, reached: Reached) -> None:
        """Write a folder as it would be found; ``there`` is where it is now, if it still is."""
        target.mkdir()
        if there.is_dir():
            target.chmod(there.stat().st_mode)
        lasting = self._names.get(number, {})
        newest = self._entries(there) if there.is_dir() else {}
        for name in sorted({*lasting, *newest}):
            path = there / name
            kept = reached(path.relative_to(self.folder).as_posix())
            one = (newest if kept else lasting).get(name)
            if one is None:
                continue
            if path.is_dir():
                self._restore(one, path, target / name, reached)
            else:
                (target / name).write_bytes(self._found_bytes(one, torn=kept))
                (target / name).chmod((self._links / str(one)).stat().st_mode)

    def _found_bytes(self, number: int, *, torn: bool) -> bytes:
        lasting, newest = self._bytes.get(number, b""), (self._links / str(number)).read_bytes()
        if not torn or newest == lasting:
            return lasting
        if len(newest) == len(lasting) <= SECTOR:
            return newest
        if newest.startswith(lasting):
            return newest[: (len(lasting) + len(newest)) // 2]
        return newest[: len(newest) // 2]
