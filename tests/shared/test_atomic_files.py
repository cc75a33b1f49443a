"""Files are whole after a crash, last after a power cut, and changed by one writer at a time."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import is_unlocked

from sottovoce.shared.atomic_files import (
    PARTIAL_FILES,
    append_to_file,
    claim_file,
    lock_file,
    overwrite_start,
    replace_file,
    replace_text,
)
from sottovoce.shared.errors import FileChangedError, FolderInUseError, StorageError

posix = pytest.mark.skipif(os.name != "posix", reason="the system has no such call")


@posix
@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_synced_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Else a power cut brings an older file back, and with it noise that was used already."""
    steps = []
    sync, rename = os.fsync, Path.replace

    def noted(handle: int) -> None:
        steps.append("folder" if os.path.sameopenfile(handle, folder) else "file")
        sync(handle)

    def moved(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", moved)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        replace_file(tmp_path / "state", b"new", durable=durable, secret=True)
    finally:
        os.close(folder)

    assert steps == (["file", "rename", "folder"] if durable else ["rename"])
    assert (tmp_path / "state").read_bytes() == b"new"


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_is_cut_short_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, stop: BaseException
) -> None:
    path = tmp_path / "state"
    replace_file(path, b"old")

    def fail(*_: object) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, fail)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            replace_file(path, b"new")

    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(PARTIAL_FILES))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full.*free some space"),
        (errno.EDQUOT, "the quota is used up.*free some space"),
        (errno.EROFS, "can only be read.*choose"),
        (errno.EACCES, "check the permissions"),
    ],
)
def test_a_disk_that_refuses_is_named_with_the_true_cause_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=f"state cannot be written: .*{words}"):
            replace_file(path, b"new")

    assert path.read_bytes() == b"old"


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()

    with pytest.raises(StorageError, match="a folder of that name is there"):
        replace_file(tmp_path / "state", b"new")


@posix
def test_a_secret_is_never_readable_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    sync = os.fsync

    def noted(handle: int) -> None:
        modes.append(os.fstat(handle).st_mode & 0o077)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    old = os.umask(0)
    try:
        replace_file(tmp_path / "key", b"secret", secret=True)
        append_to_file(tmp_path / "ledger", b"line\n")
    finally:
        os.umask(old)

    assert modes[0] == 0
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "ledger").stat().st_mode & 0o077 == 0


def test_an_append_that_fails_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    append_to_file(path, b"first\n")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
        with pytest.raises(StorageError, match="disk is full"):
            append_to_file(path, b"second\n")

    assert path.read_bytes() == b"first\n"


@pytest.mark.parametrize("write", [append_to_file, replace_file])
def test_a_file_that_another_program_changed_is_left_alone(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    path = tmp_path / "ledger"
    append_to_file(path, b"one\n")
    append_to_file(path, b"two\n", expected_size=4)

    with pytest.raises(FileChangedError, match="ledger has 8 bytes and had 4"):
        write(path, b"other\n", expected_size=4)

    assert path.read_bytes() == b"one\ntwo\n"
    write(path, b"other\n", expected_size=8)
    assert path.read_bytes().endswith(b"other\n")


@posix
@pytest.mark.parametrize("write", [append_to_file, replace_file])
def test_a_file_that_was_replaced_while_its_writer_waited_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    """It has the size that was expected, and another program's bytes."""
    path, late = tmp_path / "ledger", [tmp_path / "other"]
    append_to_file(path, b"one\n")
    late[0].write_bytes(b"two\n")
    real = os.open

    def opened(name: Path, flags: int, mode: int = 0o777) -> int:
        handle = real(name, flags, mode)
        if name == path and late:  # after the writer has opened it, before the writer has its lock
            late.pop().replace(path)
        return handle

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(FileChangedError, match="ledger has 4 bytes and had 4"):
        write(path, b"more\n", expected_size=4)

    assert path.read_bytes() == b"two\n"


@posix
@pytest.mark.parametrize("write", [append_to_file, replace_file])
def test_nobody_else_writes_between_the_look_at_a_file_and_its_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    """Were the lock taken later, or not at all, two writers could build on the same line."""
    path, free = tmp_path / "ledger", {}
    append_to_file(path, b"one\n")
    assert is_unlocked(path)
    look, add, rename = os.fstat, os.write, Path.replace

    def noted(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            free[call] = is_unlocked(path)
            return real(*arguments)

        return called

    monkeypatch.setattr(os, "fstat", noted("look", look))
    monkeypatch.setattr(os, "write", noted("change", add))
    monkeypatch.setattr(Path, "replace", noted("change", rename))
    write(path, b"two\n", expected_size=4)
    monkeypatch.undo()

    assert free == {"look": False, "change": False}
    assert is_unlocked(path), "a writer that is done holds nothing"


@posix
def test_a_lock_is_held_to_its_end_and_a_claim_refuses_the_next(tmp_path: Path) -> None:
    with lock_file(tmp_path / "lock"):
        assert not is_unlocked(tmp_path / "lock")
    assert is_unlocked(tmp_path / "lock")

    with claim_file(tmp_path / "claim", b"me"):
        assert not is_unlocked(tmp_path / "claim")
        with pytest.raises(FolderInUseError, match=r"^me$"), claim_file(tmp_path / "claim", b"you"):
            pytest.fail("it was claimed twice")
    assert not (tmp_path / "claim").exists()


def _count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with lock_file(path.with_suffix(".lock")):
            replace_text(path, str(int(path.read_text()) + 1), durable=False)


@posix
def test_programs_that_hold_a_lock_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    replace_text(path, "0")
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_count_up, args=(path, 50)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    assert path.read_text() == "150"


def test_a_blob_is_written_over_in_place(tmp_path: Path) -> None:
    path = tmp_path / "anchor"
    replace_file(path, b"first.....")
    inode = path.stat().st_ino

    overwrite_start(path, b"second")

    assert path.read_bytes() == b"second...."
    assert path.stat().st_ino == inode
    with pytest.raises(StorageError, match="cannot be written"):
        overwrite_start(tmp_path / "missing", b"")
