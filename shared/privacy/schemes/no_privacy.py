"""No privacy, in the shape of privacy: no bound, no noise, an infinite epsilon."""

import math
from typing import ClassVar

from torch import Tensor

from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import (
    PlanFacts,
    PlanT,
    PrivacyScheme,
    SumKind,
    UnitWording,
    clips_bound,
)
from sottovoce.shared.privacy.target import PrivacyTarget

COMMON_TRAITS = "What all of a user's utterances have in common"


class NoPrivacyScheme(PrivacyScheme):
    """Nothing is protected, and every release is booked as unprotected."""

    unit: ClassVar[str] = "none"
    promised: ClassVar[tuple[PrivacyUnit, ...]] = ()
    has_private_messages: ClassVar[bool] = False
    has_private_sums: ClassVar[bool] = False
    allows_population: ClassVar[bool] = True
    rows_per_device: ClassVar[int] = 0
    noise_source: ClassVar[NoiseSource | None] = None
    wording: ClassVar[UnitWording] = UnitWording(
        name="none", short="no promise", protects="nothing"
    )

    def describes(self, plan: PlanFacts) -> bool:
        """No noise of devices, and nothing that hides users."""
        return not plan.unit and not plan.count_noise > 0 and plan.user is None

    def check_loss(self, loss: Loss) -> None:
        """Any loss will do."""

    def check_plan(self, plan: PlanFacts) -> None:
        """Accept every plan: nothing is promised."""

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """No noise: the plan as it is."""
        return plan

    def sum_mechanism(self, plan: PlanFacts, kind: SumKind) -> SumMechanism | None:
        """Nothing hides a user."""
        return None

    def books_normaliser(self, plan: PlanFacts) -> bool:
        """It is a release, booked as unprotected."""
        return True

    def clip_counts(self, plan: PlanFacts, counts: Tensor) -> Tensor:
        """The counts as they are."""
        return counts

    def device_rows(self, rows: Tensor) -> Tensor:
        """Return all rows of the device."""
        return rows

    def centre_bound(self, plan: PlanFacts) -> float:
        """Infinity: the centre has no bound."""
        return math.inf

    def clip_statistics(self, plan: PlanFacts, rows: Tensor) -> Tensor:
        """The sum over all clips."""
        return rows.sum(0)

    def clip_update(self, plan: PlanFacts, update: Tensor, clip_norm: float) -> Tensor:
        """The update as it is."""
        return update

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Zero: devices add no noise."""
        return 0.0

    def update_unit(self, plan: PlanFacts, denominator: float) -> float:
        """Length 1: updates are measured in weights."""
        return 1.0

    def clip_part(
        self,
        plan: PlanFacts,
        kind: SumKind,
        part: Tensor,
        known_norm: float | None,
    ) -> Tensor:
        """Return the part unchanged, without clipping."""
        return part

    def total_weight(self, *, utterances: float, users: float) -> float:
        """Every utterance counts as one."""
        return utterances

    def sampled_divisor(self, received: int, expected: float) -> float:
        """Those who came: no secret here."""
        return float(max(received, 1))

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

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """None beside those of every run."""
        return ()

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """Traits common to a user's utterances."""
        return (f"{COMMON_TRAITS}: the promise is for one utterance at a time.",)
