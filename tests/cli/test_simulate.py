"""The command ``simulate``: settings, scenario files, run folders, interrupts."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.cli import main, simulate
from sottovoce.simulations.runs import run_folder, simulation

Say = Callable[..., tuple[int, str, str]]


HEARS_CTRL_C = """
import signal, sys
from sottovoce.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
"""The command, deaf to Ctrl-C not even where whoever runs the tests is."""


def _simulate(say: Say, path: Path, out: Path, *more: object) -> tuple[int, str]:
    """A run that must not succeed: exit status and the last line."""
    status, _, last = say("simulate", path, "--out", out, "--quiet", *more)
    return status, last


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--epsilon", "0", ["epsilon", "0.0", "above 0"]),
        ("--epsilon", "-1", ["epsilon", "-1.0", "above 0"]),
        ("--epsilon", "nan", ["epsilon", "nan", "finite"]),
        ("--epsilon", "inf", ["epsilon", "inf", "finite"]),
        ("--epsilon", "1e9", ["epsilon", "1e+09", "100", "unit none"]),
        ("--epsilon", "much", ["--epsilon", "'much'"]),
        ("--epsilon", "0.001", ["epsilon 0.001", "too small", "raise epsilon"]),
        ("--utterance-delta", "0", ["delta", "0.0", "between 0 and 1"]),
        ("--utterance-delta", "1", ["delta", "1.0", "between 0 and 1"]),
        ("--utterance-delta", "nan", ["delta", "nan", "a finite number"]),
        ("--utterance-delta", "little", ["--utterance-delta", "'little'"]),
        ("--delta", "1e-5", ["unknown option", "--delta"]),
        ("--unit", "x", ["unit", "'x'", "none, utterance, user, both"]),
        ("--user-delta", "0", ["user_delta", "0.0", "between 0 and 1"]),
        ("--user-delta", "nan", ["user_delta", "nan", "a finite number"]),
        ("--engine", "x", ["engine", "'x'", "local, ray"]),
        ("--model", "x", ["model", "'x'", "linear"]),
        ("--corpus", "x", ["corpus", "'x'", "synthetic, folder"]),
        ("--protocol", "x", ["protocol", "'x'", "loso, holdout"]),
        ("--protocol", "1fold", ["folds", "1", "2"]),
        ("--encoder", "x", ["extractor", "'x'", "descriptors"]),
        ("--encoder", "log-mel", ["log-mel", "frames", "one vector", "recipe.pooling"]),
        ("--public", "x=/tmp", ["corpus", "'x'", "synthetic, folder"]),
        ("--public", "cremad", ["--public", "'cremad'", "NAME=DIR"]),
        ("--baselines", "x", ["baselines", "'x'", "central"]),
        ("--enrolment", "neutral:0", ["enrolment", "'neutral:0'", "K from 1"]),
        ("--enrolment", "neutral:x", ["enrolment", "'neutral:x'", "K from 1"]),
        ("--enrolment", "some", ["enrolment", "'some'", "none, all"]),
        ("--users", "0", ["needs both --users and --cohort"]),
        ("--seed", "1" + "0" * 400, ["seed", "about 1e400", "64 bits"]),
        ("--enrolment", "neutral:\u00b2", ["enrolment", "K from 1"]),
        ("--enrolment", "al", ["did you mean all?"]),
        ("--protocol", "50fold", ["protocol", "50fold", "loso"]),
        ("--rounds", "-1", ["rounds", "-1", "1 to 10,000", "or at 0"]),
        ("--rounds", "1000000", ["rounds", "1000000", "10,000"]),
        ("--workers", "0", ["workers", "0", "from 1"]),
        ("--labelled-clips", "-1", ["labelled_clips_per_user", "-1", "from 0"]),
        ("--tuning-runs", "0", ["tuning_runs", "0", "from 1"]),
        ("--seed", "-1", ["seed", "-1", "from 0"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_usage_error(
    say: Say,
    scenario: Callable[..., Path],
    tmp_path: Path,
    option: str,
    value: str,
    words: list[str],
) -> None:
    status, last = _simulate(say, scenario(), tmp_path / "out", option, value)

    assert status == 2
    assert not [word for word in words if word not in last], last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unit", ["utterance", "both", "user"])
@pytest.mark.parametrize("named", [True, False])
def test_each_unit_has_its_own_delta(unit: str, named: bool) -> None:
    first = ["demo"] if named else ["--corpus", "synthetic"]
    words = ["simulate", *first, "--unit", unit]

    def settled(*more: str) -> tuple[str, float, float]:
        found = simulate.build_scenario(main.build_parser().parse_args([*words, *more]))
        return found.privacy.unit, found.privacy.delta, found.privacy.user_delta

    assert settled("--utterance-delta", "1e-6") == (unit, 1e-6, 1e-3)
    assert settled("--user-delta", "1e-6") == (unit, 1e-5, 1e-6)


def test_secure_sums_hide_something(
    say: Say, scenario: Callable[..., Path], tmp_path: Path
) -> None:
    status, out, err = say(
        "simulate", scenario(), "--unit", "none", "--secure-aggregation", "--out", tmp_path / "out"
    )
    assert (status, out) == (2, "")
    assert "secure is asked for with unit 'none'" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("corpus = ", ["not TOML"]),
        ("rounds = 2", ["no corpus"]),
        ('corpus = "synthetic"\nspeed = 1', ["unknown settings speed", "known:"]),
        ('corpus = "synthetic"\nrounds = 1.5', ["rounds is 1.5", "whole number"]),
        ('corpus = "synthetic"\nseed = "7"', ["seed is '7'", "whole number"]),
        ('corpus = "synthetic"\nepsilon = true', ["epsilon is True", "a number"]),
        ('corpus = "synthetic"\nprotocol = 5', ["protocol is 5", "a text"]),
        ('corpus = "synthetic"\nbaselines = "central"', ["baselines is 'central'", "a list"]),
        ('corpus = "synthetic"\npublic = ["x"]', ["public[0] is 'x'", "a table"]),
        (
            'corpus = "synthetic"\n[[public]]\nfolder = "x"',
            ["public[0] has unknown settings folder", "known: data, name"],
        ),
        ('corpus = "synthetic"\nrecipe = 1', ["recipe is 1", "a table"]),
        ('corpus = "synthetic"\n[recipe]\nsteps = 1.5', ["recipe.steps is 1.5", "whole number"]),
        ('corpus = "synthetic"\n[recipe]\nclip_norm = nan', ["clip_norm is nan"]),
        (
            'corpus = "synthetic"\n[recipe.projection]\nwidth = 3',
            ["recipe.projection has unknown", "width"],
        ),
        ('corpus = "synthetic"\n[recipe.aggregation]\noptimiser = "x"', ["optimiser is 'x'"]),
    ],
)
def test_a_scenario_file_that_makes_no_sense_is_a_usage_error(
    say: Say, tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)

    status, last = _simulate(say, path, tmp_path / "out")

    assert status == 2
    assert not [word for word in [str(path), *words] if word not in last], last


