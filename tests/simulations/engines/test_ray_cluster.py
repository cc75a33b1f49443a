"""The Ray engine on a cluster of two nodes: both work, and neither they nor kills change a bit."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from sottovoce.cli import main, simulate
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.simulations import engines
from sottovoce.simulations.runs import run_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)

_TRIES, _START_S, _END_S = 3, 90.0, 180.0

_TRACED = """
import os, sys
from pathlib import Path
import ray
from sottovoce.cli.main import main
from sottovoce.simulations.engines import ray as ray_engine

SEEN = Path(sys.argv[1])

class Traced(ray_engine._ConfiguredClient):
    def __call__(self, message, context):
        node = ray.get_runtime_context().get_node_id()
        (SEEN / f"{node}-{os.getpid()}").touch()
        return super().__call__(message, context)

ray_engine._ConfiguredClient = Traced
sys.exit(main(sys.argv[2:]))
"""
"""The command, whose workers leave a file for the node and the process that they are."""


class Cluster:
    """A head and a worker with a core each, in process groups of their own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        try:
            self._start("head", "--head", f"--port={self._port}", "--include-dashboard=false")
            self._start("worker", f"--address={self.address}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.kill(name)

    def kill(self, name: str) -> None:
        """Pull a node's plug; not ``ray stop``, which would end other clusters too."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _start(self, name: str, *words: str) -> None:
        """Start a node, and wait until it says so; Ray gives up after 30 s on a busy machine."""
        for attempt in range(_TRIES):
            log = self._home / f"{name}-{attempt}.log"
            self._processes[name] = self._started(log, *words)
            end = time.monotonic() + _START_S
            while self._processes[name].poll() is None and time.monotonic() < end:
                if b"runtime started" in log.read_bytes():
                    return
                time.sleep(0.1)
            self.kill(name)
        pytest.fail(f"Ray's {name} did not start: {log.read_text()}")

    def _started(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """The process of a node."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [
                    *(Path(sys.executable).with_name("ray"), "start", *words, "--block"),
                    *("--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000"),
                    *(f"--temp-dir={log.with_suffix('')}", "--include-log-monitor=false"),
                    *("--disable-usage-stats", "--dashboard-agent-listen-port=0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster of this file; a short path, for Ray's sockets lie in it."""
    home = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        with Cluster(home) as made:
            yield made
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_both_nodes_work_and_kills_of_node_and_driver_change_no_bit(
    cluster: Cluster, tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(tmp_path / "long.toml", tiny_run.users, tiny_run.public, rounds=30)
    whole, killed, seen = tmp_path / "whole", tmp_path / "killed", tmp_path / "seen"
    assert main.main(["simulate", str(scenario), "--out", str(whole), "--quiet"]) == 0
    words = [str(seen), "simulate", str(scenario), "--out", str(killed), "--engine", "ray"]
    words += ["--address", cluster.address]

    seen.mkdir()
    lines, status = _until(3, [*words, "--workers", "2"], lambda _: cluster.kill("worker"))
    assert (status, len(lines[-1].splitlines())) == (1, 1), lines
    assert any("nodes 2, workers 2" in line for line in lines)
    workers = [path.name.split("-") for path in seen.iterdir()]
    assert len(workers) == len({node for node, _ in workers}) == 2
    assert "Traceback" not in "".join(lines)
    assert "a worker of the ray engine died" in lines[-1]
    assert "--resume" in lines[-1]

    words += ["--resume"]
    lines, status = _until(9, [*words, "--workers", "1"], lambda run: run.kill())
    assert status == -signal.SIGKILL, lines
    assert any("nodes 1, workers 1" in line for line in lines)  # though the other died just now

    words = ["simulate", str(scenario), "--out", str(killed), "--resume"]
    assert main.main([*words, "--engine", "local", "--quiet"]) == 0
    assert _content(killed) == _content(whole)
    assert cluster.address not in (killed / "config.toml").read_text()
    assert not list(killed.rglob(".shared-*"))  # what the nodes wrote to be found


@pytest.mark.slow
def test_a_sweep_on_a_cluster_is_the_sweep_here(
    cluster: Cluster, tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(tmp_path / "short.toml", tiny_run.users, tiny_run.public, rounds=2)
    words = ["sweep", str(scenario), "--seeds", "0,1", "--quiet", "--out"]
    assert main.main([*words, str(tmp_path / "here")]) == 0

    there = [str(tmp_path / "there"), "--engine", "ray", "--address", cluster.address]
    assert main.main([*words, *there]) == 0

    runs = sorted(path.name for path in (tmp_path / "here" / "runs").iterdir())
    assert len(runs) == 2
    for name in runs:
        assert _content(tmp_path / "there" / "runs" / name) == _content(
            tmp_path / "here" / "runs" / name
        )
    assert cluster.address not in (tmp_path / "there" / "sweep.toml").read_text()


def test_a_sweep_refuses_an_address_without_the_ray_engine(
    tiny_run: Any, make_scenario: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = make_scenario(tmp_path / "short.toml", tiny_run.users, tiny_run.public, rounds=2)
    words = ["sweep", str(scenario), "--seeds", "0,1", "--out", str(tmp_path / "out")]

    assert main.main([*words, "--address", "auto"]) == 2
    assert "address is 'auto' and engine is 'local'" in capsys.readouterr().err


def _until(
    rounds: int, words: list[str], then: Callable[[subprocess.Popen[str]], None]
) -> tuple[list[str], int]:
    """Run the command; do something after some rounds; lines of standard error, and the status."""
    with subprocess.Popen(
        [sys.executable, "-c", _TRACED, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        lines, limit = [], threading.Timer(_END_S, run.kill)
        limit.start()
        for line in run.stderr or []:
            lines.append(line)
            if rounds and line.startswith("rounds: ") and int(line.split()[1]) >= rounds:
                rounds = 0
                then(run)
        limit.cancel()
        return lines, run.wait(_END_S)


def _content(folder: Path) -> dict[str, object]:
    """What a run came to: model, ledgers, and what it says of itself but for times and engine."""
    files = [folder / "model" / "model.safetensors", *folder.glob("ledgers/**/*.jsonl")]
    said = json.loads((folder / "run.json").read_text())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files} | {
        "run": {name: part for name, part in said.items() if name not in ("timing", "engine")}
    }


# --- what is said where a cluster cannot be used ----------------------------------------------


@pytest.mark.parametrize("engine", [[], ["--engine", "local"]])
def test_an_address_without_the_ray_engine_is_a_usage_error(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: list[str]
) -> None:
    words = ["simulate", str(tiny_run.scenario), "--out", str(tmp_path / "out"), *engine]

    assert main.main([*words, "--address", "auto"]) == 2

    last = capsys.readouterr().err.splitlines()[-1]
    assert "address is 'auto' and engine is 'local'" in last
    assert "--engine ray" in last
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="only the ray engine"):
        engines.load_engine("local", address="auto")


@pytest.mark.parametrize(
    "address", ["", "here", "local", "ray://a:1", "127.0.0.1", "a:b", "a b:1", ":6379"]
)
def test_an_address_of_no_cluster_is_a_usage_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingError, match="HOST:PORT"):
        engines.check_cluster(address, workers=1, folder=tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_named_soon(
    tiny_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sottovoce.simulations.engines import ray_cluster

    monkeypatch.setattr(ray_cluster, "CONNECT_TIMEOUT_S", 1.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        words = ["simulate", str(tiny_run.scenario), "--engine", "ray", "--address", address]
        started = time.monotonic()
        status = main.main([*words, "--out", str(tmp_path / "out")])

    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 1
    assert "no Ray cluster answers at" in last
    assert address.rpartition(":")[2] in last
    assert "ray start --head" in last
    assert time.monotonic() - started < 90
    assert not (tmp_path / "out").exists()


class _Ray(SimpleNamespace):
    """A cluster of one node with two CPUs, whose folder is another where ``folder`` says so."""

    def __init__(self, folder: Path | None = None, *, died: bool = False) -> None:
        super().__init__(folder=folder, died=died)

    def init(self, **_: Any) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        node = {"NodeID": "f0" * 28, "NodeManagerHostname": "far", "NodeManagerAddress": "10.0.0.2"}
        gone = {"NodeID": "f1" * 28, "Alive": False, "Resources": {}}
        return [node | {"Alive": True, "Resources": {"CPU": 2.0}}, node | gone]

    def remote(self, function: Callable[..., Any]) -> Any:
        def call(folder: str, *rest: str) -> Any:
            return function(str(self.folder or folder), *rest)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=call))

    def get(self, answer: Any, timeout: float) -> Any:
        import ray

        if self.died:
            raise ray.exceptions.TaskUnschedulableError("it died just now")
        return answer


@pytest.fixture
def try_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Tries whether a run can be run on a made-up cluster."""
    from sottovoce.simulations.engines import ray_cluster

    monkeypatch.setattr(ray_cluster, "resolve_address", lambda address: address)

    def try_(made_up: _Ray, folder: Path, workers: int = 2) -> None:
        monkeypatch.setattr(ray_cluster, "ray", made_up)
        with ray_cluster.connect_cluster("far:1", workers=workers, folder=folder) as nodes:
            assert [(node.name, node.worker_capacity) for node in nodes] == [("far (10.0.0.2)", 2)]

    return try_


def test_a_node_that_does_not_see_the_folder_is_refused(try_on: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    try_on(_Ray(), here)

    with pytest.raises(EngineError, match=r"far \(10.0.0.2\) cannot use .*here \(No such file"):
        try_on(_Ray(there), here)
    there.mkdir()
    with pytest.raises(EngineError, match=r"one shared folder: give --out on"):
        try_on(_Ray(there), here)
    assert not list(here.iterdir())


def test_a_node_that_sees_old_files_is_refused(
    try_on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network file systems show a replaced file for a while."""
    from sottovoce.simulations.engines import ray_node

    look, first = ray_node.probe_node, []

    def stale(folder: str, token: str, key: str) -> Any:
        first.append((Path(folder) / token).read_text())
        answer = look(folder, token, key)
        replace_text(Path(folder) / f"{token}-{key}", first[0])
        return answer

    monkeypatch.setattr(ray_node, "probe_node", stale)

    with pytest.raises(EngineError, match=r"it sees other files.*sees changes of at once"):
        try_on(_Ray(), tmp_path)
    assert len(set(first)) == 2


def test_more_workers_than_cpus_are_a_usage_error(try_on: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"workers is 3 .* has 2 CPUs.*fewer --workers"):
        try_on(_Ray(), tmp_path, workers=3)
    with pytest.raises(SettingError, match=r"workers is 2 .* has 0 CPUs"):
        try_on(_Ray(died=True), tmp_path)


def test_a_node_with_other_code_is_refused(
    try_on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sottovoce.simulations.engines import ray_node

    answers = [
        ray_node.code_versions(),
        ray_node.code_versions() | {"torch": "1.0"},
    ]  # here, and before that there
    monkeypatch.setattr(ray_node, "code_versions", answers.pop)

    with pytest.raises(EngineError, match=r"another torch \(1\.0; here it is .*install the same"):
        try_on(_Ray(), tmp_path)


def test_what_runs_is_told_by_the_code_of_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sottovoce import client
    from sottovoce.simulations.engines import ray_node

    before = ray_node.code_versions()
    copied = Path(shutil.copytree(next(iter(client.__path__)), tmp_path / "client"))
    monkeypatch.setattr(client, "__path__", [str(copied)])
    assert ray_node.code_versions() == before  # wherever it lies

    (copied / "trainer.py").write_text("")
    assert ray_node.code_versions()["sottovoce"] != before["sottovoce"]


def test_the_address_is_no_setting_of_a_run() -> None:
    """A run on a cluster has the name of the run that it would have been here."""
    words = ["simulate", "demo", "--engine", "ray"]
    plain, there = (
        simulate.build_scenario(main.build_parser().parse_args([*words, *more]))
        for more in ([], ["--address", "auto"])
    )

    assert run_folder.hash_settings(plain.to_toml()) == run_folder.hash_settings(there.to_toml())
    assert plain == there


def test_the_pieces_of_ray_and_flower_are_where_they_were() -> None:
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from ray._private import services

    from sottovoce.simulations.engines import ray_cluster

    assert callable(services.canonicalize_bootstrap_address_or_die)
    before = raybackend.RayBackend
    with ray_cluster.spread_workers(3):
        assert issubclass(raybackend.RayBackend, before)
        assert raybackend.RayBackend is not before
    assert raybackend.RayBackend is before
    assert {"build", "terminate", "process_message", "num_workers"} <= set(vars(before))
