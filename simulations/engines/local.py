"""The local engine: the unmodified ServerApp and ClientApp, in this process or in worker processes.

Every worker answers for its own range of devices, so a device in its memory serves the next round
too. A worker's part of an exchange goes out in slices, whose replies come back only
the next round too. A worker's part of an exchange goes out in slices, whose replies come back only
after everything that their devices booked is on disk.

Flower's ``Grid`` is public; building messages without a SuperLink needs two private pieces of
Flower 1.41 (``TaskIdentity`` and a message's id), both named here and held by a test.
"""

import multiprocessing
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from sottovoce.server.app import ListenedContext
from sottovoce.shared.errors import EngineError
from sottovoce.shared.protocol.events import EventListener
from sottovoce.simulations.devices.device_pool import DevicePoolHost
from sottovoce.simulations.engines import device_host
from sottovoce.simulations.engines.device_host import (
    RUN_ID,
    DeviceHost,
    DeviceHostFactory,
    SimulatedNodes,
)
from sottovoce.simulations.engines.worker_process import (
    frozen_heap,
    initialise_worker,
    retain_freed_memory,
    single_torch_thread,
)

SERVER_NODE_ID: Final = 1
_SLICE_MESSAGES: Final = 32


def run_server_and_client(
    server: Callable[[Grid, Context], None],
    client: ClientApp,
    *,
    devices: int,
    config: Mapping[str, str],
    workers: int = 1,
    host: DeviceHostFactory | None = None,
    is_lost: Callable[[Message], bool] = device_host.never_lost,
) -> None:
    """Start both apps in this process and run them to their end.

    Args:
        server: The ServerApp, or one :func:`with_listener`.
        client: The ClientApp; with several workers, the one that ``client.app`` defines.
        devices: How many nodes there are, by index from 0.
        config: The run's configuration, as both apps see it.
        workers: Processes that run clients; 1 runs them in this process.
        host: Opens where devices are; None leaves it to the client to find them by the
            configuration, which must point to a folder of them.
        is_lost: Tells which messages never reach their device, for tests of dropouts.

    Raises:
        SottovoceError: Any error that the ServerApp raised.
        EngineError: A worker died.
    """
    set_task_identity()
    retain_freed_memory()
    nodes = SimulatedNodes(devices=devices, config=dict(config))
    grid = LocalGrid(client, nodes, workers=workers, host=host, is_lost=is_lost)
    context = Context(RUN_ID, 0, {}, RecordDict(), dict(config))
    with single_torch_thread(), frozen_heap(), grid:
        server(grid, context)


def with_listener(server: ServerApp, listener: EventListener) -> Callable[[Grid, Context], None]:
    """Have a listener take the events of a ServerApp's run, instead of the log.

    Args:
        server: The ServerApp.
        listener: Takes the events.
    """

    def main(grid: Grid, context: Context) -> None:
        server(grid, ListenedContext(context, listener))

    return main


def run_apps(
    *,
    devices: int,
    config: dict[str, str],
    workers: int,
    host: DeviceHostFactory | None = None,
    listener: EventListener | None = None,
) -> None:
    """Run the product's own two apps; see ``engines.Engine``.

    ``host`` is that of :func:`run_server_and_client`.
    """
    from sottovoce.client.app import app as client
    from sottovoce.server.app import app as server

    if database := config.get("device_database"):
        host = partial(DevicePoolHost, Path(database), Path(config["job"]), shared=workers > 1)
    run_server_and_client(
        with_listener(server, listener) if listener else server,
        client,
        devices=devices,
        config=config,
        workers=workers,
        host=host,
    )


