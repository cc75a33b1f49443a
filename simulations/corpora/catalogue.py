"""Open a corpus by name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sottovoce.shared import validation
from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.identity import identity_key
from sottovoce.simulations.corpora import discovery, manifest
from sottovoce.simulations.corpora.corpus import Clip, Corpus, Finding, make_finding
from sottovoce.simulations.corpora.labelling import label_clips
from sottovoce.simulations.corpora.layouts import LAYOUTS
from sottovoce.simulations.corpora.synthetic import synthetic_corpus
from sottovoce.simulations.corpora.table import Tally, read_table
from sottovoce.simulations.corpora.user_label_map import (
    LABEL_MAP_FILE,
    UserLabelMap,
    read_label_map,
)

FOLDER = "folder"
SYNTHETIC = "synthetic"
TITLES: Mapping[str, str] = {
    SYNTHETIC: 'Embedded, seeded voices; --data "speakers=24,clips=30,seed=7", or nothing',
    FOLDER: "Any folder with a manifest.csv (path, speaker, emotion)",
    **{name: layout.title for name, layout in LAYOUTS.items()},
}
"""Every name that ``open_corpus`` takes, with a line on what it is."""

_CREMAD_VOTES: Mapping[str, str] = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happy",
    "n": "neutral",
    "s": "sad",
}
"""Columns of CREMA-D's table of votes, and what its labels are called."""

_BESIDE = (".", "extra", "processedResults", "..", "../extra", "../processedResults")


def open_corpus(
    name: str,
    data: str | Path | None = None,
    *,
    labels: str | Path = "",
    follow_links: bool = False,
) -> Corpus:
    """Open a corpus: find its clips, harmonise their labels, leave out what cannot be used.

    A known layout with a ``manifest.csv`` in its folder is read by that manifest, if the files
    that it lists are called as the layout's are.

    Args:
        name: One of ``TITLES``.
        data: Its folder (or the manifest in it); for ``synthetic`` the options as
            ``key=value,...``, or nothing.
        labels: A label map, as ``user_label_map.read_label_map`` takes it; without one,
            ``labels.csv`` in the folder is read where there is one.
        follow_links: Whether paths of a manifest may lead out of the folder through links.

    Raises:
        SettingError: ``name`` is unknown, ``data`` is missing or an option is wrong.
        CorpusError: The folder or its manifest is missing, is of another layout than ``name``,
            or no clip of it can be used.
    """
    validation.require_one_of(TITLES, corpus=name)
    if name == SYNTHETIC:
        made = synthetic_corpus.open_synthetic(str(data or ""))
        return _relabel(made, read_label_map(labels)) if str(labels) else made
    folder = _folder(name, data)
    clips, findings = _listed(name, folder, follow_links=follow_links)
    user_map = _find_label_map(folder, labels)
    # Votes and demographics come in tables of their own, which many copies lack.
    if name == "cremad":
        clips, more = _cremad_extras(clips, folder)
        findings += more
    return _settle(name, clips, findings, user_map)


def _relabel(made: Corpus, user_map: UserLabelMap) -> Corpus:
    """A corpus without defects under a user's own labels."""
    found = label_clips(made.clips, user_map)
    return replace(
        made,
        clips=tuple(found.clips),
        mapping=found.mapping,
        findings=(*made.findings, *found.findings),
        label_map=user_map.name,
    )


def _folder(name: str, data: str | Path | None) -> Path:
    """The corpus's folder, which is there."""
    if data is None or not str(data):
        raise SettingError(f"corpus {name} needs its folder: --data DIR")
    folder = Path(data).expanduser()
    # People name the manifest itself as often as its folder.
    folder = folder.parent if folder.name == manifest.MANIFEST_FILE else folder
    if not folder.is_dir():
        raise CorpusError(f"corpus {name}: {folder} is not a folder; name the one that holds it")
    return folder


def _listed(name: str, folder: Path, *, follow_links: bool) -> tuple[list[Clip], list[Finding]]:
    """The clips by manifest where there is one, else by the layout's file names."""
    if (folder / manifest.MANIFEST_FILE).is_file():
        clips, findings = manifest.read_clips(folder, follow_links=follow_links)
        return clips, [*findings, *_check_layout(name, clips, folder)]
    if name == FOLDER:
        raise CorpusError(
            f"{folder} has no {manifest.MANIFEST_FILE}; write one with the columns "
            f"{', '.join(manifest.REQUIRED_COLUMNS)}, or name the layout: {', '.join(LAYOUTS)}"
        )
    return discovery.find_clips(folder, LAYOUTS[name])


def _check_layout(name: str, clips: Sequence[Clip], folder: Path) -> list[Finding]:
    """Refuse another corpus under a known one's name, whose licence the model's card would state.

    Raises:
        CorpusError: Less than half of the file names are the layout's.
    """
    if name == FOLDER or not clips:
        return []
    odd = [clip.clip_id for clip in clips if not _is_named_by(name, clip, folder)]
    if len(odd) * 2 <= len(clips):
        note = make_finding("files whose name is no part of the layout", odd, "used all the same")
        return [note] if odd else []
    counts = {
        other: sum(_is_named_by(other, clip, folder) for clip in clips)
        for other in LAYOUTS
        if other != name
    }
    likely = max(counts, key=lambda other: counts[other])
    right = likely if counts[likely] * 2 > len(clips) else FOLDER
    looks = f"they look like {right}" if right != FOLDER else f"such as {odd[0]}"
    raise CorpusError(
        f"{len(odd)} of the {len(clips)} files that {folder} lists are not named as those of "
        f"{name} ({LAYOUTS[name].pattern}), {looks}; use --corpus {right}"
    )


