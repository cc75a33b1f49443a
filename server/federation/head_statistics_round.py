"""The round after the last: head statistics of all devices, and the prior calibrated with them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sottovoce.server.federation.participants import EnrolmentSummary, Participant
from sottovoce.server.federation.sum_collection import SumCollector
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation import prior_calibration
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.protocol.messages import HeadStatisticsRequest

EvaluatedModel = tuple[Tensor, Sequence[Participant]]
"""Weights, shape (params,), and the devices whose clips they are evaluated on."""


class HeadStatisticsRound:
    """Collects head statistics, from which the prior of users' heads is calibrated.

    Args:
        job: What the operator wants.
        sums: Collects the devices' answers.
    """

    def __init__(self, job: Job, sums: SumCollector) -> None:
        self._job = job
        self._sums = sums

    def calibrate_prior(
        self,
        weights: Tensor,
        summary: EnrolmentSummary,
        evaluated_models: Iterable[EvaluatedModel],
    ) -> HeadPrior:
        """Estimate the prior from public speakers, and from users where the plan asks users.

        Args:
            weights: The final model, shape (params,), float32.
            summary: What enrolment released.
            evaluated_models: Models, and on whose clips each is evaluated; only read where users
                are asked.

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
            part, answered = self._sums.collect_head_statistics(request, devices)
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
