"""Read a folder whose ``manifest.csv`` lists its clips.

Manifests come from everywhere: with byte order marks, semicolons or tabs, Windows paths, cells
left empty. Whatever can be understood is; whatever cannot is counted and reported; only a
manifest without the three columns that matter is refused.
"""

import csv
import difflib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora import discovery, label_map
from sottovoce.simulations.corpora.corpus import Clip, Finding, make_finding

MANIFEST_FILE = "manifest.csv"
REQUIRED_COLUMNS = ("path", "speaker", "emotion")
OPTIONAL_COLUMNS = ("gender", "age", "language", "intensity", "statement", "session")
_PROVENANCE = "source_sha256"
_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])", re.IGNORECASE)  # a line that Excel writes on top
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GENDERS = {
    "female": "f female woman w weiblich frau femme femminile donna femenino mujer feminino",
    "male": "m male man männlich mann homme masculin maschile uomo masculino hombre",
}
_GENDER_OF = {word: ours for ours, words in _GENDERS.items() for word in words.split()}

Row = Mapping[str, str]


@dataclass(kw_only=True, slots=True)
class _Tally:
    """Rows that cannot be taken as they stand, by reason."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        self.reasons.setdefault(reason, []).append(example)

    def findings(self) -> list[Finding]:
        return [make_finding(why, found, _ACTIONS[why]) for why, found in self.reasons.items()]


_UNREADABLE = "manifest bytes outside UTF-8"
_OUTSIDE = "paths that lead out of the corpus folder"
_NO_PATH = "rows without a path"
_NO_SPEAKER = "rows without a speaker"
_NO_EMOTION = "rows without an emotion"
_NO_AGE = "ages that are not a number of years"
_TORN = "rows with more cells than columns"
_ACTIONS = {
    _UNREADABLE: "read as Windows-1252",
    _OUTSIDE: "left out",
    _NO_PATH: "left out",
    _NO_SPEAKER: "left out",
    _NO_EMOTION: "left out",
    _NO_AGE: "age taken as unknown",
    _TORN: "extra cells ignored; quote cells that hold the separator",
}


def read_clips(folder: Path) -> tuple[list[Clip], list[Finding]]:
    """Read the clips that ``folder/manifest.csv`` lists, whether or not their files exist.

    Args:
        folder: Holds the manifest; paths in it are relative to this folder.

    Returns:
        The clips in the manifest's order, and findings about the manifest.

    Raises:
        CorpusError: The manifest is missing, unreadable or empty, or lacks a required column.
    """
    tally = _Tally()
    columns, rows = _table(_text(folder / MANIFEST_FILE, tally), folder / MANIFEST_FILE, tally)
    _require(columns, folder / MANIFEST_FILE)
    clips = [clip for row in rows if (clip := _clip(row, folder, tally))]
    known = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, _PROVENANCE}
    ignored = [name or "(unnamed)" for name in columns if name not in known]
    odd = tally.findings()
    if ignored:
        odd.insert(0, make_finding("columns without a meaning here", ignored, "ignored"))
    return clips, odd


def _text(path: Path, tally: _Tally) -> str:
    """The manifest's text, whatever its encoding."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    # Excel's "Unicode text" is UTF-16 with a byte order mark.
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        tally.add(_UNREADABLE, f"byte {error.start}")
        # Every byte means something in Windows-1252: a name with one odd letter is better than
        # none.
        return raw.decode("cp1252", errors="replace")


