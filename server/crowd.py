"""A training run over a crowd: too many devices to ask, count or list them all.

Where ``strategy.Training`` asks every device to enrol first, here a device is asked when a coin
first draws it. A founding cohort tells label counts and centre; whoever is drawn later enrols in
the round that drew it, and tells nothing but its updates. Replies are added to a running sum as
they come, in the order of nodes, so memory goes neither with the crowd nor with the cohort.

What is divided by is the cohort that was *expected*: who was drawn is the coins' secret, and those
who are asleep, drop out or come too late add zeros, as the price of a sampled sum allows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from flwr.app import RecordDict
from flwr.serverapp import Grid
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.server import checkpoint
from sottovoce.server.cohorts import Cohorts, batches
from sottovoce.server.enrolled import Device
from sottovoce.server.job import Job
from sottovoce.server.members import Members, Tally
from sottovoce.server.round import State, advance, begin, learning_rate
from sottovoce.server.running import RunningSum, RunningSums
from sottovoce.server.strategy import LOG, Training
from sottovoce.shared import wire
from sottovoce.shared.errors import EngineError, ModelError, SettingError
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.release import UserNoise

FOUNDING: Final = 0
"""The round of the founding cohort."""

PERSONAL: Final = "personal"
"""What the messages that hand out the model are grouped under."""

MEMBERS: Final = "members.sqlite"
_MADE: Final = frozenset({"noise_multiplier", "clip_norm", "noised_by", "sample_rate", "sums"})
"""What ``RunningSums`` makes of a promise of noise."""

_FOUNDED: Final = "founded.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Founded:
    """What the founding cohort taught the server; every figure is a sum of booked releases.

    Attributes:
        counts: Noised label counts, shape (classes,), float64.
        centre: Where these voices lie in front space, shape (inputs,), float32.
        usual: How many utterances one device usually holds, at least 1.
    """

    counts: Tensor
    centre: Tensor
    usual: float


class CrowdTraining(Training):
    """One run over a crowd.

    Args:
        job: What the operator wants; its ``crowd`` says how rounds are drawn.
        folder: Where checkpoints, heads, members and the ledger of sums are kept.
        grid: Flower's way to the devices.

    Guarantees:
        - Nothing held in memory goes with the number of devices; what is held at once of a round
          is one batch of replies and one sum.
        - The same seed gives the same run, whoever runs the devices and in how many processes.

    Raises:
        SettingError: A plan that cannot be kept over a crowd.
    """

    def __init__(self, job: Job, folder: Path, grid: Grid) -> None:
        super().__init__(job, folder, grid)
        self._cohorts = _checked(job)
        self._running = RunningSums(job.plan, folder, budgets=job.budgets, seed=job.simulated_seed)
        self.sums = self._running  # one ledger, one writer
        self._members = Members(folder / MEMBERS)
        self._tally = Tally()
        found = grid.get_node_ids()
        self._all_nodes: Sequence[int] = found if isinstance(found, Sequence) else list(found)
        if len(self._all_nodes) < self._cohorts.users:
            raise EngineError(
                f"the grid has {len(self._all_nodes)} devices, the crowd is to be drawn from "
                f"{self._cohorts.users}; start the missing ones, or lower the job's users"
            )

    def run(self) -> State:
        """Everything, from the last checkpoint on; the final state; errors as in ``Training``."""
        founded = self._founded()
        state = checkpoint.latest(self.folder, self.job.plan.digest())
        if state is None:
            state = begin(self.job.weights, self.job.plan.clip)
        while state.round < self.job.plan.rounds:
            state = self._next(state, founded)
            checkpoint.write(self.folder, state, self.job.plan.digest())
            LOG.info("round %d of %d", state.round, self.job.plan.rounds)
        self._hand_out(state, founded)
        return state

    @property
    def _bounds(self) -> tuple[UserNoise | None, UserNoise | None, UserNoise | None]:
        """What hides a user in counts, centre and updates."""
        user = self.job.plan.user
        return (user.counts, user.centre, user.update) if user else (None, None, None)

    def _founded(self) -> Founded:
        """What the founding cohort tells, once: kept, so that a resumed run asks nobody again."""
        path = self.folder / _FOUNDED
        if path.exists():
            return _read_founded(path, self.job.plan)
        plan, classes = self.job.plan, len(self.job.plan.labels)
        counts = RunningSum(classes, self._bounds[0])
        centre = RunningSum(self.job.front.inputs, self._bounds[1])
        request = self._enrolment(tells=True)
        for nodes in self._drawn(FOUNDING):
            for reply in self._joining(
                FOUNDING, nodes, request, size=classes + self.job.front.inputs
            ):
                counts.add(reply[:classes])
                centre.add(reply[classes:])
        self._enough(FOUNDING, counts.count)
        noised = self._running.let_out("label-counts", plan.counts_release(), counts)
        sums, release = centre.total, plan.centre_release()
        if release:
            sums = self._running.let_out("centre", release, centre)
        devices = self._divisor(counts.count)
        usual = max(float(noised.sum()) / devices, 1.0)
        rows = 1.0 if plan.unit == "user" else usual
        founded = Founded(counts=noised, centre=(sums / (rows * devices)).float(), usual=usual)
        _write_founded(path, founded, plan)
        return founded

    def _next(self, state: State, founded: Founded) -> State:
        """One round of training."""
        plan, number = self.job.plan, state.round + 1
        denominator = max(founded.usual * plan.training.sample_rate, 1.0)
        request = wire.TrainRequest(
            plan=plan.digest(),
            round=number,
            weights=state.weights,
            class_weights=self.job.weigh(founded.counts),
            centre=founded.centre,
            denominator=denominator,
        )
        rate = learning_rate(
            self.job.aggregation,
            plan,
            number,
            devices=self._cohorts.expected,
            denominator=denominator,
        )
        made = self._running.made(number)
        if made is not None:  # let out before this server was interrupted: once is all
            mean = made.total / self._divisor(made.devices)
            return advance(state, mean.float(), self.job.aggregation, rate=rate)
        record, joining = request.record(), self._enrolment(tells=False)
        updates = RunningSum(len(request.weights), self._bounds[2])
        for nodes in self._drawn(number):
            self._joining(number, nodes, joining, size=0)
            contents = {node: record for node in nodes if node in self._user_of}
            for device, reply in self._ask(contents, wire.TRAIN, size=len(request.weights)):
                length = self._length(reply, request) if device.node in contents else None
                if length is not None and reply.value is not None:
                    updates.add(reply.value, length=length)
        self._enough(number, updates.count)
        summed = self._running.let_out(f"round-{number}", plan.gradient_release(number), updates)
        mean = summed / self._divisor(updates.count)
        return advance(state, mean.float(), self.job.aggregation, rate=rate)

    def _drawn(self, number: int) -> Iterator[list[int]]:
        """The nodes of a round's cohort, a batch at a time."""
        self._group, self._tally = str(number), Tally()
        coins = self._cohorts.coins(number, self.job.simulated_seed)
        for places in batches(self._cohorts.draw(coins)):
            self._tally.sampled += len(places)
            yield [self._all_nodes[place] for place in places]

    def _joining(
        self, number: int, nodes: Sequence[int], request: RecordDict, *, size: int
    ) -> list[Tensor]:
        """Ask those who are no members yet to enrol in a round; what they told.

        Afterwards ``_user_of`` holds the members among these nodes, and nobody else.
        """
        self._user_of = self._members.users(nodes)
        fresh = [node for node in nodes if node not in self._user_of]
        # Those who joined in a try of this round that was cut short are newcomers still.
        self._tally.newcomers += len(fresh) + self._members.joined(nodes, number)
        if number == FOUNDING:  # and tell again
            fresh = list(nodes)
        replies = self._ask(dict.fromkeys(fresh, request), wire.ENROL, size=size)
        given = {
            device.node: (device, reply)
            for device, reply in replies
            if reply.status is wire.Status.OK and self._believed(reply)
        }
        self._tally.refused += len(replies) - len(given)
        known = dict(self._user_of)
        new = {node: device.user for node, (device, _) in given.items() if node not in known}
        self._user_of = known | self._members.add(new, number)
        self._tally.refused += len(given.keys() - self._user_of.keys())
        return [
            reply.value
            for node, (_, reply) in given.items()
            if node in self._user_of and reply.value is not None
        ]

    def _enrolment(self, *, tells: bool) -> RecordDict:
        """The request to enrol."""
        return wire.EnrolRequest(
            plan=self.job.plan,
            front=self.job.front,
            population=self.job.population,
            tells=tells,
        ).record()

    def _divisor(self, used: int) -> float:
        """What a sum is divided by: those expected, where who came is a secret."""
        return self._cohorts.expected if self.job.plan.user else float(max(used, 1))

    def _enough(self, number: int, used: int) -> None:
        """Keep what became of a round.

        Raises:
            EngineError: Too few gave something.
        """
        self._tally.used = used
        self._members.keep(number, self._tally)
        if not used >= self.job.quorum * self._cohorts.expected:
            what = f"round {number}" if number else "the founding cohort"
            raise EngineError(
                f"{what}: {used} devices gave something, {self._cohorts.expected:g} were expected "
                f"and the quorum is {self.job.quorum:g} of them. The rounds before are kept: lower "
                "the quorum, or draw larger cohorts, and run again"
            )

    def _length(self, reply: wire.Reply, request: wire.TrainRequest) -> float | None:
        """As for every run; what is refused is counted."""
        length = super()._length(reply, request)
        self._tally.refused += length is None
        return length

    def _failed(self, node: int, reason: str | None) -> None:  # noqa: ARG002  (nothing is a usual thing)
        """Count those from whom nothing came: out of a crowd, many are asleep."""
        self._tally.silent += 1

    def _hand_out(self, state: State, founded: Founded) -> None:
        """Release the model; bring it to those who only take it, and keep their sealed heads."""
        prior = self.job.prior_of(state.released)
        request = self._release(state.released, founded.centre, prior)
        joining = self._enrolment(tells=False)
        self._group, self._tally = PERSONAL, Tally()
        for places in batches(range(self._cohorts.users, len(self._all_nodes))):
            nodes = [self._all_nodes[place] for place in places]
            self._user_of = {}
            replies = self._ask(dict.fromkeys(nodes, joining), wire.ENROL, size=0)
            taking = _taking(replies)
            self._user_of = {device.node: device.user for device in taking}
            self._bring(request, taking)


