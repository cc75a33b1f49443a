"""Progress for people: bars on a terminal, plain lines in a pipe, nothing when quiet."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from sottovoce.shared.printable import clean_text
from sottovoce.simulations.runs.progress import RunStatus


class ProgressConsole:
    """Shows on standard error how far a run is."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=self._terminal,
        )
        self._first_status: tuple[float, int] | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, int] = {}
        self._live = not quiet and sys.stderr.isatty()
        self._handler = _Handler(self)

    def __enter__(self) -> Self:
        log = logging.getLogger("sottovoce")
        log.setLevel(logging.INFO)
        # A root logger with a handler would print every warning twice.
        log.propagate = False
        log.addHandler(self._handler)
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        logging.getLogger("sottovoce").removeHandler(self._handler)
        if self._live:
            self._bars.stop()

    def print_message(self, line: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            self._terminal.print(clean_text(line), markup=False)

    def print_warning(self, line: str) -> None:
        """Print what went wrong, quiet or not."""
        self._terminal.print(clean_text(f"warning: {line}"), markup=False)

    def update_progress(self, task: str, done: int, total: int, *, details: str = "") -> None:
        """Show how much of a task is done; in a pipe a line at every tenth."""
        if self._quiet or not total:
            return
        task, details = clean_text(task), clean_text(details)
        if self._live:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, details="")
            self._bars.update(self._tasks[task], completed=done, total=total, details=details)
            return
        tenth = done * 10 // total
        if self._shown.get(task) != tenth:
            self._shown[task] = tenth
            parts = [f"{task}: {done} of {total}", *([details] if details else [])]
            self._terminal.print(clean_text(", ".join(parts)), markup=False)

    def show_status(self, status: RunStatus) -> None:
        """Show rounds done, epsilon spent and accuracy so far."""
        parts = [str(status)] if str(status) else []
        if not self._live:
            parts += self._time_left(status)
        self.update_progress(
            "rounds", status.rounds_done, status.total_rounds, details=", ".join(parts)
        )

    def _time_left(self, status: RunStatus) -> list[str]:
        """How long it may still take; nothing before two rounds were seen."""
        now = time.monotonic()
        if self._first_status is None:
            # Counted from here: a resumed run has rounds behind it that took no time now.
            self._first_status = now, status.rounds_done
        since, before = self._first_status
        if status.rounds_done <= before or status.rounds_done == status.total_rounds:
            return []
        left = (
            (now - since)
            / (status.rounds_done - before)
            * (status.total_rounds - status.rounds_done)
        )
        return [f"about {left:.0f} s left" if left < 90 else f"about {left / 60:.0f} min left"]


class _Handler(logging.Handler):
    """Prints warnings that are logged."""

    def __init__(self, console: ProgressConsole) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self._console.print_warning(record.getMessage())
