"""A sweep from wav files to its page: what it keeps, what it goes on with, what it says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sottovoce.cli import main
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.simulations.sweeps import page, runner
from sottovoce.simulations.sweeps.grid import Axis, Sweep

HEARS_CTRL_C = """
import signal, sys
from sottovoce.cli.main import main
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
            "labelled_clips_per_user": 2,
            "recipe": {"projection": {"dims": 8}},
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
    runner.run_sweep(plan, out)
    return out


def _without_timing(folder: Path) -> dict[str, Any]:
    """sweep.json but for its timing."""
    summary: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    del summary["timing"]
    for line in [*summary["runs"], *summary["points"]]:
        del line["wall_s"]
    return summary


def test_a_sweep_holds_every_run_and_means_over_seeds(swept: Path, plan: Sweep) -> None:
    summary = json.loads((swept / "sweep.json").read_text())

    assert [line["name"] for line in summary["runs"]] == [
        point.name for point in plan.expand_runs()
    ]
    for line in summary["runs"]:
        run = json.loads((swept / line["folder"] / "run.json").read_text())
        assert line["uar"] == run["accuracy"]["uar"]
        assert (line["epsilon_spent_utterance"] is None) == (line["unit"] == "none")
    assert len(summary["points"]) == 3
    for point in summary["points"]:
        seeds = [
            line["uar"]
            for line in summary["runs"]
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
    again = page.render_page(json.loads((swept / "sweep.json").read_text()))
    assert _to_a_thousandth(again) == _to_a_thousandth(html)


def test_names_from_a_corpus_cannot_write_into_the_page(swept: Path) -> None:
    summary = json.loads((swept / "sweep.json").read_text())
    summary["corpus"]["name"] = summary["runs"][0]["name"] = "<script>alert(1)</script>"

    assert "<script>" not in page.render_page(summary)


def test_without_a_number_that_varies_there_is_a_table_and_no_curve(swept: Path) -> None:
    summary = json.loads((swept / "sweep.json").read_text())
    summary["axes"]["epsilon"] = [4]

    html = page.render_page(summary)

    assert "<svg" not in html
    assert html.count("<table>") == 2


def test_workers_change_nothing(swept: Path, plan: Sweep, tmp_path: Path) -> None:
    runner.run_sweep(plan, tmp_path / "out", workers=2)

    assert _without_timing(tmp_path / "out") == _without_timing(swept)


def test_finished_runs_are_kept_and_settings_can_be_added(
    swept: Path, plan: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("runs/*/run.json")}
    messages: list[str] = []
    wider = Sweep(base=plan.base, axes=(*plan.axes[:2], Axis(setting="seed", values=(0, 1, 2))))

    summary = runner.run_sweep(wider, swept, resume=True, on_message=messages.append)

    assert messages[0] == "6 of 9 runs were finished before"
    assert summary["timing"]["computed"] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr(runner, "simulate", lambda *_, **__: pytest.fail("nothing is left to run"))
    runner.run_sweep(plan, swept, resume=True)
    assert _without_timing(swept)["axes"]["seed"] == [0, 1]


def test_a_folder_that_is_taken_is_refused(swept: Path, plan: Sweep, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--resume"):
        runner.run_sweep(plan, swept)
    (tmp_path / "other").write_text("mine")
    with pytest.raises(SettingError, match="holds no sweep"):
        runner.run_sweep(plan, tmp_path, resume=True)
    with pytest.raises(SettingError, match="is a file"):
        runner.run_sweep(plan, tmp_path / "other")


def test_a_damaged_run_is_made_again(swept: Path, plan: Sweep) -> None:
    good = _without_timing(swept)
    first = swept / "runs" / plan.expand_runs()[0].name
    (first / "run.json").write_text("{}")

    runner.run_sweep(plan, swept, resume=True)

    assert _without_timing(swept) == good


def test_a_run_that_fails_is_named(
    plan: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("no power")

    monkeypatch.setattr(runner, "simulate", fail)

    with pytest.raises(EngineError, match=f"the run {plan.expand_runs()[0].name}: no power"):
        runner.run_sweep(plan, tmp_path / "out")


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


@pytest.mark.slow
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

    assert main.main([*command, "--workers", "1", "--resume", "--quiet"]) == 0

    assert _without_timing(tmp_path / "out")["runs"] == _without_timing(swept)["runs"]
