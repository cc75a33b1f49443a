"""The local engine: the unmodified ServerApp and ClientApp, in this process or in worker processes.

Every worker answers for its own run of places, so that what it has in memory of a device serves the
next round too. A worker's share of an exchange goes out in slices, whose replies come back only
when all that their devices booked is on disk.

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

from sottovoce.shared.errors import EngineError
from sottovoce.simulations.devices.shelf import ShelfHost
from sottovoce.simulations.engines import hosts
from sottovoce.simulations.engines.hosts import RUN, Host, MakeHost, Nodes
from sottovoce.simulations.engines.threads import (
    begin_worker,
    keep_memory,
    one_thread,
    settled_heap,
)

SERVER: Final = 1
_SLICE: Final = 32


def run(
    server: ServerApp,
    client: ClientApp,
    *,
    devices: int,
    config: Mapping[str, str],
    workers: int = 1,
    host: MakeHost | None = None,
    lost: Callable[[Message], bool] = hosts.never,
) -> None:
    """Run both apps to their end.

    Args:
        server: The ServerApp.
        client: The ClientApp; with several workers, the one that ``client.app`` defines.
        devices: How many nodes there are, by place from 0.
        config: The run's configuration, as both apps see it.
        workers: Processes that run clients; 1 runs them in this process.
        host: Opens where devices live; None leaves it to the client to find them by the
            configuration, which must point to a folder of them.
        lost: Which messages never reach their device, for tests of dropouts.

    Raises:
        SottovoceError: What the ServerApp raised.
        EngineError: A worker died.
    """
    _identify()
    keep_memory()
    nodes = Nodes(devices=devices, config=dict(config))
    grid = LocalGrid(client, nodes, workers=workers, host=host, lost=lost)
    with one_thread(), settled_heap(), grid:
        server(grid, Context(RUN, 0, {}, RecordDict(), dict(config)))


def run_apps(
    *, devices: int, config: dict[str, str], workers: int, host: MakeHost | None = None
) -> None:
    """Run the product's own two apps; see ``engines.Engine``, and :func:`run` of ``host``."""
    from sottovoce.client.app import app as client
    from sottovoce.server.app import app as server

    if shelf := config.get("shelf"):
        host = partial(ShelfHost, Path(shelf), Path(config["job"]), shared=workers > 1)
    run(server, client, devices=devices, config=config, workers=workers, host=host)


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
    """A grid whose devices live in this process or its workers.

    Args:
        client: What answers in this process.
        nodes: What all nodes know.
        workers: Processes that run clients.
        host: Opens where devices live, in every process.
        lost: Which messages never reach their device.
    """

    def __init__(
        self,
        client: ClientApp,
        nodes: Nodes,
        *,
        workers: int,
        host: MakeHost | None,
        lost: Callable[[Message], bool],
    ) -> None:
        self._client, self._nodes, self._lost = client, nodes, lost
        self._host = host() if host else None
        self._replies: dict[str, Message] = {}
        self._group, self._fates = "", Counter[str]()
        spawn = multiprocessing.get_context("spawn")
        start = partial(_start_worker, host)
        self._pools: list[Executor] = [
            ProcessPoolExecutor(1, spawn, initializer=start)
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
        """All nodes, as a range."""
        return self._nodes.ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run every message's client; replies wait to be pulled."""
        names, reached = [], []
        for message in messages:
            name = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = name
            names.append(name)
            if self._lost(message):
                self._replies[name] = hosts.lost(message, "the device went away (simulated)")
            else:
                reached.append(message)
        for reply in self._answers(sorted(reached, key=hosts.place_of)):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return names

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
        """Push and pull; the host hears what became of the messages."""
        sent = list(messages)
        replies = list(self.pull_messages(self.push_messages(sent)))
        if sent and self._host:
            self._note(self._host, sent[0].metadata.group_id, replies)
        return replies

    def _answers(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Every message's reply, whoever worked on it."""
        if not self._pools:
            for part in _slices(messages):
                yield from hosts.serve(self._client, self._host, part, self._nodes)
            return
        waiting = [
            pool.submit(_work, part, self._nodes)
            for pool, share in zip(self._pools, _shares(messages, len(self._pools)), strict=True)
            for part in _slices(share)
        ]
        for future in waiting:
            yield from _result(future)

    def _note(self, host: Host, group: str, replies: Sequence[Message]) -> None:
        """Count why replies are missing in this round so far."""
        if group != self._group:
            self._group, self._fates = group, Counter()
        self._fates.update(str(reply.error.reason) for reply in replies if reply.has_error())
        host.note(group, dict(self._fates))


def _shares(messages: Sequence[Message], workers: int) -> list[Sequence[Message]]:
    """Messages by place, cut into one run for each worker, as long as each other or one longer."""
    ends = [len(messages) * number // workers for number in range(workers + 1)]
    return [messages[start:end] for start, end in pairwise(ends)]


def _slices(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """What is answered, and brought to disk, together."""
    return (messages[start : start + _SLICE] for start in range(0, len(messages), _SLICE))


def _result(future: Future[list[Message]]) -> list[Message]:
    """A worker's replies; a worker that died ends the run."""
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


_LIVE: list[Host] = []
"""The host of this worker, where there is one."""


def _start_worker(host: MakeHost | None) -> None:
    """Workers, not threads, share the cores."""
    begin_worker()
    _identify()
    _LIVE[:] = [host()] if host else []


def _work(messages: Sequence[Message], nodes: Nodes) -> list[Message]:
    """Run the product's client on a slice, in a worker."""
    from sottovoce.client.app import app

    return hosts.serve(app, _LIVE[0] if _LIVE else None, messages, nodes)
