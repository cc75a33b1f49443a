"""A training run over Flower's grid: enrol, train round by round, distribute the model.

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

from sottovoce.server.aggregation.private_sums import (
    PrivateAggregator,
    head_statistics_noise_std,
    weight_noise_std,
)
from sottovoce.server.aggregation.released_sums import ReleasedSum
from sottovoce.server.aggregation.secure_sum import SecureSumExchange
from sottovoce.server.aggregation.server_optimizer import (
    ServerState,
    apply_update,
    compute_learning_rate,
    initial_state,
)
from sottovoce.server.federation import checkpoint, participation_groups, reply_limits
from sottovoce.server.federation.device_channel import DeviceChannel, summarise_reasons
from sottovoce.server.federation.participants import EnrolmentSummary, Participant
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation import prior_calibration
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared import seeding
from sottovoce.shared.calibration import HeadPrior, SealedHead, UnverifiedHead
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE
from sottovoce.shared.errors import EngineError, PrivacyError, SottovoceError
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.privacy.user_level import ENROLMENT_SUM, HEAD_STATISTICS_SUM
from sottovoce.shared.protocol import messages

LOG = logging.getLogger("sottovoce.server")


class TrainingCoordinator(DeviceChannel):
    """One run on the server.

    Args:
        job: What the operator wants.
        folder: Where checkpoints and heads are stored.
        grid: Flower's way to the devices.
    """

    def __init__(self, job: Job, folder: Path, grid: Grid) -> None:
        super().__init__(job, grid)
        self.folder = folder
        self.aggregator = PrivateAggregator(
            job.plan, folder, budgets=job.budgets, seed=job.simulated_seed
        )
        self._secure_exchange: SecureSumExchange | None = (
            None  # once enrolled, where sums are secure
        )
        self._groups: dict[str, int] = {}  # by user, once enrolled, where noise is correlated

    @property
    def _uses_secure_sums(self) -> bool:
        """Whether sums are made securely."""
        return self.job.plan.user is not None and self.job.plan.user.secure is not None

    def run(self) -> ServerState:
        """Run everything, from the last checkpoint on, and return the final state.

        Raises:
            EngineError: Too few devices, or too few usable replies; ``--resume`` goes on later.
        """
        enrolled = self._enrol()
        state = checkpoint.load_state(self.folder, self.job.plan.content_hash())
        if state is None:
            state = initial_state(self.job.weights, self.job.plan.initial_clip_norm)
        if bands := self.job.plan.banded_noise:
            users = [device.user for device in enrolled.contributors]
            seed = self.job.simulated_seed
            self._groups = participation_groups.assign_groups(
                self.folder,
                users,
                salt=self.job.plan.run if seed is None else str(seed),
                min_separation=bands.min_separation,
                training_started=state.round > 0,
            )
        while state.round < self.job.plan.rounds:
            state = self._train_round(state, enrolled)
            durable = self.job.simulated_seed is None
            checkpoint.save_state(self.folder, state, self.job.plan.content_hash(), durable=durable)
            LOG.info("round %d of %d", state.round, self.job.plan.rounds)
        self._distribute_final_model(state, enrolled)
        return state

    def _enrol(self) -> EnrolmentSummary:
        """Send every device the plan; learn who contributes, label counts and centre."""
        nodes = self._wait_for_nodes()
        request = messages.EnrolRequest(
            plan=self.job.plan,
            projection=self.job.projection,
            speaker_statistics=self.job.speaker_statistics,
        )
        size = (
            0
            if self._uses_secure_sums
            else len(self.job.plan.labels) + self.job.projection.output_size
        )
        replies = self.request(dict.fromkeys(nodes, request.to_record()), messages.ENROL, size=size)
        replies = [(device, reply) for device, reply in replies if self._validate_enrolment(reply)]
        self._users_by_node = {device.node: device.user for device, _ in replies}
        contributing = [
            (device, reply)
            for device, reply in replies
            if reply.status is messages.Status.OK
            and (reply.value is not None or self._uses_secure_sums)
        ]
        if not contributing:
            raise EngineError(
                f"no device contributes to this run: {summarise_reasons(replies)}. See the "
                "devices' own logs, then run again with --resume"
            )
        enrolled = [
            device for device, reply in replies if reply.status is not messages.Status.REFUSED
        ]
        if len(enrolled) < self.job.quorum * len(nodes):
            raise EngineError(
                f"{len(enrolled)} of {len(nodes)} devices enrolled, below the quorum of "
                f"{self.job.quorum:g} ({summarise_reasons(replies)}). See the devices' own logs, "
                "then run again with --resume"
            )
        receiving = [
            device for device, reply in replies if reply.status is messages.Status.RECEIVE_ONLY
        ]
        if self._uses_secure_sums:
            self._secure_exchange = SecureSumExchange(
                plan_digest=self.job.plan.content_hash(),
                roster={device.user: reply.body for device, reply in contributing},
                send=self._send_sum_requests,
                is_simulated=self.job.simulated_seed is not None,
            )
            return self._enrol_securely([device for device, _ in contributing], receiving)
        values = [reply.value for _, reply in contributing if reply.value is not None]
        classes, released = (
            len(self.job.plan.labels),
            self.aggregator.get_released_sum("label-counts"),
        )
        return EnrolmentSummary(
            contributors=[device for device, _ in contributing],
            receivers=receiving,
            label_counts=self.aggregator.release_label_counts(
                [value[:classes] for value in values]
            ),
            feature_sum=self.aggregator.release_centre([value[classes:] for value in values]),
            devices_aggregated=released.devices
            if released
            else len(values),  # of a run that goes on: those of then
            rows_per_device=1 if self.job.plan.privacy_unit == "user" else 0,
        )

    def _validate_enrolment(self, reply: messages.Reply) -> bool:
        """Whether an honest device can have sent this at enrolment: its sums are bounded."""
        plan, classes = self.job.plan, len(self.job.plan.labels)
        if reply.value is None or not len(reply.value):
            return True
        counts, centre = reply.value[:classes], reply.value[classes:]
        return self._within_limit(
            reply.user, "label counts", counts, reply_limits.max_counts_norm(plan)
        ) and (
            self._within_limit(
                reply.user, "share of the centre", centre, reply_limits.max_centre_norm(plan)
            )
        )

    def _within_limit(self, user: str, what: str, value: Tensor, limit: float) -> bool:
        """Whether a vector's norm can be an honest device's; a warning where it cannot."""
        norm = clipping.l2_norm(value)
        if norm <= limit:
            return True
        LOG.warning(
            "the %s of %s has norm %.3g, and at most %.3g by the plan; refused",
            what,
            user,
            norm,
            limit,
        )
        return False

    def _enrol_securely(
        self, devices: list[Participant], receiving: list[Participant]
    ) -> EnrolmentSummary:
        """Enrol devices with label counts and centre out of one secure sum."""
        plan, user = self.job.plan, self.job.plan.user
        if user is None or user.secure is None or self._secure_exchange is None:
            raise EngineError("the plan has no secure sums")
        releases = {"label-counts": plan.counts_release()}
        if centre := plan.centre_release():
            releases["centre"] = centre
        released = self._secure_sum(ENROLMENT_SUM, releases, [device.user for device in devices])
        total, classes = released.total, len(plan.labels)
        sums = torch.zeros(self.job.projection.output_size, dtype=torch.float64)
        if user.centre:
            sums = total[classes:] * user.centre.clip_norm
        return EnrolmentSummary(
            contributors=[device for device in devices if device.user in released.users],
            receivers=receiving,
            label_counts=total[:classes] * user.counts.clip_norm,
            feature_sum=sums,
            devices_aggregated=released.devices,
            rows_per_device=1,
        )

    def _secure_sum(
        self,
        kind: str,
        releases: Mapping[str, Release],
        users: Sequence[str],
        request: messages.TrainRequest | messages.HeadStatisticsRequest | None = None,
    ) -> ReleasedSum:
        """Make one secure sum, booked before anybody is asked; none where it was released already.

        Args:
            kind: ``enrolment``, ``head-statistics`` or ``round-N``.
            releases: What the ledger says of it, by name.
            users: Who is invited.
            request: The request whose answers are summed, where there is one.
        """
        user = self.job.plan.user
        if user is None or user.secure is None or self._secure_exchange is None:
            raise EngineError("the plan has no secure sums")
        released = self.aggregator.get_released_sum(kind)
        if released is not None:
            return released
        # Whoever runs this server may have seen what it unmasked before it was interrupted.
        bookings = [
            self.aggregator.book_release(name, one, may_be_observed=True)
            for name, one in releases.items()
        ]
        unmasked = self._secure_exchange.compute_sum(
            kind, user.secure.config_for(kind), users, request
        )
        total, survivors = torch.from_numpy(unmasked.total), unmasked.survivors
        value = ReleasedSum(total=total, devices=len(survivors), users=survivors)
        return self.aggregator.store_released_sum(kind, bookings, value)

    def _send_sum_requests(
        self, requests: Mapping[str, messages.SecureSumRequest]
    ) -> dict[str, bytes]:
        """Send one step of a secure sum; the bodies of usable replies."""
        node = {user: node for node, user in self._users_by_node.items()}
        contents = {node[user]: request.to_record() for user, request in requests.items()}
        replies = self.request(contents, messages.SECURE_SUM, size=0)
        return {
            device.user: reply.body
            for device, reply in replies
            if reply.status is messages.Status.OK
        }

    def _train_round(self, state: ServerState, summary: EnrolmentSummary) -> ServerState:
        """Train one round on the selected devices."""
        training, number = self.job.plan.training, state.round + 1
        devices = self._select_cohort(number, summary.contributors)
        denominator = max(summary.utterances_per_device * training.sample_rate, 1.0)
        rate = compute_learning_rate(
            self.job.aggregation,
            self.job.plan,
            number,
            devices=self._expected_contributors(len(summary.contributors)),
            denominator=denominator,
            clip_norm=float(state.clip_norm),
        )
        request = messages.TrainRequest(
            plan_hash=self.job.plan.content_hash(),
            round=number,
            weights=state.weights,
            class_weights=self.job.compute_class_weights(summary.label_counts),
            centre=summary.centre,
            denominator=denominator,
            clip_norm=float(state.clip_norm),
            update_scale=rate / self._expected_contributors(len(summary.contributors)),
        )
        user = self.job.plan.user
        if self._uses_secure_sums:
            name, release = f"round-{number}", self.job.plan.gradient_release(number)
            released = self._secure_sum(
                name, {name: release}, [one.user for one in devices], request
            )
            mean = released.total / released.devices
        else:
            mean = self._mean_update(request, devices, len(summary.contributors))
        next_clip_norm = None
        if user and user.adaptive:
            mean, next_clip_norm = user.adaptive.unpack_mean(mean, float(state.clip_norm))
        return apply_update(
            state, mean.float(), self.job.aggregation, rate=rate, next_clip_norm=next_clip_norm
        )

    def _select_cohort(self, number: int, contributing: Sequence[Participant]) -> list[Participant]:
        """Select who joins a round: everybody, a group, or a sample that only this server sees."""
        if bands := self.job.plan.banded_noise:
            group = bands.participation_group(number)
            return [one for one in contributing if self._groups[one.user] == group]
        user, seed = self.job.plan.user, self.job.simulated_seed
        if user is None or not self.job.plan.samples_users:
            return list(contributing)
        rng: random.Random = secrets.SystemRandom()
        if seed is not None:
            rng = random.Random(seeding.derive_seed(seed, "cohort", number))  # noqa: S311
        return [one for one in contributing if rng.random() < user.update.sample_rate]

    def _expected_contributors(self, contributing: int) -> float:
        """Expected number of devices in a round; who joined is secret."""
        if bands := self.job.plan.banded_noise:  # the same in all rounds, or noise would not cancel
            return contributing / bands.min_separation
        user = self.job.plan.user
        return contributing * (user.update.sample_rate if user else 1.0)

    def _mean_update(
        self, request: messages.TrainRequest, devices: Sequence[Participant], contributing: int
    ) -> Tensor:
        """Collect the devices' updates; their mean, shape (params,), float64."""
        released = self.aggregator.get_released_round(request.round)
        if released is not None:  # before this server was interrupted: once is all
            return released.total / self._round_divisor(released.devices, contributing)
        nodes = [device.node for device in devices]
        contents = dict.fromkeys(nodes, request.to_record())
        size = len(request.weights) + self.job.plan.extra_coordinates
        replies = self.request(contents, messages.TRAIN, size=size)
        updates, norms = [], []
        for _, reply in replies:
            norm = self._validated_update_norm(reply, request)
            if norm is not None and reply.value is not None:
                updates.append(reply.value)
                norms.append(norm)
        if len(updates) < self.job.quorum * len(devices):
            raise EngineError(
                f"round {request.round}: {len(updates)} of {len(devices)} devices gave a usable "
                f"update, below the quorum of {self.job.quorum:g} ({summarise_reasons(replies)}). "
                "The rounds before are kept: run again with --resume"
            )
        count = self._round_divisor(len(updates), contributing)
        if not updates:  # sampling may leave out everybody
            updates, norms = [torch.zeros(size)], [0.0]
        total = self.aggregator.release_updates(
            request.round, updates, denominator=request.denominator, norms=norms
        )
        return total / count

    def _round_divisor(self, received: int, contributing: int) -> float:
        """Divisor of a round's sum: who came, or who was expected where that is secret."""
        if self.job.plan.samples_users or self.job.plan.banded_noise:
            return self._expected_contributors(contributing)
        return received

    def _validated_update_norm(
        self, reply: messages.Reply, request: messages.TrainRequest
    ) -> float | None:
        """L2 norm of an update that takes part; None for one that validation refuses."""
        if reply.status is not messages.Status.OK or reply.value is None:
            LOG.warning("%s takes no part: %s", reply.user, reply.reason)
            return None
        norm = clipping.l2_norm(reply.value)
        limit = reply_limits.max_update_norm(
            self.job.plan, params=len(request.weights), denominator=request.denominator
        )
        if not norm <= min(limit, self.job.aggregation.max_update_norm):
            LOG.warning("the update of %s has norm %.3g; refused", reply.user, norm)
            return None
        return norm

    def _distribute_final_model(self, state: ServerState, summary: EnrolmentSummary) -> None:
        """Distribute the model and the heads' prior; store the sealed heads that come back."""
        prior = self._calibrated_prior(state.released_weights, summary)
        request = self._save_final_model(state.released_weights, summary.centre, prior)
        self._send_final_model(request, (*summary.contributors, *summary.receivers))

    def _save_final_model(
        self, weights: Tensor, centre: Tensor, prior: HeadPrior
    ) -> messages.FinalModelRequest:
        """Save the final model with all that goes with it; build the request that brings it."""
        request = messages.FinalModelRequest(
            plan_hash=self.job.plan.content_hash(),
            weights=weights,
            centre=centre,
            prior=prior,
            neutral_direction=self.job.find_neutral_direction(weights),
        )
        checkpoint.save_released_model(self.folder, request.named_tensors(), prior)
        return request

    def _send_final_model(
        self, request: messages.FinalModelRequest, devices: Iterable[Participant]
    ) -> None:
        """Send the model to devices, each with its own stored head; store those that come back."""
        model = self.job.plan.hash_model(request.weights)
        store = HeadStore(self.job.head_store_path or self.folder / "heads.sqlite")
        contents = {one.node: self._request_with_head(request, store, one.user) for one in devices}
        for device, reply in self.request(contents, messages.FINAL_MODEL, size=0):
            if reply.head:
                self._store_head(store, device.user, reply, model)

    def _request_with_head(
        self, request: messages.FinalModelRequest, store: HeadStore, user: str
    ) -> RecordDict:
        """Build the request, with the head that is stored for the user, where there is one."""
        try:
            stored = store.get(user)
        except PrivacyError as error:
            LOG.warning("the head of %s is not offered: %s", user, error)
            stored = None
        if stored is None:
            return request.to_record()
        head = UnverifiedHead(
            model_hash=stored.model_hash, version=stored.version, blob=stored.blob
        )
        return replace(request, stored_head=head).to_record()

    def _calibrated_prior(self, weights: Tensor, summary: EnrolmentSummary) -> HeadPrior:
        """Prior of heads and sets, from public speakers, and from users where they are asked."""
        prior, plan = self.job.estimate_head_prior(weights), self.job.plan
        if plan.calibration is None or prior.scores is None:
            return prior
        speakers = self.job.public_speaker_logits(weights)
        query = prior_calibration.build_query(
            prior, speakers, subtract_public_shares=plan.user is not None
        )
        total, users = torch.zeros(STATISTICS_SIZE, dtype=torch.float64), 0
        for judging_weights, judged_devices in self._cross_fitted_models(weights, summary):
            request = messages.HeadStatisticsRequest(
                plan_hash=plan.content_hash(),
                weights=judging_weights,
                centre=summary.centre,
                query=query,
            )
            part, devices = self._collect_head_statistics(request, judged_devices)
            total, users = total + part, users + devices
        statistics = prior_calibration.HeadStatistics(
            total=total,
            noise_std=head_statistics_noise_std(plan, users),
            total_weight=users
            if plan.privacy_unit == "user"
            else summary.utterances_per_device * users,
            utterances=summary.utterances_per_device * users,
            users=users,
            weight_noise_std=weight_noise_std(plan, users, classes=len(summary.label_counts)),
        )
        return prior_calibration.calibrate_prior(prior, speakers, query, statistics)

    def _cross_fitted_models(
        self, weights: Tensor, summary: EnrolmentSummary
    ) -> Iterator[tuple[Tensor, Sequence[Participant]]]:
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
                state = self._train_round(state, others)
            LOG.info("group %d of %d", number + 1, self.job.calibration_groups)
            yield state.released_weights, aside

    def _collect_head_statistics(
        self, request: messages.HeadStatisticsRequest, devices: Sequence[Participant]
    ) -> tuple[Tensor, int]:
        """Collect head statistics: their noised sum, (STATISTICS_SIZE,), and how many answered."""
        release = self.job.plan.calibration_release()
        if self._uses_secure_sums and release:
            users = [one.user for one in devices]
            released = self._secure_sum(
                HEAD_STATISTICS_SUM, {HEAD_STATISTICS_SUM: release}, users, request
            )
            return released.total, released.devices
        stored = self.aggregator.get_released_sum(HEAD_STATISTICS_SUM)
        if stored is not None:
            return stored.total, stored.devices
        contents = dict.fromkeys([device.node for device in devices], request.to_record())
        replies = self.request(contents, messages.HEAD_STATISTICS, size=STATISTICS_SIZE)
        limit = reply_limits.max_statistics_norm(self.job.plan)
        answers = [
            reply.value
            for _, reply in replies
            if reply.value is not None
            and self._within_limit(reply.user, "answer", reply.value, limit)
        ]
        if len(answers) < max(self.job.quorum * len(devices), 1):
            raise EngineError(
                f"{len(answers)} of {len(devices)} devices sent head statistics, below the quorum "
                f"of {self.job.quorum:g} ({summarise_reasons(replies)}). All rounds are kept: run "
                "again with --resume"
            )
        return self.aggregator.release_head_statistics(answers), len(answers)

    def _store_head(self, store: HeadStore, user: str, reply: messages.Reply, model: str) -> None:
        """Store one sealed head, if it is newer than what is stored and looks sealed."""
        try:
            stored = store.get(user)
            if stored is not None and (stored.model_hash, stored.version) == (model, reply.version):
                return  # a run that was resumed asks again
            head = SealedHead(model_hash=model, version=reply.version, blob=reply.head)
            store.put(user, head)
        except SottovoceError as error:
            LOG.warning("the head of %s is not kept: %s", user, error)
