"""Who is trained on and who is tested: no speaker ever stands on both sides."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sottovoce.shared import check, seeds
from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.simulations.corpora import files
from sottovoce.simulations.corpora.clips import Clip, Corpus, Finding, finding

NEUTRAL = "neutral"
GENERIC = ("5fold", "loso", "holdout")
"""Protocols for any corpus; any number of folds from 2 up may stand before ``fold``."""
_FOLDS = re.compile(r"([1-9]\d*)fold")
_VOTES = {"N": "neutral", "H": "happy", "S": "sad", "A": "angry"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """One split of the speakers.

    Attributes:
        name: ``fold1``, or the speaker left out.
        train: Speakers to train on, sorted; none of them is in ``test``.
        test: Speakers to test on, sorted.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        both = sorted(set(self.train) & set(self.test))
        if both:
            raise CorpusError(f"{self.name} trains and tests on {', '.join(both)}; use each once")


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A corpus made ready for evaluation.

    Attributes:
        name: As settled: ``5fold`` on three speakers becomes ``3fold``.
        corpus: The clips that take part, with the labels that count.
        folds: At least one.
        findings: What the selection left out, and classes that a test fold lacks.
    """

    name: str
    corpus: Corpus
    folds: tuple[Fold, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Published:
    """A protocol of one corpus: which it is, whom it needs, how it selects and splits."""

    corpus: str
    speakers: int
    folds: int
    select: Callable[[Corpus], tuple[Corpus, list[Finding]]]


def _everything(corpus: Corpus) -> tuple[Corpus, list[Finding]]:
    """All clips under their own labels."""
    return corpus, []


def _by_vote(corpus: Corpus) -> tuple[Corpus, list[Finding]]:
    """CREMA-D's clips that listeners called neutral, happy, sad or angry, so labelled.

    Identical recordings whose intended labels contradict each other come back in where the votes
    on them agree.
    """
    everyone = sorted([*corpus.clips, *corpus.set_aside], key=lambda clip: clip.clip_id)
    if not any(clip.vote for clip in everyone):
        raise CorpusError(
            "cremad4-5fold needs the listeners' votes: put summaryTable.csv of the official "
            "repository (processedResults/) into the corpus folder, or use cremad6-5fold"
        )
    chosen = [
        replace(clip, emotion=_VOTES[clip.vote], label=clip.vote)
        for clip in everyone
        if clip.vote in _VOTES
    ]
    others = [clip.clip_id for clip in everyone if clip.vote not in _VOTES]
    doubtful = {clip.clip_id for clip in corpus.set_aside}
    agreed, torn, _ = files.apart([clip for clip in chosen if clip.clip_id in doubtful])
    kept = tuple(clip for clip in chosen if clip not in torn)
    back = [clip.clip_id for clip in agreed]
    notes = [
        finding("clips voted otherwise than exactly N, H, S or A", others, "left out"),
        finding("clips set aside whose votes agree", back, "back in"),
        finding("clips set aside whose votes differ too", [c.clip_id for c in torn], "left out"),
    ]
    votes = {clip.label: clip.emotion for clip in kept}
    voted = replace(corpus, clips=kept, set_aside=tuple(torn), mapping=votes)
    return voted, [note for note in notes if note.count]


PUBLISHED: Mapping[str, _Published] = {
    "ravdess8-6fold": _Published(corpus="ravdess", speakers=24, folds=6, select=_everything),
    "cremad6-5fold": _Published(corpus="cremad", speakers=91, folds=5, select=_everything),
    "cremad4-5fold": _Published(corpus="cremad", speakers=91, folds=5, select=_by_vote),
    "emodb7-loso": _Published(corpus="emodb", speakers=10, folds=10, select=_everything),
}
"""Protocols whose figures can be compared with published ones.

