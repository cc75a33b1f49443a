"""The loopback script: what it says when it cannot run."""

from pathlib import Path

import pytest

from sottovoce.shared.errors import EngineError
from sottovoce.simulations.engines import loopback


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
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    assert loopback.main([*words, "--out", str(tmp_path)]) == status

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("loopback: ")
    assert message in last


def test_a_folder_with_something_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").touch()

    assert loopback.main(["--out", str(tmp_path)]) == 2

    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_run_is_a_failed_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(**_: object) -> None:
        raise EngineError("the run ended as finished:failed")

    prepared = loopback.PreparedRun(job=tmp_path, devices=[], plan=None)
    monkeypatch.setattr(loopback, "prepare_run", lambda *_, **__: prepared)
    monkeypatch.setattr(loopback.deployed, "run_apps", fails)

    assert loopback.main(["--out", str(tmp_path)]) == 1

    assert capsys.readouterr().err == "loopback: the run ended as finished:failed\n"


def test_ctrl_c_has_its_own_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loopback, "prepare_run", stopped)

    assert loopback.main(["--out", str(tmp_path)]) == 130


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        loopback.main(["--help"])

    assert done.value.code == 0
    assert "python -m sottovoce.simulations.engines.loopback --data" in capsys.readouterr().out
