"""The Ray engine runs the same apps to the same bits, and never hides a failure."""

import importlib.util
import inspect
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import telemetry

from sottovoce.client.app import app as product_client
from sottovoce.server.app import app as product_server
from sottovoce.shared.errors import EngineError, ModelError, SettingError
from sottovoce.simulations.engines import load_engine, local
from sottovoce.simulations.engines.device_host import SimulatedNodes, never_lost

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)

_ON_RAY = """
import sys
from sottovoce.simulations.engines import load_engine
load_engine("ray")(devices=4, config={"job": sys.argv[1], "devices": sys.argv[2]}, workers=2)
print("done")
"""


@pytest.mark.slow
def test_ray_and_local_agree_to_the_last_bit(make_federation: Any) -> None:
    """In a process of its own, since Ray leaves threads and children to the interpreter's end."""
    here, there = (
        make_federation("here"),
        make_federation("there", timeout_s=200.0),
    )  # Ray is slow to start
    here.run()

    done = subprocess.run(
        [sys.executable, "-c", _ON_RAY, *there.config.values()],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert torch.allclose(here.released(), there.released(), atol=1e-6)
    assert torch.equal(here.released(), there.released())
    assert here.ledgers() == there.ledgers()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """The engine on a runtime that a test makes up: threads, but no Ray."""
    from sottovoce.simulations.engines import ray

    monkeypatch.setattr(ray.ray, "shutdown", lambda: None)

    def use(runtime: Any) -> Any:
        monkeypatch.setattr(ray, "run_simulation", runtime)
        return ray

    yield use
    for thread in threading.enumerate():
        if thread.name == "made-up server":
            thread.join(5)
            assert not thread.is_alive()


def _runtime(grid: Grid, *, fails: Exception | None = None) -> Any:
    """What Flower's runtime does: the ServerApp in a thread, its error handed on."""

    def run(*, server_app: ServerApp, client_app: ClientApp, **_: Any) -> None:
        errors: list[BaseException] = []

        def serve() -> None:
            try:
                server_app(grid, Context(1, 0, {}, RecordDict(), {}))
            except Exception as error:  # noqa: BLE001  (as Flower does)
                errors.append(error)
            except SystemExit:
                pass  # as a thread does

        thread = threading.Thread(target=serve, name="made-up server")
        thread.start()
        if fails:
            raise fails
        thread.join()
        if errors:
            raise errors[0]

    return run


class _Grid(local.LocalGrid):
    """Four nodes in this process, or none that answers."""

    def __init__(self, *, reply: Callable[[Message], list[Message]] | None = None) -> None:
        local.set_task_identity()
        nodes = SimulatedNodes(devices=4, config={})
        super().__init__(ClientApp(), nodes, workers=1, host=None, is_lost=never_lost)
        self._reply = reply or (lambda _message: [])

    def push_messages(self, messages: Any) -> list[str]:
        sent = list(messages)
        for message in sent:
            message.metadata.__dict__["_message_id"] = f"to-{message.metadata.dst_node_id}"
        self.waiting = [reply for message in sent for reply in self._reply(message)]
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Any) -> list[Message]:
        replies, self.waiting = self.waiting, []
        return replies


def test_the_servers_own_error_comes_out(on: Any, tmp_path: Any) -> None:
    ray = on(_runtime(_Grid()))

    with pytest.raises(ModelError, match="holds no usable job"):
        ray.run_apps(devices=4, config={"job": str(tmp_path)}, workers=1)
    with pytest.raises(SettingError, match="lacks job=FOLDER"):
        ray.run_apps(devices=4, config={"devices": str(tmp_path)}, workers=1)


def test_any_other_error_of_the_server_is_an_engine_error(
    on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for raised in (ZeroDivisionError("one over none"), SystemExit(0)):
        failing = ServerApp()
        failing.main()(lambda grid, context, raised=raised: _raise(raised))
        monkeypatch.setattr("sottovoce.server.app.app", failing)
        with pytest.raises(EngineError, match=type(raised).__name__):
            on(_runtime(_Grid())).run_apps(devices=4, config={}, workers=1)


def test_when_the_runtime_fails_the_server_stops_waiting(on: Any, make_federation: Any) -> None:
    federation = make_federation("a")
    crash = RuntimeError("Ending simulation.")
    crash.__cause__ = OSError("no shared memory")
    ray = on(_runtime(_Grid(), fails=crash))
    started = time.monotonic()

    with pytest.raises(EngineError, match=r"ray engine failed \(OSError: no shared memory\)"):
        ray.run_apps(devices=4, config=federation.config, workers=1)

    assert time.monotonic() - started < 30  # the job waits 30 s for replies


def test_a_dead_worker_ends_the_run(on: Any, make_federation: Any) -> None:
    def died(message: Message) -> list[Message]:
        return [Message(Error(code=0, reason="ActorDiedError"), reply_to=message)]

    ray = on(_runtime(_Grid(reply=died)))

    with pytest.raises(EngineError, match=r"worker of the ray engine died \(ActorDiedError\)"):
        ray.run_apps(devices=4, config=make_federation("a").config, workers=1)


def test_the_configuration_reaches_the_client(make_federation: Any) -> None:
    from sottovoce.simulations.engines import ray

    federation, context = make_federation("a"), SimulatedNodes(devices=4, config={}).node_context(0)
    seen = []

    def spy(message: Message, context: Context) -> Message:
        seen.append(dict(context.run_config))
        return message

    local.set_task_identity()
    message = Message(RecordDict(), 100, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sottovoce.client.app.app", spy)
        ray._ConfiguredClient(federation.config)(message=message, context=context)

    assert seen == [federation.config]
    assert context.run_config == {}  # Flower refuses a context whose configuration changed


def test_the_environment_stays_as_it_was(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    level = logging.getLogger("flwr").level

    def littering(**_: Any) -> None:
        os.environ["PYTHONPATH"] = "everything"

    with pytest.raises(EngineError, match="ended before its time"):
        on(littering).run_apps(devices=4, config={}, workers=1)

    assert "PYTHONPATH" not in os.environ
    assert logging.getLogger("flwr").level == level


def test_nothing_reports_home(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when Flower was imported first, as in this process."""
    monkeypatch.setattr(telemetry, "FLWR_TELEMETRY_ENABLED", "1")
    seen = []

    with pytest.raises(EngineError):
        on(lambda **_: seen.append(telemetry.FLWR_TELEMETRY_ENABLED)).run_apps(
            devices=1, config={}, workers=1
        )

    assert seen == ["0"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"


def test_the_pieces_of_flower_are_where_they_were() -> None:
    from flwr.common.constant import ErrorCode
    from flwr.simulation import run_simulation

    from sottovoce.simulations.engines import ray

    wanted = {"server_app", "client_app", "num_supernodes", "backend_config"}
    assert wanted <= set(inspect.signature(run_simulation).parameters)
    assert hasattr(telemetry, "FLWR_TELEMETRY_ENABLED")
    assert ray._WORKER_DIED == ErrorCode.UNKNOWN
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION != ErrorCode.UNKNOWN


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sottovoce.simulations.engines.ray", None)

    with pytest.raises(SettingError, match="pip install"):
        load_engine("ray")


def test_the_apps_are_the_products_own() -> None:
    assert isinstance(product_client, ClientApp)
    assert isinstance(product_server, ServerApp)


def _raise(error: BaseException) -> None:
    """Raise, where only an expression fits."""
    raise error
