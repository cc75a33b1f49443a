"""From the rows of a corpus to one label a clip: votes of raters, codes, and a user's own map.

A row is one rater's vote. A clip takes the class that more than half of its votes have; a clip
whose raters did not agree, or chose what the list does not have, is left out and counted.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sottovoce.shared.errors import CorpusError
from sottovoce.shared.identity import choose_spellings, identity_key, tidy_name
from sottovoce.simulations.corpora import label_map
from sottovoce.simulations.corpora.corpus import Clip, Finding, make_finding
from sottovoce.simulations.corpora.discovery import group_clips
from sottovoce.simulations.corpora.user_label_map import DROP, UserLabelMap

# Outcomes that are no class. A class cannot have such a name: names are stripped.
_NO_AGREEMENT, _OTHER, _DROPPED, _NUMBER = " no agreement", " other", " dropped", " number"
_LEFT_OUT = {
    _NO_AGREEMENT: "clips whose raters did not agree",
    _OTHER: "clips labelled with another emotion than those named",
    _DROPPED: "clips whose label the label map drops",
    _NUMBER: "clips labelled with a number",
}
_SEVERAL = re.compile(r"[;|/,]")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledClips:
    """Clips with one label each.

    Attributes:
        clips: One a recording, in the order in which they were met.
        mapping: Original label to class, of every label that became one.
        findings: What was merged or left out.
    """

    clips: list[Clip]
    mapping: dict[str, str]
    findings: list[Finding]


def label_clips(clips: Sequence[Clip], user_map: UserLabelMap | None = None) -> LabelledClips:
    """Give every recording one speaker and one class.

    Args:
        clips: One a row; several may be of one recording.
        user_map: Goes before the table of synonyms.

    Raises:
        CorpusError: More than half of the labels are numbers.
    """
    clips, renamed = _unify_speakers(clips)
    labels = {clip.label for clip in clips}
    reader = _LabelReader(user_map, *_find_code_book(labels, user_map))
    # A table of votes names classes that no clip of this copy may be labelled with.
    named = labels | {word for clip in clips for word, _ in clip.votes}
    outcomes = {label: reader.read_label(label) for label in named}
    _refuse_ratings(clips, outcomes)
    outcomes = _unify_classes(outcomes)
    voted, notes = _vote(clips, outcomes)
    mapping = {
        clip.label: outcome
        for clip in clips
        for outcome in outcomes[clip.label]
        if outcome not in _LEFT_OUT and len(outcomes[clip.label]) == 1
    }
    notes = [*renamed, *_describe_codes(labels, reader), *notes]
    if user_map and (unused := user_map.unused_labels(labels)):
        notes.append(make_finding("labels of the label map that no clip has", unused, "ignored"))
    return LabelledClips(clips=voted, mapping=mapping, findings=notes)


def _unify_speakers(clips: Sequence[Clip]) -> tuple[list[Clip], list[Finding]]:
    """One name for each speaker, however it is written."""
    chosen = choose_spellings(clip.speaker for clip in clips)
    written: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        written[identity_key(clip.speaker)].add(clip.speaker)
    several = [chosen[key] for key, names in written.items() if len(names) > 1]
    note = make_finding("speakers whose name is written in several ways", several, "one person")
    same = [
        clip if clip.speaker == chosen[identity_key(clip.speaker)]
        else replace(clip, speaker=chosen[identity_key(clip.speaker)])
        for clip in clips
    ]  # fmt: skip
    return same, [note] if several else []


def _find_code_book(
    labels: Iterable[str], user_map: UserLabelMap | None
) -> tuple[str, Mapping[str, str]]:
    """The name and the codes of the one-letter code that a corpus's labels are in, if any."""
    open_labels = [one for one in labels if user_map is None or user_map.translate(one) is None]
    letters = {identity_key(label) for label in open_labels if _is_letter(label)}
    for name, (codes, signs) in label_map.CODE_BOOKS.items():
        if letters <= set(codes) and signs <= letters:
            return name, codes
    # Beside words, or alone, X and O say that there is no label.
    if letters and letters <= {"x", "o"}:
        return "no label", {"x": "xxx", "o": "other"}
    return "", {}


def _is_letter(label: str) -> bool:
    key = identity_key(label)
    return len(key) == 1 and key.isascii() and key.isalpha()


