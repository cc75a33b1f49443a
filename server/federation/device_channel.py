"""Requests to devices over Flower's grid, and validation of their replies.

A reply counts as missing where Flower lost it, where it breaks the schema, where it comes from a
device that was not asked or that answered for somebody else before, and where somebody answered for
that user already. So does whatever comes from a user who has withdrawn consent.
"""

import time
from collections.abc import Iterable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from sottovoce.server.consent.consent_registry import ConsentRegistry
from sottovoce.server.federation.participants import Participant
from sottovoce.shared.errors import EngineError, MessageError
from sottovoce.shared.identity import identity_key
from sottovoce.shared.printable import get_logger, quote_peer
from sottovoce.shared.protocol import flower_records, messages

LOG = get_logger("sottovoce.server")


class DeviceChannel:
    """One run's channel to its devices.

    Args:
        grid: Flower's way to them.
        timeout_s: How long they have for a reply, in seconds.
        logs_failures: Whether each device from which nothing came is logged; of a large population
            many are asleep.
        consents: The register of users' consent; None where nobody's is kept.

    Attributes:
        users_by_node: Users that are known to be behind a node: no other may answer from there.
        unresponsive: Number of requests without a reply since :meth:`begin_group`.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        timeout_s: float,
        logs_failures: bool = True,
        consents: ConsentRegistry | None = None,
    ) -> None:
        self.users_by_node: dict[int, str] = {}
        self.unresponsive = 0
        self.consents = consents
        self._grid = grid
        self._timeout_s = timeout_s
        self._logs_failures = logs_failures
        self._message_group: str | None = None
        self._withdrawals: dict[int, str] = {}

    def begin_group(self, name: str) -> None:
        """Send what follows as one group of messages, as Flower calls those of one round."""
        self._message_group, self.unresponsive = name, 0

    def list_nodes(self) -> Iterable[int]:
        """List all nodes that the grid knows now; for a large population it is no list."""
        return self._grid.get_node_ids()

    def wait_for_nodes(self, count: int) -> list[int]:
        """Wait for a number of nodes, and list all connected ones.

        Raises:
            EngineError: Fewer came in time.
        """
        waited = 0.0
        nodes = list(self.list_nodes())
        while len(nodes) < count and waited < self._timeout_s:
            time.sleep(0.5)
            waited += 0.5
            nodes = list(self.list_nodes())
        if len(nodes) < count:
            raise EngineError(
                f"{len(nodes)} devices came within {self._timeout_s:g} s; the job waits for "
                f"{count}. Start the missing ones, or lower the job's devices"
            )
        return nodes

    def request(
        self, requests: Mapping[int, messages.Request], *, size: int
    ) -> list[tuple[Participant, messages.Reply]]:
        """Send each node its request, and wait for the replies.

        Args:
            requests: By node; a request that many share is encoded once.
            size: How long the released vector of a reply must be, where there is one.

        Returns:
            The valid replies, in the order of users' names.
        """
        # By identity: a broadcast is encoded once and not once for each device.
        shared = {id(request): request for request in requests.values()}
        records = {key: flower_records.encode_request(one) for key, one in shared.items()}
        outgoing = [
            Message(records[id(request)], node, request.message_type, group_id=self._message_group)
            for node, request in requests.items()
        ]
        replies: dict[str, tuple[Participant, messages.Reply]] = {}
        seen: set[str] = set()
        for answer in self._grid.send_and_receive(outgoing, timeout=self._timeout_s):
            node = answer.metadata.src_node_id
            # A lost message has no content to decode.
            if not answer.has_content():
                self._note_failure(node, answer.error.reason if answer.has_error() else None)
                continue
            if node not in requests:
                LOG.warning("device %d answers without being asked; refused", node)
                continue
            try:
                reply = flower_records.decode_reply(answer.content, size=size)
            except MessageError as error:
                LOG.warning("the reply of device %d is refused: %s", node, error)
                continue
            # A node that answered for one user must not answer for another.
            if reply.user != self.users_by_node.get(node, reply.user):
                LOG.warning(
                    "the device of %s answers for another; refused", self.users_by_node[node]
                )
                continue
            if self._note_withdrawal(node, requests[node], reply):
                continue
            # Two spellings of one name would be two budgets of one person.
            if identity_key(reply.user) in seen:
                LOG.warning("a second device answers for %s; refused", reply.user)
                continue
            seen.add(identity_key(reply.user))
            replies[reply.user] = (Participant(user=reply.user, node=node), reply)
        refused = self._select_without_consent(requests, replies)
        # By name and not by arrival: floating-point sums depend on the order.
        return [replies[user] for user in sorted(replies) if user not in refused]

    def take_withdrawals(self) -> dict[int, str]:
        """Take whom devices said to have withdrawn since the last time, by node; not proven yet."""
        said, self._withdrawals = self._withdrawals, {}
        return said

    def _note_withdrawal(self, node: int, request: messages.Request, reply: messages.Reply) -> bool:
        """Note that a device says its owner has withdrawn; whether it does."""
        asked = isinstance(request, messages.WithdrawalRequest)
        says = reply.status is messages.Status.WITHDRAWN and not asked
        if says:
            # Before any word of it is proven, it takes nobody's place.
            self._withdrawals[node] = reply.user
        return says

    def _select_without_consent(
        self,
        requests: Mapping[int, messages.Request],
        replies: Mapping[str, tuple[Participant, messages.Reply]],
    ) -> set[str]:
        """Select the users of whom nothing may be used: consent is withdrawn, or not theirs."""
        if self.consents is None or not replies:
            return set()
        enrolling: dict[str, dict[str, bytes]] = {}
        others = set()
        for user, (device, reply) in replies.items():
            request = requests[device.node]
            stated = reply.consent or reply.status is messages.Status.OK
            if isinstance(request, messages.EnrolRequest) and stated:
                enrolling.setdefault(request.plan.content_hash(), {})[user] = reply.consent
            elif not isinstance(request, messages.WithdrawalRequest):
                others.add(user)
        refused = self.consents.select_withdrawn(others) if others else set()
        for plan_hash, statements in enrolling.items():
            refused |= set(statements) - self.consents.admit_enrolments(statements, plan_hash)
        for user in sorted(refused):
            LOG.warning("%s takes no part: no consent that counts", user)
        return refused

    def request_sum_step(
        self, requests: Mapping[str, messages.SecureSumRequest]
    ) -> dict[str, bytes]:
        """Send one step of a secure sum; the bodies of usable replies, by user."""
        # Secure sums address users, as the roster does; Flower addresses nodes.
        nodes = {user: node for node, user in self.users_by_node.items()}
        replies = self.request({nodes[user]: request for user, request in requests.items()}, size=0)
        return {
            device.user: reply.body
            for device, reply in replies
            if reply.status is messages.Status.OK
        }

    def _note_failure(self, node: int, reason: str | None) -> None:
        """Count, and log, that nothing came from a device."""
        self.unresponsive += 1
        if self._logs_failures:
            LOG.warning("device %d failed: %s", node, quote_peer(reason or "no reason"))


def summarise_reasons(replies: Iterable[tuple[Participant, messages.Reply]]) -> str:
    """Summarise why devices sent nothing: the first few reasons, quoted, for they are theirs."""
    reasons = sorted({reply.reason for _, reply in replies if reply.reason})
    if not reasons:
        return "none answered"
    return f"devices say {', '.join(quote_peer(reason) for reason in reasons[:3])}"
