"""The local engine for a crowd: the unmodified apps, over devices that are made when asked.

Nothing here knows how many nodes there are, beside two numbers. Messages of a batch go to devices
in slices; a slice is one process's work. Its replies leave only when all that its devices booked
is on disk: that is the one thing in which a ledger of the crowd differs from a device's own, which
is synced before a release is computed.
"""

import copy
import multiprocessing
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType
from typing import Final, Protocol, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from sottovoce.client.app import Bringing
from sottovoce.client.device import Device
from sottovoce.shared import wire
from sottovoce.shared.errors import EngineError
from sottovoce.simulations.engines import local
from sottovoce.simulations.engines.threads import one_thread

FIRST_NODE: Final = 100
_SLICE: Final = 32
_LOST: Final = 5


class Host(Protocol):
    """Where a crowd's devices live in one process."""

    def device(self, place: int) -> Device:
        """The device of a place, made for this message alone."""

    def fate(self, place: int, group: str) -> str:
        """What keeps a device from answering in a round; empty where nothing does.

        ``unavailable`` never hears of it; all others do their work, and their reply is lost.
        """

    def commit(self) -> None:
        """Bring to disk what the devices booked and kept since the last time."""

    def note(self, group: str, fates: Mapping[str, int]) -> None:
        """Take down what became of the messages of a round so far; in the server's process."""

    def close(self) -> None:
        """Let go of what is open."""


def run(make: Callable[[], Host], *, devices: int, config: Mapping[str, str], workers: int) -> None:
    """Run both apps to their end.

    Args:
        make: Opens the host, in every process.
        devices: How many nodes there are, by place from 0.
        config: The run's configuration, as both apps see it.
        workers: Processes that run clients; 1 runs them in this one.

    Raises:
        SottovoceError: What the ServerApp raised.
        EngineError: A worker died.
    """
    from sottovoce.server.app import app as server

    local._identify()
    with one_thread(), CrowdGrid(make, devices=devices, config=config, workers=workers) as grid:
        server(grid, Context(local.RUN, 0, {}, RecordDict(), dict(config)))


class CrowdGrid(local.OneRun):
    """A grid whose nodes are a range, and whose devices are made when a message comes."""

    def __init__(
        self,
        make: Callable[[], Host],
        *,
        devices: int,
        config: Mapping[str, str],
        workers: int,
    ) -> None:
        self._nodes = range(FIRST_NODE, FIRST_NODE + devices)
        self._host = make()
        self._config = dict(config)
        self._replies: dict[str, Message] = {}
        self._group, self._fates = "", Counter[str]()
        self._pool: Executor | None = None
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            start = partial(_start_worker, make)
            self._pool = ProcessPoolExecutor(workers, spawn, initializer=start)

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
        self._host.close()

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, as a range: nobody lists them."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run every message's client; replies wait to be pulled."""
        sent = list(messages)
        for message in sent:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        slices = [sent[start : start + _SLICE] for start in range(0, len(sent), _SLICE)]
        for reply in self._answers(slices):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

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
        """Push and pull; what became of the messages is noted."""
        sent = list(messages)
        replies = list(self.pull_messages(self.push_messages(sent)))
        if sent:
            self._note(sent[0].metadata.group_id, replies)
        return replies

    def _answers(self, slices: Sequence[list[Message]]) -> Iterable[Message]:
        """Every slice's replies, in order, whoever worked on it."""
        if self._pool is None:
            for part in slices:
                yield from _serve(self._host, part, self._config)
            return
        try:
            for replies in self._pool.map(partial(_work, config=self._config), slices):
                yield from replies
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker of the local engine died, perhaps for want of memory; run again with "
                "--resume and fewer --workers: finished rounds are kept"
            ) from error

    def _note(self, group: str, replies: Sequence[Message]) -> None:
        """Count why replies are missing in this round so far."""
        if group != self._group:
            self._group, self._fates = group, Counter()
        self._fates.update(str(reply.error.reason) for reply in replies if reply.has_error())
        self._host.note(group, dict(self._fates))


class _Node(Bringing):
    """A node whose device the host makes when the client asks for it."""

    def __init__(self, host: Host, place: int, config: Mapping[str, str]) -> None:
        super().__init__(local.RUN, FIRST_NODE + place, {}, RecordDict(), dict(config))
        self._host, self._place = host, place

    def bring(self) -> Device:
        """See ``Bringing``."""
        return self._host.device(self._place)


_LIVE: list[Host] = []
"""The host of this worker."""


def _start_worker(make: Callable[[], Host]) -> None:
    """A worker like every other, and one host."""
    local._start_worker()
    _LIVE[:] = [make()]


def _work(messages: list[Message], config: Mapping[str, str]) -> list[Message]:
    """Run a slice in a worker."""
    return _serve(_LIVE[0], messages, config)


def _serve(host: Host, messages: Sequence[Message], config: Mapping[str, str]) -> list[Message]:
    """Run the product's client for every message of a slice.

    Guarantees:
        - No reply is handed out before all that the slice's devices booked is on disk. If that
          fails, none is.
    """
    from sottovoce.client.app import app

    replies = [_one(app, host, message, config) for message in messages]
    host.commit()
    return replies


def _one(app: ClientApp, host: Host, message: Message, config: Mapping[str, str]) -> Message:
    """One device's reply, or what became of it."""
    place = message.metadata.dst_node_id - FIRST_NODE
    fate = host.fate(place, message.metadata.group_id)
    if fate and (fate == "unavailable" or message.metadata.message_type == wire.TRAIN):
        if fate != "unavailable":  # it works, books and pays; nobody hears of it
            _call(app, host, message, config)
        return Message(Error(code=_LOST, reason=fate), reply_to=message)
    return _call(app, host, message, config)


def _call(app: ClientApp, host: Host, message: Message, config: Mapping[str, str]) -> Message:
    """Run the client on a message of its own: nobody shares objects with anybody."""
    place = message.metadata.dst_node_id - FIRST_NODE
    own = copy.copy(message)
    own.__dict__["_content"] = copy.deepcopy(message.content)
    return local._call(app, own, _Node(host, place, config))