def _table(text: str, path: Path, tally: _Tally) -> tuple[list[str], list[Row]]:
    """Column names in small letters, and the rows that are not blank."""
    # A line of separators only is a blank row of a spreadsheet.
    lines = [line for line in text.splitlines(keepends=True) if line.strip(" \r\n\t,;|")]
    if not lines:
        raise CorpusError(f"{path} is empty; it needs the columns {', '.join(REQUIRED_COLUMNS)}")
    declared = _SEPARATOR_LINE.fullmatch(lines[0].strip("\r\n"))
    lines = lines[1:] if declared and len(lines) > 1 else lines
    separator = declared[1] if declared else max(_SEPARATORS, key=lines[0].count)
    try:
        table = list(csv.reader(io.StringIO("".join(lines)), delimiter=separator))
    except csv.Error as error:
        raise CorpusError(f"{path} is not a table: {error}") from error
    columns = [name.strip().casefold() for name in table[0]]
    for cells in table[1:]:
        # An unquoted separator in a cell: all later cells of the row are shifted.
        if len(cells) > len(columns):
            tally.add(_TORN, cells[0])
    filled = (cells + [""] * len(columns) for cells in table[1:])
    rows: list[Row] = [dict(zip(columns, map(str.strip, cells), strict=False)) for cells in filled]
    if not rows:
        raise CorpusError(f"{path} has a header and no rows; it needs one row a clip")
    return columns, rows


def _require(columns: Sequence[str], path: Path) -> None:
    """Raise ``CorpusError`` unless every required column is there, once."""
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        near = {name: difflib.get_close_matches(name, columns, n=1) for name in missing}
        hints = [f"rename {close[0]!r} to {name!r}" for name, close in near.items() if close]
        raise CorpusError(
            f"{path} lacks the column{'s'[: len(missing) > 1]} {', '.join(missing)}; found "
            f"{', '.join(columns)}; needed {', '.join(REQUIRED_COLUMNS)}"
            + (f"; {' and '.join(hints)}?" if hints else "")
        )
    twice = [name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if columns.count(name) > 1]
    if twice:
        raise CorpusError(f"{path} has more than one column {', '.join(twice)}; keep one of each")


def _clip(row: Row, folder: Path, tally: _Tally) -> Clip | None:
    """One row as a clip, or None, counted, when it lacks what a clip needs."""
    inside = _inside(row["path"], folder)
    flaw = _flaw(row, inside)
    if flaw or inside is None:
        tally.add(flaw or _OUTSIDE, row["path"] or row["speaker"] or "?")
        return None
    source = row.get(_PROVENANCE, "").casefold()
    gender = row.get("gender", "").casefold()
    return Clip(
        clip_id=str(inside),
        speaker=row["speaker"],
        emotion=label_map.harmonise_label(row["emotion"]),
        label=row["emotion"],
        path=folder / inside,
        gender=_GENDER_OF.get(gender, gender) or None,
        age=_age(row.get("age", ""), tally),
        language=row.get("language") or None,
        intensity=row.get("intensity") or None,
        statement=row.get("statement") or None,
        session=row.get("session") or None,
        source_sha256=source if _SHA256.fullmatch(source) else None,
    )


def _flaw(row: Row, inside: PurePosixPath | None) -> str | None:
    """Why a row cannot become a clip, or None."""
    if not row["path"]:
        return _NO_PATH
    if label_map.is_missing(row["speaker"]):
        return _NO_SPEAKER
    if label_map.is_missing(row["emotion"]):
        return _NO_EMOTION
    return _OUTSIDE if inside is None else None


def _inside(text: str, folder: Path) -> PurePosixPath | None:
    """A manifest's path relative to ``folder``, or None when it leads elsewhere."""
    # A backslash is a letter of a name on Linux, where a file has that name.
    windows = "\\" in text and not discovery.is_existing_file(folder / text)
    named = PurePosixPath(PureWindowsPath(text).as_posix() if windows else text)
    if named.is_absolute():
        root = PurePosixPath(folder.absolute().as_posix())
        if not named.is_relative_to(root):
            return None
        named = named.relative_to(root)
    drive = windows and PureWindowsPath(text).drive
    # ".." would read a file outside the corpus, and a Windows drive is no folder here.
    return None if drive or ".." in named.parts or not named.parts else named


def _age(text: str, tally: _Tally) -> int | None:
    """Whole years, or None when the cell holds no number of them."""
    if label_map.is_missing(text):
        return None
    try:
        # Spreadsheets in German or French write 23,5.
        years = float(text.replace(",", "."))
    except ValueError:
        years = math.nan
    # Written so that NaN fails.
    if 0 <= years <= 130:
        return int(years)
    tally.add(_NO_AGE, text)
    return None
