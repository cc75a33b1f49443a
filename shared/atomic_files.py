"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sottovoce.shared.errors import ModelError
from sottovoce.shared.privacy.hash_chain import sync_folder

STATE_FILE = "state.safetensors"
"""The newest checkpoint, in the job's folder."""


def replace_file(path: Path, data: bytes, *, durable: bool = True, secret: bool = False) -> None:
    """Write a file so that after a crash it is the old one or the new one, whole.

    Args:
        path: Which.
        data: All of it.
        durable: Whether it must also survive a power cut once this returns.
        secret: Whether nobody else on this machine may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if secret:  # before a byte is in it
            fresh.touch(mode=0o600)
            fresh.chmod(0o600)
        with fresh.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
        if durable:  # or a power cut could bring the old file back
            sync_folder(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ModelError(
            f"{path} cannot be written ({error.strerror}); free some space and run again with "
            "--resume: finished rounds are kept"
        ) from error


@contextmanager
def file_lock(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, until the block ends.

    Args:
        lock: Its file, made where it is missing. Without ``flock`` nobody waits.
    """
    handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed, by a crash too
        yield
    finally:
        os.close(handle)
