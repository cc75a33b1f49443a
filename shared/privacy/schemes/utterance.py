"""One utterance: devices clip and noise whatever they send, so that it hides any one utterance."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar

from sottovoce.shared.calibration.head_statistics import SENSITIVITY
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    ONE_UTTERANCE,
    POST_PROCESSING,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.release import PrivacyUnit, Release
from sottovoce.shared.privacy.scheme import (
    PlanFacts,
    PlanT,
    SumKind,
    UnitWording,
    calibration_note,
    clips_bound,
)
from sottovoce.shared.privacy.schemes.unhidden_users import UnhiddenUsersScheme
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism
from sottovoce.shared.speaker.normalisation import CentreRelease, NormaliserRelease

ONE_RECORDING_LIMIT = (
    "It is made for one recording. A person is known by many, and what all recordings of one "
    "person have in common is protected far less, or not at all"
)


class UtteranceScheme(UnhiddenUsersScheme):
    """Everything that leaves a device hides any one utterance, from the server too."""

    unit: ClassVar[str] = "utterance"
    promised: ClassVar[tuple[PrivacyUnit, ...]] = (PrivacyUnit.UTTERANCE,)
    has_private_messages: ClassVar[bool] = True
    wording: ClassVar[UnitWording] = UnitWording(
        name="utterance",
        short="one utterance",
        protects="for one utterance",
        limits=f"{ONE_RECORDING_LIMIT}.",
    )

    def describes(self, plan: PlanFacts) -> bool:
        """Noise of devices, all of it their own, and nothing that hides users."""
        return (
            not plan.unit
            and plan.count_noise > 0
            and plan.user is None
            and plan.secure_sums is None
        )

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse a loss that couples utterances."""
        self.check_loss(plan.training.loss)

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Add noise to all that leaves a device, whose whole life stays within epsilon."""
        return add_utterance_noise(plan, target, bounds, sum_norm=None)

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Standard deviation of a device's noise; per step where there are steps."""
        if kind is SumKind.CENTRE:
            return plan.centre.clip_norm * plan.centre.noise_multiplier if plan.centre else 0.0
        if kind is SumKind.HEAD_STATISTICS:
            return SENSITIVITY * plan.calibration.noise_multiplier if plan.calibration else 0.0
        if kind is SumKind.UPDATE:
            return plan.mechanism.clip_norm * plan.mechanism.noise_multiplier
        return plan.count_noise

    def update_unit(self, plan: PlanFacts, denominator: float) -> float:
        """A gradient's step: the bound is on gradients."""
        return plan.training.learning_rate / denominator

    def max_device_norm(self, plan: PlanFacts, kind: SumKind) -> float:
        """As many clips as a device can hold, each within its bound, or the bound on their sum."""
        sum_norm = plan.mechanism.sum_norm if kind is SumKind.UPDATE else None
        return min(clips_bound(plan, kind), math.inf if sum_norm is None else sum_norm)

    def update_reach(self, plan: PlanFacts, denominator: float) -> float:
        """All steps, with momentum, which passes a step on to all later ones."""
        steps = plan.training.steps / (1 - plan.training.momentum)
        return steps * plan.training.learning_rate / denominator

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """For one utterance, against the server too."""
        return (
            "Whatever a device sent in this run changes by a factor of at most "
            f"e^{target.epsilon:g} in probability (but for a chance of {target.delta:g}) when "
            "one utterance of its user is added or removed. Unit: utterance. This holds against "
            "anyone who sees what the device sends, the server included. It covers label counts, "
            f"centre, the normaliser that training uses, {plan.rounds} rounds of gradients"
            f"{calibration_note(plan)}."
        )

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """The promise holds against whoever sees what a device sends."""
        return make_adversary_table(
            {
                Adversary.NETWORK: (
                    ONE_UTTERANCE,
                    (
                        "Messages are noised before they leave. Whoever changes them can spoil the "
                        "model, not the promise."
                    ),
                ),
                Adversary.MODEL_RECIPIENT: (ONE_UTTERANCE, POST_PROCESSING),
                Adversary.CURIOUS_SERVER: (
                    ONE_UTTERANCE,
                    "The device runs this code unchanged, and its ledger covers its whole life.",
                ),
                Adversary.LYING_SERVER: (
                    ONE_UTTERANCE,
                    (
                        "As before: each release is booked before it is computed, whatever was "
                        "asked, and refused above the budget."
                    ),
                ),
                Adversary.PARTICIPANT: (ONE_UTTERANCE, POST_PROCESSING),
                Adversary.COALITION: (
                    f"{ONE_UTTERANCE}, for any k, with the server too",
                    "Each device's noise is its own: nobody else knows it or can leave it out.",
                ),
            }
        )


def add_utterance_noise(
    plan: PlanT,
    target: PrivacyTarget,
    bounds: PrivacyBounds,
    *,
    sum_norm: float | None,
    list_releases: Callable[[PlanT], Iterable[Release]] = lambda plan: plan.all_releases(),
) -> PlanT:
    """Add noise to all that leaves a device, such that its whole life stays within epsilon.

    Centre, normaliser and head statistics get fixed shares of the budget (in squared Gaussian mu),
    label counts a fixed noise; the gradients get what is left, found by bisection on the safe side.

    Args:
        plan: A plan without noise.
        target: Epsilon, the utterance's delta and the shares.
        bounds: What one utterance adds.
        sum_norm: L2 bound on the sum of a step's clipped gradients; None bounds nothing.
        list_releases: What a noised plan's devices book; by default what the plan says.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    shares = target.shares
    precision = accounting.gaussian_mu(target.epsilon, target.delta) ** 2
    # Label counts have sensitivity 1: their squared mu is 1 / noise^2.
    left = precision - 1 / bounds.count_noise**2
    behind = left * (1 - shares.centre) if plan.centre else left
    if not left > 0:
        raise SettingError(
            f"epsilon {target.epsilon} at delta {target.delta} is too small: label counts with "
            f"noise {bounds.count_noise} spend it already; raise epsilon or recipe.count_noise"
        )
    centre, normaliser, calibration = plan.centre, plan.normaliser, plan.calibration
    if calibration:
        noise = 1 / math.sqrt(shares.head_statistics * left)
        calibration = replace(calibration, noise_multiplier=noise)
    if centre:
        noise = 1 / math.sqrt(shares.centre * left)
        centre = CentreRelease(clip_norm=bounds.centre_radius, noise_multiplier=noise)
    if normaliser:
        noise = 1 / math.sqrt(shares.normaliser * behind)
        normaliser = NormaliserRelease(
            clip_norm=bounds.normaliser_radius,
            count_weight=bounds.normaliser_count * bounds.normaliser_radius,
            noise_multiplier=noise,
        )

    def with_noise(multiplier: float) -> PlanT:
        mechanism = ExampleLevelMechanism(
            clip_norm=bounds.clip_norm, noise_multiplier=multiplier, sum_norm=sum_norm
        )
        return replace(
            plan,
            mechanism=mechanism,
            centre=centre,
            normaliser=normaliser,
            count_noise=bounds.count_noise,
            calibration=calibration,
        )

    multiplier = accounting.calibrate_noise_multiplier(
        lambda trial: list_releases(with_noise(trial)), target.epsilon, target.delta
    )
    return with_noise(multiplier)
