"""The loopback script: what it says when it cannot run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sottovoce.shared.errors import EngineError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "loopback.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("loopback", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopback"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--data", "/nowhere"], 1, "/nowhere is not a folder"),
        (["--corpus", "whales"], 2, "corpus is 'whales'"),
        (["--public", "cremad"], 2, "--public is 'cremad'; it must be NAME=DIR"),
        (["--speakers", "0"], 2, "speakers is 0"),
        (["--speakers", "4"], 1, "has 3 speakers"),
        (["--epsilon", "0"], 2, "epsilon is 0"),
        (["--epsilon", "nan"], 2, "epsilon is nan"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    assert script.main([*words, "--out", str(tmp_path)]) == status

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("loopback: ")
    assert message in last


def test_a_folder_with_something_in_it_is_left_alone(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").touch()

    assert script.main(["--out", str(tmp_path)]) == 2

    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_run_is_a_failed_command(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(**_: object) -> None:
        raise EngineError("the run ended as finished:failed")

    prepared = script.Prepared(job=tmp_path, devices=[], plan=None)
    monkeypatch.setattr(script, "_prepare", lambda *_: prepared)
    monkeypatch.setattr(script.deployed, "run_apps", fails)

    assert script.main(["--out", str(tmp_path)]) == 1

    assert capsys.readouterr().err == "loopback: the run ended as finished:failed\n"


def test_ctrl_c_has_its_own_status(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "_prepare", stopped)

    assert script.main(["--out", str(tmp_path)]) == 130


def test_help_shows_an_example(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])

    assert done.value.code == 0
    assert "python scripts/loopback.py --data" in capsys.readouterr().out
