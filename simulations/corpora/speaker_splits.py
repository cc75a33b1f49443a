"""Splits by speaker: no speaker is in both training and test."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sottovoce.shared import seeding, validation
from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.identity import choose_spellings, identity_key
from sottovoce.simulations.corpora import discovery
from sottovoce.simulations.corpora.corpus import Clip, Corpus, Finding, make_finding

NEUTRAL = "neutral"
GENERIC_PROTOCOLS = ("5fold", "loso", "holdout")
"""Protocols for any corpus; any number of folds from 2 up may stand before ``fold``."""
BY_COLUMN = "by:"
"""Begins the name of a protocol whose folds are the values of a column, as ``by:session``."""
_FOLDS = re.compile(r"([1-9][0-9]{0,8})fold")
_VOTE_EMOTIONS = {"N": "neutral", "H": "happy", "S": "sad", "A": "angry"}


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
        # Checked at birth: a speaker on both sides would make every figure too good.
        trained = {identity_key(speaker) for speaker in self.train}
        both = sorted(name for name in set(self.test) if identity_key(name) in trained)
        if both:
            raise CorpusError(f"{self.name} trains and tests on {', '.join(both)}; use each once")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationProtocol:
    """A corpus made ready for evaluation.

    Attributes:
        name: As settled: the usual ``5fold`` becomes ``3fold`` on three speakers.
        corpus: The selected clips, with the labels in use.
        folds: At least one.
        findings: What the selection left out, and classes that a test fold lacks.
    """

    name: str
    corpus: Corpus
    folds: tuple[Fold, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _PublishedProtocol:
    """A protocol of one corpus: which it is, whom it needs, how it selects and splits."""

    corpus: str
    speakers: int
    folds: int
    select: Callable[[Corpus], tuple[Corpus, list[Finding]]]


def _select_all(corpus: Corpus) -> tuple[Corpus, list[Finding]]:
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
        replace(clip, emotion=_VOTE_EMOTIONS[clip.vote], label=clip.vote)
        for clip in everyone
        if clip.vote in _VOTE_EMOTIONS
    ]
    others = [clip.clip_id for clip in everyone if clip.vote not in _VOTE_EMOTIONS]
    # Votes may agree where intended labels contradict: those recordings are tried once more.
    doubtful = {clip.clip_id for clip in corpus.set_aside}
    agreed, torn, _ = discovery.separate_contradictions(
        [clip for clip in chosen if clip.clip_id in doubtful]
    )
    remaining = tuple(clip for clip in chosen if clip not in torn)
    back = [clip.clip_id for clip in agreed]
    notes = [
        make_finding("clips voted otherwise than exactly N, H, S or A", others, "left out"),
        make_finding("clips set aside whose votes agree", back, "back in"),
        make_finding(
            "clips set aside whose votes differ too", [c.clip_id for c in torn], "left out"
        ),
    ]
    votes = {clip.label: clip.emotion for clip in remaining}
    voted = replace(corpus, clips=remaining, set_aside=tuple(torn), mapping=votes)
    return voted, [note for note in notes if note.count]


PUBLISHED_PROTOCOLS: Mapping[str, _PublishedProtocol] = {
    "ravdess8-6fold": _PublishedProtocol(
        corpus="ravdess", speakers=24, folds=6, select=_select_all
    ),
    "cremad6-5fold": _PublishedProtocol(corpus="cremad", speakers=91, folds=5, select=_select_all),
    "cremad4-5fold": _PublishedProtocol(corpus="cremad", speakers=91, folds=5, select=_by_vote),
    "emodb7-loso": _PublishedProtocol(corpus="emodb", speakers=10, folds=10, select=_select_all),
}
"""Protocols whose figures can be compared with published ones.

