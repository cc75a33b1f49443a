"""A file that is said to last lasts: its bytes are synced, and so is the folder that names it."""

import os
from pathlib import Path

import pytest

from sottovoce.shared.atomic_files import replace_file


@pytest.mark.skipif(os.name != "posix", reason="folders are synced where the system can")
@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_synced_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Else a power cut brings an older file back, and with it noise that was used already."""
    steps = []
    sync, rename = os.fsync, Path.replace

    def noted(handle: int) -> None:
        steps.append("folder" if os.path.sameopenfile(handle, place) else "file")
        sync(handle)

    def moved(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", moved)
    place = os.open(tmp_path, os.O_RDONLY)
    try:
        replace_file(tmp_path / "kept", b"new", durable=durable, secret=True)
    finally:
        os.close(place)

    assert steps == (["file", "rename", "folder"] if durable else ["rename"])
    assert (tmp_path / "kept").read_bytes() == b"new"
