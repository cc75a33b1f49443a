"""The deployed engine: the two apps as one bundle on a SuperLink and SuperNodes, one process each.

Everything stays on this machine's loopback: no TLS, no authentication. It shows that what
simulations run is what devices run, not how to operate a federation.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.shared.printable import quote_peer
from sottovoce.shared.protocol.events import EventListener
from sottovoce.simulations.engines.checkpoint_events import CheckpointEvents
from sottovoce.simulations.engines.flower_processes import (
    build_fab,
    process_environment,
    program_path,
    run_command,
)

_HOST: Final = "127.0.0.1"
_START_S: Final = 90.0

POLL_INTERVAL_S: Final = 4.0
"""Time between two looks at the state of a run."""

STOP_TIMEOUT_S: Final = 5.0
"""Longest wait for processes to end after each signal."""

OnMessage = Callable[[str], None]


def run_apps(
    *,
    config: Mapping[str, str],
    devices: Sequence[Path],
    app: Path,
    home: Path,
    timeout_s: float,
    on_message: OnMessage = lambda _line: None,
    listener: EventListener | None = None,
) -> None:
    """Run the apps to their end, then stop every process.

    Args:
        config: The run's configuration, as both apps see it.
        devices: The devices' folders; each gets a SuperNode of its own.
        app: The folder with ``pyproject.toml`` from which Flower builds the bundle.
        home: Where logs and each process's Flower home go; made if missing.
        timeout_s: How long the run may take, in seconds.
        on_message: Takes a line about what is happening.
        listener: Takes an event for each round, some seconds after it was saved.

    Raises:
        SettingError: A path that Flower's command line cannot take, or Flower is not installed.
        EngineError: A process died, the run failed, or time ran out. Every process is stopped.
    """
    for path in (*map(str, devices), *config.values()):
        # Flower's --run-config takes the values in quotes, without any way to escape one.
        if any(sign in path for sign in "\"'\\\n"):
            raise SettingError(f"{path!r} holds a quote or a backslash; use a plain path")
    fab = build_fab(app, home / "bundle")
    on_message(f"bundle {fab.name}")
    with zipfile.ZipFile(fab) as file:
        # "flwr run" builds the bundle again from this folder: it must hold what was checked, and no
        # more.
        file.extractall(home / "app")
    with LoopbackDeployment(home.resolve()) as deployment:
        port = deployment.start_superlink()
        on_message(f"SuperLink on {_HOST}:{port}")
        for number, device in enumerate(devices, 1):
            deployment.start_supernode(f"node-{number}", device.resolve())
        on_message(f"{len(devices)} SuperNodes, one a device")
        events = CheckpointEvents(Path(config["job"]), listener) if listener else None
        run = deployment.submit_run(config, fab)
        deployment.wait_for_run(
            run, timeout_s, on_message, on_poll=events.emit_saved_rounds if events else None
        )


class LoopbackDeployment:
    """A SuperLink and its SuperNodes; leaving the context stops them, whatever happened.

    Args:
        home: Where logs and each process's Flower home go; ``home/app`` is the unpacked bundle.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._link = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # First politely, so that they write their logs; then whoever is left.
        for ask in (signal.SIGTERM, signal.SIGKILL):
            self._signal_processes(ask)
            end = time.monotonic() + STOP_TIMEOUT_S
            while self._is_alive() and time.monotonic() < end:
                time.sleep(0.1)
        for process in self._processes.values():
            process.wait()

    def start_superlink(self, *, simulation: bool = False) -> int:
        """Start the SuperLink; returns its port once it answers.

        Args:
            simulation: Whether it simulates its SuperNodes, on Ray.
        """
        port = _free_port()
        self._link = f"{_HOST}:{port}"
        self.start_process(
            "superlink",
            "flower-superlink",
            *("--insecure", "--host", _HOST, "--port", str(port)),
            "--disable-runtime-dependency-installation",
            *(("--simulation",) if simulation else ()),
        )
        operator = self._home / "operator"
        operator.mkdir(parents=True, exist_ok=True)
        replace_text(
            operator / "config.toml",
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n'
            f'address = "{self._link}"\ninsecure = true\n',
        )
        end = time.monotonic() + _START_S
        while not _is_healthy(f"http://{self._link}/health"):
            self.require_alive()
            if time.monotonic() > end:
                raise EngineError(f"the SuperLink did not answer in {_START_S:g} s; {self._logs()}")
            time.sleep(0.3)
        return port

    def start_supernode(self, name: str, device: Path) -> None:
        """Start the SuperNode of one device, a process of its own."""
        self.start_process(
            name,
            "flower-supernode",
            *("--insecure", "--superlink", self._link),
            *("--host", _HOST, "--port", str(_free_port())),
            *("--node-config", f'device="{device}"'),
        )

    def submit_run(self, config: Mapping[str, str], fab: Path) -> str:
        """Start the run of a bundle; returns its id.

        Raises:
            EngineError: It does not start, or Flower sent another bundle than was checked.
        """
        words = " ".join(f'{name}="{value}"' for name, value in config.items())
        answer = self._run_flwr("run", str(self._home / "app"), "--run-config", words)
        if not answer.get("success") or not answer.get("run-id"):
            raise EngineError(f"flwr run did not start a run: {answer}; {self._logs()}")
        # The bundle's name has a hash of its content.
        if answer.get("fab-filename") != fab.name:
            raise EngineError(
                f"flwr run sent {answer.get('fab-filename')}, not the checked {fab.name}; "
                f"something changed {self._home / 'app'}, start again"
            )
        return str(answer["run-id"])

    def wait_for_run(
        self,
        run: str,
        timeout_s: float,
        on_message: OnMessage,
        *,
        on_poll: Callable[[], None] | None = None,
    ) -> None:
        """Wait until the run has ended well.

        ``flwr run --stream`` exits with 0 even when the run failed, so its status is asked for.

        Args:
            run: Flower's id of it.
            timeout_s: How long it may take, in seconds.
            on_message: Takes a line whenever its state changes.
            on_poll: Called after every check of the status; None for nothing.

        Raises:
            EngineError: A process died, the run failed, or time ran out.
        """
        end, before = time.monotonic() + timeout_s, ""
        while True:
            self.require_alive()
            state, details = self._run_status(run)
            if on_poll:
                on_poll()
            if state != before:
                on_message(f"run {run}: {state}")
                before = state
            if state == "finished:completed":
                return
            if state.startswith("finished"):
                said = quote_peer(details, max_length=500) if details else self._logs()
                raise EngineError(f"the run ended as {state}: {said}")
            if time.monotonic() > end:
                raise EngineError(
                    f"the run was still {state} after {timeout_s:g} s; {self._logs()}"
                )
            time.sleep(POLL_INTERVAL_S)

    def _run_status(self, run: str) -> tuple[str, str]:
        """A run's status and what Flower says of it."""
        answer = self._run_flwr("ls", "--run-id", run)
        try:
            entry = answer["runs"][0]
            return str(entry["status"]), str(entry.get("status-details", ""))
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(f"flwr ls does not know run {run}: {answer}") from error

    def _run_flwr(self, *words: str) -> dict[str, Any]:
        """What a Flower command says as JSON."""
        asked = ["flwr", *words, "--format", "json"]
        said = run_command(asked, self._home / "operator", self._home)
        try:
            # Flower prints notices before the JSON.
            answer: dict[str, Any] = json.loads(said[said.index("{") :])
        except ValueError as error:
            raise EngineError(f"flwr {words[0]} said no JSON: {said[-500:]}") from error
        return answer

    def start_process(self, name: str, *words: str) -> None:
        """Start a process in a group of its own, with its log beside its home.

        Args:
            name: Of the process, in messages and as the name of its log.
            words: The program and its arguments.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        with (self._home / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [program_path(words[0]), *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=process_environment(self._home / name),
                cwd=self._home,
                # A group of its own: Ctrl-C reaches this process first, which then stops all others
                # in order.
                start_new_session=True,
            )

    def require_alive(self) -> None:
        """Raise an error when a process that was started is gone.

        Raises:
            EngineError: One ended; the message names its log.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise EngineError(f"{name} ended with status {process.returncode}; {self._logs()}")

    def _logs(self) -> str:
        """Where to look, and the last lines of the first log that speaks of an error."""
        for name in self._processes:
            lines = (self._home / f"{name}.log").read_text(errors="replace").splitlines()
            # "rror" finds "Error" and "error".
            wrong = [line for line in lines if "rror" in line]
            if wrong:
                said = quote_peer(wrong[-1][-300:], max_length=300)
                return f"{name} says: {said} (logs: {self._home})"
        return f"see the logs in {self._home}"

    def _is_alive(self) -> bool:
        """Whether any process of any group is left."""
        for process in self._processes.values():
            process.poll()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Signal 0 only asks whether the group still has a process.
                os.killpg(process.pid, 0)
                return True
        return False

    def _signal_processes(self, number: int) -> None:
        """Tell every group; apps are children of SuperLink and SuperNodes, in their groups."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)


def _free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _is_healthy(address: str) -> bool:
    """Whether a server says that it is well."""
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310  (our own loopback)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
