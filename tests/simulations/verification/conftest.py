"""Fixtures for tests of verification."""

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run(tiny_run: Any, tmp_path: Path) -> Path:
    """A finished run, to be tampered with."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
