"""The round after the last: head statistics of all devices, and the prior calibrated with them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.secure_sum import SecureAggregator
from sottovoce.server.federation.device_channel import DeviceChannel, summarise_reasons
from sottovoce.server.federation.participants import EnrolmentSummary, Participant
from sottovoce.server.federation.reply_validation import ReplyValidator
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation import prior_calibration
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE
from sottovoce.shared.errors import EngineError
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.user_level import HEAD_STATISTICS_SUM
from sottovoce.shared.protocol.messages import HeadStatisticsRequest

EvaluatedModel = tuple[Tensor, Sequence[Participant]]
"""Weights, shape (params,), and the devices whose clips they are evaluated on."""


class HeadStatisticsRound:
    """Collects head statistics, from which the prior of users' heads is calibrated.

    Args:
        job: What the operator wants.
        channel: The way to the devices.
        aggregator: Releases sums that are not secure.
        validator: Refuses what no honest device sends.
    """

    def __init__(
        self,
        job: Job,
        channel: DeviceChannel,
        aggregator: PrivateAggregator,
        validator: ReplyValidator,
    ) -> None:
        self._job = job
        self._channel = channel
        self._aggregator = aggregator
        self._validator = validator

    def calibrate_prior(
        self,
        weights: Tensor,
        summary: EnrolmentSummary,
        evaluated_models: Iterable[EvaluatedModel],
        secure_aggregator: SecureAggregator | None,
    ) -> HeadPrior:
        """Estimate the prior from public speakers, and from users where the plan asks users.

        Args:
            weights: The final model, shape (params,), float32.
            summary: What enrolment released.
            evaluated_models: Models, and on whose clips each is evaluated; only read where users
                are asked.
            secure_aggregator: Makes the sums where they are secure; else None.

        Raises:
            EngineError: Too few devices answered.
        """
        prior, plan = self._job.estimate_head_prior(weights), self._job.plan
        if plan.calibration is None or prior.scores is None:
            return prior
        speakers = self._job.public_speaker_logits(weights)
        query = prior_calibration.build_query(
            prior, speakers, subtract_public_shares=plan.scheme.has_private_sums
        )
        total, users = torch.zeros(STATISTICS_SIZE, dtype=torch.float64), 0
        for model, devices in evaluated_models:
            request = HeadStatisticsRequest(
                plan_hash=plan.content_hash(), weights=model, centre=summary.centre, query=query
            )
            part, answered = self._collect(request, devices, secure_aggregator)
            total, users = total + part, users + answered
        utterances = summary.utterances_per_device * users
        statistics = prior_calibration.HeadStatistics(
            total=total,
            noise_std=plan.scheme.sum_noise_std(plan, SumKind.HEAD_STATISTICS, devices=users),
            total_weight=plan.scheme.total_weight(utterances=utterances, users=users),
            utterances=utterances,
            users=users,
            weight_noise_std=plan.scheme.weight_noise_std(plan, devices=users),
        )
        return prior_calibration.calibrate_prior(prior, speakers, query, statistics)

    def _collect(
        self,
        request: HeadStatisticsRequest,
        devices: Sequence[Participant],
        secure_aggregator: SecureAggregator | None,
    ) -> tuple[Tensor, int]:
        """Collect head statistics: their noised sum, (STATISTICS_SIZE,), and how many answered."""
        release = self._job.plan.calibration_release()
        if secure_aggregator and release:
            users = [one.user for one in devices]
            released = secure_aggregator.release_sum(
                HEAD_STATISTICS_SUM, {HEAD_STATISTICS_SUM: release}, users, request
            )
            return released.total, released.devices
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
