"""A training run over Flower's grid: enrol, train round by round, hand out the model.

Flower's own ``Strategy.start`` always begins at round 1 and knows no exchange before it; here a run
continues from its last checkpoint, every reply is validated before it counts, and the order of
sums is the order of users' names, whatever the order of arrival.
"""

import logging
import random
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from sottovoce.server import calibration, checkpoint, groups, limits
from sottovoce.server.enrolled import Device, Enrolled
from sottovoce.server.exchange import SecureExchange
from sottovoce.server.heads import HeadStore
from sottovoce.server.job import Job
from sottovoce.server.kept import LetOut
from sottovoce.server.round import State, advance, begin, learning_rate
from sottovoce.server.sums import Sums, calibration_spread, weight_spread
from sottovoce.server.talking import Talking, reasons
from sottovoce.shared import seeds, wire
from sottovoce.shared.calibration import WIDTH
from sottovoce.shared.errors import EngineError, PrivacyError, SottovoceError
from sottovoce.shared.heads import HeadPrior, KeptHead, SealedHead
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.privacy.users import CALIBRATION, ENROLMENT

LOG = logging.getLogger("sottovoce.server")


class Training(Talking):
    """One run on the server.

    Args:
        job: What the operator wants.
        folder: Where checkpoints and heads are kept.
        grid: Flower's way to the devices.
    """

    def __init__(self, job: Job, folder: Path, grid: Grid) -> None:
        super().__init__(job, grid)
        self.folder = folder
        self.sums = Sums(job.plan, folder, budgets=job.budgets, seed=job.simulated_seed)
        self._exchange: SecureExchange | None = None  # once enrolled, where sums are secure
        self._groups: dict[str, int] = {}  # user by user, once enrolled, where they take turns

    @property
    def _secure(self) -> bool:
        """Whether sums are made securely."""
        return self.job.plan.user is not None and self.job.plan.user.secure is not None

    def run(self) -> State:
        """Everything, from the last checkpoint on; the final state.

        Raises:
            EngineError: Too few devices, or too few usable replies; ``--resume`` goes on later.
        """
        enrolled = self._enrol()
        state = checkpoint.latest(self.folder, self.job.plan.digest())
        if state is None:
            state = begin(self.job.weights, self.job.plan.clip)
        if bands := self.job.plan.bands:
            users = [device.user for device in enrolled.contributing]
            seed = self.job.simulated_seed
            self._groups = groups.split(
                self.folder,
                users,
                salt=self.job.plan.run if seed is None else str(seed),
                spacing=bands.spacing,
                begun=state.round > 0,
            )
        while state.round < self.job.plan.rounds:
            state = self._round(state, enrolled)
            durable = self.job.simulated_seed is None
            checkpoint.write(self.folder, state, self.job.plan.digest(), durable=durable)
            LOG.info("round %d of %d", state.round, self.job.plan.rounds)
        self._personal(state, enrolled)
        return state

    def _enrol(self) -> Enrolled:
        """Tell every device the plan; learn who contributes, label counts and centre."""
        nodes = self._nodes()
        request = wire.EnrolRequest(
            plan=self.job.plan, front=self.job.front, population=self.job.population
        )
        size = 0 if self._secure else len(self.job.plan.labels) + self.job.front.inputs
        replies = self._ask(dict.fromkeys(nodes, request.record()), wire.ENROL, size=size)
        replies = [(device, reply) for device, reply in replies if self._believed(reply)]
        self._user_of = {device.node: device.user for device, _ in replies}
        given = [
            (device, reply)
            for device, reply in replies
            if reply.status is wire.Status.OK and (reply.value is not None or self._secure)
        ]
        if not given:
            raise EngineError(
                f"no device contributes to this run: {reasons(replies)}. See the devices' own "
                "logs, then run again with --resume"
            )
        enrolled = [device for device, reply in replies if reply.status is not wire.Status.REFUSED]
        if len(enrolled) < self.job.quorum * len(nodes):
            raise EngineError(
                f"{len(enrolled)} of {len(nodes)} devices enrolled, below the quorum of "
                f"{self.job.quorum:g} ({reasons(replies)}). See the devices' own logs, then run "
                "again with --resume"
            )
        receiving = [device for device, reply in replies if reply.status is wire.Status.RECEIVES]
        if self._secure:
            self._exchange = SecureExchange(
                plan=self.job.plan.digest(),
                roster={device.user: reply.body for device, reply in given},
                send=self._send,
                simulated=self.job.simulated_seed is not None,
            )
            return self._enrol_securely([device for device, _ in given], receiving)
        values = [reply.value for _, reply in given if reply.value is not None]
        classes, kept = len(self.job.plan.labels), self.sums.kept("label-counts")
        return Enrolled(
            contributing=[device for device, _ in given],
            receiving=receiving,
            counts=self.sums.counts([value[:classes] for value in values]),
            sums=self.sums.centre([value[classes:] for value in values]),
            told=kept.devices if kept else len(values),  # of a run that goes on: those of then
            rows=1 if self.job.plan.unit == "user" else 0,
        )

    def _believed(self, reply: wire.Reply) -> bool:
        """Whether an honest device can have said this at enrolment; what it tells is bounded."""
        plan, classes = self.job.plan, len(self.job.plan.labels)
        if reply.value is None or not len(reply.value):
            return True
        counts, centre = reply.value[:classes], reply.value[classes:]
        return self._within(reply.user, "label counts", counts, limits.counts(plan)) and (
            self._within(reply.user, "share of the centre", centre, limits.centre(plan))
        )

    def _within(self, user: str, what: str, value: Tensor, most: float) -> bool:
        """Whether a vector is no longer than an honest device's can be; told where it is."""
        length = bound.length(value)
        if length <= most:
            return True
        LOG.warning(
            "the %s of %s is %.3g long, and at most %.3g by the plan; refused",
            what,
            user,
            length,
            most,
        )
        return False

    def _enrol_securely(self, devices: list[Device], receiving: list[Device]) -> Enrolled:
        """Label counts and centre out of one secure sum."""
        plan, user = self.job.plan, self.job.plan.user
        if user is None or user.secure is None or self._exchange is None:
            raise EngineError("the plan has no secure sums")
        releases = {"label-counts": plan.counts_release()}
        if centre := plan.centre_release():
            releases["centre"] = centre
        opened = self._secure_sum(ENROLMENT, releases, [device.user for device in devices])
        total, classes = opened.total, len(plan.labels)
        sums = torch.zeros(self.job.front.inputs, dtype=torch.float64)
        if user.centre:
            sums = total[classes:] * user.centre.clip_norm
        return Enrolled(
            contributing=[device for device in devices if device.user in opened.users],
            receiving=receiving,
            counts=total[:classes] * user.counts.clip_norm,
            sums=sums,
            told=opened.devices,
            rows=1,
        )

    def _secure_sum(
        self,
        kind: str,
        releases: Mapping[str, Release],
        users: Sequence[str],
        request: wire.TrainRequest | wire.CalibrateRequest | None = None,
    ) -> LetOut:
        """One secure sum, booked before anybody is asked; what was let out already is not asked.

        Args:
            kind: ``enrolment``, ``head-statistics`` or ``round-N``.
            releases: What the ledger says of it, by name.
            users: Who is invited.
            request: The request whose answers are summed, where there is one.
        """
        user = self.job.plan.user
        if user is None or user.secure is None or self._exchange is None:
            raise EngineError("the plan has no secure sums")
        kept = self.sums.kept(kind)
        if kept is not None:
            return kept
        # Whoever runs this server may have seen what it opened before it was interrupted.
        booked = [self.sums.book(name, one, seen=True) for name, one in releases.items()]
        opened = self._exchange.sum(kind, user.secure.of(kind), users, request)
        total, survivors = torch.from_numpy(opened.total), opened.survivors
        value = LetOut(total=total, devices=len(survivors), users=survivors)
        return self.sums.keep(kind, booked, value)

    def _send(self, requests: Mapping[str, wire.SumRequest]) -> dict[str, bytes]:
        """Carry one step of a secure sum; what usable replies answer."""
        node = {user: node for node, user in self._user_of.items()}
        contents = {node[user]: request.record() for user, request in requests.items()}
        replies = self._ask(contents, wire.SUM, size=0)
        return {
            device.user: reply.body for device, reply in replies if reply.status is wire.Status.OK
        }

    def _round(self, state: State, enrolled: Enrolled) -> State:
        """One round of training."""
        training, number = self.job.plan.training, state.round + 1
        devices = self._cohort(number, enrolled.contributing)
        denominator = max(enrolled.usual * training.sample_rate, 1.0)
        rate = learning_rate(
            self.job.aggregation,
            self.job.plan,
            number,
            devices=self._expected(len(enrolled.contributing)),
            denominator=denominator,
            clip=float(state.clip),
        )
        request = wire.TrainRequest(
            plan=self.job.plan.digest(),
            round=number,
            weights=state.weights,
            class_weights=self.job.weigh(enrolled.counts),
            centre=enrolled.centre,
            denominator=denominator,
            clip=float(state.clip),
            share=rate / self._expected(len(enrolled.contributing)),
        )
        user = self.job.plan.user
        if self._secure:
            name, release = f"round-{number}", self.job.plan.gradient_release(number)
            opened = self._secure_sum(name, {name: release}, [one.user for one in devices], request)
            mean = opened.total / opened.devices
        else:
            mean = self._mean(request, devices, len(enrolled.contributing))
        clip = None
        if user and user.adaptive:
            mean, clip = user.adaptive.unpacked(mean, float(state.clip))
        return advance(state, mean.float(), self.job.aggregation, rate=rate, clip=clip)

    def _cohort(self, number: int, contributing: Sequence[Device]) -> list[Device]:
        """Who joins a round: everybody, a group, or each by a coin that only this server sees."""
        if bands := self.job.plan.bands:
            group = bands.group(number)
            return [one for one in contributing if self._groups[one.user] == group]
        user, seed = self.job.plan.user, self.job.simulated_seed
        if user is None or not self.job.plan.sampled:
            return list(contributing)
        coins: random.Random = secrets.SystemRandom()
        if seed is not None:
            coins = random.Random(seeds.derive(seed, "cohort", number))  # noqa: S311
        return [one for one in contributing if coins.random() < user.update.sample_rate]

    def _expected(self, contributing: int) -> float:
        """How many devices a round expects; who joined is the coins' secret."""
        if bands := self.job.plan.bands:  # alike in all rounds, or noise would not cancel
            return contributing / bands.spacing
        user = self.job.plan.user
        return contributing * (user.update.sample_rate if user else 1.0)

    def _mean(
        self, request: wire.TrainRequest, devices: Sequence[Device], contributing: int
    ) -> Tensor:
        """The mean of what the devices sent, shape (params,), float64."""
        made = self.sums.made(request.round)
        if made is not None:  # let out before this server was interrupted: once is all
            return made.total / self._count(made.devices, contributing)
        nodes = [device.node for device in devices]
        contents = dict.fromkeys(nodes, request.record())
        size = len(request.weights) + self.job.plan.told
        replies = self._ask(contents, wire.TRAIN, size=size)
        updates, lengths = [], []
        for _, reply in replies:
            length = self._length(reply, request)
            if length is not None and reply.value is not None:
                updates.append(reply.value)
                lengths.append(length)
        if len(updates) < self.job.quorum * len(devices):
            raise EngineError(
                f"round {request.round}: {len(updates)} of {len(devices)} devices gave a usable "
                f"update, below the quorum of {self.job.quorum:g} ({reasons(replies)}). "
                "The rounds before are kept: run again with --resume"
            )
        count = self._count(len(updates), contributing)
        if not updates:  # coins may leave out everybody
            updates, lengths = [torch.zeros(size)], [0.0]
        total = self.sums.updates(
            request.round, updates, denominator=request.denominator, lengths=lengths
        )
        return total / count

    def _count(self, came: int, contributing: int) -> float:
        """What a round's sum is divided by: who came, or who was expected where that is secret."""
        if self.job.plan.sampled or self.job.plan.bands:
            return self._expected(contributing)
        return came

    def _length(self, reply: wire.Reply, request: wire.TrainRequest) -> float | None:
        """L2 norm of an update that takes part: it is there, no longer than validation allows."""
        if reply.status is not wire.Status.OK or reply.value is None:
            LOG.warning("%s takes no part: %s", reply.user, reply.reason)
            return None
        length = bound.length(reply.value)
        most = limits.update(
            self.job.plan, params=len(request.weights), denominator=request.denominator
        )
        if not length <= min(most, self.job.aggregation.update_norm):
            LOG.warning("the update of %s is %.3g long; refused", reply.user, length)
            return None
        return length

    def _personal(self, state: State, enrolled: Enrolled) -> None:
        """Hand out the model and the heads' prior; keep the sealed heads that come back."""
        prior = self._prior(state.released, enrolled)
        request = self._release(state.released, enrolled.centre, prior)
        self._bring(request, (*enrolled.contributing, *enrolled.receiving))

    def _release(self, weights: Tensor, centre: Tensor, prior: HeadPrior) -> wire.PersonalRequest:
        """Keep the final model with all that goes with it; what brings it to devices."""
        request = wire.PersonalRequest(
            plan=self.job.plan.digest(),
            weights=weights,
            centre=centre,
            prior=prior,
            neutral=self.job.neutral_of(weights),
        )
        checkpoint.release(self.folder, request.tensors(), prior)
        return request

    def _bring(self, request: wire.PersonalRequest, devices: Iterable[Device]) -> None:
        """Bring the model to devices, each with its own kept head; keep those that come back."""
        model = self.job.plan.model_hash(request.weights)
        store = HeadStore(self.job.heads or self.folder / "heads.sqlite")
        contents = {one.node: self._with_head(request, store, one.user) for one in devices}
        for device, reply in self._ask(contents, wire.PERSONAL, size=0):
            if reply.head:
                self._keep(store, device.user, reply, model)

    def _with_head(self, request: wire.PersonalRequest, store: HeadStore, user: str) -> RecordDict:
        """The request, with the head that is kept for the user, where there is one."""
        try:
            kept = store.get(user)
        except PrivacyError as error:
            LOG.warning("the head of %s is not offered: %s", user, error)
            kept = None
        if kept is None:
            return request.record()
        head = KeptHead(model_hash=kept.model_hash, version=kept.version, blob=kept.blob)
        return replace(request, kept=head).record()

    def _prior(self, weights: Tensor, enrolled: Enrolled) -> HeadPrior:
        """Where heads and sets start: from public speakers, and from users where they are asked."""
        prior, plan = self.job.prior_of(weights), self.job.plan
        if plan.calibration is None or prior.scores is None:
            return prior
        speakers = self.job.public_speakers(weights)
        asked = calibration.question(prior, speakers, short=plan.user is not None)
        total, users = torch.zeros(WIDTH, dtype=torch.float64), 0
        for judging, judged in self._unheard(weights, enrolled):
            request = wire.CalibrateRequest(
                plan=plan.digest(), weights=judging, centre=enrolled.centre, question=asked
            )
            told, devices = self._answers(request, judged)
            total, users = total + told, users + devices
        answers = calibration.Answers(
            total=total,
            spread=calibration_spread(plan, users),
            weight=users if plan.unit == "user" else enrolled.usual * users,
            clips=enrolled.usual * users,
            users=users,
            weight_spread=weight_spread(plan, users, classes=len(enrolled.counts)),
        )
        return calibration.learned(prior, speakers, asked, answers)

    def _unheard(
        self, weights: Tensor, enrolled: Enrolled
    ) -> Iterator[tuple[Tensor, Sequence[Device]]]:
        """By which models whose clips are judged.

        The final one for everybody, who takes back what they gave; or, in groups, one trained
        without the group, round by round as the final one was.
        """
        if not self.job.groups:
            yield weights, enrolled.contributing
        for number in range(self.job.groups):
            aside = enrolled.contributing[number :: self.job.groups]
            others = enrolled.without(aside)
            if not (aside and others.contributing):
                continue
            state = begin(self.job.weights, self.job.plan.clip)
            while state.round < self.job.plan.rounds:
                state = self._round(state, others)
            LOG.info("group %d of %d", number + 1, self.job.groups)
            yield state.released, aside

    def _answers(
        self, request: wire.CalibrateRequest, devices: Sequence[Device]
    ) -> tuple[Tensor, int]:
        """The noised sum of what clips answered, shape (WIDTH,), and how many devices told."""
        release = self.job.plan.calibration_release()
        if self._secure and release:
            asked = [one.user for one in devices]
            opened = self._secure_sum(CALIBRATION, {CALIBRATION: release}, asked, request)
            return opened.total, opened.devices
        kept = self.sums.kept(CALIBRATION)
        if kept is not None:
            return kept.total, kept.devices
        contents = dict.fromkeys([device.node for device in devices], request.record())
        replies = self._ask(contents, wire.CALIBRATE, size=WIDTH)
        most = limits.answers(self.job.plan)
        told = [
            reply.value
            for _, reply in replies
            if reply.value is not None and self._within(reply.user, "answer", reply.value, most)
        ]
        if len(told) < max(self.job.quorum * len(devices), 1):
            raise EngineError(
                f"{len(told)} of {len(devices)} devices told of their clips, below the quorum of "
                f"{self.job.quorum:g} ({reasons(replies)}). All rounds are kept: run again with "
                "--resume"
            )
        return self.sums.calibration(told), len(told)

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