def _taking(replies: Sequence[tuple[Device, wire.Reply]]) -> list[Device]:
    """Those who can take a model."""
    return [device for device, reply in replies if reply.status is not wire.Status.REFUSED]


def _checked(job: Job) -> Cohorts:
    """How rounds are drawn, if the plan can be kept that way.

    Raises:
        SettingError: It cannot.
    """
    plan, crowd = job.plan, job.crowd
    if crowd is None:
        raise SettingError("the job names no crowd; prepare it with one")
    if plan.private or (plan.user and (plan.user.secure or plan.user.adaptive)):
        raise SettingError(
            "over a crowd a run hides users by noise that the server adds, within a fixed bound, "
            "or nothing: unit user without secure and without adaptive, or unit none"
        )
    if plan.user and (unknown := _unknown(plan.user.update)):
        raise SettingError(
            f"the plan asks for noise with {', '.join(unknown)}, which is not made over a crowd: "
            "noise is drawn anew in each round; leave that out"
        )
    if plan.calibration:
        raise SettingError(
            "the plan asks devices of calibration after the last round; over a crowd nobody is "
            "asked again: leave calibration out"
        )
    if plan.user and plan.user.update.sample_rate != crowd.rate:
        raise SettingError(
            f"the plan prices rounds drawn with rate {plan.user.update.sample_rate:g}, the crowd "
            f"is drawn with {crowd.rate:g}; they must be the same"
        )
    return crowd


def _unknown(noise: UserNoise) -> list[str]:
    """What is asked of noise beyond what ``RunningSums`` makes: refused, never left out."""
    named = (field.name for field in fields(noise) if field.name not in _MADE)
    return [name for name in named if getattr(noise, name)]


def _write_founded(path: Path, founded: Founded, plan: Plan) -> None:
    """Keep what the founding cohort told."""
    words = {"plan": plan.digest(), "usual": json.dumps(founded.usual)}
    tensors = {"counts": founded.counts.contiguous(), "centre": founded.centre.contiguous()}
    checkpoint.replace_file(path, save(tensors, words))


def _read_founded(path: Path, plan: Plan) -> Founded:
    """What was kept.

    Raises:
        ModelError: It is damaged, or another plan's.
    """
    way_out = f"remove {path.parent} to begin this run anew"
    try:
        tensors, words = load_file(path), checkpoint.metadata(path)
        founded = Founded(
            counts=tensors["counts"], centre=tensors["centre"], usual=float(words["usual"])
        )
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ModelError(f"{path} is damaged ({error}); {way_out}") from error
    if words.get("plan") != plan.digest():
        raise ModelError(f"{path} belongs to another plan; {way_out}")
    return founded