@dataclass(frozen=True, slots=True)
class _LabelReader:
    """What a label means: outcomes, one a vote in it."""

    user_map: UserLabelMap | None
    code_book: str
    codes: Mapping[str, str]

    def read_label(self, label: str) -> tuple[str, ...]:
        """A label's outcomes; several where a cell holds the votes of several raters."""
        single = self._read_one(label)
        parts = [part for part in _SEVERAL.split(label) if part.strip()]
        whole = label_map.is_known(label) or label_map.is_number(label)
        if len(parts) < 2 or whole or self.ask_user(label) is not None:
            return (single,)
        # Only where every part means something: "mixed feelings, mostly" is one label.
        if all(self._means_something(part) for part in parts):
            return tuple(self._read_one(part) for part in parts)
        return (single,)

    def _means_something(self, part: str) -> bool:
        return label_map.is_known(part) or self._read_one(part) in _LEFT_OUT or (
            identity_key(part) in self.codes
        )  # fmt: skip

    def ask_user(self, label: str) -> str | None:
        """What the user's own map makes of a label; None where it says nothing."""
        return self.user_map.translate(label) if self.user_map else None

    def _read_one(self, label: str) -> str:
        asked = self.ask_user(label)
        if asked is not None:
            return _DROPPED if asked == DROP else asked
        label = self.codes.get(identity_key(label), label)
        folded = label_map.fold_label(label)
        if folded in label_map.NO_AGREEMENT:
            return _NO_AGREEMENT
        if folded in label_map.OTHER or not folded:
            return _OTHER
        return _NUMBER if label_map.is_number(label) else label_map.harmonise_label(label)


def _refuse_ratings(clips: Sequence[Clip], outcomes: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse labels most of which are numbers.

    Raises:
        CorpusError: They are.
    """
    numbers = [clip.label for clip in clips if outcomes[clip.label] == (_NUMBER,)]
    if len(numbers) * 2 > len(clips):
        examples = ", ".join(sorted(set(numbers))[:5])
        raise CorpusError(
            f"{len(numbers)} of {len(clips)} labels are numbers ({examples}): ratings or codes, "
            "no emotions; write the emotions' names, or name each number in a label map "
            "(--label-map FILE, or labels.csv beside the manifest)"
        )


def _unify_classes(outcomes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """One name for each class, however it is written."""
    names = choose_spellings(
        outcome for one in sorted(outcomes) for outcome in outcomes[one] if outcome not in _LEFT_OUT
    )
    return {
        label: tuple(one if one in _LEFT_OUT else names[identity_key(one)] for one in several)
        for label, several in outcomes.items()
    }


def _describe_codes(labels: Iterable[str], reader: _LabelReader) -> list[Finding]:
    """What was made of labels of one letter."""
    letters = sorted({tidy_name(label) for label in labels if _is_letter(label)})
    letters = [letter for letter in letters if reader.ask_user(letter) is None]
    if not letters:
        return []
    if reader.code_book:
        meant = [f"{one} {reader.codes[identity_key(one)]}" for one in letters]
        how = f"read as codes of {reader.code_book}"
        return [make_finding("labels of one letter", meant, how)]
    action = "taken as classes; a label map can name them (--label-map FILE)"
    return [make_finding("labels of one letter", letters, action)]


def _vote(
    clips: Sequence[Clip], outcomes: Mapping[str, tuple[str, ...]]
) -> tuple[list[Clip], list[Finding]]:
    """One clip a recording, with the class that more than half of its votes have."""
    voted: list[Clip] = []
    repeats: list[str] = []
    rated: list[str] = []
    clashes: list[str] = []
    left: dict[str, list[str]] = {what: [] for what in _LEFT_OUT}
    for name, rows in group_clips(clips, lambda clip: clip.clip_id):
        votes = _count_votes(rows, outcomes)
        winner, most = votes.most_common(1)[0]
        several = len(rows) > 1 or len(outcomes[rows[0].label]) > 1
        if len({row.speaker for row in rows}) > 1 or most * 2 <= votes.total():
            clashes.append(name)
        elif winner in _LEFT_OUT:
            left[winner].append(name)
        else:
            chosen = next(row for row in rows if winner in outcomes[row.label])
            counts = tuple((name, n) for name, n in sorted(votes.items()) if name not in _LEFT_OUT)
            voted.append(
                replace(
                    chosen,
                    emotion=winner,
                    rater=None,
                    votes=counts if several else _name_votes(chosen, outcomes),
                )
            )
            if several and (len(votes) > 1 or any(row.rater for row in rows)):
                rated.append(name)
            elif several:
                repeats.append(name)
    notes = [
        make_finding("files listed more than once", repeats, "counted once"),
        make_finding("files with several votes", rated, "labelled by the majority"),
        make_finding("files listed under two speakers or emotions", clashes, "left out"),
        *(make_finding(_LEFT_OUT[kind], names, "left out") for kind, names in left.items()),
    ]
    return voted, [note for note in notes if note.count]


def _name_votes(clip: Clip, outcomes: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, int], ...]:
    """The votes that a corpus's own table has of a clip, by class."""
    counts: Counter[str] = Counter()
    for word, count in clip.votes:
        for outcome in outcomes[word]:
            counts[outcome] += count
    return tuple((name, count) for name, count in sorted(counts.items()) if name not in _LEFT_OUT)


def _count_votes(rows: Sequence[Clip], outcomes: Mapping[str, tuple[str, ...]]) -> Counter[str]:
    """The votes on one recording: a named rater has one, whatever is repeated."""
    by_rater: dict[str, Clip] = {}
    votes: Counter[str] = Counter()
    for row in rows:
        # A rater's last word counts, as in a form that is filled in again.
        if row.rater:
            by_rater[identity_key(row.rater)] = row
        else:
            votes.update(outcomes[row.label])
    for row in by_rater.values():
        votes.update(outcomes[row.label])
    return votes
