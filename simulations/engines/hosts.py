"""Where an engine's devices live, in one process, and one process's share of an exchange."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from sottovoce.client.app import Bringing
from sottovoce.client.device import Device
from sottovoce.shared import wire
from sottovoce.shared.errors import SottovoceError

RUN: Final = 1
FIRST_NODE: Final = 100
_NODE_LOST: Final = 5
APP_FAILED: Final = 2


class Host(Protocol):
    """Where simulated devices live in one process, other than in a folder each."""

    def device(self, place: int) -> Device:
        """The device of a place, for this message."""

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


MakeHost = Callable[[], Host]
"""Opens a host, in every process that needs one."""


def never(_message: Message) -> bool:
    """No message is lost."""
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """What all nodes of a run know.

    Attributes:
        devices: How many there are, by place from 0.
        config: The run's configuration, as both apps see it.
    """

    devices: int
    config: Mapping[str, str]

    @property
    def ids(self) -> range:
        """Flower's names of the nodes; nobody lists them."""
        return range(FIRST_NODE, FIRST_NODE + self.devices)

    def context(self, place: int, host: Host | None = None) -> Context:
        """What a node knows of itself: its place alone, or with a host, where its device is."""
        known: dict[str, bool | float | int | str] = {
            "partition-id": place,
            "num-partitions": self.devices,
        }
        context = Context(RUN, FIRST_NODE + place, known, RecordDict(), dict(self.config))
        return context if host is None else _Hosted(host, place, context)


class _Hosted(Bringing):
    """A node whose device the host brings when the client asks for it."""

    def __init__(self, host: Host, place: int, context: Context) -> None:
        known = context.node_config, context.state, context.run_config
        super().__init__(context.run_id, context.node_id, *known)
        self._host, self._place = host, place

    def bring(self) -> Device:
        """See ``Bringing``."""
        return self._host.device(self._place)


def place_of(message: Message) -> int:
    """The place of the device that a message is for."""
    return int(message.metadata.dst_node_id) - FIRST_NODE


def serve(
    client: ClientApp, host: Host | None, messages: Sequence[Message], nodes: Nodes
) -> list[Message]:
    """Run the client for every message of a slice.

    Guarantees:
        - No client sees the server's own objects. Those that are sent one content read one copy of
          it, which no client of ours writes into.
        - No reply is handed out before all that the slice's devices booked is on disk. If that
          fails, none is.
    """
    own = _copies(messages)
    if host is None:
        return [call(client, message, nodes.context(place_of(message))) for message in own]
    replies = [_hosted(client, host, message, nodes) for message in own]
    host.commit()
    return replies


def _copies(messages: Sequence[Message]) -> list[Message]:
    """The messages as a wire would bring them, a content that many share copied once."""
    contents = {id(message.content): message.content for message in messages}
    copies = {name: copy.deepcopy(content) for name, content in contents.items()}
    own = []
    for message in messages:
        brought = copy.copy(message)
        brought.__dict__["_content"] = copies[id(message.content)]
        own.append(brought)
    return own


def _hosted(client: ClientApp, host: Host, message: Message, nodes: Nodes) -> Message:
    """One device's reply, or what became of it."""
    place = place_of(message)
    fate = host.fate(place, message.metadata.group_id)
    if not fate:
        return call(client, message, nodes.context(place, host))
    if fate != "unavailable":
        reply = call(client, message, nodes.context(place, host))
        if message.metadata.message_type != wire.TRAIN:
            return reply
        # It works, books and pays; nobody hears of it.
    return lost(message, fate)


def lost(message: Message, why: str) -> Message:
    """The reply that never came."""
    return Message(Error(code=_NODE_LOST, reason=why), reply_to=message)


def call(client: ClientApp, message: Message, context: Context) -> Message:
    """Run a client; as in Flower, what it raises becomes an error reply."""
    try:
        return client(message, context)
    except SottovoceError as error:
        return Message(Error(code=APP_FAILED, reason=str(error)), reply_to=message)
    except Exception as error:  # noqa: BLE001  (a client's fault must not end the run)
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(code=APP_FAILED, reason=reason), reply_to=message)
