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

from sottovoce.simulations.course import Status


class Console:
    """Where a run tells how far it is; it writes to standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=self._terminal,
        )
        self._begun: tuple[float, int] | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, int] = {}
        self._live = not quiet and sys.stderr.isatty()
        self._handler = _Handler(self)

    def __enter__(self) -> Self:
        log = logging.getLogger("sottovoce")
        log.setLevel(logging.INFO)
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

    def tell(self, line: str) -> None:
        """Say something once."""
        if not self._quiet:
            self._terminal.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Say what went wrong, quiet or not."""
        self._terminal.print(f"warning: {line}", markup=False)

    def progress(self, what: str, done: int, total: int, *, said: str = "") -> None:
        """Say how far something is."""
        if self._quiet or not total:
            return
        if self._live:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, said="")
            self._bars.update(self._tasks[what], completed=done, total=total, said=said)
            return
        tenth = done * 10 // total
        if self._shown.get(what) != tenth:
            self._shown[what] = tenth
            parts = [f"{what}: {done} of {total}", *([said] if said else [])]
            self._terminal.print(", ".join(parts), markup=False)

    def show(self, status: Status) -> None:
        """Say how far a run is, what it has spent, and how it does so far."""
        parts = [str(status)] if str(status) else []
        if not self._live:
            parts += self._left(status)
        self.progress("rounds", status.rounds, status.total, said=", ".join(parts))

    def _left(self, status: Status) -> list[str]:
        """How long it may still take; nothing before two rounds were seen."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, status.rounds
        since, before = self._begun
        if status.rounds <= before or status.rounds == status.total:
            return []
        left = (now - since) / (status.rounds - before) * (status.total - status.rounds)
        return [f"about {left:.0f} s left" if left < 90 else f"about {left / 60:.0f} min left"]


class _Handler(logging.Handler):
    """Warnings as lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._console.warn(record.getMessage())
