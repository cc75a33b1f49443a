"""Discovery of recordings in a folder: missing, empty, repeated and contradictory ones."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sottovoce.shared.errors import AudioError, CorpusError
from sottovoce.simulations.corpora.corpus import Clip, Finding, make_finding
from sottovoce.simulations.corpora.layouts import Layout
from sottovoce.simulations.corpora.links import FolderWalk, file_size, readable_name

# Lossless first: of two files of one recording, the first kind found is kept.
AUDIO_SUFFIXES = (".wav", ".flac", ".aiff", ".aif", ".opus", ".ogg", ".mp3")
_POINTER = b"version https://git-lfs"


def find_clips(folder: Path, layout: Layout) -> tuple[list[Clip], list[Finding]]:
    """Find the clips of a public layout below ``folder``, and report other recordings."""
    found: dict[str, Clip] = {}
    unknown, again = [], []
    walk = FolderWalk(folder=folder)
    for path in _recordings(walk):
        parsed = layout.parse_path(path, folder)
        if parsed is None:
            unknown.append(readable_name(str(path)))
        elif parsed[0] in found:
            again.append(readable_name(str(path)))
        else:
            clip = parsed[1]
            found[parsed[0]] = replace(clip, clip_id=readable_name(clip.clip_id))
    if not found:
        seen = "; ".join(map(str, walk.findings()))
        raise CorpusError(
            f"{folder} holds no file like {layout.pattern} and no manifest.csv"
            f"{f' ({seen})' if seen else ''}; {layout.title} comes from {layout.source_url}"
        )
    notes = [
        make_finding("recordings whose name is no part of the layout", unknown, "left out"),
        make_finding("further files of a recording already met", again, "left out"),
    ]
    return list(found.values()), [*(note for note in notes if note.count), *walk.findings()]


def _recordings(walk: FolderWalk) -> list[PurePosixPath]:
    """Relative paths of all sound files below a folder, lossless kinds first, then by name."""
    below = (path for path in walk.find_files() if path.suffix.lower() in AUDIO_SUFFIXES)
    # macOS archives carry "._name.wav" beside "name.wav": metadata, no sound.
    paths = [path.relative_to(walk.folder) for path in below if not path.name.startswith("._")]
    posix = [PurePosixPath(path.as_posix()) for path in paths]
    return sorted(posix, key=lambda path: (AUDIO_SUFFIXES.index(path.suffix.lower()), str(path)))


def keep_existing(clips: Iterable[Clip]) -> tuple[list[Clip], list[Finding]]:
    """Select the clips whose file exists and is not empty, and report the others."""
    lost: dict[str, list[str]] = {
        "files that are missing": [],
        "files of zero bytes": [],
        "Git LFS pointers instead of recordings (run: git lfs pull)": [],
    }
    missing, empty, pointers = lost.values()
    present = []
    for clip in clips:
        size = file_size(clip.path)
        if size < 0:
            missing.append(clip.clip_id)
        elif size == 0:
            empty.append(clip.clip_id)
        # A pointer is about 130 bytes: only files that small are opened.
        elif size < 200 and _is_pointer(clip):
            pointers.append(clip.clip_id)
        else:
            present.append(clip)
    return present, [make_finding(what, ids, "left out") for what, ids in lost.items() if ids]


def _is_pointer(clip: Clip) -> bool:
    """Whether a small file is Git LFS's note of where the recording is."""
    return clip.path is not None and clip.path.read_bytes().startswith(_POINTER)


def separate_contradictions(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip], list[Finding]]:
    """Separate clips whose recording also has another emotion or speaker.

    Identical recordings that agree stay: they are one speaker's, so they never lie on both
    sides of a fold. Recordings that contradict each other would be noise as labels, or
    put one voice on both sides of a fold; none of them is used.

    Args:
        clips: Clips whose files are there.

    Returns:
        The clips to use, the clips set aside, and an account of both kinds of twins.
    """
    twins = [group for group in group_identical(clips) if len(group) > 1]
    torn = [group for group in twins if len({(c.speaker, c.emotion) for c in group}) > 1]
    away = {clip.clip_id for group in torn for clip in group}
    same = [_joined(group) for group in twins if group not in torn]
    notes = [
        make_finding(
            "sets of identical recordings with contradictory labels or speakers",
            [_joined(group) for group in torn],
            f"{len(away)} clips set aside",
        ),
        make_finding("sets of identical recordings with one label", same, "kept"),
    ]
    agreed = [clip for clip in clips if clip.clip_id not in away]
    aside = [clip for clip in clips if clip.clip_id in away]
    return agreed, aside, [note for note in notes if note.count]


def group_identical(clips: Iterable[Clip]) -> list[list[Clip]]:
    """Group clips by recording: by the original's digest where known, else by file bytes."""
    known: list[Clip] = []
    unknown: list[Clip] = []
    for clip in clips:
        (known if clip.source_sha256 else unknown).append(clip)
    # Files of different sizes differ: only those that share one are read.
    sizes = group_clips(unknown, lambda clip: file_size(clip.path))
    # A known digest of an original also matches a copy that was re-encoded from it.
    digested = [replace(c, source_sha256=_digest(c)) for _, g in sizes if len(g) > 1 for c in g]
    alone = [group for _, group in sizes if len(group) == 1]
    groups = group_clips([*known, *digested], lambda clip: clip.source_sha256)
    return alone + [group for _, group in groups]


def _digest(clip: Clip) -> str:
    """A clip's digest, or, where its file cannot be read, a name that no other clip has."""
    try:
        return clip.content_key()
    except AudioError:
        return clip.clip_id


def group_clips(
    clips: Iterable[Clip], key: Callable[[Clip], Hashable]
) -> list[tuple[str, list[Clip]]]:
    """Group clips with the same key, in order of first appearance."""
    groups: dict[Hashable, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[key(clip)].append(clip)
    return [(str(name), group) for name, group in groups.items()]


def _joined(group: Sequence[Clip]) -> str:
    """A set of identical recordings as one line."""
    return " = ".join(f"{Path(clip.clip_id).stem} {clip.label}" for clip in group)
