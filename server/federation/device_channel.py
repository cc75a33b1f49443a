"""Requests to devices over Flower's grid, and validation of their replies.

A reply counts as missing where Flower lost it, where it breaks the schema, where it comes from a
device that answered for somebody else before, and where somebody answered for that user already.
"""

import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sottovoce.server.federation.participants import Participant
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import EngineError, MessageError
from sottovoce.shared.protocol import messages

LOG = logging.getLogger("sottovoce.server")


class DeviceChannel:
    """One run's channel to its devices.

    Args:
        job: How many devices there should be, and how long they have.
        grid: Flower's way to them.
    """

    def __init__(self, job: Job, grid: Grid) -> None:
        self.job = job
        self.grid = grid
        self._users_by_node: dict[int, str] = {}  # node by node, once enrolled
        self._message_group: str | None = None  # what Flower calls the messages of one round

    def _wait_for_nodes(self) -> list[int]:
        """Wait for the job's number of nodes, and list them."""
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

    def _note_failure(self, node: int, reason: str | None) -> None:
        """Log that nothing came from a device."""
        LOG.warning("device %d failed: %s", node, reason)

    def request(
        self, contents: Mapping[int, RecordDict], kind: str, *, size: int
    ) -> list[tuple[Participant, messages.Reply]]:
        """Send each node its request; the valid replies, in the order of users' names."""
        outgoing = [
            Message(content, node, kind, group_id=self._message_group)
            for node, content in contents.items()
        ]
        answers = self.grid.send_and_receive(outgoing, timeout=self.job.timeout_s)
        replies: dict[str, tuple[Participant, messages.Reply]] = {}
        for answer in answers:
            node = answer.metadata.src_node_id
            if answer.has_error():
                self._note_failure(node, answer.error.reason)
                continue
            try:
                reply = messages.Reply.from_record(answer.content, size=size)
            except MessageError as error:
                LOG.warning("the reply of device %d is refused: %s", node, error)
                continue
            if reply.user != self._users_by_node.get(node, reply.user):
                LOG.warning(
                    "the device of %s answers for another; refused", self._users_by_node[node]
                )
                continue
            if reply.user in replies:
                LOG.warning("a second device answers for %s; refused", reply.user)
                continue
            replies[reply.user] = (Participant(user=reply.user, node=node), reply)
        return [replies[user] for user in sorted(replies)]


def summarise_reasons(replies: Iterable[tuple[Participant, messages.Reply]]) -> str:
    """Summarise why devices sent nothing, the first few reasons once each."""
    reasons = sorted({reply.reason for _, reply in replies if reply.reason})
    return "; ".join(reasons[:3]) or "none answered"
