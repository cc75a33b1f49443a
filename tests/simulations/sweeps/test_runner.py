"""A sweep from wav files to its page: what it keeps, what it goes on with, what it says."""

import json
import re
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sottovoce import cli
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.simulations.sweeps import page, runner
from sottovoce.simulations.sweeps.grid import Axis, Sweep

HEARS_CTRL_C = """
import signal, sys
from sottovoce.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
"""The command, deaf to Ctrl-C not even where whoever runs the tests is."""


@pytest.fixture(scope="module")
def plan(tiny_run: Any) -> Sweep:
    """Two budgets and no promise, two seeds."""
    return Sweep(
        base={
            "corpus": "folder",
            "data": str(tiny_run.users),
            "public": [{"name": "folder", "data": str(tiny_run.public)}],
            "encoder": "descriptors",
            "protocol": "holdout",
            "rounds": 2,
            "head_clips": 2,
            "recipe": {"front": {"dims": 8}},
        },
        axes=(
            Axis(setting="epsilon", values=(4, 8)),
            Axis(setting="unit", values=("utterance", "none")),
            Axis(setting="seed", values=(0, 1)),
        ),
    )


@pytest.fixture(scope="module")
def swept(plan: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    runner.sweep(plan, out)
    return out


def _told(folder: Path) -> dict[str, Any]:
    """sweep.json but for its timing."""
    told: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    del told["timing"]
    for line in [*told["runs"], *told["points"]]:
        del line["wall_s"]
    return told


def test_a_sweep_tells_every_run_and_means_over_seeds(swept: Path, plan: Sweep) -> None:
    told = json.loads((swept / "sweep.json").read_text())

    assert [line["name"] for line in told["runs"]] == [point.name for point in plan.points()]
    for line in told["runs"]:
        run = json.loads((swept / line["folder"] / "run.json").read_text())
        assert line["uar"] == run["accuracy"]["uar"]
        assert (line["epsilon_spent_utterance"] is None) == (line["unit"] == "none")
    assert len(told["points"]) == 3
    for point in told["points"]:
        seeds = [
            line["uar"]
            for line in told["runs"]
            if {**line["settings"], "seed": 0} == {**point["settings"], "seed": 0}
        ]
        assert point["seeds"] == len(seeds) == 2
        assert point["uar"]["mean"] == pytest.approx(sum(seeds) / 2)
        assert point["uar"]["sd"] == pytest.approx(abs(seeds[0] - seeds[1]) / 2**0.5)


def _to_a_thousandth(html: str) -> str:
    """Places in a drawing may differ in their last digit, a millionth of a point."""
    return re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.3f}", html)


def test_the_page_is_one_file_that_loads_nothing(swept: Path) -> None:
    html = (swept / "sweep.html").read_text()

    assert html.count("<svg") == 3
    assert "one utterance" in html
    assert "no promise" in html
    for word in ("<script", "http:", "https:", "@import", "src="):
        assert word not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    again = page.page(json.loads((swept / "sweep.json").read_text()))
    assert _to_a_thousandth(again) == _to_a_thousandth(html)


def test_names_from_a_corpus_cannot_write_into_the_page(swept: Path) -> None:
    told = json.loads((swept / "sweep.json").read_text())
    told["corpus"]["name"] = told["runs"][0]["name"] = "<script>alert(1)</script>"

    assert "<script>" not in page.page(told)


def test_without_a_number_that_varies_there_is_a_table_and_no_curve(swept: Path) -> None:
    told = json.loads((swept / "sweep.json").read_text())
    told["axes"]["epsilon"] = [4]

    html = page.page(told)

    assert "<svg" not in html
    assert html.count("<table>") == 2


def test_workers_change_nothing(swept: Path, plan: Sweep, tmp_path: Path) -> None:
    runner.sweep(plan, tmp_path / "out", workers=2)

    assert _told(tmp_path / "out") == _told(swept)


def test_finished_runs_are_kept_and_settings_can_be_added(
    swept: Path, plan: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("runs/*/run.json")}
    said: list[str] = []
    wider = Sweep(base=plan.base, axes=(*plan.axes[:2], Axis(setting="seed", values=(0, 1, 2))))

    told = runner.sweep(wider, swept, resume=True, tell=said.append)

    assert said[0] == "6 of 9 runs were finished before"
    assert told["timing"]["computed"] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr(runner, "_run", lambda *_: pytest.fail("nothing is left to run"))
    runner.sweep(plan, swept, resume=True)
    assert _told(swept)["axes"]["seed"] == [0, 1]


def test_a_folder_that_is_taken_is_refused(swept: Path, plan: Sweep, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--resume"):
        runner.sweep(plan, swept)
    (tmp_path / "other").write_text("mine")
    with pytest.raises(SettingError, match="holds no sweep"):
        runner.sweep(plan, tmp_path, resume=True)
    with pytest.raises(SettingError, match="is a file"):
        runner.sweep(plan, tmp_path / "other")


def test_a_damaged_run_is_made_again(swept: Path, plan: Sweep) -> None:
    good = _told(swept)
    first = swept / "runs" / plan.points()[0].name
    (first / "run.json").write_text("{}")

    runner.sweep(plan, swept, resume=True)

    assert _told(swept) == good


def test_a_run_that_fails_is_named(
    plan: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("no power")

    monkeypatch.setattr(runner, "simulate", fail)

    with pytest.raises(EngineError, match=f"the run {plan.points()[0].name}: no power"):
        runner.sweep(plan, tmp_path / "out")


# --- killed and interrupted -------------------------------------------------------------------


@pytest.fixture
def command(plan: Sweep, tmp_path: Path) -> list[str]:
    """The same sweep as words, into a folder of this test."""
    import tomli_w

    file = tmp_path / "sweep.toml"
    axes = {axis.setting: list(axis.values) for axis in plan.axes}
    file.write_text(tomli_w.dumps({**plan.base, "sweep": axes}))
    return ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "2"]


def _wait_for(pattern: str, folder: Path) -> None:
    """Until a file is there."""
    until = time.monotonic() + 300
    while not any(folder.glob(pattern)):
        assert time.monotonic() < until, f"no {pattern} came"
        time.sleep(0.01)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_time_it_goes_on_to_the_same_sweep(
    swept: Path, command: list[str], tmp_path: Path, stop: signal.Signals
) -> None:
    words = [sys.executable, "-c", HEARS_CTRL_C, *command]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as first:
        _wait_for("out/runs/*/checkpoints/*/server/*", tmp_path)
        os.kill(first.pid, stop)
        _, err = first.communicate(timeout=300)
    if stop is signal.SIGINT:
        assert first.returncode == 130
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last.endswith(f"sottovoce {' '.join(command)} --resume")

    assert cli.main([*command, "--resume", "--quiet"]) == 0

    assert _told(tmp_path / "out")["runs"] == _told(swept)["runs"]
