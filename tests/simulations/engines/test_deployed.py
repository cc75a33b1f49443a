"""The bundle, the processes around it, and that all of them end."""

import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.simulations.engines import deployed, flower_processes

HOUSE = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_bundle_runs_on_a_superlink_and_three_supernodes(
    make_federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    federation = make_federation(
        "a", rounds=1, seed=None, users=("ada", "ben", "dan"), timeout_s=500.0
    )
    devices = sorted((federation.folder / "devices").iterdir())
    said: list[str] = []

    deployed.run_apps(
        config={"job": federation.config["job"], "devices": ""},
        devices=devices,
        app=HOUSE,
        home=tmp_path / "flower",
        timeout_s=600.0,
        on_message=said.append,
    )

    assert said[-1].endswith("finished:completed")
    assert federation.released().isfinite().all()
    kinds = [
        [r.kind.value for r in federation.device(user).ledger.releases] for user in ("ada", "cleo")
    ]
    assert kinds[0] == [
        "label-counts",
        "centre",
        "normaliser",
        "gradient",
        "sealed-head",
    ]
    assert kinds[1] == ["sealed-head"]  # the third folder is dan's
    for home in ("superlink", "node-1", "node-2", "node-3"):  # it was the bundle's code that ran
        room = "server" if home == "superlink" else "client"
        assert list((tmp_path / "flower" / home).glob(f"apps/*/{room}/__pycache__/app.*.pyc")), home


def test_the_bundle_holds_what_a_device_needs_and_nothing_else(tmp_path: Path) -> None:
    bundle = flower_processes.build_fab(HOUSE, tmp_path)

    with zipfile.ZipFile(bundle) as file:
        names = set(file.namelist())
        code = b"".join(file.read(name) for name in names)
    rooms = {name.split("/")[0] for name in names if "/" in name}
    assert rooms == {"sottovoce", "client", "server", "shared", ".info"}
    assert {
        "client/app.py",
        "server/app.py",
        "shared/protocol/messages.py",
        "sottovoce/__init__.py",
    } <= names
    assert str(Path.home()).encode() not in code
    # Flower takes 10 MB; ours is text, a good part of it docstrings and their examples.
    assert bundle.stat().st_size < 2 * 2**20


@pytest.mark.parametrize(
    "stranger", ["simulations/runs/fold.py", "tests/conftest.py", "client/key", "job.json"]
)
def test_a_bundle_with_a_stranger_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: str
) -> None:
    def build(*_: Any) -> str:
        with zipfile.ZipFile(tmp_path / "made.fab", "w") as file:
            file.writestr("client/app.py", "")
            file.writestr(stranger, "")
        return ""

    monkeypatch.setattr(flower_processes, "run_command", build)

    with pytest.raises(EngineError, match=f"holds {stranger}.*fab-include"):
        flower_processes.build_fab(tmp_path, tmp_path)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> deployed.LoopbackDeployment:
    """A fleet whose programs are Python itself."""
    monkeypatch.setattr(deployed, "program_path", lambda _name: sys.executable)
    return deployed.LoopbackDeployment(tmp_path)


def test_processes_and_their_children_end_with_the_context(
    fleet: deployed.LoopbackDeployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = (
        "import signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(99)\n"
    )
    monkeypatch.setattr(deployed, "STOP_TIMEOUT_S", 0.3)

    def interrupted() -> None:
        with fleet:
            fleet.start_process("deaf", "flower-supernode", "-c", deaf)
            while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert fleet._processes["deaf"].returncode == -9
    assert _gone(int((tmp_path / "child").read_text()))


def test_a_process_that_dies_is_named_with_what_it_said(fleet: deployed.LoopbackDeployment) -> None:
    with fleet:
        fleet.start_process("node-2", "flower-supernode", "-c", "raise OSError('no such device')")
        fleet._processes["node-2"].wait()
        with pytest.raises(EngineError, match=r"node-2 ended with status 1.*no such device"):
            fleet.require_alive()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (["running", "finished:failed"], r"ended as finished:failed: \"the quorum"),
        (["running"] * 99, r"still running after 0\.2 s"),
    ],
)
def test_a_run_that_does_not_end_well_raises(
    fleet: deployed.LoopbackDeployment,
    monkeypatch: pytest.MonkeyPatch,
    states: list[str],
    message: str,
) -> None:
    answers = iter(states)

    def listing(*_: Any) -> str:
        entry = {"status": next(answers), "status-details": "the quorum"}
        return "a warning first\n" + json.dumps({"success": True, "runs": [entry]})

    monkeypatch.setattr(deployed, "run_command", listing)
    monkeypatch.setattr(deployed, "POLL_INTERVAL_S", 0.01)

    with pytest.raises(EngineError, match=message):
        fleet.wait_for_run("7", 0.2, lambda _line: None)


def test_a_run_of_another_bundle_is_refused(
    fleet: deployed.LoopbackDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"success": True, "run-id": "7", "fab-filename": "other.fab"}
    monkeypatch.setattr(deployed, "run_command", lambda *_: json.dumps(answer))

    with pytest.raises(EngineError, match=r"sent other\.fab, not the checked own\.fab"):
        fleet.submit_run({}, Path("own.fab"))


def test_a_path_that_the_command_line_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="quote"):
        deployed.run_apps(
            config={"job": str(tmp_path / 'a"b')},
            devices=[],
            app=HOUSE,
            home=tmp_path,
            timeout_s=1.0,
        )


def test_a_command_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_processes, "program_path", lambda _name: sys.executable)

    with pytest.raises(EngineError, match=r"flwr -c failed: .*too bad"):
        flower_processes.run_command(
            ["flwr", "-c", "raise SystemExit('too bad')"], tmp_path, tmp_path
        )
    monkeypatch.setattr(flower_processes, "COMMAND_TIMEOUT_S", 0.2)
    with pytest.raises(EngineError, match=r"took over 0\.2 s"):
        flower_processes.run_command(
            ["flwr", "-c", "import time; time.sleep(9)"], tmp_path, tmp_path
        )


def test_without_flower_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(SettingError, match="make setup"):
        flower_processes.program_path("flwr")


def test_no_process_reports_home(tmp_path: Path) -> None:
    around = flower_processes.process_environment(tmp_path)

    assert around["FLWR_TELEMETRY_ENABLED"] == "0"
    assert around["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert around["FLWR_HOME"] == str(tmp_path)


def _gone(process: int) -> bool:
    """Whether a process has ended, once its group was killed."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # ended; who adopted it has not asked yet
            return True
        time.sleep(0.05)
    return False
