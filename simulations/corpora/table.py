"""Tables as people make them: CSV and its dialects, in whatever encoding.

Byte order marks, UTF-16, Windows-1252, semicolons and tabs, line ends of three systems,
quotation marks that are never closed: what can be understood is read, what cannot is counted,
and a table is bounded before it is read.
"""

import csv
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import CorpusError
from sottovoce.shared.identity import identity_key
from sottovoce.simulations.corpora.corpus import Finding

MAX_BYTES: Final = 64 * 2**20
MAX_ROWS: Final = 1_000_000
MAX_COLUMNS: Final = 1_000
MAX_CELL: Final = 100_000
"""Most characters of a cell."""
MAX_NAME: Final = 200
"""Most characters of a speaker's name or of a label."""
_MAX_LINES_OF_A_CELL = 20
_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])", re.IGNORECASE)  # a line that Excel writes on top
_FORMATS = {
    b"PK\x03\x04": "a spreadsheet or an archive",
    b"\xd0\xcf\x11\xe0": "a spreadsheet of an old Excel",
    b"\x1f\x8b": "compressed",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "a database",
    b"{\\rtf": "a document of a word processor",
}
_UNREADABLE = "manifest bytes outside UTF-8"
_TORN = "rows with more cells than columns"
_UNCLOSED = "quotation marks that are never closed"
_TOO_LONG = "rows with a cell that is too long"


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of what cannot be taken as it stands, by reason, with the first few examples."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, what: str, action: str, example: str) -> None:
        """Count one more case of ``what``."""
        key = what, action
        self._counts[key] = self._counts.get(key, 0) + 1
        examples = self._examples.setdefault(key, [])
        if len(examples) < 5:
            examples.append(example[:200])

    def findings(self) -> list[Finding]:
        """One finding for each reason, in the order in which they were met."""
        return [
            Finding(what=what, action=action, count=n, examples=tuple(self._examples[what, action]))
            for (what, action), n in self._counts.items()
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        line: Its first line in the file, from 1.
        cells: Without white space around them; may be fewer than the columns.
        numbers: Each column's number, by its name.
    """

    line: int
    cells: Sequence[str]
    numbers: dict[str, int]

    def __getitem__(self, column: str) -> str:
        number = self.numbers.get(column, len(self.cells))
        return self.cells[number] if number < len(self.cells) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table: its columns, in small letters, and its rows, which are read once, in order."""

    path: Path
    columns: Sequence[str]
    rows: Iterator[Row]


def read_table(
    path: Path, tally: Tally, *, wanted: Sequence[str], is_row: Callable[[str], bool] | None = None
) -> Table:
    """Read a table with a header.

    Args:
        path: Its file.
        tally: Counts what could not be read as it stands, while rows are read.
        wanted: Columns it should have; they decide between separators.
        is_row: Tells whether a single cell can only stand at the beginning of a row of its own;
            helps to see where a quotation mark was not closed.

    Returns:
        The table; blank rows are left out. Whether ``wanted`` are there is not checked.

    Raises:
        CorpusError: The file is missing, no table, empty, or larger than the limits.
    """
    text = _decode(_read_bytes(path), tally)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Blank lines, and lines within cells, are none; an object a line would be gigabytes.
    if text.count("\n") > 2 * MAX_ROWS:
        raise CorpusError(f"{path} has more than {2 * MAX_ROWS} lines; split the corpus")
    lines = text.split("\n")
    # A line of separators only is a blank row of a spreadsheet.
    start = next((at for at, line in enumerate(lines) if not _is_blank(line)), None)
    if start is None:
        raise CorpusError(f"{path} is empty; it needs the columns {', '.join(wanted)}")
    declared = _SEPARATOR_LINE.fullmatch(lines[start].strip())
    start += bool(declared)
    start = next((at for at in range(start, len(lines)) if not _is_blank(lines[at])), start - 1)
    separator = declared[1] if declared else _find_separator(lines[start], wanted)
    columns = [identity_key(name) for name in _split(lines[start], separator)]
    if len(columns) > MAX_COLUMNS:
        raise CorpusError(f"{path} has {len(columns)} columns; it may have at most {MAX_COLUMNS}")
    reader = _RowReader(
        path=path, lines=lines, separator=separator, columns=columns, tally=tally, is_row=is_row
    )
    return Table(path=path, columns=columns, rows=reader.read_rows(start + 1))


def _read_bytes(path: Path) -> bytes:
    """The bytes of a table's file, if they can be one."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise CorpusError(f"{path} is no file; it must be a table, such as CSV")
        if state.st_size > MAX_BYTES:
            raise CorpusError(
                f"{path} has {state.st_size} bytes; a table may have at most {MAX_BYTES}: split "
                "the corpus into several folders"
            )
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    kind = next((kind for beginning, kind in _FORMATS.items() if raw.startswith(beginning)), None)
    if kind:
        raise CorpusError(f"{path} is {kind}; save the table as CSV (comma-separated)")
    return raw


def _decode(raw: bytes, tally: Tally) -> str:
    """A table's text, whatever its encoding."""
    encoding = _find_wide_encoding(raw)
    if encoding:
        return raw.decode(encoding, errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        tally.add(_UNREADABLE, "read as Windows-1252", f"byte {error.start}")
        # Every byte means something in Windows-1252: a name with one odd letter is better than
        # none.
        return raw.decode("cp1252", errors="replace")


def _find_wide_encoding(raw: bytes) -> str | None:
    """UTF-16 or UTF-32, by a mark or by its zeros; None where it is neither."""
    if raw.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    # Excel's "Unicode text" is UTF-16 with a byte order mark; other programs leave it out.
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = raw[:1_000]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > len(head) // 4 > 4 * even:
        return "utf-16-le"
    return "utf-16-be" if even > len(head) // 4 > 4 * odd else None


def _is_blank(line: str) -> bool:
    return not line.strip(" \t,;|\ufeff")


def _find_separator(header: str, wanted: Sequence[str]) -> str:
    """The separator under which the header has most of the columns it should have."""

    def score(separator: str) -> tuple[int, int]:
        names = {identity_key(name) for name in _split(header, separator)}
        return len(names.intersection(wanted)), header.count(separator)

    return max(_SEPARATORS, key=score)


def _split(line: str, separator: str) -> list[str]:
    """The cells of a line that stands alone; a quotation mark may stay open at its end."""
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:  # a cell longer than the limit of the csv module
        return line.split(separator)


@dataclass(frozen=True, kw_only=True, slots=True)
class _RowReader:
    """Reads rows line by line, so that no quotation mark can swallow those that follow."""

    path: Path
    lines: Sequence[str]
    separator: str
    columns: Sequence[str]
    tally: Tally
    is_row: Callable[[str], bool] | None

    def read_rows(self, start: int) -> Iterator[Row]:
        """The rows from a line on."""
        numbers = {name: at for at, name in reversed(list(enumerate(self.columns)))}
        at, count = start, 0
        while at < len(self.lines):
            line = self.lines[at]
            if _is_blank(line):
                at += 1
                continue
            cells, end = self._read_cells(at)
            count += 1
            if count > MAX_ROWS:
                raise CorpusError(f"{self.path} has more than {MAX_ROWS} rows; split the corpus")
            cells = [cell.strip() for cell in cells]
            if max(map(len, cells)) > MAX_CELL:
                limit = f"left out; a cell may have {MAX_CELL} characters"
                self.tally.add(_TOO_LONG, limit, f"line {at + 1}")
            elif any(cells[len(self.columns) :]):
                # Which cell the separator belongs to cannot be known: a guess would give a clip
                # another speaker.
                action = "left out; quote cells that hold the separator"
                self.tally.add(_TORN, action, f"line {at + 1}: {cells[0]}")
            else:
                yield Row(line=at + 1, cells=cells, numbers=numbers)
            at = end
        if not count:
            raise CorpusError(f"{self.path} has a header and no rows; it needs some below it")

    def _read_cells(self, at: int) -> tuple[list[str], int]:
        """The cells of the row that begins at a line, and the line behind it."""
        line = self.lines[at]
        if '"' not in line:
            return line.split(self.separator), at + 1
        # Whether a quotation mark is still open at the end shows in whether csv reads on.
        cells, used = self._parse([line, ""])
        if used == 1:
            return cells, at + 1
        several = self._read_lines(at)
        if several:
            return several
        self.tally.add(_UNCLOSED, "read as if they were not there", f"line {at + 1}")
        return self._without_mark(_split(line, self.separator)), at + 1

    def _read_lines(self, at: int) -> tuple[list[str], int] | None:
        """A row whose quoted cell has several lines, none of which is a row of its own."""
        lines = self.lines[at : at + _MAX_LINES_OF_A_CELL]
        if len(lines) < 2 or self._looks_like_row(lines[1]):
            return None
        cells, used = self._parse(chain((f"{line}\n" for line in lines), [""]))
        swallowed = lines[1:used]
        if used > len(lines) or len(cells) > len(self.columns):
            return None
        return None if any(map(self._looks_like_row, swallowed)) else (cells, at + used)

    def _parse(self, lines: Iterable[str]) -> tuple[list[str], int]:
        """The first row, and how many lines it has."""
        reader = csv.reader(lines, delimiter=self.separator)
        try:
            cells = next(reader, [])
        except csv.Error:  # a cell longer than the limit of the csv module
            return ["x" * (MAX_CELL + 1)], 1
        return cells, reader.line_num

    def _looks_like_row(self, line: str) -> bool:
        cells = _split(line, self.separator)
        whole = len(cells) == len(self.columns) > 1
        return whole or (len(cells) > 1 and bool(self.is_row and any(map(self.is_row, cells))))

    def _without_mark(self, cells: list[str]) -> list[str]:
        """A row whose last cell has an open quotation mark, and so all that follows it."""
        opened = len(cells) - 1
        rest = cells[opened].split(self.separator)
        # What is too much belongs to the cell that was to be quoted for its separators.
        surplus = max(0, len(rest) - (len(self.columns) - opened))
        joined = self.separator.join(rest[: surplus + 1])
        return [*cells[:opened], joined, *rest[surplus + 1 :]]
