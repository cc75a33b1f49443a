"""No privacy, in the shape of privacy: no bound, no noise, an infinite epsilon."""

from typing import ClassVar

from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.privacy.scheme import (
    PlanFacts,
    PlanT,
    SumKind,
    UnitWording,
    clips_bound,
)
from sottovoce.shared.privacy.schemes.unhidden_users import UnhiddenUsersScheme
from sottovoce.shared.privacy.target import PrivacyTarget


class NoPrivacyScheme(UnhiddenUsersScheme):
    """Nothing is protected, and every release is booked as unprotected."""

    unit: ClassVar[str] = "none"
    promised: ClassVar[tuple[PrivacyUnit, ...]] = ()
    has_private_messages: ClassVar[bool] = False
    allows_population: ClassVar[bool] = True
    wording: ClassVar[UnitWording] = UnitWording(
        name="none", short="no promise", protects="nothing"
    )

    def describes(self, plan: PlanFacts) -> bool:
        """No noise of devices, and nothing that hides users."""
        return (
            not plan.unit
            and not plan.count_noise > 0
            and plan.user is None
            and plan.secure_sums is None
        )

    def check_loss(self, loss: Loss) -> None:
        """Any loss will do."""

    def check_plan(self, plan: PlanFacts) -> None:
        """Accept every plan: nothing is promised."""

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """No noise: the plan as it is."""
        return plan

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Zero: devices add no noise."""
        return 0.0

    def update_unit(self, plan: PlanFacts, denominator: float) -> float:
        """Length 1: updates are measured in weights."""
        return 1.0

    def check_streaming(self, plan: PlanFacts) -> None:
        """Accept every plan: nothing is promised."""

    def max_device_norm(self, plan: PlanFacts, kind: SumKind) -> float:
        """As many clips as a device can hold; an update is not bounded."""
        return clips_bound(plan, kind)

    def update_reach(self, plan: PlanFacts, denominator: float) -> float:
        """Updates are in weights."""
        return 1.0

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """That there is none."""
        return (
            "No privacy guarantee: this run was asked to protect nothing, and every release is "
            "booked as unprotected."
        )

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """Nothing holds against anybody who sees messages or models."""
        return make_adversary_table(
            {one: (NOTHING, "No bound and no noise.") for one in Adversary if one not in _AT_REST}
        )


_AT_REST = (Adversary.THIEF, Adversary.SUPPLIER)
"""Adversaries who look at the device itself, where privacy in training changes nothing."""
