"""Events of a run: what happened, as typed records, for whoever shows or measures it.

The coordinator emits them on the server, a simulation when a fold ends. A listener runs in the
emitter's process and thread, so it should be quick; it changes nothing of the run.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundEnded:
    """A round was aggregated, and its model is saved.

    Attributes:
        run: The plan's name of the run.
        round: Which one, from 1.
        total_rounds: How many rounds the plan has.
        cohort_size: Number of devices that the round asked to train; None where the event was
            read from a checkpoint.

    Example:
        >>> RoundEnded(run="demo", round=2, total_rounds=8, cohort_size=20).round
        2
    """

    run: str
    round: int
    total_rounds: int
    cohort_size: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldEnded:
    """A fold of a simulation was trained and scored.

    Attributes:
        fold: Its name.
        uar: Unweighted average recall on its test users, in [0, 1]; for display only.
    """

    fold: str
    uar: float


Event = RoundEnded | FoldEnded


class EventListener(Protocol):
    """Takes the events of a run, in the order in which they happen."""

    def handle_event(self, event: Event, /) -> None:
        """Handle one event of a run."""


class IgnoreEvents:
    """The listener that ignores all events."""

    def handle_event(self, event: Event, /) -> None:
        """Do nothing with the event."""
