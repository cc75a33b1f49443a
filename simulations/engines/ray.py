"""The Ray engine: the same two apps on Flower's simulation runtime.

``flwr.simulation.run_simulation`` is public, though deprecated in favour of ``flwr run``, which
would need a SuperLink daemon. It gives apps no run configuration, so each app is called by a thin
one that adds it. One private piece of Flower is touched: its telemetry switch is read from the
environment when Flower is first imported, which may be before this module. ``pyproject.toml`` pins
Flower 1.41, and a test holds both.
"""

import copy
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

# Before Flower and Ray are imported: neither may report home, nor hide a GPU or warn of it.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

import ray
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore import telemetry

from sottovoce.server.app import ListenedContext
from sottovoce.shared.errors import EngineError, SottovoceError
from sottovoce.shared.protocol.events import EventListener
from sottovoce.simulations.engines import ray_cluster
from sottovoce.simulations.engines.worker_process import single_torch_thread

RunConfig = dict[str, str]
_STORE_BYTES: Final = 256 * 2**20
"""Ray's store for messages in flight; its own default is a third of the memory."""
_WORKER_DIED: Final = 0
"""Flower's error code where it was not the app that failed."""
_WRAPPED_ERROR: Final = re.compile(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", re.DOTALL)
"""How Flower's runtime writes an exception."""
_GRACE_S: Final = 10.0


def run_apps(
    *,
    devices: int,
    config: RunConfig,
    workers: int,
    address: str | None = None,
    listener: EventListener | None = None,
) -> None:
    """Run the product's own two apps on Ray; see ``engines.Engine``.

    Args:
        devices: How many nodes there are.
        config: The run's configuration, as both apps see it.
        workers: How many actors run clients.
        address: Address of an existing cluster: ``auto`` or HOST:PORT; None starts Ray here.
        listener: Takes the run's events, in the ServerApp's thread; None leaves them to the log.

    Raises:
        SottovoceError: What the ServerApp raised.
        EngineError: Flower or Ray failed, or the ServerApp raised something else.
    """
    telemetry.FLWR_TELEMETRY_ENABLED = "0"
    watch = _ServerState()
    try:
        with _quiet_logs(), _restored_environment(), single_torch_thread(), ExitStack() as there:
            if address is not None:  # Flower takes the Ray that is there
                folder = Path(config["devices"])
                there.enter_context(
                    ray_cluster.connect_cluster(address, workers=workers, folder=folder)
                )
                there.enter_context(ray_cluster.spread_workers(workers))
            run_simulation(
                server_app=_configured_server(config, watch, listener),
                client_app=_ConfiguredClient(config),
                num_supernodes=devices,
                backend_config=_backend(workers),
            )
    except Exception as error:
        raise _as_sottovoce_error(watch.error or error) from error
    finally:
        watch.over.set()
        # Order matters: the server's thread must stop waiting before Ray goes, and end before we
        # return.
        ray.shutdown()
        if watch.began:
            watch.ended.wait(_GRACE_S)
    if not watch.done:
        raise _as_sottovoce_error(watch.error or EngineError("the ServerApp ended before its time"))


def check_cluster(address: str, *, workers: int, folder: Path) -> str:
    """Test a cluster before any work is done; returns a line on its size.

    Args:
        address: ``auto`` or HOST:PORT.
        workers: Number of workers that the run will ask for.
        folder: The run folder, which every node must see; it is left as it was.

    Raises:
        SettingError: The address makes no sense, or there is no room for so many workers.
        EngineError: Nobody answers, or a node cannot take part.
    """
    ray_cluster.check_address(address)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ray_cluster.connect_cluster(address, workers=workers, folder=folder) as nodes:
            return f"ray cluster at {address}: nodes {len(nodes)}, workers {workers}"
    finally:
        if new:
            folder.rmdir()


def _backend(workers: int) -> dict[str, Any]:
    """As many actors as workers, each on one (nominal) core."""
    return {
        "init_args": {
            "address": "local",  # else Ray would join a cluster that it finds on this machine
            "num_cpus": workers,
            "num_gpus": 0,
            "object_store_memory": _STORE_BYTES,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }


def _as_sottovoce_error(error: BaseException) -> SottovoceError:
    """An error fit for a user: the server's own, or what became of the engine."""
    if isinstance(error, SottovoceError):
        return error
    cause = error
    while cause.__cause__ is not None:  # Flower wraps what Ray said, twice
        cause = cause.__cause__
        if isinstance(cause, SottovoceError):
            return cause
    return EngineError(
        f"the ray engine failed ({type(cause).__name__}: {cause}); run again with --resume, or "
        "with --engine local"
    )


class _ServerState:
    """What the two threads of a run know of each other."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.began = False
        self.done = False
        self.over = threading.Event()
        self.ended = threading.Event()


def _configured_server(
    config: RunConfig, watch: _ServerState, listener: EventListener | None
) -> ServerApp:
    """A ServerApp that calls the product's with the run's configuration."""
    from sottovoce.server.app import app as product

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        watch.began = True
        try:
            own = _with_config(context, config)
            product(
                _WatchedGrid(grid, watch.over), ListenedContext(own, listener) if listener else own
            )
            watch.done = True
        except BaseException as error:
            watch.error = error
            raise
        finally:
            watch.ended.set()

    return app


class _ConfiguredClient(ClientApp):
    """A ClientApp that calls the product's with the run's configuration, in an actor."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the product's client; one torch thread, as actors share the cores."""
        from sottovoce.client.app import app as product

        # An actor serves many clients: set once, as torch warns of repeated changes.
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        return product(message, _with_config(context, self._config))


def _with_config(context: Context, config: RunConfig) -> Context:
    """The context as a deployed app would see it; Flower checks that its own stays as it was."""
    own = copy.copy(context)
    own.run_config = dict(config)
    return own


class _WatchedGrid(Grid):
    """Flower's grid, that stops waiting once nobody can answer."""

    def __init__(self, grid: Grid, over: threading.Event) -> None:
        self._grid = grid
        self._over = over

    def set_run(self, run: Any) -> None:  # noqa: ANN401  (Flower's signature)
        """See Flower's ``Grid``."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:  # noqa: ANN401  (Flower's signature)
        """See ``Grid``."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See ``Grid``."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid``."""
        self._check()
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See ``Grid``."""
        self._check()
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See ``Grid``.

        Raises:
            EngineError: The runtime ended, or a worker died: the device's work is lost, and a model
                trained without it would not be the model of this seed.
        """
        self._check()
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            # The app's own errors have another code and are the server's to judge.
            if reply.has_error() and reply.error.code == _WORKER_DIED:
                reason = _WRAPPED_ERROR.sub(r"\1: \2", reply.error.reason or "")
                raise EngineError(
                    f"a worker of the ray engine died ({reason[:200].strip()}); run "
                    "again with --resume, with fewer workers if memory was short"
                )
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See ``Grid``."""
        waiting = set(self.push_messages(messages))
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            came = list(self.pull_messages(waiting))
            replies += came
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            if waiting:
                # An event and not a sleep: the end of the runtime interrupts the wait.
                self._over.wait(0.02)
        return replies

    def _check(self) -> None:
        """Raise once the runtime has ended."""
        if self._over.is_set():
            raise EngineError("Flower's simulation runtime ended before the ServerApp")


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep Flower's banner off the terminal, and tracebacks of what our own errors say."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Leave the environment as it was: Flower puts ``sys.path`` into ``PYTHONPATH``."""
    before = os.environ.get("PYTHONPATH")
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before
