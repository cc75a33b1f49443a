"""A training run on the server: enrol, train round by round, distribute the model.

Flower's own ``Strategy.start`` always begins at round 1 and knows no exchange before it; here a run
continues from its last checkpoint, every reply is validated before it counts, and the order of
sums is the order of users' names, whatever the order of arrival.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.server_optimizer import (
    ServerState,
    apply_update,
    compute_learning_rate,
    initial_state,
)
from sottovoce.server.consent.withdrawal_handler import WithdrawalHandler, list_job_records
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.cohort_sampling import CohortSelector
from sottovoce.server.federation.device_channel import LOG, DeviceChannel, summarise_reasons
from sottovoce.server.federation.head_statistics_round import EvaluatedModel, HeadStatisticsRound
from sottovoce.server.federation.model_distribution import ModelDistributor
from sottovoce.server.federation.participants import EnrolmentSummary, Participant
from sottovoce.server.federation.reply_validation import ReplyValidator
from sottovoce.server.federation.sum_collection import (
    OpenSumCollector,
    SecureSumCollector,
    SumCollector,
)
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import EngineError
from sottovoce.shared.protocol import messages
from sottovoce.shared.protocol.events import EventListener, IgnoreEvents, RoundEnded


class TrainingCoordinator:
    """One run over devices that all enrol before the first round.

    Args:
        job: What the operator wants.
        folder: Where checkpoints and heads are stored.
        channel: The way to the devices.
        listener: Takes the run's events.
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
        self.aggregator = PrivateAggregator(
            job.plan, folder, budgets=job.budgets, seed=job.simulated_seed
        )
        self._channel = channel
        self._listener = listener or IgnoreEvents()
        self._cohorts = CohortSelector(plan=job.plan, simulated_seed=job.simulated_seed)
        self._validator = ReplyValidator(job.plan, max_update_norm=job.aggregation.max_update_norm)
        self._distributor = ModelDistributor(job, folder, channel)
        self.sums = self._choose_collector()
        self._statistics = HeadStatisticsRound(job, self.sums)
        self._withdrawals = WithdrawalHandler(
            channel,
            folder,
            run=job.plan.run,
            records=(
                self._distributor.user_records,
                *list_job_records(folder),
            ),
        )

    def _choose_collector(self) -> SumCollector:
        """How the plan's scheme collects its sums."""
        parts = (self.job, self._channel, self.aggregator)
        return self.job.plan.scheme.match_sums(
            self.job.plan,
            plain=lambda: OpenSumCollector(
                *parts, validator=self._validator, cohorts=self._cohorts
            ),
            secure=lambda configs: SecureSumCollector(*parts, configs=configs),
        )

    def run(self) -> ServerState:
        """Run everything, from the last checkpoint on, and return the final state.

        Raises:
            EngineError: Too few devices, or too few usable replies; ``--resume`` goes on later.
        """
        with self._withdrawals.settled_on_failure():
            return self._run()

    def _run(self) -> ServerState:
        """Run everything; see :meth:`run`."""
        plan = self.job.plan
        enrolled = self.enrol_devices()
        # Enrolment comes first in a resumed run too: nodes and keys are not stored.
        state = checkpoint.load_state(self.folder, plan.content_hash())
        if state is None:
            state = initial_state(self.job.weights, plan.initial_clip_norm)
        self._cohorts.assign_groups(
            self.folder, enrolled.contributors, training_started=state.round > 0
        )
        while state.round < plan.rounds:
            state, cohort_size = self._train_round(state, enrolled)
            enrolled = enrolled.exclude_users(self._withdrawals.settle(state.round))
            # A simulation makes a lost round again, to the bit, and saves the cost of syncing.
            durable = self.job.simulated_seed is None
            checkpoint.save_state(self.folder, state, plan.content_hash(), durable=durable)
            self._listener.handle_event(
                RoundEnded(
                    run=plan.run,
                    round=state.round,
                    total_rounds=plan.rounds,
                    cohort_size=cohort_size,
                )
            )
        self._distribute_final_model(state, enrolled)
        self._withdrawals.settle(state.round)
        return state

    def enrol_devices(self) -> EnrolmentSummary:
        """Send every device the plan; learn who contributes, label counts and centre.

        Raises:
            EngineError: Too few devices, or none that contributes.
        """
        nodes = self._channel.wait_for_nodes(self.job.devices)
        request = messages.EnrolRequest(
            plan=self.job.plan,
            projection=self.job.projection,
            speaker_statistics=self.job.speaker_statistics,
        )
        replies = [
            (device, reply)
            for device, reply in self._channel.request(
                dict.fromkeys(nodes, request), size=self.sums.enrolment_size
            )
            if self._validator.accepts_enrolment(reply)
        ]
        self._channel.users_by_node = {device.node: device.user for device, _ in replies}
        withdrawn = self._withdrawals.settle(0)
        contributing = [
            (device, reply) for device, reply in replies if self.sums.is_contribution(reply)
        ]
        # The quorum is checked before any sum is released: a sum costs budget.
        self._require_enrolled(len(nodes) - len(withdrawn), len(contributing), replies)
        receiving = [
            device for device, reply in replies if reply.status is messages.Status.RECEIVE_ONLY
        ]
        return self.sums.release_enrolment(contributing, receiving)

    def _require_enrolled(
        self,
        nodes: int,
        contributing: int,
        replies: Sequence[tuple[Participant, messages.Reply]],
    ) -> None:
        """Refuse to train with too few devices."""
        if not contributing:
            raise EngineError(
                f"no device contributes to this run: {summarise_reasons(replies)}. See the "
                "devices' own logs, then run again with --resume"
            )
        enrolled = sum(reply.status is not messages.Status.REFUSED for _, reply in replies)
        if enrolled < self.job.quorum * nodes:
            raise EngineError(
                f"{enrolled} of {nodes} devices enrolled, below the quorum of "
                f"{self.job.quorum:g} ({summarise_reasons(replies)}). See the devices' own logs, "
                "then run again with --resume"
            )

    def _train_round(
        self, state: ServerState, summary: EnrolmentSummary
    ) -> tuple[ServerState, int]:
        """Train one round; the next state, and the size of its cohort."""
        plan, number = self.job.plan, state.round + 1
        devices = self._cohorts.select(number, summary.contributors)
        expected = self._cohorts.expected_size(len(summary.contributors))
        # From the noised counts, the same for all devices: a device's own count would be a secret.
        denominator = max(summary.utterances_per_device * plan.training.sample_rate, 1.0)
        rate = compute_learning_rate(
            self.job.aggregation,
            plan,
            number,
            devices=expected,
            denominator=denominator,
            clip_norm=float(state.clip_norm),
        )
        request = messages.TrainRequest(
            plan_hash=plan.content_hash(),
            round=number,
            weights=state.weights,
            class_weights=self.job.compute_class_weights(summary.label_counts),
            centre=summary.centre,
            denominator=denominator,
            clip_norm=float(state.clip_norm),
            update_scale=rate / expected,
        )
        mean = self.sums.compute_mean_update(request, devices, len(summary.contributors))
        mean, next_clip_norm = plan.scheme.unpack_update(plan, mean, float(state.clip_norm))
        next_state = apply_update(
            state, mean.float(), self.job.aggregation, rate=rate, next_clip_norm=next_clip_norm
        )
        return next_state, len(devices)

    def _distribute_final_model(self, state: ServerState, summary: EnrolmentSummary) -> None:
        """Distribute the model and the heads' prior; store the sealed heads that come back."""
        weights = state.released_weights
        prior = self._statistics.calibrate_prior(
            weights, summary, self._iter_evaluated_models(weights, summary)
        )
        summary = summary.exclude_users(self._withdrawals.settle(state.round))
        request = self._distributor.save_model(weights, summary.centre, prior)
        self._distributor.send_model(request, (*summary.contributors, *summary.receivers))

    def _iter_evaluated_models(
        self, weights: Tensor, summary: EnrolmentSummary
    ) -> Iterator[EvaluatedModel]:
        """Iterate over models, and the devices whose clips each of them is evaluated on.

        The final one for everybody, who subtract their own contribution; or, in groups, one trained
        without the group, round by round as the final one was.
        """
        if not self.job.calibration_groups:
            yield weights, summary.contributors
        for number in range(self.job.calibration_groups):
            aside = summary.contributors[number :: self.job.calibration_groups]
            others = summary.exclude_participants(aside)
            if not (aside and others.contributors):
                continue
            state = initial_state(self.job.weights, self.job.plan.initial_clip_norm)
            while state.round < self.job.plan.rounds:
                # The same rounds without the group: its clips then judge a model that never saw
                # them.
                state, _ = self._train_round(state, others)
            LOG.info("group %d of %d", number + 1, self.job.calibration_groups)
            yield state.released_weights, aside
