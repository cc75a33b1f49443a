"""Fixtures for the command line's tests."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.cli import main

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command: exit status, standard output, last line of standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main.main([str(word) for word in words])
        except SystemExit as end:  # argparse's way
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, (err.strip().splitlines() or [""])[-1]

    return run


@pytest.fixture
def scenario(tiny_run: Any, make_scenario: Any, tmp_path: Path) -> Callable[..., Path]:
    """Writes a variation of the tiny run's scenario."""

    def make(users: Path | None = None, public: Path | None = None, **changes: object) -> Path:
        path: Path = make_scenario(
            tmp_path / "scenario.toml",
            users or tiny_run.users,
            public or tiny_run.public,
            **changes,
        )
        return path

    return make


@pytest.fixture
def copied(tiny_run: Any, tmp_path: Path) -> Path:
    """The finished run, to be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))