class SingleRunGrid(Grid):
    """Base of all grids of a single run."""

    def set_run(self, run: Any) -> None:  # noqa: ANN401  (Flower's signature)
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:  # noqa: ANN401  (Flower's signature)
        """Not supported: only Flower's legacy workflows use a grid's run."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as Flower's older API does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class LocalGrid(SingleRunGrid):
    """A grid whose devices are in this process or its workers.

    Args:
        client: The client that answers in this process.
        nodes: Number and configuration of the nodes.
        workers: Processes that run clients.
        host: Opens where devices are, in every process.
        is_lost: Tells which messages never reach their device.
    """

    def __init__(
        self,
        client: ClientApp,
        nodes: SimulatedNodes,
        *,
        workers: int,
        host: DeviceHostFactory | None,
        is_lost: Callable[[Message], bool],
    ) -> None:
        self._client, self._nodes, self._is_lost = client, nodes, is_lost
        self._host = host() if host else None
        self._replies: dict[str, Message] = {}
        self._group, self._outcomes = "", Counter[str]()
        # Not fork: torch's threads do not survive one.
        spawn = multiprocessing.get_context("spawn")
        start = partial(_start_worker, host)
        self._pools: list[Executor] = [
            ProcessPoolExecutor(1, spawn, initializer=start)
            # A pool of one process for each worker, so that a device always meets the same one.
            for _ in range(workers if workers > 1 else 0)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        if self._host:
            self._host.close()

    def get_node_ids(self) -> Iterable[int]:
        """List all nodes, as a range."""
        return self._nodes.node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run every message's client; replies wait to be pulled."""
        names, reached = [], []
        for message in messages:
            name = uuid.uuid4().hex
            # A SuperLink would set the id; it is read only from outside.
            message.metadata.__dict__["_message_id"] = name
            names.append(name)
            if self._is_lost(message):
                self._replies[name] = device_host.lost_reply(
                    message, "the device went away (simulated)"
                )
            else:
                reached.append(message)
        # By device, so that each worker gets the range of devices that it has in memory.
        for reply in self._reply_to_messages(sorted(reached, key=device_host.device_index)):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the replies that have arrived."""
        names = list(message_ids)
        return [self._replies.pop(name) for name in names if name in self._replies]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002  (everything here ends)
    ) -> Iterable[Message]:
        """Push and pull; the host records what became of the messages."""
        # A round may exchange several times: outcomes are counted over all of them.
        sent = list(messages)
        replies = list(self.pull_messages(self.push_messages(sent)))
        if sent and self._host:
            self._record_outcomes(self._host, sent[0].metadata.group_id, replies)
        return replies

    def _reply_to_messages(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Every message's reply, whoever worked on it."""
        if not self._pools:
            for part in _slices(messages):
                yield from device_host.serve_messages(self._client, self._host, part, self._nodes)
            return
        waiting = [
            pool.submit(_serve_in_worker, part, self._nodes)
            for pool, own in zip(
                self._pools, _split_by_worker(messages, len(self._pools)), strict=True
            )
            for part in _slices(own)
        ]
        for future in waiting:
            yield from _result(future)

    def _record_outcomes(self, host: DeviceHost, group: str, replies: Sequence[Message]) -> None:
        """Count why replies are missing in this round so far."""
        if group != self._group:
            self._group, self._outcomes = group, Counter()
        self._outcomes.update(str(reply.error.reason) for reply in replies if reply.has_error())
        host.record_outcomes(group, dict(self._outcomes))


def _split_by_worker(messages: Sequence[Message], workers: int) -> list[Sequence[Message]]:
    """Messages by device, cut into one range for each worker, of equal lengths or one longer."""
    ends = [len(messages) * number // workers for number in range(workers + 1)]
    return [messages[start:end] for start, end in pairwise(ends)]


def _slices(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """What is answered, and brought to disk, together."""
    return (
        messages[start : start + _SLICE_MESSAGES]
        for start in range(0, len(messages), _SLICE_MESSAGES)
    )


def _result(future: Future[list[Message]]) -> list[Message]:
    """A worker's replies; a worker that died ends the run."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise EngineError(
            "a worker of the local engine died, perhaps for want of memory; run again with "
            "--resume and fewer --workers: finished rounds are kept"
        ) from error


def set_task_identity() -> None:
    """Give this process the identity without which Flower 1.41 builds no message."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE_ID, 1


_WORKER_HOST: list[DeviceHost] = []
"""The host of this worker, where there is one."""


def _start_worker(host: DeviceHostFactory | None) -> None:
    """Workers, not threads, share the cores."""
    initialise_worker()
    set_task_identity()
    # Slice assignment: the list is shared by name with the functions that read it.
    _WORKER_HOST[:] = [host()] if host else []


def _serve_in_worker(messages: Sequence[Message], nodes: SimulatedNodes) -> list[Message]:
    """Run the product's client on a slice, in a worker."""
    from sottovoce.client.app import app

    return device_host.serve_messages(
        app, _WORKER_HOST[0] if _WORKER_HOST else None, messages, nodes
    )