def test_an_unknown_scenario_names_the_known_ones(say: Say, tmp_path: Path) -> None:
    status, last = _simulate(say, Path("nosuch"), tmp_path / "out")
    assert (status, "'nosuch'" in last, "demo" in last) == (2, True, True)

    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert _simulate(say, tmp_path / "binary.toml", tmp_path / "out")[0] == 2
    assert _simulate(say, tmp_path / "missing.toml", tmp_path / "out")[0] == 2


def test_a_folder_in_use_is_never_written_over(say: Say, copied: Path, tiny_run: Any) -> None:
    before = (copied / "run.json").read_bytes()

    status, last = _simulate(say, tiny_run.scenario, copied)
    assert (status, "--resume" in last) == (2, True)

    status, last = _simulate(say, tiny_run.scenario, copied, "--resume", "--seed", 5)
    assert (status, "another scenario" in last) == (2, True)

    (copied / "config.toml").write_bytes(b"\xff\xfe")
    assert _simulate(say, tiny_run.scenario, copied, "--resume")[0] == 2
    assert (copied / "run.json").read_bytes() == before


def test_a_folder_of_other_things_is_left_alone(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert _simulate(say, tiny_run.scenario, tmp_path / "file")[0] == 2
    assert _simulate(say, tiny_run.scenario, tmp_path)[0] == 2
    assert _simulate(say, tiny_run.scenario, tmp_path, "--resume")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_could_not_begin_leaves_its_folder_free(
    say: Say,
    scenario: Callable[..., Path],
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _simulate(say, scenario(public=tmp_path / "gone"), tmp_path / "out")[0] == 1
    monkeypatch.setattr(run_folder, "render_pages", lambda _folder: [])

    assert _simulate(say, tiny_run.scenario, tmp_path / "out")[0] == 0


def test_resuming_a_finished_run_changes_nothing(
    say: Say, copied: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "render_pages", lambda _folder: [])
    status, out, _ = say(
        "simulate", tiny_run.scenario, "--out", copied, "--resume", "--json", "--workers", 2
    )
    before = json.loads((tiny_run.folder / "run.json").read_text())

    assert status == 0
    assert {k: v for k, v in json.loads(out).items() if k not in ("timing", "calibration")}.keys()
    assert json.loads(out)["accuracy"]["confusion"] == before["accuracy"]["confusion"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left", "--resume"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "x/y"),
            ["x/y: the disk is full", "No space left", "free some space"],
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/r"),
            ["/r: ", "Permission denied", "another"],
        ),
        (OSError(errno.EROFS, "Read-only file system", "/r"), ["/r: ", "Read-only", "choose"]),
        (OSError("odd"), ["odd", "run again"]),
    ],
)
def test_what_the_system_refuses_is_told_with_a_way_out(
    say: Say,
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    words: list[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(simulation, "simulate", refuse)

    status, last = _simulate(say, tiny_run.scenario, tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last


def test_an_interrupt_says_how_to_go_on(
    say: Say, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "simulate", interrupt)

    status, last = _simulate(say, tiny_run.scenario, tmp_path / "out")

    assert status == 130
    again = f"sottovoce simulate {tiny_run.scenario} --out {tmp_path / 'out'} --quiet --resume"
    assert last.endswith(f"go on with: {again}")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_at_a_real_run_leaves_one_clear_line_and_a_run_to_go_on_with(
    say: Say, scenario: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    words = ["simulate", str(scenario(rounds=40)), "--out", str(tmp_path / "out")]
    words += ["--workers", str(workers)]
    with subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        lines = []
        for line in run.stderr or []:
            lines.append(line)
            if line.startswith("rounds: "):
                break
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to workers, too
        lines += run.communicate(timeout=120)[1].splitlines()

    assert run.returncode == 130
    assert not [line for line in lines if "Traceback" in line]
    assert lines[-1].endswith(f"go on with: sottovoce {' '.join(words)} --resume")
    status, out, _ = say(*words, "--workers", 1, "--resume", "--quiet")
    assert (status, "UAR" in out) == (0, True)


def test_a_run_in_a_pipe_says_rounds_epsilon_and_uar_in_plain_lines(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulate", str(tiny_run.scenario), "--protocol", "2fold", "--out"]
    assert main.main([*words, str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    rounds = [line for line in lines if line.startswith("rounds: ")]

    assert [line.split(",")[0] for line in rounds] == [f"rounds: {n} of 4" for n in range(5)]
    assert "epsilon" in rounds[1]
    assert "of 8" in rounds[1]
    assert "UAR" not in rounds[1]
    assert "UAR so far" in rounds[-1]
    assert "left" in rounds[3]
    assert "\x1b" not in "".join(lines)

    assert main.main([*words, str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
