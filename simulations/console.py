"""Progress for people: bars on a terminal, plain lines in a pipe, nothing when quiet."""

import logging
import sys
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


class Console:
    """Where a run tells how far it is; it writes to standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=self._terminal)
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

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far something is."""
        if self._quiet or not total:
            return
        if self._live:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
            return
        tenth = done * 10 // total
        if self._shown.get(what) != tenth:
            self._shown[what] = tenth
            self._terminal.print(f"{what}: {done} of {total}", markup=False)


class _Handler(logging.Handler):
    """Warnings as lines, rounds as progress."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.levelno >= logging.WARNING:
            self._console.warn(record.getMessage())
        elif record.msg.startswith("round ") and isinstance(record.args, tuple):
            done, total = (int(str(number)) for number in record.args)
            self._console.progress("rounds of this fold", done, total)
