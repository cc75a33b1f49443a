"""How far a run is, for whoever watches: rounds, epsilon so far, UAR of the folds that ended.

All of it is for looking only: nothing is chosen, stopped or tuned by the UAR of test users.
"""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Budget

_SERVER: Final = "sottovoce.server"


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How far a run is.

    Attributes:
        rounds: Rounds done, of all folds.
        total: Rounds there are, of all folds.
        epsilon: What a device of the present fold has spent; None where nothing is promised.
        limit: What it may spend.
        uar: Mean over the folds that ended, on their test users; None before the first.
        folds: How many folds ended.
    """

    rounds: int
    total: int
    epsilon: float | None
    limit: float | None
    uar: float | None
    folds: int

    def __str__(self) -> str:
        parts = []
        if self.epsilon is not None:
            parts.append(f"epsilon {self.epsilon:.2f} of {self.limit:g}")
        if self.uar is not None:
            folds = "1 fold" if self.folds == 1 else f"{self.folds} folds"
            parts.append(f"UAR so far {self.uar:.3f} ({folds})")
        return ", ".join(parts)


Show = Callable[[Status], None]


class Course:
    """Listens to the server's rounds and tells how far all folds are.

    Args:
        plan: The plan that all folds have.
        folds: How many there are.
        budget: What a device may spend; None where nothing is promised.
        show: Takes each status.
    """

    def __init__(self, plan: Plan, *, folds: int, budget: Budget | None, show: Show) -> None:
        self._plan, self._folds, self._budget, self._show = plan, folds, budget, show
        self._uars: list[float] = []
        log = logging.getLogger(_SERVER)
        self._level = log.level
        self._listener = _Listener(self._round, least=log.getEffectiveLevel())

    def __enter__(self) -> Self:
        log = logging.getLogger(_SERVER)
        log.setLevel(min(logging.INFO, log.getEffectiveLevel()))
        log.addFilter(self._listener)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        log = logging.getLogger(_SERVER)
        log.removeFilter(self._listener)
        log.setLevel(self._level)

    def ended(self, uar: float) -> None:
        """A fold has ended."""
        self._uars.append(uar)
        self._tell(0)

    def _round(self, number: int) -> None:
        """A round of the present fold has ended."""
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Show where all folds are."""
        ended = len(self._uars)
        self._show(
            Status(
                rounds=ended * self._plan.rounds + number,
                total=self._folds * self._plan.rounds,
                epsilon=self._spent(number or self._plan.rounds),
                limit=self._budget.epsilon if self._budget else None,
                uar=statistics.fmean(self._uars) if self._uars else None,
                folds=ended,
            )
        )

    def _spent(self, number: int) -> float | None:
        """What a device has spent after a round; its own ledger asked for the same price."""
        if self._budget is None:
            return None
        releases = [one for one in self._plan.releases() if one.round <= number]
        return accountant.epsilon(releases, self._budget.delta, unit=self._budget.unit, fast=True)


class _Listener(logging.Filter):
    """Hears the server say which round has ended; others hear no more than they did before."""

    def __init__(self, ended: Callable[[int], None], *, least: int) -> None:
        super().__init__()
        self._ended, self._least = ended, least

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the number of a round; whether the record was asked for by anybody else."""
        if record.msg.startswith("round ") and isinstance(record.args, tuple):
            self._ended(int(str(record.args[0])))
        return record.levelno >= self._least
