"""One process at a time in a folder: a run's, a sweep's, a device's while it is made or retired."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from sottovoce.shared import atomic_files
from sottovoce.shared.errors import FolderInUseError, StorageError
from sottovoce.shared.storage_errors import explain_error

LOCK_NAME: Final = ".lock"
"""The claim's file; it is there as long as a process works in the folder."""


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Work in a folder that no other process works in until the block ends.

    Args:
        folder: Made where it is missing, and removed again where nothing was written in it. What
            is no folder is left to the caller, who knows what it was to be.

    Guarantees:
        - A process that was killed holds nothing.

    Raises:
        FolderInUseError: Another process works there; names it.
        StorageError: The disk refuses.

    Example:
        >>> import tempfile
        >>> with claim_folder(Path(tempfile.mkdtemp()) / "run"):
        ...     pass
    """
    if folder.exists() and not folder.is_dir():
        yield
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        atomic_files.make_folder(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {explain_error(error, folder)}") from error
    try:
        with _claim_or_name_holder(folder):
            yield
    finally:
        for path in missing:  # the innermost first
            with suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def _claim_or_name_holder(folder: Path) -> Iterator[None]:
    """The claim; a refusal of it names who works there."""
    note = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "program": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])[:64],
    }
    claim = atomic_files.claim_file(folder / LOCK_NAME, json.dumps(note).encode())
    try:
        claim.__enter__()
    except FolderInUseError as error:
        raise FolderInUseError(
            f"another process works in {folder}: {_describe_holder(str(error))}. Wait until it is "
            "done, end it, or choose another folder; nothing was changed"
        ) from None
    try:
        yield
    finally:
        claim.__exit__(None, None, None)


def _describe_holder(note: str) -> str:
    """Who holds a claim, from the note; whoever can write there can have written anything."""
    try:
        facts = json.loads(note)
        words = {name: str(facts[name])[:64] for name in ("program", "pid", "host", "since")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "it has not said which"
    if not all(word.isprintable() for word in words.values()):
        return "it has not said which"
    return "{program}, process {pid} on {host}, since {since}".format(**words)
