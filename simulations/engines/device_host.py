"""Location of an engine's devices in one process, and one process's part of an exchange."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from sottovoce.client.app import DeviceContext
from sottovoce.client.device.device import Device
from sottovoce.shared.errors import SottovoceError
from sottovoce.shared.protocol.messages import TRAIN

RUN_ID: Final = 1
FIRST_NODE_ID: Final = 100
_NODE_LOST_CODE: Final = 5
APP_ERROR_CODE: Final = 2


class DeviceHost(Protocol):
    """Simulated devices of one process that are not in a folder each."""

    def open_device(self, index: int) -> Device:
        """Open the device of an index, for this message."""

    def device_availability(self, index: int, group: str) -> str:
        """Name the reason why a device does not answer in a round; empty if it answers.

        An ``unavailable`` device gets no message; all others do their work, and their reply is
        lost.
        """

    def commit(self) -> None:
        """Write to disk the ledger lines and vault entries since the last commit."""

    def record_outcomes(self, group: str, outcomes: Mapping[str, int]) -> None:
        """Record the outcomes of a round's messages so far; in the server's process."""

    def close(self) -> None:
        """Close every file that is open."""


DeviceHostFactory = Callable[[], DeviceHost]
"""Opens a host, in every process that needs one."""


def never_lost(_message: Message) -> bool:
    """Tell of every message that it is not lost."""
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedNodes:
    """Number and configuration of the nodes of a run.

    Attributes:
        devices: How many there are, by index from 0.
        config: The run's configuration, as both apps see it.
    """

    devices: int
    config: Mapping[str, str]

    @property
    def node_ids(self) -> range:
        """Flower's identifiers of the nodes, as a range: a million are not listed.

        Example:
            >>> SimulatedNodes(devices=2, config={}).node_ids
            range(100, 102)
        """
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self.devices)

    def node_context(self, index: int, host: DeviceHost | None = None) -> Context:
        """Make the context of a node; with a host, the context also opens the node's device."""
        known: dict[str, bool | float | int | str] = {
            "partition-id": index,
            "num-partitions": self.devices,
        }
        context = Context(RUN_ID, FIRST_NODE_ID + index, known, RecordDict(), dict(self.config))
        return context if host is None else _HostedContext(host, index, context)


class _HostedContext(DeviceContext):
    """A node whose device the host opens when the client asks for it."""

    def __init__(self, host: DeviceHost, index: int, context: Context) -> None:
        known = context.node_config, context.state, context.run_config
        super().__init__(context.run_id, context.node_id, *known)
        self._host, self._index = host, index

    def open_device(self) -> Device:
        """See ``DeviceContext``."""
        return self._host.open_device(self._index)


def device_index(message: Message) -> int:
    """Compute the index of the device that a message is for."""
    return int(message.metadata.dst_node_id) - FIRST_NODE_ID


def serve_messages(
    client: ClientApp, host: DeviceHost | None, messages: Sequence[Message], nodes: SimulatedNodes
) -> list[Message]:
    """Run the client for every message of a slice.

    Guarantees:
        - No client sees the server's own objects. Those that are sent one content read one copy of
          it, which no client of ours writes into.
        - No reply is handed out before all that the slice's devices booked is on disk. If that
          fails, none is.
    """
    own = _copy_messages(messages)
    if host is None:
        return [
            call_client(client, message, nodes.node_context(device_index(message)))
            for message in own
        ]
    replies = [_serve_hosted(client, host, message, nodes) for message in own]
    # Only now may a reply leave: what a device released must be in its ledger on disk first.
    host.commit()
    return replies


def _copy_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages as a wire would bring them, a content that many share copied once."""
    # Keyed by identity: a broadcast sends one object to all, which is copied once and not per
    # device.
    contents = {id(message.content): message.content for message in messages}
    copies = {name: copy.deepcopy(content) for name, content in contents.items()}
    own = []
    for message in messages:
        brought = copy.copy(message)
        brought.__dict__["_content"] = copies[id(message.content)]
        own.append(brought)
    return own


def _serve_hosted(
    client: ClientApp, host: DeviceHost, message: Message, nodes: SimulatedNodes
) -> Message:
    """One device's reply, or what became of it."""
    index = device_index(message)
    failure = host.device_availability(index, message.metadata.group_id)
    if not failure:
        return call_client(client, message, nodes.node_context(index, host))
    if failure != "unavailable":
        reply = call_client(client, message, nodes.node_context(index, host))
        if message.metadata.message_type != TRAIN:
            return reply
        # It trains and books; its reply is lost.
    return lost_reply(message, failure)


def lost_reply(message: Message, reason: str) -> Message:
    """Make the reply of a device that was lost."""
    return Message(Error(code=_NODE_LOST_CODE, reason=reason), reply_to=message)


def call_client(client: ClientApp, message: Message, context: Context) -> Message:
    """Run a client; as in Flower, an exception becomes an error reply."""
    try:
        return client(message, context)
    except SottovoceError as error:
        return Message(Error(code=APP_ERROR_CODE, reason=str(error)), reply_to=message)
    except Exception as error:  # noqa: BLE001  (a client's fault must not end the run)
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(code=APP_ERROR_CODE, reason=reason), reply_to=message)
