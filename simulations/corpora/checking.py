"""Listen to a whole corpus and say what is in it and what is wrong with it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.shared.errors import AudioError
from sottovoce.shared.quality import UNUSABLE, Flag, gate
from sottovoce.simulations.corpora.clips import Clip, Corpus, Finding, count, finding

_UNREADABLE, _EMPTY, _NOT_FINITE = "unreadable", "zero-length", "not finite"
_SKIPPED = "left out when features are computed"
_FAULTS = {"holds no samples": _EMPTY, "holds NaN": _NOT_FINITE}  # how audio.load words them
_FLAGS = {
    Flag.SILENT: "silent",
    Flag.TOO_SHORT: "too short",
    Flag.QUIET: "quiet",
    Flag.CLIPPED: "clipped",
    Flag.NOISY: "noisy",
}
_ACTIONS = {
    _UNREADABLE: _SKIPPED,
    _EMPTY: _SKIPPED,
    _NOT_FINITE: _SKIPPED,
    **{name: _SKIPPED if flag in UNUSABLE else "kept" for flag, name in _FLAGS.items()},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What is in a corpus.

    Attributes:
        corpus: Its name.
        clips_found: Clips met on opening.
        clips: Clips in use.
        seconds: Sound in all of them.
        longest: Seconds of the longest clip; likewise ``median`` and ``shortest``.
        emotions: Clips of each emotion; likewise ``speakers``, ``genders`` and ``languages``.
        mapping: Original label to harmonised one.
        findings: Everything wrong, from opening and from listening.
        verdicts: Clips by what listening found: ``unreadable``, ``zero-length``,
            ``not finite``, ``silent``, ``too short``, ``quiet``, ``clipped``, ``noisy``; only
            those that occur.
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

    def as_dict(self) -> dict[str, Any]:
        """The same for a program to read, ready for JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        notes = [{name: getattr(f, name) for name in f.__slots__} for f in self.findings]
        return {**fields, "findings": notes}

    def lines(self) -> list[str]:
        """The same for a person to read."""
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


def check(
    corpus: Corpus, *, workers: int = 2, progress: Callable[[int], object] | None = None
) -> Report:
    """Listen to every clip, those set aside included.

    Args:
        corpus: An opened corpus.
        workers: Threads that read files.
        progress: Called with the number of clips heard so far.

    Returns:
        Counts, durations and findings. Nothing is left out here: defects that listening finds
        are left out, and counted again, when features are computed.
    """
    clips = [*corpus.clips, *corpus.set_aside]
    heard = []
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(_listen, clips):
            heard.append(result)
            if progress:
                progress(len(heard))
    faults = {clip.clip_id: kinds for clip, (_, kinds) in zip(clips, heard, strict=True)}
    seconds = np.array([duration for duration, _ in heard])
    return Report(
        corpus=corpus.name,
        clips_found=corpus.clips_found,
        clips=len(corpus.clips),
        seconds=round(float(seconds.sum()), 3),
        shortest=round(float(seconds.min()), 3),
        median=round(float(np.median(seconds)), 3),
        longest=round(float(seconds.max()), 3),
        emotions={e: sum(c.emotion == e for c in corpus.clips) for e in corpus.emotions},
        speakers=count(clip.speaker for clip in corpus.clips),
        genders=count(clip.gender for clip in corpus.clips),
        languages=count(clip.language for clip in corpus.clips),
        mapping=dict(corpus.mapping),
        findings=(*corpus.findings, *_findings(faults)),
        verdicts=dict(Counter(kind for kinds in faults.values() for kind in kinds)),
    )


def _listen(clip: Clip) -> tuple[float, tuple[str, ...]]:
    """A clip's seconds and everything that is wrong with its sound."""
    try:
        signal = clip.signal()
    except AudioError as error:
        known = (kind for words, kind in _FAULTS.items() if words in str(error))
        return 0.0, (next(known, _UNREADABLE),)
    flags = gate(signal).flags
    return signal.seconds, tuple(name for flag, name in _FLAGS.items() if flag in flags)


def _findings(faults: Mapping[str, Sequence[str]]) -> list[Finding]:
    """One finding for each kind of fault that occurs."""
    found = {kind: [clip for clip, kinds in faults.items() if kind in kinds] for kind in _ACTIONS}
    return [finding(f"{kind} clips", ids, _ACTIONS[kind]) for kind, ids in found.items() if ids]
