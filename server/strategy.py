"""A training run over Flower's grid: enrol, train round by round, hand out the model.

Flower's own ``Strategy.start`` always begins at round 1 and knows no exchange before it; here a run
continues from its last checkpoint, every reply is validated before it counts, and the order of
sums is the order of users' names, whatever the order of arrival.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from sottovoce.server import checkpoint
from sottovoce.server.heads import HeadStore
from sottovoce.server.job import Job
from sottovoce.server.round import State, advance, begin, learning_rate
from sottovoce.server.sums import Sums
from sottovoce.shared import wire
from sottovoce.shared.errors import EngineError, MessageError, SottovoceError
from sottovoce.shared.head import SealedHead

LOG = logging.getLogger("sottovoce.server")


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device of this run, by the user's pseudonym and Flower's node."""

    user: str
    node: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Enrolled:
    """What enrolment taught the server; every figure is a sum of booked releases.

    Attributes:
        contributing: Devices that train.
        receiving: Devices that only take the model.
        counts: Noised label counts of all contributing devices, shape (classes,), float64.
        sums: Noised sum of their rows in front space, shape (inputs,), float64.
        rows: How many rows one device put into it; 0 for all of its utterances.
    """

    contributing: list[Device]
    receiving: list[Device]
    counts: Tensor
    sums: Tensor
    rows: int = 0

    @property
    def usual(self) -> float:
        """How many utterances one device usually holds, at least 1."""
        return max(float(self.counts.sum()) / len(self.contributing), 1.0)

    @property
    def centre(self) -> Tensor:
        """Where these voices lie in front space, shape (inputs,), float32."""
        return (self.sums / ((self.rows or self.usual) * len(self.contributing))).float()


