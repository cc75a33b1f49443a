"""Read a folder whose ``manifest.csv`` lists its clips.

Manifests come from everywhere: ``table`` reads their dialects, ``links`` their paths. Whatever
can be understood is; whatever cannot is counted and reported; only a manifest without the three
columns that matter is refused.
"""

import difflib
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sottovoce.shared.errors import CorpusError
from sottovoce.shared.identity import identity_key
from sottovoce.simulations.corpora import label_map
from sottovoce.simulations.corpora.corpus import Clip, Finding, make_finding
from sottovoce.simulations.corpora.discovery import AUDIO_SUFFIXES
from sottovoce.simulations.corpora.links import FolderPaths
from sottovoce.simulations.corpora.table import MAX_NAME, Row, Tally, read_table

MANIFEST_FILE = "manifest.csv"
REQUIRED_COLUMNS = ("path", "speaker", "emotion")
OPTIONAL_COLUMNS = ("gender", "age", "language", "intensity", "statement", "session", "rater")
_PROVENANCE = "source_sha256"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GENDERS = {
    "female": "f female woman w weiblich frau femme femminile donna femenino mujer feminino 女",
    "male": "m male man männlich mann homme masculin maschile uomo masculino hombre 男",
}
_GENDER_OF = {
    identity_key(word): ours for ours, words in _GENDERS.items() for word in words.split()
}
_OUTSIDE = "paths that lead out of the corpus folder"
_LINKED = "paths that lead out of the corpus folder through a link"
_NO_PATH = "rows without a path"
_NO_SPEAKER = "rows without a speaker"
_NO_EMOTION = "rows without an emotion"
_NO_AGE = "ages that are not a number of years"
_LONG = f"rows whose speaker or emotion has more than {MAX_NAME} characters"


def read_clips(folder: Path, *, follow_links: bool = False) -> tuple[list[Clip], list[Finding]]:
    """Read the clips that ``folder/manifest.csv`` lists, whether or not their files exist.

    Args:
        folder: Holds the manifest; paths in it are relative to this folder.
        follow_links: Whether a path may lead out of the folder through a link.

    Returns:
        The clips in the manifest's order, one a row, their emotion being the label as it is
        written; and findings about the manifest.

    Raises:
        CorpusError: The manifest is missing, unreadable or empty, lacks a required column, or is
            larger than the limits.
    """
    tally = Tally()
    table = read_table(folder / MANIFEST_FILE, tally, wanted=REQUIRED_COLUMNS, is_row=_is_recording)
    _require(table.columns, table.path)
    known = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, _PROVENANCE}
    others = [name for name in table.columns if name not in known]
    reader = _ClipReader(FolderPaths(folder=folder), follow_links, others, tally)
    clips = [clip for row in table.rows if (clip := reader.read_clip(row))]
    odd = tally.findings()
    if others:
        ignored = [name or "(unnamed)" for name in others]
        odd.insert(0, make_finding("columns without a meaning here", ignored, "ignored"))
    return clips, odd


def _is_recording(cell: str) -> bool:
    """Whether a cell is a recording's path."""
    return cell.strip().casefold().endswith(AUDIO_SUFFIXES)


def _require(columns: Sequence[str], path: Path) -> None:
    """Raise ``CorpusError`` unless every required column is there, once."""
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        near = {name: difflib.get_close_matches(name, columns, n=1) for name in missing}
        hints = [f"rename {close[0]!r} to {name!r}" for name, close in near.items() if close]
        raise CorpusError(
            f"{path} lacks the column{'s'[: len(missing) > 1]} {', '.join(missing)}; found "
            f"{', '.join(columns)[:500]}; needed {', '.join(REQUIRED_COLUMNS)}"
            + (f"; {' and '.join(hints)}?" if hints else "")
        )
    named = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, _PROVENANCE)
    twice = [name for name in named if columns.count(name) > 1]
    if twice:
        raise CorpusError(f"{path} has more than one column {', '.join(twice)}; keep one of each")


class _ClipReader:
    """Turns rows into clips, and counts those that lack what a clip needs."""

    def __init__(
        self, paths: FolderPaths, follow_links: bool, others: Sequence[str], tally: Tally
    ) -> None:
        self._paths = paths
        self._follow_links = follow_links
        self._others = others
        self._tally = tally

    def read_clip(self, row: Row) -> Clip | None:
        """One row as a clip, or None, counted."""
        inside = self._paths.read_path(row["path"])
        path = self._paths.find_file(inside) if inside else None
        flaw = self._find_flaw(row, inside, path)
        if flaw or inside is None or path is None:
            self._tally.add(*(flaw or (_OUTSIDE, "left out")), row["path"] or row["speaker"] or "?")
            return None
        source = row[_PROVENANCE].casefold()
        gender = identity_key(row["gender"])
        return Clip(
            # Composed, so that two spellings of one path are one clip.
            clip_id=unicodedata.normalize("NFC", str(inside)),
            speaker=row["speaker"],
            emotion=row["emotion"],
            label=row["emotion"],
            path=path,
            gender=_GENDER_OF.get(gender, gender) or None,
            age=self._read_age(row["age"]),
            language=row["language"] or None,
            intensity=row["intensity"] or None,
            statement=row["statement"] or None,
            session=row["session"] or None,
            rater=row["rater"] or None,
            source_sha256=source if _SHA256.fullmatch(source) else None,
            other_columns=tuple((name, row[name]) for name in self._others if name and row[name]),
        )

    def _find_flaw(
        self, row: Row, inside: PurePosixPath | None, path: Path | None
    ) -> tuple[str, str] | None:
        """Why a row cannot become a clip, with what is done, or None."""
        if not row["path"]:
            return _NO_PATH, "left out"
        if label_map.is_missing_speaker(row["speaker"]):
            return _NO_SPEAKER, "left out"
        if label_map.is_missing(row["emotion"]):
            return _NO_EMOTION, "left out"
        if max(len(row["speaker"]), len(row["emotion"])) > MAX_NAME:
            return _LONG, "left out"
        if inside is None or path is None:
            return _OUTSIDE, "left out"
        if not self._follow_links and self._paths.leads_outside(path):
            return _LINKED, "left out; --follow-links reads them"
        return None

    def _read_age(self, text: str) -> int | None:
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
        self._tally.add(_NO_AGE, "age taken as unknown", text)
        return None
