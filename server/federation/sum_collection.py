"""Collecting the sums of a run from its devices: reply by reply, or by secure aggregation.

A plan's scheme chooses one of the two once, when the run begins; whoever needs a sum asks the
collector and does not know which it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.secure_sum import SecureAggregator, SecureSumExchange
from sottovoce.server.federation.cohort_sampling import CohortSelector
from sottovoce.server.federation.device_channel import DeviceChannel, summarise_reasons
from sottovoce.server.federation.participants import EnrolmentSummary, Participant
from sottovoce.server.federation.reply_validation import ReplyValidator
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE
from sottovoce.shared.errors import EngineError
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.user_level import HEAD_STATISTICS_SUM, SecureSumConfigs
from sottovoce.shared.protocol import messages


class SumCollector(ABC):
    """Collects and releases every sum over devices that a run needs.

    Args:
        job: What the operator wants.
        channel: The way to the devices.
        aggregator: Books and stores what is released.

    Guarantees:
        - A sum that was released before the server was interrupted is not asked for again.

    Attributes:
        enrolment_size: How many numbers a device's reply to the plan holds; 0 for none.
    """

    enrolment_size: int

    def __init__(self, job: Job, channel: DeviceChannel, aggregator: PrivateAggregator) -> None:
        self._job = job
        self._channel = channel
        self._aggregator = aggregator

    @abstractmethod
    def is_contribution(self, reply: messages.Reply) -> bool:
        """Whether a reply to the plan says that its device trains, and brings what that needs."""

    @abstractmethod
    def release_enrolment(
        self,
        contributing: Sequence[tuple[Participant, messages.Reply]],
        receivers: list[Participant],
    ) -> EnrolmentSummary:
        """Release label counts and centre of the devices that train.

        Args:
            contributing: Devices that train, and their replies.
            receivers: Devices that only take the model.

        Raises:
            EngineError: A secure sum stays closed.
        """

    @abstractmethod
    def compute_mean_update(
        self, request: messages.TrainRequest, devices: Sequence[Participant], contributors: int
    ) -> Tensor:
        """Collect the devices' updates and compute their mean, shape (params,), float64.

        Args:
            request: The round's request.
            devices: The round's cohort.
            contributors: How many devices train in this run.

        Raises:
            EngineError: Too few devices gave a usable update.
        """

    @abstractmethod
    def collect_head_statistics(
        self, request: messages.HeadStatisticsRequest, devices: Sequence[Participant]
    ) -> tuple[Tensor, int]:
        """Collect head statistics: their noised sum, (STATISTICS_SIZE,), and how many answered.

        Args:
            request: The final model, and what is asked of every clip.
            devices: Whose clips it is evaluated on.

        Raises:
            EngineError: Too few devices answered.
        """


class OpenSumCollector(SumCollector):
    """Collects replies one by one and sums them, in the open to the server.

    Args:
        job: What the operator wants.
        channel: The way to the devices.
        aggregator: Books, noises and stores what is released.
        validator: Refuses what no honest device sends.
        cohorts: Draws the rounds' cohorts, and knows what their sums are divided by.
    """

    def __init__(
        self,
        job: Job,
        channel: DeviceChannel,
        aggregator: PrivateAggregator,
        *,
        validator: ReplyValidator,
        cohorts: CohortSelector,
    ) -> None:
        super().__init__(job, channel, aggregator)
        self._validator = validator
        self._cohorts = cohorts
        self.enrolment_size = len(job.plan.labels) + job.projection.output_size

    def is_contribution(self, reply: messages.Reply) -> bool:
        """Whether it brings label counts and rows."""
        return reply.status is messages.Status.OK and reply.value is not None

    def release_enrolment(
        self,
        contributing: Sequence[tuple[Participant, messages.Reply]],
        receivers: list[Participant],
    ) -> EnrolmentSummary:
        """Release the sums of what the replies brought."""
        values = [reply.value for _, reply in contributing if reply.value is not None]
        classes = len(self._job.plan.labels)
        released = self._aggregator.get_released_sum("label-counts")
        return EnrolmentSummary(
            contributors=[device for device, _ in contributing],
            receivers=receivers,
            label_counts=self._aggregator.release_label_counts(
                [value[:classes] for value in values]
            ),
            feature_sum=self._aggregator.release_centre([value[classes:] for value in values]),
            # Of a run that goes on, as many as there were when it began.
            devices_aggregated=released.devices if released else len(values),
            rows_per_device=self._job.plan.scheme.rows_per_device,
        )

    def compute_mean_update(
        self, request: messages.TrainRequest, devices: Sequence[Participant], contributors: int
    ) -> Tensor:
        """Sum the usable updates; the quorum is of those that were asked."""
        number = request.round
        stored = self._aggregator.get_released_round(number)
        if stored is not None:
            return stored.total / self._cohorts.mean_divisor(stored.devices, contributors)
        size = len(request.weights) + self._job.plan.extra_coordinates
        replies = self._channel.request({device.node: request for device in devices}, size=size)
        updates, norms = [], []
        for _, reply in replies:
            norm = self._validator.update_norm(reply, request)
            if norm is not None and reply.value is not None:
                updates.append(reply.value)
                norms.append(norm)
        if len(updates) < self._job.quorum * len(devices):
            raise EngineError(
                f"round {number}: {len(updates)} of {len(devices)} devices gave a usable "
                f"update, below the quorum of {self._job.quorum:g} ({summarise_reasons(replies)}). "
                "The rounds before are kept: run again with --resume"
            )
        count = self._cohorts.mean_divisor(len(updates), contributors)
        if not updates:  # sampling may leave out everybody
            updates, norms = [torch.zeros(size)], [0.0]
        total = self._aggregator.release_updates(
            number, updates, denominator=request.denominator, norms=norms
        )
        return total / count

    def collect_head_statistics(
        self, request: messages.HeadStatisticsRequest, devices: Sequence[Participant]
    ) -> tuple[Tensor, int]:
        """Sum the answers that were accepted; the quorum is of those that were asked."""
        stored = self._aggregator.get_released_sum(HEAD_STATISTICS_SUM)
        # Released before an interruption: asking again would cost the users' budget twice.
        if stored is not None:
            return stored.total, stored.devices
        replies = self._channel.request(
            {device.node: request for device in devices}, size=STATISTICS_SIZE
        )
        answers = [
            reply.value
            for _, reply in replies
            if reply.value is not None and self._validator.accepts_statistics(reply)
        ]
        # At least one, whatever the quorum: nobody's statistics calibrate nothing.
        if len(answers) < max(self._job.quorum * len(devices), 1):
            raise EngineError(
                f"{len(answers)} of {len(devices)} devices sent head statistics, below the quorum "
                f"of {self._job.quorum:g} ({summarise_reasons(replies)}). All rounds are kept: run "
                "again with --resume"
            )
        return self._aggregator.release_head_statistics(answers), len(answers)


class SecureSumCollector(SumCollector):
    """Makes every sum by secure aggregation: no reply can be read by itself.

    Enrolment comes first: it brings the devices' public keys, also where a run is resumed.

    Args:
        job: What the operator wants.
        channel: The way to the devices.
        aggregator: Books and stores what is released.
        configs: Settings of the plan's sums.
    """

    enrolment_size = 0

    def __init__(
        self,
        job: Job,
        channel: DeviceChannel,
        aggregator: PrivateAggregator,
        *,
        configs: SecureSumConfigs,
    ) -> None:
        super().__init__(job, channel, aggregator)
        self._configs = configs
        self._enrolled: SecureAggregator | None = None

    def is_contribution(self, reply: messages.Reply) -> bool:
        """Whether the device agreed; what it adds comes in the first sum."""
        return reply.status is messages.Status.OK

    def release_enrolment(
        self,
        contributing: Sequence[tuple[Participant, messages.Reply]],
        receivers: list[Participant],
    ) -> EnrolmentSummary:
        """Release label counts and centre out of one secure sum."""
        plan = self._job.plan
        self._enrolled = SecureAggregator(
            configs=self._configs,
            exchange=SecureSumExchange(
                plan_digest=plan.content_hash(),
                roster={device.user: reply.body for device, reply in contributing},
                send=self._channel.request_sum_step,
                is_simulated=self._job.simulated_seed is not None,
            ),
            aggregator=self._aggregator,
        )
        releases = {"label-counts": plan.counts_release()}
        if centre := plan.centre_release():
            releases["centre"] = centre
        devices = [device for device, _ in contributing]
        released = self._enrolled.release_enrolment(releases, [device.user for device in devices])
        classes = len(plan.labels)
        sums = torch.zeros(self._job.projection.output_size, dtype=torch.float64)
        if centre:
            sums = self._rescale(SumKind.CENTRE, released.total[classes:])
        return EnrolmentSummary(
            contributors=[device for device in devices if device.user in released.users],
            receivers=receivers,
            label_counts=self._rescale(SumKind.LABEL_COUNTS, released.total[:classes]),
            feature_sum=sums,
            devices_aggregated=released.devices,
            rows_per_device=plan.scheme.rows_per_device,
        )

    def _rescale(self, kind: SumKind, total: Tensor) -> Tensor:
        """Bring a part of the first secure sum back to its own units."""
        return total * self._job.plan.scheme.sum_unit(self._job.plan, kind)

    def _require_enrolled(self) -> SecureAggregator:
        """The sums among the enrolled devices."""
        if self._enrolled is None:
            raise EngineError("a secure sum was asked for before any device enrolled")
        return self._enrolled

    def compute_mean_update(
        self,
        request: messages.TrainRequest,
        devices: Sequence[Participant],
        contributors: int,  # noqa: ARG002  (the sum itself says who is in it)
    ) -> Tensor:
        """Bring the unmasked sum to weights, and divide it by the number of its devices."""
        name, release = f"round-{request.round}", self._job.plan.gradient_release(request.round)
        released = self._require_enrolled().release_sum(
            name, {name: release}, [one.user for one in devices], request
        )
        unit = self._job.plan.scheme.update_unit(self._job.plan, request.denominator)
        return released.total * unit / released.devices

    def collect_head_statistics(
        self, request: messages.HeadStatisticsRequest, devices: Sequence[Participant]
    ) -> tuple[Tensor, int]:
        """Unmask the sum, and say how many devices it holds."""
        release = self._job.plan.calibration_release()
        if release is None:
            raise EngineError("the plan asks for no head statistics")
        released = self._require_enrolled().release_sum(
            HEAD_STATISTICS_SUM,
            {HEAD_STATISTICS_SUM: release},
            [one.user for one in devices],
            request,
        )
        return released.total, released.devices
