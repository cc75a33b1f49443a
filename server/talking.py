"""What a server says to devices over Flower's grid, and which of their answers hold.

An answer counts as missing where Flower lost it, where it breaks the schema, where it comes from a
device that answered for somebody else before, and where somebody answered for that user already.
"""

import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sottovoce.server.enrolled import Device
from sottovoce.server.job import Job
from sottovoce.shared import wire
from sottovoce.shared.errors import EngineError, MessageError

LOG = logging.getLogger("sottovoce.server")


class Talking:
    """One run's talk with its devices.

    Args:
        job: How many devices there should be, and how long they have.
        grid: Flower's way to them.
    """

    def __init__(self, job: Job, grid: Grid) -> None:
        self.job = job
        self.grid = grid
        self._user_of: dict[int, str] = {}  # node by node, once enrolled
        self._group: str | None = None  # what Flower calls the messages of one round

    def _nodes(self) -> list[int]:
        """The nodes there are, once there are enough."""
        waited = 0.0
        nodes = list(self.grid.get_node_ids())
        while len(nodes) < self.job.devices and waited < self.job.timeout_s:
            time.sleep(0.5)
            waited += 0.5
            nodes = list(self.grid.get_node_ids())
        if len(nodes) < self.job.devices:
            raise EngineError(
                f"{len(nodes)} devices came within {self.job.timeout_s:g} s; the job waits for "
                f"{self.job.devices}. Start the missing ones, or lower the job's devices"
            )
        return nodes

    def _failed(self, node: int, reason: str | None) -> None:
        """Note that nothing came from a device."""
        LOG.warning("device %d failed: %s", node, reason)

    def _ask(
        self, contents: Mapping[int, RecordDict], kind: str, *, size: int
    ) -> list[tuple[Device, wire.Reply]]:
        """Send each node its request; what came back and holds, in the order of users' names."""
        messages = [
            Message(content, node, kind, group_id=self._group) for node, content in contents.items()
        ]
        answers = self.grid.send_and_receive(messages, timeout=self.job.timeout_s)
        replies: dict[str, tuple[Device, wire.Reply]] = {}
        for answer in answers:
            node = answer.metadata.src_node_id
            if answer.has_error():
                self._failed(node, answer.error.reason)
                continue
            try:
                reply = wire.Reply.read(answer.content, size=size)
            except MessageError as error:
                LOG.warning("the reply of device %d is refused: %s", node, error)
                continue
            if reply.user != self._user_of.get(node, reply.user):
                LOG.warning("the device of %s answers for another; refused", self._user_of[node])
                continue
            if reply.user in replies:
                LOG.warning("a second device answers for %s; refused", reply.user)
                continue
            replies[reply.user] = (Device(user=reply.user, node=node), reply)
        return [replies[user] for user in sorted(replies)]


def reasons(replies: Iterable[tuple[Device, wire.Reply]]) -> str:
    """Why devices gave nothing, the first few reasons once each."""
    reasons = sorted({reply.reason for _, reply in replies if reply.reason})
    return "; ".join(reasons[:3]) or "none answered"
