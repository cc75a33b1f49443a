"""Inspection of a whole corpus: its counts, durations and defects."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.shared.audio.quality import UNUSABLE, QualityFlag, measure_quality
from sottovoce.shared.errors import AudioError, RecordingFault
from sottovoce.simulations.corpora.corpus import Clip, Corpus, Finding, count_values, make_finding

_UNREADABLE, _EMPTY, _NOT_FINITE = "unreadable", "zero-length", "not finite"
_SKIPPED = "left out when features are computed"
_FAULTS = {RecordingFault.EMPTY: _EMPTY, RecordingFault.NOT_FINITE: _NOT_FINITE}
_FLAGS = {
    QualityFlag.SILENT: "silent",
    QualityFlag.TOO_SHORT: "too short",
    QualityFlag.QUIET: "quiet",
    QualityFlag.CLIPPED: "clipped",
    QualityFlag.NOISY: "noisy",
    QualityFlag.CUT_SHORT: "cut short",
    QualityFlag.CHANNELS_CANCEL: "channels cancel",
    QualityFlag.DEAD_CHANNEL: "dead channel",
}
_ACTIONS = {
    _UNREADABLE: _SKIPPED,
    _EMPTY: _SKIPPED,
    _NOT_FINITE: _SKIPPED,
    **{name: _SKIPPED if flag in UNUSABLE else "kept" for flag, name in _FLAGS.items()},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusReport:
    """Counts, durations and defects of a corpus.

    Attributes:
        corpus: Its name.
        clips_found: Clips met on opening.
        clips: Clips in use.
        seconds: Sound in all of them.
        longest: Seconds of the longest clip; likewise ``median`` and ``shortest``.
        emotions: Clips of each emotion; likewise ``speakers``, ``genders`` and ``languages``.
        mapping: Original label to harmonised one.
        findings: Everything wrong, from opening and from measuring.
        verdicts: Clips by defect of their sound: ``unreadable``, ``zero-length``,
            ``not finite``, ``silent``, ``too short``, ``quiet``, ``clipped``, ``noisy``,
            ``cut short``, ``channels cancel``, ``dead channel``; only those that occur.
    """

    corpus: str
    clips_found: int
    clips: int
    seconds: float
    shortest: float
    median: float
    longest: float
    emotions: dict[str, int]
    speakers: dict[str, int]
    genders: dict[str, int]
    languages: dict[str, int]
    mapping: dict[str, str]
    findings: tuple[Finding, ...]
    verdicts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Convert the report for JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        notes = [{name: getattr(f, name) for name in f.__slots__} for f in self.findings]
        return {**fields, "findings": notes}

    def format_lines(self) -> list[str]:
        """Format the report for a person to read, line by line."""
        per_speaker = sorted(self.speakers.values())
        spans = f"clips of {self.shortest:.2f} to {self.longest:.2f} s, median {self.median:.2f} s"
        return [
            f"{self.corpus}: {self.clips} clips to use of {self.clips_found} found",
            f"speakers: {len(self.speakers)}, with {per_speaker[0]} to {per_speaker[-1]} clips",
            f"sound: {self.seconds / 3600:.2f} h; {spans}",
            f"emotions: {_listing(self.emotions)}",
            f"genders: {_listing(self.genders)}; languages: {_listing(self.languages)}",
            *(f"found: {note}" for note in self.findings or ("nothing wrong",)),
        ]


def _listing(counts: dict[str, int]) -> str:
    """Counts in one line."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def inspect_corpus(
    corpus: Corpus, *, workers: int = 2, on_progress: Callable[[int], object] | None = None
) -> CorpusReport:
    """Measure every clip, those set aside included.

    Args:
        corpus: An opened corpus.
        workers: Threads that read files.
        on_progress: Called with the number of clips measured so far.

    Returns:
        Counts, durations and findings. Nothing is left out here: clips with defective sound
        are left out, and counted again, when features are computed.
    """
    clips = [*corpus.clips, *corpus.set_aside]
    measured = []
    # Threads are enough: decoding releases the interpreter's lock.
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(_inspect_clip, clips):
            measured.append(result)
            if on_progress:
                on_progress(len(measured))
    faults = {clip.clip_id: kinds for clip, (_, kinds) in zip(clips, measured, strict=True)}
    seconds = np.array([duration for duration, _ in measured])
    return CorpusReport(
        corpus=corpus.name,
        clips_found=corpus.clips_found,
        clips=len(corpus.clips),
        seconds=round(float(seconds.sum()), 3),
        shortest=round(float(seconds.min()), 3),
        median=round(float(np.median(seconds)), 3),
        longest=round(float(seconds.max()), 3),
        emotions={e: sum(c.emotion == e for c in corpus.clips) for e in corpus.emotions},
        speakers=count_values(clip.speaker for clip in corpus.clips),
        genders=count_values(clip.gender for clip in corpus.clips),
        languages=count_values(clip.language for clip in corpus.clips),
        mapping=dict(corpus.mapping),
        findings=(*corpus.findings, *_findings(faults), *_silent_speakers(corpus, faults)),
        verdicts=dict(Counter(kind for kinds in faults.values() for kind in kinds)),
    )


def find_silent_speakers(corpus: Corpus) -> list[str]:
    """Find the speakers none of whose recordings can be used, sorted.

    Of each speaker recordings are decoded until one is usable, usually the first; embedded voices
    always are.
    """
    return [
        speaker
        for speaker, clips in corpus.clips_by_speaker().items()
        if all(
            clip.path and any(_ACTIONS[kind] == _SKIPPED for kind in _inspect_clip(clip)[1])
            for clip in clips
        )
    ]


def _inspect_clip(clip: Clip) -> tuple[float, tuple[str, ...]]:
    """A clip's seconds and everything that is wrong with its sound."""
    try:
        signal = clip.load_signal()
    except AudioError as error:
        return 0.0, (_FAULTS.get(error.kind, _UNREADABLE),)
    flags = measure_quality(signal).flags
    return signal.duration_s, tuple(name for flag, name in _FLAGS.items() if flag in flags)


def _findings(faults: Mapping[str, Sequence[str]]) -> list[Finding]:
    """One finding for each kind of fault that occurs."""
    found = {kind: [clip for clip, kinds in faults.items() if kind in kinds] for kind in _ACTIONS}
    return [
        make_finding(f"{kind} clips", ids, _ACTIONS[kind]) for kind, ids in found.items() if ids
    ]


def _silent_speakers(corpus: Corpus, faults: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Speakers who are left out, because all their clips are."""
    usable = {
        clip.speaker
        for clip in corpus.clips
        if not any(_ACTIONS[kind] == _SKIPPED for kind in faults[clip.clip_id])
    }
    silent = [speaker for speaker in corpus.speakers if speaker not in usable]
    note = make_finding("speakers without a usable clip", silent, _SKIPPED)
    return [note] if silent else []
