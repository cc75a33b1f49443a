"""Progress of a run: rounds done, epsilon spent, mean UAR of finished folds.

All of it is for display only: nothing is chosen, stopped or tuned by the UAR of test users.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.events import Event, FoldEnded, RoundEnded
from sottovoce.shared.protocol.training_plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Progress of a run.

    Attributes:
        rounds_done: Rounds done, of all folds.
        total_rounds: Rounds there are, of all folds.
        epsilon: What a device of the present fold has spent; None where nothing is promised.
        epsilon_budget: What it may spend.
        mean_uar: Mean over the folds that ended, on their test users; None before the first.
        folds_done: How many folds ended.
    """

    rounds_done: int
    total_rounds: int
    epsilon: float | None
    epsilon_budget: float | None
    mean_uar: float | None
    folds_done: int

    def __str__(self) -> str:
        parts = []
        if self.epsilon is not None:
            parts.append(f"epsilon {self.epsilon:.2f} of {self.epsilon_budget:g}")
        if self.mean_uar is not None:
            folds = "1 fold" if self.folds_done == 1 else f"{self.folds_done} folds"
            parts.append(f"UAR so far {self.mean_uar:.3f} ({folds})")
        return ", ".join(parts)


OnStatus = Callable[[RunStatus], None]


class ProgressReporter:
    """Turns the events of all folds into a status of the run (see ``events.EventListener``).

    Args:
        plan: The plan that all folds have.
        folds: How many there are.
        budget: What a device may spend; None where nothing is promised.
        on_status: Takes each status.
    """

    def __init__(
        self, plan: Plan, *, folds: int, budget: PrivacyBudget | None, on_status: OnStatus
    ) -> None:
        self._plan, self._folds, self._budget, self._on_status = plan, folds, budget, on_status
        self._uars: list[float] = []

    def report_start(self) -> None:
        """Report that no round is done yet; the first one may take a minute."""
        self._on_status(
            RunStatus(
                rounds_done=0,
                total_rounds=self._folds * self._plan.rounds,
                epsilon=None,
                epsilon_budget=None,
                mean_uar=None,
                folds_done=0,
            )
        )

    def handle_event(self, event: Event, /) -> None:
        """Report the status after a round of the present fold, or after the fold."""
        match event:
            case RoundEnded():
                self._report_status(event.round)
            case FoldEnded():
                self._uars.append(event.uar)
                self._report_status(0)

    def _report_status(self, number: int) -> None:
        """Report the progress of all folds."""
        ended = len(self._uars)
        self._on_status(
            RunStatus(
                rounds_done=ended * self._plan.rounds + number,
                total_rounds=self._folds * self._plan.rounds,
                epsilon=self._epsilon_spent(number or self._plan.rounds),
                epsilon_budget=self._budget.epsilon if self._budget else None,
                mean_uar=statistics.fmean(self._uars) if self._uars else None,
                folds_done=ended,
            )
        )

    def _epsilon_spent(self, number: int) -> float | None:
        """Epsilon that a device has spent after a round, as its own ledger computes it."""
        if self._budget is None:
            return None
        releases = [one for one in self._plan.all_releases() if one.round <= number]
        return self._budget.filter.compute_epsilon(
            releases, self._budget.delta, unit=self._budget.unit, fast=True
        )
