"""Shared half of the units whose utterances are hidden in secure sums: noise in shares.

What a device adds before noise is what it would release under ``utterance``: clipped gradients,
label counts, clipped rows and head statistics, of which one utterance changes no more. The noise
that hides it is all honest devices' together, so each adds a fraction of what it needs alone, and
nobody may see less than the sum.

The normaliser stays the device's own, under noise of its own in full. It is computed from the
utterances that train and moves what each of them adds; no sum bounds that.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, TypeVar

from sottovoce.shared.calibration.head_statistics import SENSITIVITY, STATISTICS_SIZE
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import UserLevelSettings
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseShares, Release, ReleaseKind
from sottovoce.shared.privacy.scheme import PlanFacts, PrivacyScheme, SumKind
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs, check_shares
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.parameter_selection import (
    select_nested_parameters,
    select_parameters,
)

T = TypeVar("T")

_SOME_SHARES: Final = NoiseShares(devices=2, colluders=0)
"""For planning: what a release costs does not depend on how many add its noise."""

ENOUGH_HONEST_DEVICES: Final = (
    "At least as many honest devices as the plan counts on add their share of the noise, and the "
    "identities that devices pinned are the users' own."
)
LYING_SERVER_LIMIT: Final = (
    "Devices refuse requests with wrong signatures or thresholds, and sums of fewer devices, or "
    "with fewer dishonest ones, than their owners accept; but such a server may learn sums over a "
    "part of the devices, with less noise than is booked. Unit utterance without secure sums holds "
    "against it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromisedSum:
    """Promise of one secure sum to one utterance.

    Attributes:
        parameters: Length of a device's part.
        sensitivity: What one utterance changes in it, in L2.
        noise_multiplier: Standard deviation of the sum's noise over that.
    """

    parameters: int
    sensitivity: float
    noise_multiplier: float


class SecureGradientsScheme(PrivacyScheme):
    """Base of units whose devices add clipped gradients to secure sums, and a share of the noise.

    It comes before the unit's own base, whose releases it marks.
    """

    secure: ClassVar[bool] = True
    sends_gradients: ClassVar[bool] = True
    accountant_name: ClassVar[str] = accounting.DISCRETE_ACCOUNTANT_NAME

    # --- planning -----------------------------------------------------------------------------

    @abstractmethod
    def enrolment_change(self, plan: PlanFacts) -> float:
        """L2 bound on what one utterance changes in the first sum, in that sum's units."""

    @abstractmethod
    def enrolment_noise(self, plan: PlanFacts) -> float:
        """Standard deviation of the noise that is booked for the first sum, in its units."""

    def check_secure_sums(self, plan: PlanFacts) -> None:
        """Refuse sums whose noise is less than is booked, and what a sum's noise cannot hide.

        Raises:
            SettingError: They are such sums.
        """
        require_one_step(plan)
        secure, calibration = configs_of(plan), plan.calibration
        if calibration and calibration.subtracted_share:
            raise SettingError(
                f"calibration_subtracted_share is {calibration.subtracted_share:g}; it must be 0 "
                "where utterances are hidden in secure sums: a device's own contribution to the "
                "model is not noised there, and would move the statistics of all its clips"
            )
        for settings, promised in self._checked_sums(plan):
            secure.check_sum(settings, near_gaussian=True)
            found = (settings.parameters, settings.sensitivity)
            if found != (promised.parameters, promised.sensitivity):
                raise SettingError(
                    f"a secure sum of {settings.parameters} values is noised for a change of "
                    f"{settings.sensitivity:.6g}, and one utterance changes {promised.parameters} "
                    f"values by {promised.sensitivity:.6g}; they must be equal"
                )
            check_shares(promised.noise_multiplier, secure.guaranteed_multiplier(settings))
        if (secure.calibration is None) != (calibration is None):
            raise SettingError("head statistics are promised and summed securely, or neither")

    def _checked_sums(self, plan: PlanFacts) -> list[tuple[SecureAggregationConfig, PromisedSum]]:
        """Settings of each secure sum, and what is promised of it."""
        secure = configs_of(plan)
        settings = (secure.enrolment, secure.update, secure.calibration)
        return [
            (one, promised)
            for one, promised in zip(settings, self.promised_sums(plan), strict=True)
            if one and promised
        ]

    def promised_sums(self, plan: PlanFacts) -> tuple[PromisedSum, PromisedSum, PromisedSum | None]:
        """Promises of the first sum, of updates and, where there is one, of head statistics."""
        change, mechanism, calibration = (
            self.enrolment_change(plan),
            plan.mechanism,
            plan.calibration,
        )
        return (
            PromisedSum(
                parameters=len(plan.labels) + (plan.model.inputs if plan.centre else 0),
                sensitivity=change,
                noise_multiplier=self.enrolment_noise(plan) / change,
            ),
            PromisedSum(
                parameters=count_parameters(build_network(plan.model, 0)),
                sensitivity=mechanism.clip_norm,
                noise_multiplier=mechanism.noise_multiplier,
            ),
            PromisedSum(
                parameters=STATISTICS_SIZE,
                sensitivity=SENSITIVITY,
                noise_multiplier=calibration.noise_multiplier,
            )
            if calibration
            else None,
        )

    def budgets(
        self, target: PrivacyTarget, releases: Iterable[Release] = ()
    ) -> tuple[PrivacyBudget, ...]:
        """As usual, for releases in sums: the same before and after the sums are made secure."""
        return super().budgets(target, mark_in_sums(releases))

    # --- mechanisms and records ---------------------------------------------------------------

    def counts_release(self, plan: PlanFacts) -> Release:
        """As without secure sums, in shares."""
        return _share(plan, configs_of(plan).enrolment, super().counts_release(plan))

    def centre_release(self, plan: PlanFacts) -> Release | None:
        """As without secure sums, in shares."""
        release = super().centre_release(plan)
        return release and _share(plan, configs_of(plan).enrolment, release)

    def calibration_release(self, plan: PlanFacts) -> Release | None:
        """As without secure sums, in shares."""
        release, settings = super().calibration_release(plan), configs_of(plan).calibration
        return _share(plan, settings, release) if release and settings else None

    def gradient_release(self, plan: PlanFacts, number: int) -> Release:
        """As without secure sums, in shares."""
        return _share(plan, configs_of(plan).update, super().gradient_release(plan, number))

    # --- on a device and on the server --------------------------------------------------------

    def match_sums(
        self,
        plan: PlanFacts,
        *,
        plain: Callable[[], T],
        secure: Callable[[SecureSumConfigs], T],
    ) -> T:
        """Choose sums by secure aggregation."""
        return secure(configs_of(plan))

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Zero: what a device adds is noised as it is masked."""
        return 0.0

    def sum_noise_std(
        self, plan: PlanFacts, kind: SumKind, *, devices: float, denominator: float = 1.0
    ) -> float:
        """All shares together: more than is promised, as those who drop out are not counted on."""
        secure = configs_of(plan)
        sums = {
            SumKind.LABEL_COUNTS: (secure.enrolment, self.sum_unit(plan, SumKind.LABEL_COUNTS)),
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

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """Honest devices, and a server that follows the protocol."""
        secure = configs_of(plan)
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
                f"share alone has a noise multiplier of {own:.3g} for an utterance in a round, "
                f"where {plan.mechanism.noise_multiplier:.3g} is booked."
            ),
        )


def configs_of(plan: PlanFacts) -> SecureSumConfigs:
    """How the plan's sums are made.

    Raises:
        SettingError: They are not secure.
    """
    found = plan.secure_sums or (plan.user.secure if plan.user else None)
    if found is None:
        raise SettingError("the plan's sums are not secure yet")
    return found


def require_one_step(plan: PlanFacts) -> None:
    """Refuse a round of several steps.

    Raises:
        SettingError: It has several.
    """
    if plan.training.steps != 1:
        raise SettingError(
            f"steps is {plan.training.steps}; it must be 1 where utterances are hidden in secure "
            "sums: a second step would follow gradients that nobody has noised yet"
        )


def select_nested_sum(
    devices: int,
    settings: UserLevelSettings,
    promised: PromisedSum,
    norm: float,
    multiplier: float,
) -> SecureAggregationConfig:
    """Select a sum that hides both a whole device and one utterance.

    Args:
        devices: How many take part in it.
        settings: Shares of devices that drop out and collude.
        promised: Promise to one utterance.
        norm: L2 bound on the whole part.
        multiplier: Standard deviation of the noise over ``norm``.

    Raises:
        SettingError: Too few devices for what the sum must bear.
    """
    plain = select_parameters(
        devices,
        promised.parameters,
        norm,
        dropout=settings.dropout,
        corruption=settings.corruption,
        noise_multiplier=multiplier,
    )
    return select_nested_parameters(
        plain,
        promised.sensitivity,
        corruption=settings.corruption,
        noise_multiplier=multiplier,
        part_noise_multiplier=promised.noise_multiplier,
    )


def mark_in_sums(releases: Iterable[Release]) -> list[Release]:
    """Mark releases as noised in secure sums; the normaliser stays the device's own."""
    return [
        one
        if one.kind is ReleaseKind.NORMALISER
        else replace(one, shares=one.shares or _SOME_SHARES)
        for one in releases
    ]


def _share(plan: PlanFacts, settings: SecureAggregationConfig, release: Release) -> Release:
    """The record of a release whose noise is in a secure sum."""
    shares = NoiseShares(devices=settings.quorum, colluders=configs_of(plan).dishonest)
    return replace(release, shares=shares)