class Training:
    """One run on the server.

    Args:
        job: What the operator wants.
        folder: Where checkpoints and heads are kept.
        grid: Flower's way to the devices.
    """

    def __init__(self, job: Job, folder: Path, grid: Grid) -> None:
        self.job = job
        self.folder = folder
        self.grid = grid
        self.sums = Sums(job.plan, folder, budgets=job.budgets, seed=job.simulated_seed)
        self._user_of: dict[int, str] = {}  # node by node, once enrolled

    def run(self) -> State:
        """Everything, from the last checkpoint on; the final state.

        Raises:
            EngineError: Too few devices, or too few usable replies; ``--resume`` goes on later.
        """
        enrolled = self._enrol()
        state = checkpoint.latest(self.folder, self.job.plan.digest())
        if state is None:
            state = begin(self.job.weights)
        while state.round < self.job.plan.rounds:
            state = self._round(state, enrolled)
            checkpoint.write(self.folder, state, self.job.plan.digest())
            LOG.info("round %d of %d", state.round, self.job.plan.rounds)
        self._personal(state, enrolled)
        return state

    def _enrol(self) -> Enrolled:
        """Tell every device the plan; learn who contributes, label counts and centre."""
        nodes = self._nodes()
        request = wire.EnrolRequest(
            plan=self.job.plan, front=self.job.front, population=self.job.population
        )
        size = len(self.job.plan.labels) + self.job.front.inputs
        replies = self._ask(nodes, wire.ENROL, request.record(), size=size)
        self._user_of = {device.node: device.user for device, _ in replies}
        given = [
            (device, reply.value)
            for device, reply in replies
            if reply.status is wire.Status.OK and reply.value is not None
        ]
        if not given:
            raise EngineError(
                f"no device contributes to this run: {_reasons(replies)}. See the devices' own "
                "logs, then run again with --resume"
            )
        enrolled = [device for device, reply in replies if reply.status is not wire.Status.REFUSED]
        if len(enrolled) < self.job.quorum * len(nodes):
            raise EngineError(
                f"{len(enrolled)} of {len(nodes)} devices enrolled, below the quorum of "
                f"{self.job.quorum:g} ({_reasons(replies)}). See the devices' own logs, then run "
                "again with --resume"
            )
        classes = len(self.job.plan.labels)
        return Enrolled(
            contributing=[device for device, _ in given],
            receiving=[device for device, reply in replies if reply.status is wire.Status.RECEIVES],
            counts=self.sums.counts([value[:classes] for _, value in given]),
            sums=self.sums.centre([value[classes:] for _, value in given]),
            rows=1 if self.job.plan.unit == "user" else 0,
        )

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

    def _round(self, state: State, enrolled: Enrolled) -> State:
        """One round of training."""
        training, devices = self.job.plan.training, enrolled.contributing
        denominator = max(enrolled.usual * training.sample_rate, 1.0)
        request = wire.TrainRequest(
            plan=self.job.plan.digest(),
            round=state.round + 1,
            weights=state.weights,
            class_weights=self.job.weigh(enrolled.counts),
            centre=enrolled.centre,
            denominator=denominator,
        )
        nodes = [device.node for device in devices]
        replies = self._ask(nodes, wire.TRAIN, request.record(), size=len(state.weights))
        updates = [
            reply.value for _, reply in replies if self._counts(reply) and reply.value is not None
        ]
        if len(updates) < self.job.quorum * len(devices):
            raise EngineError(
                f"round {state.round + 1}: {len(updates)} of {len(devices)} devices gave a usable "
                f"update, below the quorum of {self.job.quorum:g} ({_reasons(replies)}). "
                "The rounds before are kept: run again with --resume"
            )
        number = state.round + 1
        summed = self.sums.updates(number, updates, denominator=denominator)
        rate = learning_rate(
            self.job.aggregation,
            self.job.plan,
            number,
            devices=len(devices),
            denominator=denominator,
        )
        mean = (summed / len(updates)).float()
        return advance(state, mean, self.job.aggregation, rate=rate)

    def _counts(self, reply: wire.Reply) -> bool:
        """Whether an update takes part: it is there, and no longer than validation allows."""
        if reply.status is not wire.Status.OK or reply.value is None:
            LOG.warning("%s takes no part: %s", reply.user, reply.reason)
            return False
        length = float(torch.linalg.vector_norm(reply.value.double()))
        if not length <= self.job.aggregation.update_norm:
            LOG.warning("the update of %s is %.3g long; refused", reply.user, length)
            return False
        return True

    def _personal(self, state: State, enrolled: Enrolled) -> None:
        """Hand out the model and the heads' prior; keep the sealed heads that come back."""
        released = state.released
        prior = self.job.prior_of(released)
        request = wire.PersonalRequest(
            plan=self.job.plan.digest(), weights=released, centre=enrolled.centre, prior=prior
        )
        release = {"weights": released, "centre": enrolled.centre}
        checkpoint.release(self.folder, release, prior)
        nodes = [device.node for device in (*enrolled.contributing, *enrolled.receiving)]
        model = self.job.plan.model_hash(released)
        store = HeadStore(self.folder / "heads.sqlite")
        for device, reply in self._ask(nodes, wire.PERSONAL, request.record(), size=0):
            if reply.head:
                self._keep(store, device.user, reply, model)

    def _keep(self, store: HeadStore, user: str, reply: wire.Reply, model: str) -> None:
        """Keep one sealed head, if it is newer than what is kept and looks sealed."""
        try:
            kept = store.get(user)
            if kept is not None and (kept.model_hash, kept.version) == (model, reply.version):
                return  # a run that was resumed asks again
            head = SealedHead(model_hash=model, version=reply.version, blob=reply.head)
            store.put(user, head)
        except SottovoceError as error:
            LOG.warning("the head of %s is not kept: %s", user, error)

    def _ask(
        self, nodes: Iterable[int], kind: str, content: RecordDict, *, size: int
    ) -> list[tuple[Device, wire.Reply]]:
        """Send one request to many; what came back and holds, in the order of users' names."""
        messages = [Message(content, node, kind) for node in nodes]
        answers = self.grid.send_and_receive(messages, timeout=self.job.timeout_s)
        replies: dict[str, tuple[Device, wire.Reply]] = {}
        for answer in answers:
            node = answer.metadata.src_node_id
            if answer.has_error():
                LOG.warning("device %d failed: %s", node, answer.error.reason)
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


def _reasons(replies: Iterable[tuple[Device, wire.Reply]]) -> str:
    """Why devices gave nothing, the first few reasons once each."""
    reasons = sorted({reply.reason for _, reply in replies if reply.reason})
    return "; ".join(reasons[:3]) or "none answered"
