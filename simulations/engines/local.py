"""The local engine: the unmodified ServerApp and ClientApp, in this process or in worker processes.

Flower's ``Grid`` is public; building messages without a SuperLink needs two private pieces of
Flower 1.41 (``TaskIdentity`` and a message's id), both named here and held by a test.
"""

import copy
import multiprocessing
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from sottovoce.shared.errors import EngineError, SottovoceError
from sottovoce.simulations.engines.threads import begin_worker, one_thread

RUN, SERVER = 1, 1
_FIRST_NODE = 100
_NODE_LOST, _APP_FAILED = 5, 2


def run(
    server: ServerApp,
    client: ClientApp,
    *,
    devices: int,
    config: Mapping[str, str],
    workers: int = 1,
    lost: Callable[[Message], bool] = lambda _message: False,
) -> None:
    """Run both apps to their end.

    Args:
        server: The ServerApp.
        client: The ClientApp; with several workers, the one that ``client.app`` defines.
        devices: How many nodes there are.
        config: The run's configuration, as both apps see it.
        workers: Processes that run clients; 1 runs them in this process.
        lost: Which messages never reach their device, for tests of dropouts.

    Raises:
        SottovoceError: What the ServerApp raised.
        EngineError: A worker died.
    """
    _identify()
    contexts = {_FIRST_NODE + place: _context(place, devices, config) for place in range(devices)}
    with one_thread(), LocalGrid(client, contexts, workers=workers, lost=lost) as grid:
        server(grid, Context(RUN, 0, {}, RecordDict(), dict(config)))


def run_apps(*, devices: int, config: dict[str, str], workers: int) -> None:
    """Run the product's own two apps; see ``engines.Engine``."""
    from sottovoce.client.app import app as client
    from sottovoce.server.app import app as server

    run(server, client, devices=devices, config=config, workers=workers)


class OneRun(Grid):
    """What every grid of one run has alike."""

    def set_run(self, run: Any) -> None:  # noqa: ANN401  (Flower's signature)
        """Nothing to do: there is one run."""

    @property
    def run(self) -> Any:  # noqa: ANN401  (Flower's signature)
        """Only Flower's legacy workflows ask."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, as Flower's older API makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class LocalGrid(OneRun):
    """A grid whose devices live in this process or its workers."""

    def __init__(
        self,
        client: ClientApp,
        contexts: Mapping[int, Context],
        *,
        workers: int,
        lost: Callable[[Message], bool],
    ) -> None:
        self._client = client
        self._contexts = dict(contexts)
        self._lost = lost
        self._replies: dict[str, Message] = {}
        self._pool: Executor | None = None
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, spawn, initializer=_start_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run every message's client; replies wait to be pulled."""
        sent = []
        for message in messages:
            name = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = name
            sent.append((name, message))
        waiting = []
        for name, message in sent:
            context = self._contexts[message.metadata.dst_node_id]
            if self._lost(message):
                error = Error(code=_NODE_LOST, reason="the device went away (simulated)")
                self._replies[name] = Message(error, reply_to=message)
            elif self._pool:
                waiting.append((name, self._pool.submit(_work, message, context)))
            else:
                self._replies[name] = _call(self._client, _own_copy(message), context)
        for name, future in waiting:
            self._replies[name] = _result(future)
        return [name for name, _ in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there."""
        names = list(message_ids)
        return [self._replies.pop(name) for name in names if name in self._replies]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002  (everything here ends)
    ) -> Iterable[Message]:
        """Push and pull."""
        return list(self.pull_messages(self.push_messages(messages)))


def _context(place: int, devices: int, config: Mapping[str, str]) -> Context:
    """What a node knows of itself."""
    node: dict[str, bool | float | int | str] = {"partition-id": place, "num-partitions": devices}
    return Context(RUN, _FIRST_NODE + place, node, RecordDict(), dict(config))


def _own_copy(message: Message) -> Message:
    """What a wire does: nobody shares objects with anybody."""
    own = copy.copy(message)
    own.__dict__["_content"] = copy.deepcopy(message.content)
    return own


def _call(client: ClientApp, message: Message, context: Context) -> Message:
    """Run a client; as in Flower, what it raises becomes an error reply."""
    try:
        return client(message, context)
    except SottovoceError as error:
        return Message(Error(code=_APP_FAILED, reason=str(error)), reply_to=message)
    except Exception as error:  # noqa: BLE001  (a client's fault must not end the run)
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(code=_APP_FAILED, reason=reason), reply_to=message)


def _result(future: Future[Message]) -> Message:
    """A worker's reply; a worker that died ends the run."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise EngineError(
            "a worker of the local engine died, perhaps for want of memory; run again with "
            "--resume and fewer --workers: finished rounds are kept"
        ) from error


def _identify() -> None:
    """Flower 1.41 builds no message before a task has an identity."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER, 1


def _start_worker() -> None:
    """Workers, not threads, share the cores."""
    begin_worker()
    _identify()


def _work(message: Message, context: Context) -> Message:
    """Run the product's client in a worker."""
    from sottovoce.client.app import app

    return _call(app, message, context)
