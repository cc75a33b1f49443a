"""A file of a stranger is read at once and within its bound, or refused; nothing makes it wait."""

import os
import socket
from pathlib import Path

import pytest

from sottovoce.shared.bounded_files import read_bounded_file
from sottovoce.shared.errors import ModelError


def test_a_regular_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    assert read_bounded_file(path, max_bytes=10, error=ModelError) == b"0123456789"
    with pytest.raises(ModelError, match="file has 10 bytes; at most 9"):
        read_bounded_file(path, max_bytes=9, error=ModelError)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "loop").symlink_to("loop")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    paths = [tmp_path / name for name in ("pipe", "folder", "link", "loop", "socket")]
    for path in (*paths, Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(ModelError, match="must be a regular file"):
            read_bounded_file(path, max_bytes=100, error=ModelError)
    listening.close()


def test_a_file_without_a_size_is_bounded_while_it_is_read() -> None:
    # Files of /proc say that they have 0 bytes.
    with pytest.raises(ModelError, match="grows while it is read"):
        read_bounded_file(Path("/proc/self/maps"), max_bytes=10, error=ModelError)


def test_a_name_that_cannot_be_is_the_readers_own_error(tmp_path: Path) -> None:
    for name in ("a\x00b", "x" * 5_000):
        with pytest.raises(ModelError, match="cannot be read"):
            read_bounded_file(tmp_path / name, max_bytes=10, error=ModelError)
    with pytest.raises(FileNotFoundError):
        read_bounded_file(tmp_path / "none", max_bytes=10, error=ModelError)