``ravdess8-6fold`` has the folds of EmoBox (Ma et al. 2024, Interspeech), ``cremad4-5fold`` the
selection and folds of fed-ser-leakage (Feng et al. 2021, arXiv:2112.13416).
"""


def protocol_names() -> tuple[str, ...]:
    """List every name that ``protocol`` takes.

    ``Nfold`` stands for any number of folds, ``by:COLUMN`` for any column of a manifest.

    Example:
        >>> protocol_names()[-3:]
        ('Nfold', 'loso', 'holdout')
    """
    return (*PUBLISHED_PROTOCOLS, f"{BY_COLUMN}COLUMN", "Nfold", "loso", "holdout")


def default_protocol(corpus: Corpus) -> str:
    """Find the first published protocol of a corpus that is complete, else ``5fold``.

    A corpus under a user's own label map has no published protocol.
    """
    fitting = (
        name
        for name, known in PUBLISHED_PROTOCOLS.items()
        if known.corpus == corpus.name
        and known.speakers == len(corpus.speakers)
        and not corpus.label_map
    )
    return next(fitting, GENERIC_PROTOCOLS[0])


def apply_protocol(
    name: str, corpus: Corpus, *, classes: Collection[str] = ()
) -> EvaluationProtocol:
    """Select clips and split their speakers into folds.

    Folds are groups of the sorted speakers, in order, as equal as can be. ``loso`` leaves one
    speaker out at a time; ``holdout`` tests once, on the last fifth; ``by:COLUMN`` tests on the
    speakers of one value of the column at a time.

    Args:
        name: One of :func:`protocol_names`, or ``default``.
        corpus: An opened corpus.
        classes: Emotions to select; all of them when empty.

    Raises:
        SettingError: The name is unknown, is for another corpus, asks for fewer than 2 folds or
            for more than there are speakers, or names a column that no clip has.
        CorpusError: One speaker only, an incomplete copy, a class that a training fold lacks,
            fewer than two classes, or a speaker with two values of the column.
    """
    usual, name = name == "default", default_protocol(corpus) if name == "default" else name
    known = PUBLISHED_PROTOCOLS.get(name)
    column = identity_key(name.removeprefix(BY_COLUMN)) if name.startswith(BY_COLUMN) else None
    asked = 0 if column is not None else _fold_count(name, known, corpus)
    selected, notes = known.select(corpus) if known else _select_all(corpus)
    selected, dropped = _select_classes(selected, classes)
    speakers = selected.speakers
    if len(speakers) < 2:
        raise CorpusError(
            f"corpus {corpus.name} has one speaker only, {speakers[0]}; "
            "a protocol needs at least 2, one to train on and one to test on"
        )
    if not known and asked > len(speakers):
        if not usual:
            raise SettingError(
                f"protocol is {name} and corpus {corpus.name} has {len(speakers)} speakers with "
                f"usable clips; it must be at most {len(speakers)}fold: use that, or loso"
            )
        action = f"{len(speakers)}fold, one speaker a fold"
        notes.append(make_finding(f"speakers, too few for {name}", speakers, action))
        name, asked = f"{len(speakers)}fold", len(speakers)
    if column is not None:
        folds = _split_by_column(selected, column)
    else:
        folds = _holdout(speakers) if name == "holdout" else _split_speakers(speakers, asked)
    gaps = check_classes(selected, folds)
    return EvaluationProtocol(
        name=name, corpus=selected, folds=folds, findings=(*notes, *dropped, *gaps)
    )


def _fold_count(name: str, known: _PublishedProtocol | None, corpus: Corpus) -> int:
    """How many folds a name stands for with this corpus."""
    if known:
        _require_complete(name, known, corpus)
        return known.folds
    match = _FOLDS.fullmatch(name)
    if match:
        validation.require_at_least(2, folds=int(match[1]))
        return int(match[1])
    if name not in GENERIC_PROTOCOLS:
        validation.require_one_of(protocol_names(), protocol=name)
    return len(corpus.speakers) if name == "loso" else 1


def _require_complete(name: str, known: _PublishedProtocol, corpus: Corpus) -> None:
    """Refuse to give a published name to other folds than the published ones."""
    if corpus.name != known.corpus:
        raise SettingError(
            f"protocol {name} is for {known.corpus}, the corpus is {corpus.name}; "
            f"use --corpus {known.corpus}, or one of {', '.join(GENERIC_PROTOCOLS)}"
        )
    if corpus.label_map:
        raise SettingError(
            f"protocol {name} has labels of its own and the label map {corpus.label_map} changes "
            f"them; leave it out, or use {known.folds}fold: its figures have no published ones"
        )
    if len(corpus.speakers) != known.speakers:
        raise CorpusError(
            f"protocol {name} needs all {known.speakers} speakers of {known.corpus}, this copy "
            f"has {len(corpus.speakers)}; complete it, or use {' or '.join(GENERIC_PROTOCOLS)}"
        )


def _select_classes(corpus: Corpus, classes: Collection[str]) -> tuple[Corpus, list[Finding]]:
    """The clips of some classes, at least two of which are there."""
    unknown = sorted(set(classes).difference(corpus.emotions))
    if unknown:
        there = ", ".join(corpus.emotions)
        raise SettingError(f"corpus {corpus.name} has no {', '.join(unknown)}; it has {there}")
    clips = tuple(clip for clip in corpus.clips if not classes or clip.emotion in classes)
    chosen = replace(corpus, clips=clips)
    if len(chosen.emotions) < 2:
        raise CorpusError(
            f"corpus {corpus.name} has one class only, {chosen.emotions[0]}; "
            "recognition needs at least 2"
        )
    out = [clip.clip_id for clip in corpus.clips if classes and clip.emotion not in classes]
    return chosen, [
        make_finding("clips of other classes", out, "left out, as asked")
    ] if out else []


def _split_speakers(speakers: Sequence[str], count: int) -> tuple[Fold, ...]:
    """Sorted speakers in ``count`` groups, the first ones larger by one where it must be."""
    size, more = divmod(len(speakers), count)
    bounds = [group * size + min(group, more) for group in range(count + 1)]
    groups = [speakers[low:high] for low, high in itertools.pairwise(bounds)]
    # Leave-one-speaker-out: the fold is named after its speaker.
    alone = count == len(speakers)
    return tuple(
        _fold(group[0] if alone else f"fold{number}", speakers, group)
        for number, group in enumerate(groups, start=1)
    )


_CLIP_COLUMNS = ("session", "gender", "age", "language", "intensity", "statement")


def _column_value(clip: Clip, column: str) -> str:
    """What a clip has in a column; empty where it has nothing."""
    if column in _CLIP_COLUMNS:
        value = getattr(clip, column)
        return "" if value is None else str(value)
    return dict(clip.other_columns).get(column, "")


def _split_by_column(corpus: Corpus, column: str) -> tuple[Fold, ...]:
    """One fold for each value of a column, named after it, which tests the speakers that have it.

    Raises:
        SettingError: No clip has the column.
        CorpusError: A clip has no value, a speaker has two, or all have the same.
    """
    values = {clip.clip_id: _column_value(clip, column) for clip in corpus.clips}
    _require_column(corpus, column, values)
    names = choose_spellings(values.values())
    groups: dict[str, set[str]] = {name: set() for name in sorted(names.values())}
    for clip in corpus.clips:
        groups[names[identity_key(values[clip.clip_id])]].add(clip.speaker)
    counts = Counter(speaker for group in groups.values() for speaker in group)
    torn = sorted(speaker for speaker, count in counts.items() if count > 1)
    if torn:
        raise CorpusError(
            f"{len(torn)} speakers have clips of more than one {column} ({', '.join(torn[:3])}), "
            "and no speaker may train and test; split by another column, or use loso"
        )
    if len(groups) < 2:
        raise CorpusError(
            f"all clips of corpus {corpus.name} have the {column} {next(iter(groups))}; folds by "
            f"{column} need at least 2"
        )
    return tuple(_fold(name, corpus.speakers, sorted(group)) for name, group in groups.items())


def _require_column(corpus: Corpus, column: str, values: Mapping[str, str]) -> None:
    """Refuse a column that no clip has, or not every clip."""
    empty = [clip for clip, value in values.items() if not identity_key(value)]
    if len(empty) == len(values):
        others = sorted({name for clip in corpus.clips for name, _ in clip.other_columns})
        there = [
            *(name for name in _CLIP_COLUMNS if any(getattr(clip, name) for clip in corpus.clips)),
            *others,
        ]
        raise SettingError(
            f"protocol is {BY_COLUMN}{column} and no clip of corpus {corpus.name} has a {column}"
            f"{validation.suggest_name(column, there)}; its clips have {', '.join(there) or 'none'}"
        )
    if empty:
        raise CorpusError(
            f"{len(empty)} clips of corpus {corpus.name} have no {column} "
            f"({', '.join(empty[:3])}); {BY_COLUMN}{column} needs one for every clip: fill it in, "
            "or remove the clips"
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
    """Reject a class that a fold cannot learn; report a class that a fold cannot test."""
    speakers_of: dict[str, set[str]] = {emotion: set() for emotion in corpus.emotions}
    for clip in corpus.clips:
        speakers_of[clip.emotion].add(clip.speaker)
    gaps = []
    for fold in folds:
        for emotion, speakers in speakers_of.items():
            if speakers.isdisjoint(fold.train):
                raise CorpusError(
                    f"{fold.name} has no clip of class {emotion!r} to train on: its "
                    f"{len(speakers)} speaker(s) ({', '.join(sorted(speakers)[:5])}) are all "
                    f"tested there; use loso, or leave the class out: keep only "
                    f"{', '.join(other for other in speakers_of if other != emotion)}"
                )
            if speakers.isdisjoint(fold.test):
                gaps.append(f"{fold.name} {emotion}")
    # A fold that cannot test a class is no fault: recall leaves absent classes out.
    action = "recall averaged over the classes that a fold has"
    return [make_finding("classes absent from a test fold", gaps, action)] if gaps else []


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentSplit:
    """One test speaker's clips by use; no clip has two uses.

    Attributes:
        neutral: For the speaker's normaliser.
        labelled: For the speaker's calibration head.
        scored: All others.
    """

    neutral: tuple[Clip, ...]
    labelled: tuple[Clip, ...]
    scored: tuple[Clip, ...]


def split_enrolment(
    clips: Sequence[Clip], *, neutral: int = 0, labelled: int = 0, seed: int
) -> EnrolmentSplit:
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
    validation.require_non_negative(neutral=neutral, labelled=labelled)
    speakers = {clip.speaker for clip in clips}
    if len(speakers) != 1:
        raise CorpusError(f"enrolment is for the clips of one speaker, not of {len(speakers)}")
    (speaker,) = speakers
    second = _draw_labelled(clips, seed, speaker)[:labelled]
    reserved = {clip.clip_id for clip in second}
    calm = [clip for clip in clips if clip.emotion == NEUTRAL]
    free = [
        clip for clip in _shuffled(calm, seed, speaker, NEUTRAL) if clip.clip_id not in reserved
    ]
    # Half of the neutral clips stay to be scored, and at least one in any case.
    first = free[: max(0, min(neutral, len(calm) // 2, len(free) - 1))]
    used = {clip.clip_id for clip in (*first, *second)}
    scored = tuple(clip for clip in clips if clip.clip_id not in used)
    return EnrolmentSplit(neutral=tuple(first), labelled=tuple(second), scored=scored)


def _shuffled(clips: Sequence[Clip], seed: int, speaker: str, purpose: str) -> list[Clip]:
    """Clips in a random order of their own."""
    order = seeding.numpy_rng(seed, "enrolment", purpose, speaker).permutation(len(clips))
    return [clips[index] for index in order]


def _draw_labelled(clips: Sequence[Clip], seed: int, speaker: str) -> list[Clip]:
    """Clips as a user would come to label them: at random, less the last one of each emotion."""
    left = Counter(clip.emotion for clip in clips)
    drawn = []
    for clip in _shuffled(clips, seed, speaker, "labelled"):
        if left[clip.emotion] > 1:
            left[clip.emotion] -= 1
            drawn.append(clip)
    return drawn