def _is_named_by(name: str, clip: Clip, folder: Path) -> bool:
    """Whether a file's name is one of a layout's."""
    return LAYOUTS[name].parse_path(PurePosixPath(clip.clip_id), folder) is not None


def _find_label_map(folder: Path, labels: str | Path) -> UserLabelMap | None:
    """The label map that was asked for, else the folder's own, if it has one."""
    own = folder / LABEL_MAP_FILE
    if not str(labels):
        return read_label_map(own) if own.exists() else None
    return read_label_map(labels)


def _settle(
    name: str,
    clips: Sequence[Clip],
    findings: Sequence[Finding],
    user_map: UserLabelMap | None,
) -> Corpus:
    """Leave out what cannot be used and account for it."""
    # Order matters: rows are merged before files are read, and only existing files are compared.
    labelled = label_clips(clips, user_map)
    there, absent = discovery.keep_existing(labelled.clips)
    usable, aside, twins = discovery.separate_contradictions(there)
    return Corpus(
        name=name,
        clips=tuple(sorted(usable, key=lambda clip: clip.clip_id)),
        mapping=labelled.mapping,
        findings=(*findings, *labelled.findings, *absent, *twins),
        set_aside=tuple(sorted(aside, key=lambda clip: clip.clip_id)),
        clips_found=len({clip.clip_id for clip in clips}),
        label_map=user_map.name if user_map else "",
    )


def _cremad_extras(clips: Sequence[Clip], folder: Path) -> tuple[list[Clip], list[Finding]]:
    """CREMA-D's listeners' votes and actors' data, where their tables lie beside the clips."""
    votes = _table(folder, "summaryTable.csv", "FileName", "MultiModalVote")
    ages = _table(folder, "VideoDemographics.csv", "ActorID", "Age")
    sexes = _table(folder, "VideoDemographics.csv", "ActorID", "Sex")
    counts = _vote_counts(folder)
    full = [
        replace(clip, votes=counts.get(_official_name(clip), ()))
        for clip in (_with_extras(clip, votes, ages, sexes) for clip in clips)
    ]
    without_vote = [clip.clip_id for clip in full if clip.vote is None]
    note = make_finding(
        "clips without a listeners' vote", without_vote, "kept; cremad4-5fold leaves out"
    )
    return full, [note] if without_vote else []


def _with_extras(
    clip: Clip, votes: Mapping[str, str], ages: Mapping[str, str], sexes: Mapping[str, str]
) -> Clip:
    """One CREMA-D clip with all that is known about it."""
    actor = clip.speaker.removeprefix("cremad_")
    age = ages.get(actor, "")
    return replace(
        clip,
        vote=votes.get(_official_name(clip)),
        age=int(age) if clip.age is None and age.isdigit() else clip.age,
        gender=clip.gender or sexes.get(actor, "").lower() or None,
    )


def _official_name(clip: Clip) -> str:
    """A CREMA-D clip's name in the official tables."""
    stem = Path(clip.clip_id).stem
    # One widespread copy cut a final XX to X; the tables have the official name.
    return stem + "X" if stem.endswith("_X") else stem


def _vote_counts(folder: Path) -> dict[str, tuple[tuple[str, int], ...]]:
    """How often listeners chose each emotion of a clip that they heard and saw, by its name.

    They are the votes whose majority ``summaryTable.csv`` has as ``MultiModalVote``.
    """
    path = _find_beside(folder, "tabulatedVotes.csv")
    if path is None:
        return {}
    table = read_table(path, Tally(), wanted=("filename", *_CREMAD_VOTES))
    if not {"filename", *_CREMAD_VOTES} <= set(table.columns):
        raise CorpusError(
            f"{path} lacks the columns fileName, {', '.join(_CREMAD_VOTES).upper()}; restore the "
            "official file"
        )
    counts: dict[str, tuple[tuple[str, int], ...]] = {}
    for row in table.rows:
        # Row numbers begin with 1 for sound, 2 for the face alone, 3 for both.
        if row[""].startswith("3"):
            cells = ((word, row[column]) for column, word in _CREMAD_VOTES.items())
            counts[row["filename"]] = tuple(
                (word, int(cell)) for word, cell in cells if cell.isdecimal() and int(cell)
            )
    return counts


def _find_beside(folder: Path, file: str) -> Path | None:
    """A table that lies beside the clips, if there is one."""
    paths = (folder / beside / file for beside in _BESIDE)
    return next((path for path in paths if path.is_file()), None)


def _table(folder: Path, file: str, key: str, value: str) -> dict[str, str]:
    """Two columns of a table that lies beside the clips; empty where there is no such table."""
    path = _find_beside(folder, file)
    if path is None:
        return {}
    wanted = identity_key(key), identity_key(value)
    table = read_table(path, Tally(), wanted=wanted)
    if not set(wanted) <= set(table.columns):
        raise CorpusError(f"{path} lacks the columns {key} and {value}; restore the official file")
    return {row[wanted[0]]: row[wanted[1]] for row in table.rows}
