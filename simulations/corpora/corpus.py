"""Corpora: clips, each with a speaker and an emotion, and the defects that were found."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sottovoce.shared import audio
from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora import label_map


class GeneratedRecording(Protocol):
    """A recording that is generated on demand and stored nowhere."""

    def render(self) -> audio.Signal:
        """Render the recording, the same on every call."""

    def content_key(self) -> str:
        """Hash all that decides the recording: SHA-256, as 64 hex digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One utterance of one speaker.

    Attributes:
        clip_id: Name within the corpus: the path below its folder, with ``/``, or a made-up one.
        speaker: Identifier of the speaker.
        emotion: The harmonised label, the class to recognise.
        label: The label as the corpus has it.
        path: The recording, or None when ``voice`` makes it.
        voice: What makes the recording, or None when ``path`` holds it.
        gender: ``female``, ``male``, or the corpus's own word.
        age: Years.
        language: As the corpus has it, usually a BCP 47 tag.
        intensity: How strongly the emotion was to be expressed, in the corpus's words.
        statement: What is said.
        session: In which session it was recorded.
        vote: Emotion that listeners perceived, in the corpus's code, where the corpus asked some.
        votes: How many raters chose each class, as (class, count), where several were asked.
        rater: Who chose the label, where a corpus has one row a rater.
        source_sha256: SHA-256 of the original file, where this one was re-encoded from it.
        other_columns: Cells of the manifest without a meaning here, by column; folds can be made
            by them.
    """

    clip_id: str
    speaker: str
    emotion: str
    label: str
    path: Path | None = None
    voice: GeneratedRecording | None = None
    gender: str | None = None
    age: int | None = None
    language: str | None = None
    intensity: str | None = None
    statement: str | None = None
    session: str | None = None
    vote: str | None = None
    votes: tuple[tuple[str, int], ...] = ()
    rater: str | None = None
    source_sha256: str | None = None
    other_columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.path is None) == (self.voice is None):
            raise CorpusError(f"clip {self.clip_id} has both or neither of path and voice")

    def content_key(self) -> str:
        """Hash the recording (file bytes, or what makes the voice): SHA-256, 64 hex digits.

        Raises:
            AudioError: The file cannot be read.
        """
        return self.voice.content_key() if self.voice else audio.hash_file(self._file())

    def load_signal(self) -> audio.Signal:
        """Load the recording, mono at 16 kHz.

        Raises:
            AudioError: The file cannot be read as sound.
        """
        return self.voice.render() if self.voice else audio.load_signal(self._file())

    def _file(self) -> Path:
        """The path, which is there when ``voice`` is not."""
        if self.path is None:
            raise CorpusError(f"clip {self.clip_id} has no file")
        return self.path


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Defect or oddity of a corpus, with its count and how it was handled.

    Attributes:
        what: The defect.
        count: How many clips, rows or columns have it.
        examples: The first few, for looking.
        action: What was done.
    """

    what: str
    count: int
    examples: tuple[str, ...] = ()
    action: str

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        shown = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.what}: {self.count}, {self.action}{shown}"


def make_finding(what: str, found: Sequence[str], action: str) -> Finding:
    """Make a finding that counts all of ``found`` and shows the first five.

    Example:
        >>> str(make_finding("rows without a path", ["row 3"], "left out"))
        'rows without a path: 1, left out (row 3)'
    """
    return Finding(what=what, count=len(found), examples=tuple(found[:5]), action=action)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Clips that can be used, and an account of those that cannot.

    Attributes:
        name: What it was opened as.
        clips: The clips to use, by ``clip_id``.
        mapping: Original label to harmonised one, for every label met.
        findings: Defects met, with what was done.
        set_aside: Clips whose recording also stands under another label; a protocol that
            relabels clips may find that they agree after all.
        clips_found: Clips met, before any was left out.
        label_map: What a user's own label map is called; empty where there is none.
    """

    name: str
    clips: tuple[Clip, ...]
    mapping: Mapping[str, str]
    findings: tuple[Finding, ...] = ()
    set_aside: tuple[Clip, ...] = ()
    clips_found: int
    label_map: str = ""

    def __post_init__(self) -> None:
        if not self.clips:
            listed = "; ".join(map(str, self.findings)) or "it lists none"
            raise CorpusError(f"corpus {self.name} has no usable clip: {listed}")

    @property
    def emotions(self) -> tuple[str, ...]:
        """The classes that clips have, in canonical order."""
        return label_map.sort_emotions(clip.emotion for clip in self.clips)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The distinct speakers of all clips, sorted."""
        return tuple(sorted({clip.speaker for clip in self.clips}))

    def clips_by_speaker(self) -> dict[str, tuple[Clip, ...]]:
        """Group clips by speaker: one speaker is one client. Speakers sorted, clips in order."""
        groups: dict[str, list[Clip]] = {speaker: [] for speaker in self.speakers}
        for clip in self.clips:
            groups[clip.speaker].append(clip)
        return {speaker: tuple(clips) for speaker, clips in groups.items()}

    def format_mapping(self) -> list[str]:
        """Format the label mapping for printing, one line a class: ``angry <- Wut, Ärger``."""
        names = {
            ours: sorted(label for label, word in self.mapping.items() if word == ours)
            for ours in label_map.sort_emotions(self.mapping.values())
        }
        return [f"{ours} <- {', '.join(labels)}" for ours, labels in names.items()]


def count_values(values: Iterable[str | None]) -> dict[str, int]:
    """Count how often each value occurs, sorted by value; None counts as ``unknown``.

    Example:
        >>> count_values(["male", None, "female", "male"])
        {'female': 1, 'male': 2, 'unknown': 1}
    """
    return dict(sorted(Counter(value or "unknown" for value in values).items()))
