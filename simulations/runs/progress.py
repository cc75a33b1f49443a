"""Progress of a run: rounds done, epsilon spent, mean UAR of finished folds.

All of it is for display only: nothing is chosen, stopped or tuned by the UAR of test users.
"""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.training_plan import Plan

_SERVER_LOGGER: Final = "sottovoce.server"


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
    """Reports the progress of all folds from the server's log of rounds.

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
        log = logging.getLogger(_SERVER_LOGGER)
        self._level = log.level
        self._log_filter = _RoundLogFilter(
            self._report_round_end, min_level=log.getEffectiveLevel()
        )

    def __enter__(self) -> Self:
        log = logging.getLogger(_SERVER_LOGGER)
        log.setLevel(min(logging.INFO, log.getEffectiveLevel()))
        log.addFilter(self._log_filter)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        log = logging.getLogger(_SERVER_LOGGER)
        log.removeFilter(self._log_filter)
        log.setLevel(self._level)

    def report_fold_end(self, uar: float) -> None:
        """A fold has ended."""
        self._uars.append(uar)
        self._report_status(0)

    def _report_round_end(self, number: int) -> None:
        """A round of the present fold has ended."""
        self._report_status(number)

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
        return accountant.compute_epsilon(
            releases, self._budget.delta, unit=self._budget.unit, fast=True
        )


class _RoundLogFilter(logging.Filter):
    """Takes the number of each finished round from the server's log; shows nobody more of it."""

    def __init__(self, on_round_end: Callable[[int], None], *, min_level: int) -> None:
        super().__init__()
        self._on_round_end, self._min_level = on_round_end, min_level

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the number of a round; whether the record is at the level that was set before."""
        if record.msg.startswith("round ") and isinstance(record.args, tuple):
            self._on_round_end(int(str(record.args[0])))
        return record.levelno >= self._min_level
