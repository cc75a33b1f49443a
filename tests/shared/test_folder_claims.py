"""One process at a time in a folder; the second is told who works there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.shared.errors import FolderInUseError
from sottovoce.shared.folder_claims import LOCK_NAME, claim_folder

HOLD = """
import sys
from pathlib import Path
from sottovoce.shared.folder_claims import claim_folder
with claim_folder(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in a folder until its input ends."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_the_second_process_is_refused_and_told_which_is_there(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with (
        pytest.raises(FolderInUseError, match=rf"process {holder.pid} on .*, since 20"),
        claim_folder(tmp_path / "run"),
    ):
        raise AssertionError("both work there")


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_NAME).exists()

    with claim_folder(tmp_path / "run"):
        (tmp_path / "run" / "a").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_claim_in_one_process_too_and_again_once_it_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            claim_folder(tmp_path),
            pytest.raises(FolderInUseError, match=str(os.getpid())),
            claim_folder(tmp_path),
        ):
            raise AssertionError("claimed twice")


@pytest.mark.parametrize("note", [b"", b"[1]", b'{"pid": 1}', b"\xff" * 600, b"[" * 512])
def test_a_note_of_anything_breaks_nothing(tmp_path: Path, note: bytes) -> None:
    with claim_folder(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(note)
        with pytest.raises(FolderInUseError, match="has not said"), claim_folder(tmp_path):
            raise AssertionError("claimed twice")


def test_what_is_no_folder_is_left_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with claim_folder(path):
        assert path.is_file()
