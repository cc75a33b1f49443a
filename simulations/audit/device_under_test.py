"""Device under attack: the product's own code on a device in memory.

An audit needs thousands of trials. They run ``client.federation`` and the trainer, with their real
clipping, noise and ledger entries; only disk and encryption are left out, which change no byte of
what is sent. A test compares it with a device on disk, byte by byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar, cast

import torch
from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.device.user_key import UserKey
from sottovoce.client.federation import enrolment, statistics_round, training_round
from sottovoce.shared import crypto
from sottovoce.shared.calibration.head_statistics import CalibrationQuery, CalibrationRelease
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism
from sottovoce.shared.protocol.messages import HeadStatisticsRequest, TrainRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import (
    CentreRelease,
    NormaliserRelease,
    SpeakerStatistics,
)
from sottovoce.simulations.devices.in_memory import InMemoryLedger, InMemoryVault

_Noised = TypeVar(
    "_Noised", ExampleLevelMechanism, NormaliserRelease, CentreRelease, CalibrationRelease
)

_USER: Final = "subject"
_RESIDUAL_NOISE: Final = 1e-9
"""Share of the noise that remains where an attacker computes what would be sent without noise.

It is not 0, since a plan with a mechanism must have noise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StatisticsRequest:
    """Request for statistics of a device's clips after the last round.

    Attributes:
        weights: The model that scores them, shape (params,), float32. No round said that
            the device's own updates moved it (``update_scale`` is 0), so nothing is subtracted.
        query: The query that each of them answers.
    """

    weights: Tensor
    query: CalibrationQuery


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Transcript:
    """The server's requests to a device in a run.

    Attributes:
        plan: Plan of the job.
        projection: The public projection.
        speaker_statistics: Statistics of how public speakers differ.
        centre: Mean of the training users' projected rows, shape (inputs,), float32.
        class_weights: Shape (classes,), float32.
        weights: The shared model before every round, each shape (params,), float32.
        denominator: Public number of utterances of a step.
        devices: How many devices a sum runs over.
        statistics_request: Request after the last round; None if there is none.
    """

    plan: Plan
    projection: PublicProjection
    speaker_statistics: SpeakerStatistics
    centre: Tensor
    class_weights: Tensor
    weights: Sequence[Tensor]
    denominator: float
    devices: int = 1
    statistics_request: StatisticsRequest | None = None

    def with_constant_model(self, rounds: int | None = None) -> "Transcript":
        """Copy the transcript of a server that sends the first model in every round, as it may."""
        first = self.weights[0]
        return replace(
            self,
            weights=[first] * (rounds or len(self.weights)),
            statistics_request=self.statistics_request
            and replace(self.statistics_request, weights=first),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Observation:
    """The messages that the server received from one device.

    Attributes:
        enrolment: Label counts and share of the centre, shape (classes + inputs,).
        updates: One a round, shape (rounds, params).
        head_statistics: Its head statistics, shape (WIDTH,); none where nothing was asked.
    """

    enrolment: Tensor
    updates: Tensor
    head_statistics: Tensor


class DeviceUnderTest:
    """Device in memory; its noise comes from a seed, as on every simulated device.

    Args:
        examples: Its utterances as raw features; all of them enrol and train.
        labels: Names of the classes.
        seed: Decides its noise.
    """

    def __init__(self, examples: Examples, labels: tuple[str, ...], seed: int) -> None:
        everyone = torch.ones(len(examples), dtype=torch.bool)
        features = LabelledFeatures(
            examples=examples, for_enrolment=everyone, for_head=~everyone, for_training=everyone
        )
        self.profile = DeviceProfile(user=_USER, budgets=(), labels=labels, simulated_seed=seed)
        # No budget: an audit's trials spend far more than one device may.
        self.device = Device(
            self.profile,
            InMemoryVault(UserKey(bytes(crypto.KEY_BYTES), user=_USER), lambda: features),
            InMemoryLedger(_USER),
        )

    def enrol(self, transcript: Transcript) -> Tensor:
        """Compute its first message, shape (classes + inputs,)."""
        value = enrolment.enrol_device(
            self.device, transcript.plan, transcript.projection, transcript.speaker_statistics
        )
        return cast(Tensor, value)

    def train(self, transcript: Transcript, number: int) -> Tensor:
        """Compute its message of one round, from 1, shape (params,)."""
        request = TrainRequest(
            plan_hash=transcript.plan.content_hash(),
            round=number,
            weights=transcript.weights[number - 1],
            class_weights=transcript.class_weights,
            centre=transcript.centre,
            denominator=transcript.denominator,
        )
        return training_round.train_round(self.device, request)

    def release_statistics(self, transcript: Transcript) -> Tensor:
        """Compute its message after the last round, shape (WIDTH,); empty if none is asked for."""
        request = _request(transcript)
        return (
            torch.zeros(0)
            if request is None
            else statistics_round.release_head_statistics(self.device, request)
        )

    def sample_statistics(self, transcript: Transcript, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Sample the message after the last round for each seed of its noise; it has enrolled."""
        request = _request(transcript)
        if request is None:
            return
        # Everything but the noise is computed once: that is what makes thousands of samples cheap.
        prepared: PreparedRelease = statistics_round.prepare_head_statistics(self.device, request)
        for seed in seeds:
            yield prepared.compute_as(replace(self.profile, simulated_seed=seed))


def run_trial(transcript: Transcript, examples: Examples, seed: int) -> Observation:
    """Run one trial and collect all that a device sends, as the server sees the messages.

    Where users train in separated rounds, the device is in the first participation group, which has
    the most rounds; in all others its update is zeros.

    Args:
        transcript: The server's requests; as many rounds as it has weights.
        examples: The device's utterances as raw features.
        seed: Decides all of its noise.
    """
    subject = DeviceUnderTest(examples, transcript.plan.labels, seed)
    enrolment = subject.enrol(transcript)
    weights = transcript.weights
    updates = [
        subject.train(transcript, number)
        if trains_in_round(transcript.plan, number)
        else torch.zeros_like(weights[number - 1])
        for number in range(1, len(weights) + 1)
    ]
    return Observation(
        enrolment=enrolment,
        updates=torch.stack(updates),
        head_statistics=subject.release_statistics(transcript),
    )


def trains_in_round(plan: Plan, number: int, *, user: int = 0) -> bool:
    """Whether a user trains in a round, from 1; users are in participation groups by turns.

    Where there are none, every user trains in every round.
    """
    return plan.participation.match_noise(
        independent=lambda: True,
        correlated=lambda banded_noise: (
            banded_noise.participation_group(number) == user % banded_noise.min_separation
        ),
    )


def _request(transcript: Transcript) -> HeadStatisticsRequest | None:
    """What is asked after the last round, as it travels."""
    if transcript.statistics_request is None or transcript.plan.calibration is None:
        return None
    return HeadStatisticsRequest(
        plan_hash=transcript.plan.content_hash(),
        weights=transcript.statistics_request.weights,
        centre=transcript.centre,
        query=transcript.statistics_request.query,
    )


def nearly_noiseless(transcript: Transcript) -> Transcript:
    """Copy the transcript with next to no noise, as an attacker computes for itself."""
    plan = transcript.plan
    # Without a mechanism there is no noise to remove.
    if not isinstance(plan.mechanism, ExampleLevelMechanism):
        return transcript
    changes: dict[str, object] = {
        "mechanism": _with_residual_noise(plan.mechanism),
        "count_noise": plan.count_noise * _RESIDUAL_NOISE,
    }
    for name in ("centre", "normaliser", "calibration"):
        part = getattr(plan, name)
        changes[name] = part and _with_residual_noise(part)
    return replace(transcript, plan=replace(plan, **changes))  # type: ignore[arg-type]


def _with_residual_noise(part: _Noised) -> _Noised:
    """The same settings with less noise."""
    return replace(part, noise_multiplier=part.noise_multiplier * _RESIDUAL_NOISE)


def with_exact_normaliser(transcript: Transcript) -> Transcript:
    """Copy the transcript with the user's exact mean, neither clipped, noised nor accounted.

    Everything else keeps its noise. The accountant would count the mean as free, which the audit
    shows to be false.
    """
    settings = transcript.plan.normaliser
    if settings is None or not transcript.plan.scheme.has_private_messages:
        return transcript
    # A clip norm that nothing reaches and noise that rounds away: the mean is exact in float32.
    mean = replace(settings, clip_norm=1e6, noise_multiplier=1e-12)
    return replace(transcript, plan=replace(transcript.plan, normaliser=mean))