``ravdess8-6fold`` has the folds of EmoBox (Ma et al. 2024, Interspeech), ``cremad4-5fold`` the
selection and folds of fed-ser-leakage (Feng et al. 2021, arXiv:2112.13416).
"""


def names() -> tuple[str, ...]:
    """Every name that ``protocol`` takes; ``Nfold`` stands for any number of folds."""
    return (*PUBLISHED, "Nfold", "loso", "holdout")


def default_name(corpus: Corpus) -> str:
    """The first published protocol of a corpus that is complete, else ``5fold``."""
    fitting = (
        name
        for name, known in PUBLISHED.items()
        if known.corpus == corpus.name and known.speakers == len(corpus.speakers)
    )
    return next(fitting, GENERIC[0])


def protocol(name: str, corpus: Corpus, *, classes: Collection[str] = ()) -> Protocol:
    """Select clips and split speakers.

    Folds are groups of the sorted speakers, in order, as equal as can be. ``loso`` leaves one
    speaker out at a time; ``holdout`` tests once, on the last fifth.

    Args:
        name: One of ``names()``, or ``default``.
        corpus: An opened corpus.
        classes: Emotions to keep; all of them when empty.

    Raises:
        SettingError: The name is unknown, is for another corpus, or asks for fewer than 2 folds.
        CorpusError: One speaker only, an incomplete copy, a class that a training fold lacks, or
            fewer than two classes.
    """
    name = default_name(corpus) if name == "default" else name
    known = PUBLISHED.get(name)
    asked = _folds_asked(name, known, corpus)
    selected, notes = known.select(corpus) if known else _everything(corpus)
    selected, dropped = _only(selected, classes)
    speakers = selected.speakers
    if len(speakers) < 2:
        raise CorpusError(
            f"corpus {corpus.name} has one speaker only, {speakers[0]}; "
            "a protocol needs at least 2, one to train on and one to test on"
        )
    if not known and asked > len(speakers):
        kept = f"{len(speakers)}fold, one speaker a fold"
        notes.append(finding(f"speakers, too few for {name}", speakers, kept))
        name, asked = f"{len(speakers)}fold", len(speakers)
    folds = _holdout(speakers) if name == "holdout" else _split(speakers, asked)
    gaps = check_classes(selected, folds)
    return Protocol(name=name, corpus=selected, folds=folds, findings=(*notes, *dropped, *gaps))


def _folds_asked(name: str, known: _Published | None, corpus: Corpus) -> int:
    """How many folds a name stands for with this corpus."""
    if known:
        _require_complete(name, known, corpus)
        return known.folds
    match = _FOLDS.fullmatch(name)
    if match:
        check.at_least(2, folds=int(match[1]))
        return int(match[1])
    if name not in GENERIC:
        raise SettingError(f"protocol is {name!r}; it must be one of {', '.join(names())}")
    return len(corpus.speakers) if name == "loso" else 1


def _require_complete(name: str, known: _Published, corpus: Corpus) -> None:
    """Refuse to give a published name to other folds than the published ones."""
    if corpus.name != known.corpus:
        raise SettingError(
            f"protocol {name} is for {known.corpus}, the corpus is {corpus.name}; "
            f"use --corpus {known.corpus}, or one of {', '.join(GENERIC)}"
        )
    if len(corpus.speakers) != known.speakers:
        raise CorpusError(
            f"protocol {name} needs all {known.speakers} speakers of {known.corpus}, this copy "
            f"has {len(corpus.speakers)}; complete it, or use {' or '.join(GENERIC)}"
        )


def _only(corpus: Corpus, classes: Collection[str]) -> tuple[Corpus, list[Finding]]:
    """The clips of some classes, at least two of which are there."""
    unknown = sorted(set(classes).difference(corpus.emotions))
    if unknown:
        there = ", ".join(corpus.emotions)
        raise SettingError(f"corpus {corpus.name} has no {', '.join(unknown)}; it has {there}")
    kept = tuple(clip for clip in corpus.clips if not classes or clip.emotion in classes)
    chosen = replace(corpus, clips=kept)
    if len(chosen.emotions) < 2:
        raise CorpusError(
            f"corpus {corpus.name} has one class only, {chosen.emotions[0]}; "
            "recognition needs at least 2"
        )
    out = [clip.clip_id for clip in corpus.clips if classes and clip.emotion not in classes]
    return chosen, [finding("clips of other classes", out, "left out, as asked")] if out else []


def _split(speakers: Sequence[str], count: int) -> tuple[Fold, ...]:
    """Sorted speakers in ``count`` groups, the first ones larger by one where it must be."""
    size, more = divmod(len(speakers), count)
    bounds = [group * size + min(group, more) for group in range(count + 1)]
    groups = [speakers[low:high] for low, high in itertools.pairwise(bounds)]
    alone = count == len(speakers)
    return tuple(
        _fold(group[0] if alone else f"fold{number}", speakers, group)
        for number, group in enumerate(groups, start=1)
    )


def _holdout(speakers: Sequence[str]) -> tuple[Fold, ...]:
    """One fold that tests on the last fifth, at least one speaker."""
    tested = max(1, round(len(speakers) / 5))
    return (_fold("holdout", speakers, speakers[-tested:]),)


def _fold(name: str, speakers: Sequence[str], test: Sequence[str]) -> Fold:
    """A fold that trains on everybody who is not tested."""
    train = tuple(speaker for speaker in speakers if speaker not in test)
    return Fold(name=name, train=train, test=tuple(test))


def check_classes(corpus: Corpus, folds: Sequence[Fold]) -> list[Finding]:
    """Refuse a class that a fold cannot learn; report a class that a fold cannot test."""
    spoken: dict[str, set[str]] = {emotion: set() for emotion in corpus.emotions}
    for clip in corpus.clips:
        spoken[clip.emotion].add(clip.speaker)
    gaps = []
    for fold in folds:
        for emotion, speakers in spoken.items():
            if speakers.isdisjoint(fold.train):
                raise CorpusError(
                    f"{fold.name} has no clip of class {emotion!r} to train on: its "
                    f"{len(speakers)} speaker(s) ({', '.join(sorted(speakers)[:5])}) are all "
                    f"tested there; use loso, or leave the class out: keep only "
                    f"{', '.join(other for other in spoken if other != emotion)}"
                )
            if speakers.isdisjoint(fold.test):
                gaps.append(f"{fold.name} {emotion}")
    action = "recall averaged over the classes that a fold has"
    return [finding("classes absent from a test fold", gaps, action)] if gaps else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """One test speaker's clips by use; no clip has two uses.

    Attributes:
        neutral: For the speaker's normaliser.
        labelled: For the speaker's calibration head.
        scored: All others.
    """

    neutral: tuple[Clip, ...]
    labelled: tuple[Clip, ...]
    scored: tuple[Clip, ...]


def enrolment_split(
    clips: Sequence[Clip], *, neutral: int = 0, labelled: int = 0, seed: int
) -> Enrolment:
    """Choose a test speaker's enrolment clips; they are not scored afterwards.

    Labelled clips are drawn first, at random as a user would come to label them, whatever
    ``neutral`` is; then neutral ones from the rest, at most half of all the speaker's neutral
    clips. Every emotion keeps at least one clip to score. A larger number takes a superset of what
    a smaller one takes, the other number being the same.

    Args:
        clips: All clips of one speaker.
        neutral: How many neutral clips to enrol, at least 0; fewer come back where there are not
            that many.
        labelled: How many labelled clips to enrol, likewise.
        seed: The run's seed; every speaker draws from a generator of its own.

    Raises:
        SettingError: A negative number.
        CorpusError: Clips of no speaker or of several.
    """
    check.not_negative(neutral=neutral, labelled=labelled)
    speakers = {clip.speaker for clip in clips}
    if len(speakers) != 1:
        raise CorpusError(f"enrolment is for the clips of one speaker, not of {len(speakers)}")
    (speaker,) = speakers
    second = _drawn(clips, seed, speaker)[:labelled]
    kept = {clip.clip_id for clip in second}
    calm = [clip for clip in clips if clip.emotion == NEUTRAL]
    free = [clip for clip in _shuffled(calm, seed, speaker, NEUTRAL) if clip.clip_id not in kept]
    first = free[: max(0, min(neutral, len(calm) // 2, len(free) - 1))]
    used = {clip.clip_id for clip in (*first, *second)}
    scored = tuple(clip for clip in clips if clip.clip_id not in used)
    return Enrolment(neutral=tuple(first), labelled=tuple(second), scored=scored)


def _shuffled(clips: Sequence[Clip], seed: int, speaker: str, purpose: str) -> list[Clip]:
    """Clips in a random order of their own."""
    order = seeds.numpy_rng(seed, "enrolment", purpose, speaker).permutation(len(clips))
    return [clips[index] for index in order]


def _drawn(clips: Sequence[Clip], seed: int, speaker: str) -> list[Clip]:
    """Clips as a user would come to label them: at random, less the last one of each emotion."""
    left = Counter(clip.emotion for clip in clips)
    drawn = []
    for clip in _shuffled(clips, seed, speaker, "labelled"):
        if left[clip.emotion] > 1:
            left[clip.emotion] -= 1
            drawn.append(clip)
    return drawn
