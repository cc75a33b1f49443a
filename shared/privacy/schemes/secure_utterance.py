"""One utterance, by secure aggregation: the noise is in the sums, and devices add a share each."""

import math
from dataclasses import replace
from functools import partial

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    ONE_UTTERANCE,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.scheme import PlanFacts, PlanT, SumKind, calibration_note
from sottovoce.shared.privacy.schemes.secure_gradients import (
    ENOUGH_HONEST_DEVICES,
    LYING_SERVER_LIMIT,
    PromisedSum,
    SecureGradientsScheme,
    configs_of,
    mark_in_sums,
    require_one_step,
)
from sottovoce.shared.privacy.schemes.utterance import UtteranceScheme, add_utterance_noise
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.parameter_selection import (
    count_share,
    select_part_parameters,
)


class SecureUtteranceScheme(SecureGradientsScheme, UtteranceScheme):
    """Scheme that hides one utterance in secure sums, from a server that follows the protocol.

    A plan hides utterances by noise of this size from when :meth:`add_noise` scaled it, each device
    adding all of it; in sums from when :meth:`add_secure_sums` knows how many devices share it.
    """

    def describes(self, plan: PlanFacts) -> bool:
        """Noise that hides an utterance, in shares."""
        return (
            not plan.unit
            and plan.count_noise > 0
            and plan.user is None
            and plan.secure_sums is not None
        )

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse sums whose noise is less than is booked, and what a sum's noise cannot hide."""
        super().check_plan(plan)
        self.check_secure_sums(plan)

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Scale noise for every sum, and the normaliser's own.

        Label counts have the recipe's noise, or that of their share where the budget is small.
        """
        require_one_step(plan)
        precision = accounting.gaussian_mu(target.epsilon, target.delta) ** 2
        fair = 1 / math.sqrt(target.shares.label_counts * precision)
        bounds = replace(bounds, count_noise=max(bounds.count_noise, fair))
        calibration = plan.calibration and replace(plan.calibration, subtracted_share=0.0)
        return add_utterance_noise(
            replace(plan, calibration=calibration),
            target,
            bounds,
            sum_norm=None,
            list_releases=lambda noised: mark_in_sums(noised.all_releases()),
        )

    def add_secure_sums(self, plan: PlanT, bounds: PrivacyBounds, *, devices: int) -> PlanT:
        """Make the sums secure by shares of the noise."""
        make = partial(_select, devices, bounds)
        enrolment, update, calibration = self.promised_sums(plan)
        secure = SecureSumConfigs(
            enrolment=make(enrolment),
            update=make(update),
            dishonest=count_share(devices, bounds.user.corruption),
            calibration=make(calibration) if calibration else None,
        )
        return replace(plan, secure_sums=secure)

    def sum_unit(self, plan: PlanFacts, kind: SumKind) -> float:
        """Noise of the part: so divided, all values of the first sum have a noise of 1."""
        noises = {SumKind.LABEL_COUNTS: plan.count_noise}
        if plan.centre:
            noises[SumKind.CENTRE] = plan.centre.noise_multiplier * plan.centre.clip_norm
        if kind not in noises:
            raise SettingError(f"the plan's first secure sum has no {kind.value}")
        return noises[kind]

    def enrolment_change(self, plan: PlanFacts) -> float:
        """One count, and one clipped row, each over the noise of its values."""
        changes = [1 / plan.count_noise]
        if plan.centre:
            changes.append(1 / plan.centre.noise_multiplier)
        return math.hypot(*changes)

    def enrolment_noise(self, plan: PlanFacts) -> float:
        """One, by the choice of the unit."""
        return 1.0

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """For one utterance, against those who see sums."""
        return (
            "Whatever anybody saw of a device's part in this run changes by a factor of at most "
            f"e^{target.epsilon:g} in probability (but for a chance of {target.delta:g}) when one "
            "utterance of its user is added or removed. Unit: utterance. This holds against anyone "
            "who sees the sums over devices and the models, the server included as long as it "
            "follows the protocol of secure sums and at most "
            f"{configs_of(plan).dishonest} devices side with it: the noise is in the sums, and "
            "each device adds a share. It covers label counts, centre, the normaliser that "
            f"training uses, {plan.rounds} rounds of gradients{calibration_note(plan)}."
        )

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """The promise holds against a server that sees sums only, while enough devices are honest.

        The local promise of ``utterance`` needs none of it.
        """
        enough = ENOUGH_HONEST_DEVICES
        return make_adversary_table(
            {
                Adversary.NETWORK: (ONE_UTTERANCE, f"Messages are masked. {enough}"),
                Adversary.MODEL_RECIPIENT: (ONE_UTTERANCE, enough),
                Adversary.CURIOUS_SERVER: (ONE_UTTERANCE, enough),
                Adversary.LYING_SERVER: (NOTHING, LYING_SERVER_LIMIT),
                Adversary.PARTICIPANT: (ONE_UTTERANCE, enough),
                Adversary.COALITION: (
                    (
                        f"{ONE_UTTERANCE}, with the server too, while k is at most the number of "
                        "dishonest devices that the plan states; above, less and less, down to a "
                        "device's own share of the noise"
                    ),
                    enough,
                ),
            }
        )

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """As for an utterance, and a server that breaks the protocol."""
        return (
            *super().not_protected(plan),
            "Utterances, against a server that does not follow the protocol of secure sums.",
        )


def _select(devices: int, bounds: PrivacyBounds, promised: PromisedSum) -> SecureAggregationConfig:
    """Settings of one secure sum."""
    return select_part_parameters(
        devices,
        promised.parameters,
        promised.sensitivity,
        dropout=bounds.user.dropout,
        corruption=bounds.user.corruption,
        noise_multiplier=promised.noise_multiplier,
    )
