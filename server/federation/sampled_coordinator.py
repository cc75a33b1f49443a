"""A training run over a large population: too many devices to ask, count or list them all.

Where ``coordinator.TrainingCoordinator`` asks every device to enrol first, here a device is asked
when it is first sampled. An initial cohort sends label counts and centre; whoever is sampled later
enrols in that round, and sends nothing but updates. Replies are added to a running sum as they
come, in the order of nodes, so memory goes neither with the population nor with the cohort.

Sums are divided by the *expected* size of the cohort: who was sampled is secret, and those who are
asleep, drop out or come too late add zeros, as the accounting of a sampled sum allows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from torch import Tensor

from sottovoce.server.aggregation.server_optimizer import (
    ServerState,
    apply_update,
    compute_learning_rate,
    initial_state,
)
from sottovoce.server.aggregation.streaming_sums import (
    ClippedAccumulator,
    StreamingAggregator,
    list_unsupported_noise,
)
from sottovoce.server.consent.withdrawal_handler import UserRecords, WithdrawalHandler
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.cohort_sampling import CohortSampler, split_into_batches
from sottovoce.server.federation.device_channel import DeviceChannel
from sottovoce.server.federation.membership import MembershipStore, RoundOutcome
from sottovoce.server.federation.model_distribution import ModelDistributor
from sottovoce.server.federation.participants import InitialCohortSummary
from sottovoce.server.federation.reply_validation import ReplyValidator
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.protocol import messages
from sottovoce.shared.protocol.events import EventListener, IgnoreEvents, RoundEnded

INITIAL_ROUND: Final = 0
"""The round of the initial cohort."""

FINAL_MODEL_GROUP: Final = "personal"
"""Group of the messages that distribute the model."""

MEMBERSHIP_FILE: Final = "members.sqlite"
_INITIAL_COHORT_FILE: Final = "founded.safetensors"


class SampledTrainingCoordinator:
    """One run over a sampled population.

    Args:
        job: What the operator wants; its ``cohort_sampler`` says how rounds are drawn.
        folder: Where checkpoints, heads, members and the ledger of sums are stored.
        channel: The way to the devices.
        listener: Takes the run's events.

    Guarantees:
        - Nothing held in memory goes with the number of devices; what is held at once of a round
          is one batch of replies and one sum.
        - The same seed gives the same run, whoever runs the devices and in how many processes.

    Raises:
        SettingError: A plan that cannot be kept over a sampled population.
        EngineError: The grid has fewer devices than cohorts are sampled from.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        channel: DeviceChannel,
        *,
        listener: EventListener | None = None,
    ) -> None:
        self.job = job
        self.folder = folder
        self._sampler = _validated_sampler(job)
        self.aggregator = StreamingAggregator(
            job.plan, folder, budgets=job.budgets, seed=job.simulated_seed
        )
        self._channel = channel
        self._listener = listener or IgnoreEvents()
        self._validator = ReplyValidator(job.plan, max_update_norm=job.aggregation.max_update_norm)
        self._distributor = ModelDistributor(job, folder, channel)
        self._membership = MembershipStore(folder / MEMBERSHIP_FILE)
        self._withdrawals = WithdrawalHandler(
            channel,
            folder,
            run=job.plan.run,
            records=(
                self._distributor.user_records,
                UserRecords(
                    name="membership of the run",
                    delete=self._membership.remove_user,
                    list_users=self._membership.list_users,
                ),
            ),
        )
        self._outcome = RoundOutcome()
        # A simulated grid gives a lazy sequence of millions, which a list would hold in memory.
        found = channel.list_nodes()
        self._all_nodes: Sequence[int] = found if isinstance(found, Sequence) else list(found)
        if len(self._all_nodes) < self._sampler.users:
            raise EngineError(
                f"the grid has {len(self._all_nodes)} devices, cohorts are to be sampled from "
                f"{self._sampler.users}; start the missing ones, or lower the job's users"
            )

    def run(self) -> ServerState:
        """Run everything, from the last checkpoint on; as ``TrainingCoordinator.run``."""
        with self._withdrawals.settled_on_failure():
            return self._run()

    def _run(self) -> ServerState:
        """Run everything; see :meth:`run`."""
        plan = self.job.plan
        summary = self.summarise_initial_cohort()
        state = checkpoint.load_state(self.folder, plan.content_hash())
        if state is None:
            state = initial_state(self.job.weights, plan.initial_clip_norm)
        while state.round < plan.rounds:
            state = self.train_round(state, summary)
            self._withdrawals.settle(state.round)
            checkpoint.save_state(self.folder, state, plan.content_hash())
            self._listener.handle_event(
                RoundEnded(
                    run=plan.run,
                    round=state.round,
                    total_rounds=plan.rounds,
                    cohort_size=self._outcome.sampled,
                )
            )
        self._release_and_distribute(state, summary)
        self._withdrawals.settle(state.round)
        return state

    def _accumulator(self, kind: SumKind, size: int) -> ClippedAccumulator:
        """Make a sum of so many numbers, clipped to what its noise hides."""
        plan = self.job.plan
        return ClippedAccumulator(size, plan.scheme.sum_mechanism(plan, kind))

    def summarise_initial_cohort(self) -> InitialCohortSummary:
        """Summarise the initial cohort, once: saved, so that a resumed run asks nobody again.

        Raises:
            EngineError: Too few devices sent something.
            ModelError: The saved summary is damaged, or another plan's.
        """
        path = self.folder / _INITIAL_COHORT_FILE
        if path.exists():
            return InitialCohortSummary.load(path, self.job.plan.content_hash())
        plan, classes = self.job.plan, len(self.job.plan.labels)
        counts = self._accumulator(SumKind.LABEL_COUNTS, classes)
        centre = self._accumulator(SumKind.CENTRE, self.job.projection.output_size)
        request = self._enrolment_request(report_statistics=True)
        for nodes in self._sample_cohort(INITIAL_ROUND):
            for reply in self._enrol_newcomers(
                INITIAL_ROUND, nodes, request, size=classes + self.job.projection.output_size
            ):
                counts.add(reply[:classes])
                centre.add(reply[classes:])
        # Before any release: below the quorum no budget is spent.
        self._require_quorum(INITIAL_ROUND, counts.user_count)
        noised = self.aggregator.release_sum("label-counts", plan.counts_release(), counts)
        sums, release = centre.total, plan.centre_release()
        if release:
            sums = self.aggregator.release_sum("centre", release, centre)
        devices = self._sum_divisor(counts.user_count)
        # Noise can bring the sum below 0.
        utterances_per_device = max(float(noised.sum()) / devices, 1.0)
        # Where a user adds one mean row, a device counts as one; elsewhere as its utterances.
        rows = plan.scheme.rows_per_device or utterances_per_device
        summary = InitialCohortSummary(
            label_counts=noised,
            centre=(sums / (rows * devices)).float(),
            utterances_per_device=utterances_per_device,
        )
        summary.save(path, plan.content_hash())
        self._withdrawals.settle(INITIAL_ROUND)
        return summary

    def train_round(self, state: ServerState, summary: InitialCohortSummary) -> ServerState:
        """Train one round on a sampled cohort.

        Args:
            state: After the round before.
            summary: Of the initial cohort.

        Raises:
            EngineError: Too few devices sent something.
        """
        plan, number = self.job.plan, state.round + 1
        denominator = max(summary.utterances_per_device * plan.training.sample_rate, 1.0)
        request = messages.TrainRequest(
            plan_hash=plan.content_hash(),
            round=number,
            weights=state.weights,
            class_weights=self.job.compute_class_weights(summary.label_counts),
            centre=summary.centre,
            denominator=denominator,
        )
        rate = compute_learning_rate(
            self.job.aggregation,
            plan,
            number,
            devices=self._sampler.expected_size,
            denominator=denominator,
        )
        released = self.aggregator.get_released_round(number)
        if released is not None:  # before this server was interrupted: once is all
            self._outcome = RoundOutcome()
            # Nobody is asked again: another cohort would make it a second release on one booking.
            mean = released.total / self._sum_divisor(released.devices)
            return apply_update(state, mean.float(), self.job.aggregation, rate=rate)
        joining = self._enrolment_request(report_statistics=False)
        updates = self._accumulator(SumKind.UPDATE, len(request.weights))
        for nodes in self._sample_cohort(number):
            self._enrol_newcomers(number, nodes, joining, size=0)
            # Newcomers who refused to enrol are not asked to train.
            members = [node for node in nodes if node in self._channel.users_by_node]
            requests = dict.fromkeys(members, request)
            for _, reply in self._channel.request(requests, size=len(request.weights)):
                norm = self._validator.update_norm(reply, request)
                self._outcome.refused += norm is None
                if norm is not None and reply.value is not None:
                    updates.add(reply.value, known_norm=norm)
        self._require_quorum(number, updates.user_count)
        summed = self.aggregator.release_sum(
            f"round-{number}", plan.gradient_release(number), updates
        )
        mean = summed / self._sum_divisor(updates.user_count)
        return apply_update(state, mean.float(), self.job.aggregation, rate=rate)

    def _sample_cohort(self, number: int) -> Iterator[list[int]]:
        """Sample the nodes of a round's cohort, a batch at a time."""
        self._channel.begin_group(str(number))
        self._outcome = RoundOutcome()
        rng = self._sampler.make_rng(number, self.job.simulated_seed)
        for indices in split_into_batches(self._sampler.sample(rng)):
            self._outcome.sampled += len(indices)
            yield [self._all_nodes[index] for index in indices]

    def _enrol_newcomers(
        self, number: int, nodes: Sequence[int], request: messages.EnrolRequest, *, size: int
    ) -> list[Tensor]:
        """Ask those who are no members yet to enrol in a round; the values that they sent.

        Afterwards ``_users_by_node`` holds the members among these nodes, and nobody else.
        """
        self._channel.users_by_node = self._membership.users_by_node(nodes)
        fresh = [node for node in nodes if node not in self._channel.users_by_node]
        # Those who joined in a try of this round that was cut short are newcomers still.
        self._outcome.newcomers += len(fresh) + self._membership.count_joined(nodes, number)
        if number == INITIAL_ROUND:  # and send their sums again
            fresh = list(nodes)
        replies = self._channel.request(dict.fromkeys(fresh, request), size=size)
        enrolled = {
            device.node: (device, reply)
            for device, reply in replies
            if reply.status is messages.Status.OK and self._validator.accepts_enrolment(reply)
        }
        self._outcome.refused += len(replies) - len(enrolled)
        known = dict(self._channel.users_by_node)
        new = {node: device.user for node, (device, _) in enrolled.items() if node not in known}
        self._channel.users_by_node = known | self._membership.add_members(new, number)
        self._outcome.refused += len(enrolled.keys() - self._channel.users_by_node.keys())
        return [
            reply.value
            for node, (_, reply) in enrolled.items()
            if node in self._channel.users_by_node and reply.value is not None
        ]

    def _enrolment_request(self, *, report_statistics: bool) -> messages.EnrolRequest:
        """Build the request to enrol."""
        return messages.EnrolRequest(
            plan=self.job.plan,
            projection=self.job.projection,
            speaker_statistics=self.job.speaker_statistics,
            report_statistics=report_statistics,
        )

    def _sum_divisor(self, used: int) -> float:
        """Divisor of a sum: those expected, where who came is a secret."""
        return self.job.plan.scheme.sampled_divisor(used, self._sampler.expected_size)

    def _require_quorum(self, number: int, used: int) -> None:
        """Save a round's outcome, and require a quorum.

        Raises:
            EngineError: Too few sent something.
        """
        self._outcome.used = used
        self._outcome.unresponsive = self._channel.unresponsive
        self._membership.save_outcome(number, self._outcome)
        if not used >= self.job.quorum * self._sampler.expected_size:
            what = f"round {number}" if number else "the initial cohort"
            expected = self._sampler.expected_size
            raise EngineError(
                f"{what}: {used} devices sent something, {expected:g} were expected "
                f"and the quorum is {self.job.quorum:g} of them. The rounds before are kept: lower "
                "the quorum, or draw larger cohorts, and run again"
            )

    def _release_and_distribute(self, state: ServerState, summary: InitialCohortSummary) -> None:
        """Save the model; send it to those who only receive it, and store their sealed heads."""
        prior = self.job.estimate_head_prior(state.released_weights)
        request = self._distributor.save_model(state.released_weights, summary.centre, prior)
        joining = self._enrolment_request(report_statistics=False)
        self._channel.begin_group(FINAL_MODEL_GROUP)
        for indices in split_into_batches(range(self._sampler.users, len(self._all_nodes))):
            # Nodes of an earlier batch must not answer here.
            self._channel.users_by_node = {}
            nodes = [self._all_nodes[index] for index in indices]
            taking = [
                device
                for device, reply in self._channel.request(dict.fromkeys(nodes, joining), size=0)
                if reply.status is not messages.Status.REFUSED
            ]
            self._channel.users_by_node = {device.node: device.user for device in taking}
            self._distributor.send_model(request, taking)


def _validated_sampler(job: Job) -> CohortSampler:
    """Sampler of a job's cohorts, if the plan can be kept with it.

    Raises:
        SettingError: It cannot.
    """
    plan, sampler = job.plan, job.cohort_sampler
    if sampler is None:
        raise SettingError("the job has no cohort_sampler; prepare it with one")
    plan.scheme.check_streaming(plan)
    mechanism = plan.scheme.sum_mechanism(plan, SumKind.UPDATE)
    if mechanism and (unknown := list_unsupported_noise(mechanism)):
        raise SettingError(
            f"the plan asks for noise with {', '.join(unknown)}, which is not made over a sampled "
            "population: noise is drawn anew in each round; leave that out"
        )
    if plan.calibration:
        raise SettingError(
            "the plan asks devices for head statistics after the last round; over a sampled "
            "population nobody is asked again: leave calibration out"
        )
    # Sampling at another rate than was accounted for would void the guarantee.
    if mechanism and mechanism.sample_rate != sampler.user_sampling_rate:
        raise SettingError(
            f"the plan accounts for rounds sampled with rate {mechanism.sample_rate:g}, "
            f"cohorts are sampled with {sampler.user_sampling_rate:g}; they must be the same"
        )
    return sampler
