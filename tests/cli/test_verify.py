"""The commands on a finished run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Say = Callable[..., tuple[int, str, str]]


def test_verify_recomputes_a_run(say: Say, copied: Path) -> None:
    status, out, _ = say("verify", copied)
    assert status == 0
    assert out.splitlines()[-1] == "all ledgers agree with privacy.json"

    status, out, _ = say("verify", copied, "--json")
    assert (status, json.loads(out)["agrees"]) == (0, True)

    next((copied / "ledgers").rglob("*.jsonl")).unlink()
    status, out, _ = say("verify", copied)
    assert status == 1
    assert "DISAGREES" in out.splitlines()[-1]


@pytest.mark.parametrize(("command", "file"), [("verify", "privacy.json"), ("report", "run.json")])
def test_a_damaged_run_folder_is_refused(
    say: Say, copied: Path, tmp_path: Path, command: str, file: str
) -> None:
    assert say(command, tmp_path / "gone")[0] == 2

    (copied / file).write_text('{"schema": 2}')
    status, _, last = say(command, copied)
    assert (status, "damaged" in last) == (1, True)

    (copied / file).write_text('{"schema": 1}')
    status, _, last = say(command, copied)
    assert (status, "earlier release" in last) == (1, True)

    (copied / file).write_text('{"schema": 99}')
    status, _, last = say(command, copied)
    assert (status, "newer" in last) == (1, True)


def test_report_renders_both_pages_again(say: Say, copied: Path) -> None:
    (copied / "report.html").unlink()

    status, out, _ = say("report", copied)

    assert status == 0
    assert [Path(line).name for line in out.splitlines()] == ["report.html", "privacy.html"]


def test_verify_states_the_guarantee_of_a_run_that_agrees(say: Say, copied: Path) -> None:
    status, out, _ = say("verify", copied, "--statement")
    assert status == 0
    assert len(out.splitlines()) == 1
    assert "Adaptive composition" in out

    status, out, _ = say("verify", copied, "--statement", "--json")
    assert (status, json.loads(out)["unit"]) == (0, "Unit of privacy: utterance.")

    status, out, _ = say("verify", copied, "--registry")
    assert status == 0
    assert out.splitlines()[0] == "# fill in: deployment.basic.data_curators"
    assert '"status": "Draft"' in out

    status, out, _ = say("verify", copied, "--registry", "--json")
    assert (status, json.loads(out)["tier"]) == (0, 3)


@pytest.mark.parametrize("what", ["--statement", "--registry"])
def test_nothing_is_stated_of_a_run_that_disagrees(say: Say, copied: Path, what: str) -> None:
    next((copied / "ledgers").rglob("*.jsonl")).unlink()

    status, out, _ = say("verify", copied, what)

    assert status == 1
    assert "DISAGREES" in out.splitlines()[-1]
    assert "Adaptive composition" not in out
    assert "Draft" not in out
