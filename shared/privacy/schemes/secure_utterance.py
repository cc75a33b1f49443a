"""One utterance, by secure aggregation: the noise is in the sums, and devices add a share each.

What a device adds before noise is what it would release under ``utterance``: clipped gradients,
label counts, clipped rows and head statistics, of which one utterance changes no more. The noise
that hides it is all honest devices' together, so each adds a fraction of what it needs alone, and
nobody may see less than the sum.

The normaliser stays the device's own, under noise of its own in full. It is computed from the
utterances that train and moves what each of them adds; no sum bounds that.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import ClassVar, Final, TypeVar

from sottovoce.shared.calibration.head_statistics import SENSITIVITY, STATISTICS_SIZE
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    ONE_UTTERANCE,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseShares, Release, ReleaseKind
from sottovoce.shared.privacy.scheme import PlanFacts, PlanT, SumKind, calibration_note
from sottovoce.shared.privacy.schemes.utterance import UtteranceScheme, add_utterance_noise
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs, check_shares
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.parameter_selection import (
    count_share,
    select_part_parameters,
)

T = TypeVar("T")

_SOME_SHARES: Final = NoiseShares(devices=2, colluders=0)
"""For planning: what a release costs does not depend on how many add its noise."""


class SecureUtteranceScheme(UtteranceScheme):
    """Scheme that hides one utterance in secure sums, from a server that follows the protocol.

    A plan hides utterances by noise of this size from when :meth:`add_noise` scaled it, each device
    adding all of it; in sums from when :meth:`add_secure_sums` knows how many devices share it.
    """

    secure: ClassVar[bool] = True
    sends_gradients: ClassVar[bool] = True
    accountant_name: ClassVar[str] = accounting.DISCRETE_ACCOUNTANT_NAME

    def describes(self, plan: PlanFacts) -> bool:
        """Noise that hides an utterance, in shares."""
        return (
            not plan.unit
            and plan.count_noise > 0
            and plan.user is None
            and plan.secure_sums is not None
        )

    # --- planning -----------------------------------------------------------------------------

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse sums whose noise is less than is booked, and what a sum's noise cannot hide."""
        super().check_plan(plan)
        _require_one_step(plan)
        calibration = plan.calibration
        if calibration and calibration.subtracted_share:
            raise SettingError(
                f"calibration_subtracted_share is {calibration.subtracted_share:g}; it must be 0 "
                "where utterances are hidden in secure sums: a device's own contribution to the "
                "model is not noised there, and would move the statistics of all its clips"
            )
        secure = _configs(plan)
        for settings, parameters, sensitivity, multiplier in self._promised_sums(plan):
            secure.check_sum(settings, near_gaussian=True)
            if settings.parameters != parameters or settings.sensitivity != sensitivity:
                raise SettingError(
                    f"a secure sum of {settings.parameters} values is noised for a change of "
                    f"{settings.sensitivity:.6g}, and one utterance changes {parameters} values by "
                    f"{sensitivity:.6g}; they must be equal"
                )
            check_shares(multiplier, secure.guaranteed_multiplier(settings))
        if (secure.calibration is None) != (calibration is None):
            raise SettingError("head statistics are promised and summed securely, or neither")

    def _promised_sums(
        self, plan: PlanFacts
    ) -> list[tuple[SecureAggregationConfig, int, float, float]]:
        """Each secure sum: settings, length, what one utterance changes, and noise over that."""
        secure, change = _configs(plan), self._enrolment_change(plan)
        sums = [
            (secure.enrolment, _enrolment_size(plan), change, 1 / change),
            (
                secure.update,
                count_parameters(build_network(plan.model, 0)),
                plan.mechanism.clip_norm,
                plan.mechanism.noise_multiplier,
            ),
        ]
        if plan.calibration and secure.calibration:
            noise = plan.calibration.noise_multiplier
            sums.append((secure.calibration, STATISTICS_SIZE, SENSITIVITY, noise))
        return sums

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Scale noise for every sum, and the normaliser's own.

        Label counts have the recipe's noise, or that of their share where the budget is small.
        """
        _require_one_step(plan)
        precision = accounting.gaussian_mu(target.epsilon, target.delta) ** 2
        fair = 1 / math.sqrt(target.shares.label_counts * precision)
        bounds = replace(bounds, count_noise=max(bounds.count_noise, fair))
        calibration = plan.calibration and replace(plan.calibration, subtracted_share=0.0)
        return add_utterance_noise(
            replace(plan, calibration=calibration),
            target,
            bounds,
            sum_norm=None,
            list_releases=lambda noised: _in_sums(noised.all_releases()),
        )

    def add_secure_sums(self, plan: PlanT, bounds: PrivacyBounds, *, devices: int) -> PlanT:
        """Make the sums secure by shares of the noise."""
        change = self._enrolment_change(plan)
        settings = bounds.user
        make = partial(
            select_part_parameters,
            devices,
            dropout=settings.dropout,
            corruption=settings.corruption,
        )
        secure = SecureSumConfigs(
            enrolment=make(_enrolment_size(plan), change, noise_multiplier=1 / change),
            update=make(
                count_parameters(build_network(plan.model, 0)),
                plan.mechanism.clip_norm,
                noise_multiplier=plan.mechanism.noise_multiplier,
            ),
            dishonest=count_share(devices, settings.corruption),
            calibration=make(
                STATISTICS_SIZE,
                SENSITIVITY,
                noise_multiplier=plan.calibration.noise_multiplier,
            )
            if plan.calibration
            else None,
        )
        return replace(plan, secure_sums=secure)

    def budgets(
        self, target: PrivacyTarget, releases: Iterable[Release] = ()
    ) -> tuple[PrivacyBudget, ...]:
        """As usual, for releases in sums: the same before and after the sums are made secure."""
        return super().budgets(target, _in_sums(releases))

    # --- mechanisms and records ---------------------------------------------------------------

    def counts_release(self, plan: PlanFacts) -> Release:
        """As for an utterance, in shares."""
        return _share(plan, _configs(plan).enrolment, super().counts_release(plan))

    def centre_release(self, plan: PlanFacts) -> Release | None:
        """As for an utterance, in shares."""
        release = super().centre_release(plan)
        return release and _share(plan, _configs(plan).enrolment, release)

    def calibration_release(self, plan: PlanFacts) -> Release | None:
        """As for an utterance, in shares."""
        release, settings = super().calibration_release(plan), _configs(plan).calibration
        return _share(plan, settings, release) if release and settings else None

    def gradient_release(self, plan: PlanFacts, number: int) -> Release:
        """As for an utterance, in shares."""
        return _share(plan, _configs(plan).update, super().gradient_release(plan, number))

    # --- on a device --------------------------------------------------------------------------

    def match_sums(
        self,
        plan: PlanFacts,
        *,
        plain: Callable[[], T],
        secure: Callable[[SecureSumConfigs], T],
    ) -> T:
        """Choose sums by secure aggregation."""
        return secure(_configs(plan))

    def sum_unit(self, plan: PlanFacts, kind: SumKind) -> float:
        """Noise of the part: so divided, all values of the first sum have the same."""
        noises = {SumKind.LABEL_COUNTS: plan.count_noise}
        if plan.centre:
            noises[SumKind.CENTRE] = plan.centre.noise_multiplier * plan.centre.clip_norm
        if kind not in noises:
            raise SettingError(f"the plan's first secure sum has no {kind.value}")
        return noises[kind]

    def _enrolment_change(self, plan: PlanFacts) -> float:
        """What one utterance changes in the first sum, over the noise of its values."""
        changes = [1 / plan.count_noise]
        if plan.centre:
            changes.append(1 / plan.centre.noise_multiplier)
        return math.hypot(*changes)

    # --- on the server ------------------------------------------------------------------------

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Zero: what a device adds is noised as it is masked."""
        return 0.0

    def sum_noise_std(
        self, plan: PlanFacts, kind: SumKind, *, devices: float, denominator: float = 1.0
    ) -> float:
        """All shares together: more than is promised, as those who drop out are not counted on."""
        secure = _configs(plan)
        sums = {
            SumKind.LABEL_COUNTS: (secure.enrolment, plan.count_noise),
            SumKind.HEAD_STATISTICS: (secure.calibration, 1.0),
            SumKind.UPDATE: (secure.update, self.update_unit(plan, denominator)),
        }
        if plan.centre:
            sums[SumKind.CENTRE] = (secure.enrolment, self.sum_unit(plan, SumKind.CENTRE))
        settings, unit = sums.get(kind, (None, 1.0))
        if settings is None:
            return 0.0
        return unit * settings.noise * settings.granularity * math.sqrt(devices)

    # --- words --------------------------------------------------------------------------------

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """For one utterance, against those who see sums."""
        secure = _configs(plan)
        return (
            "Whatever anybody saw of a device's part in this run changes by a factor of at most "
            f"e^{target.epsilon:g} in probability (but for a chance of {target.delta:g}) when one "
            "utterance of its user is added or removed. Unit: utterance. This holds against anyone "
            "who sees the sums over devices and the models, the server included as long as it "
            f"follows the protocol of secure sums and at most {secure.dishonest} devices side with "
            "it: the noise is in the sums, and each device adds a share. It covers label counts, "
            f"centre, the normaliser that training uses, {plan.rounds} rounds of gradients"
            f"{calibration_note(plan)}."
        )

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """The promise holds against a server that sees sums only, while enough devices are honest.

        The local promise of ``utterance`` needs none of it.
        """
        enough = (
            "At least as many honest devices as the plan counts on add their share of the noise, "
            "and the identities that devices pinned are the users' own."
        )
        return make_adversary_table(
            {
                Adversary.NETWORK: (ONE_UTTERANCE, f"Messages are masked. {enough}"),
                Adversary.MODEL_RECIPIENT: (ONE_UTTERANCE, enough),
                Adversary.CURIOUS_SERVER: (ONE_UTTERANCE, enough),
                Adversary.LYING_SERVER: (
                    NOTHING,
                    (
                        "Devices refuse requests with wrong signatures or thresholds, and sums of "
                        "fewer devices, or with fewer dishonest ones, than their owners accept; "
                        "but such a server may learn sums over a part of the devices, with less "
                        "noise than is booked. Unit utterance without secure sums holds against it."
                    ),
                ),
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

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """Honest devices, and a server that follows the protocol."""
        secure = _configs(plan)
        update = secure.update
        own = update.noise / update.rounded_sensitivity
        return (
            (
                f"In a sum of at least {update.quorum} devices, at most {secure.dishonest} side "
                "with the server; identities that devices pinned are the users' own; the server "
                "follows the protocol of secure aggregation, and remembers all that it sees. A "
                "device refuses a plan whose numbers are below what its own owner accepts."
            ),
            (
                "The noise that is booked is that of the honest devices in a sum. A device's own "
                f"share alone has a noise multiplier of {own:.3g} in a round, where "
                f"{plan.mechanism.noise_multiplier:.3g} is booked."
            ),
        )

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """As for an utterance, and a server that breaks the protocol."""
        return (
            *super().not_protected(plan),
            "Utterances, against a server that does not follow the protocol of secure sums.",
        )


def _configs(plan: PlanFacts) -> SecureSumConfigs:
    """How the plan's sums are made.

    Raises:
        SettingError: They are not secure.
    """
    if plan.secure_sums is None:
        raise SettingError("the plan's sums are not secure yet")
    return plan.secure_sums


def _require_one_step(plan: PlanFacts) -> None:
    """Refuse a round of several steps.

    Raises:
        SettingError: It has several.
    """
    if plan.training.steps != 1:
        raise SettingError(
            f"steps is {plan.training.steps}; it must be 1 where utterances are hidden in secure "
            "sums: a second step would follow gradients that nobody has noised yet"
        )


def _enrolment_size(plan: PlanFacts) -> int:
    """Length of the first sum: label counts, and the centre where there is one."""
    return len(plan.labels) + (plan.model.inputs if plan.centre else 0)


def _share(plan: PlanFacts, settings: SecureAggregationConfig, release: Release) -> Release:
    """The record of a release whose noise is in a secure sum."""
    shares = NoiseShares(devices=settings.quorum, colluders=_configs(plan).dishonest)
    return replace(release, shares=shares)


def _in_sums(releases: Iterable[Release]) -> list[Release]:
    """The same releases in secure sums; the normaliser stays the device's own."""
    return [
        one
        if one.kind is ReleaseKind.NORMALISER
        else replace(one, shares=one.shares or _SOME_SHARES)
        for one in releases
    ]
