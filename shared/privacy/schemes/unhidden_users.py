"""Shared half of the units whose sums over users hide nobody: no bound, no noise for a user."""

import math
from typing import ClassVar

from torch import Tensor

from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.scheme import PlanFacts, PrivacyScheme, SumKind

COMMON_TRAITS = "What all of a user's utterances have in common"


class UnhiddenUsersScheme(PrivacyScheme):
    """Base of units that hide no user: each utterance counts as one, and goes as it is.

    What hides an utterance, if anything, is the unit's own to say: its methods stay abstract.
    """

    has_private_sums: ClassVar[bool] = False
    rows_per_device: ClassVar[int] = 0
    noise_source: ClassVar[NoiseSource | None] = None

    def sum_mechanism(self, plan: PlanFacts, kind: SumKind) -> SumMechanism | None:
        """No mechanism: nothing hides a user."""
        return None

    def books_normaliser(self, plan: PlanFacts) -> bool:
        """It shapes updates that are not bounded as a whole: a release of its own."""
        return True

    def clip_counts(self, plan: PlanFacts, counts: Tensor) -> Tensor:
        """The counts as they are: one utterance moves them by 1."""
        return counts

    def device_rows(self, rows: Tensor) -> Tensor:
        """All of them: one utterance is one row."""
        return rows

    def centre_bound(self, plan: PlanFacts) -> float:
        """Infinity: rows may be bounded, their sum is not."""
        return math.inf

    def clip_statistics(self, plan: PlanFacts, rows: Tensor) -> Tensor:
        """The sum over all clips, each of which is bounded."""
        return rows.sum(0)

    def clip_update(self, plan: PlanFacts, update: Tensor, clip_norm: float) -> Tensor:
        """The update as it is: gradients were clipped and noised before, or not at all."""
        return update

    def clip_part(
        self, plan: PlanFacts, kind: SumKind, part: Tensor, known_norm: float | None
    ) -> Tensor:
        """Return the part unchanged: what bounds it, if anything, came before a device's noise."""
        return part

    def total_weight(self, *, utterances: float, users: float) -> float:
        """Every utterance counts as one."""
        return utterances

    def sampled_divisor(self, received: int, expected: float) -> float:
        """Those who came: no secret here."""
        return float(max(received, 1))

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """None beside those of every run."""
        return ()

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """Traits common to a user's utterances."""
        return (f"{COMMON_TRAITS}: the promise is for one utterance at a time.",)
