from collections import Counter
from pathlib import Path

import pytest

from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.simulations.corpora import Clip, Corpus, open_corpus
from sottovoce.simulations.corpora.speaker_splits import (
    Fold,
    apply_protocol,
    default_protocol,
    protocol_names,
    split_enrolment,
)


def corpus(
    speakers: int,
    *,
    name: str = "folder",
    spoken: dict[str, list[int]] | None = None,
    each: int = 1,
) -> Corpus:
    """Clips of numbered speakers; ``spoken`` says who speaks with which emotion."""
    everyone = list(range(speakers))
    spoken = spoken or {"neutral": everyone, "happy": everyone, "sad": everyone}
    clips = tuple(
        Clip(
            clip_id=f"{who:03d}/{emotion}{take}",
            speaker=f"s{who:03d}",
            emotion=emotion,
            label=emotion,
            path=Path("unheard.wav"),
        )
        for who in everyone
        for emotion, voices in spoken.items()
        for take in range(each if who in voices else 0)
    )
    return Corpus(name=name, clips=clips, mapping={}, clips_found=len(clips))


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ("5fold", [5, 5, 5, 4, 4]),
        ("2fold", [12, 11]),
        ("10fold", [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]),
        ("loso", [1] * 23),
        ("holdout", [5]),
    ],
)
def test_generic_folds_are_as_equal_as_can_be(asked: str, sizes: list[int]) -> None:
    settled = apply_protocol(asked, corpus(23))

    assert settled.name == asked
    assert [len(fold.test) for fold in settled.folds] == sizes


@pytest.mark.parametrize("asked", ["5fold", "loso", "7fold"])
def test_everybody_is_tested_once_and_never_trained_on_then(asked: str) -> None:
    settled = apply_protocol(asked, corpus(17))

    tested = [speaker for fold in settled.folds for speaker in fold.test]
    assert tested == sorted(settled.corpus.speakers)
    for fold in settled.folds:
        assert set(fold.train) | set(fold.test) == set(tested)
        assert not set(fold.train) & set(fold.test)


def test_a_fold_with_a_speaker_on_both_sides_cannot_be_made() -> None:
    with pytest.raises(CorpusError, match="fold1 trains and tests on b"):
        Fold(name="fold1", train=("a", "b"), test=("b",))


def test_the_usual_protocol_makes_few_folds_of_few_speakers_and_says_so() -> None:
    settled = apply_protocol("default", corpus(3))

    assert (settled.name, len(settled.folds)) == ("3fold", 3)
    assert settled.findings[0].action == "3fold, one speaker a fold"


@pytest.mark.parametrize("name", ["5fold", "50fold", "999999999fold"])
def test_more_folds_than_speakers_are_refused_where_they_were_asked_for(name: str) -> None:
    with pytest.raises(SettingError, match=rf"protocol is {name} .* at most 3fold"):
        apply_protocol(name, corpus(3))


def test_one_speaker_is_refused() -> None:
    for name in ("5fold", "loso", "holdout"):
        with pytest.raises(CorpusError, match="one speaker only, s000; a protocol needs at least"):
            apply_protocol(name, corpus(1))


def test_one_class_is_refused() -> None:
    with pytest.raises(CorpusError, match="one class only, sad"):
        apply_protocol("5fold", corpus(4, spoken={"sad": [0, 1, 2, 3]}))


def test_a_class_that_a_fold_cannot_learn_is_refused_with_a_way_out() -> None:
    rare = corpus(10, spoken={"sad": list(range(10)), "happy": list(range(10)), "awe": [2, 3]})

    with pytest.raises(CorpusError, match=r"fold2 has no clip of class 'awe'.*s002, s003.*loso"):
        apply_protocol("5fold", rare)

    assert len(apply_protocol("loso", rare).folds) == 10
    filtered = apply_protocol("5fold", rare, classes=("sad", "happy"))
    assert filtered.corpus.emotions == ("happy", "sad")
    assert filtered.findings[0].count == 2


def test_a_class_that_a_fold_cannot_test_is_reported() -> None:
    settled = apply_protocol(
        "5fold", corpus(10, spoken={"sad": list(range(10)), "awe": [0, 2, 4, 6]})
    )

    (gap,) = settled.findings
    assert (gap.what, gap.examples) == ("classes absent from a test fold", ("fold5 awe",))


@pytest.mark.parametrize("name", ["", "fold", "0fold", "1fold", "-2fold", "kfold", "5Fold"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=r"protocol is|folds is 1"):
        apply_protocol(name, corpus(10))


def test_a_class_that_is_not_there_cannot_be_kept() -> None:
    with pytest.raises(SettingError, match="has no rage; it has neutral, happy, sad"):
        apply_protocol("5fold", corpus(10), classes=("sad", "rage"))


def test_a_published_protocol_is_for_its_own_corpus_and_for_all_of_it() -> None:
    with pytest.raises(SettingError, match="is for ravdess, the corpus is folder"):
        apply_protocol("ravdess8-6fold", corpus(24))
    with pytest.raises(CorpusError, match="needs all 24 speakers of ravdess, this copy has 23"):
        apply_protocol("ravdess8-6fold", corpus(23, name="ravdess"))

    whole = apply_protocol("ravdess8-6fold", corpus(24, name="ravdess"))
    assert [len(fold.test) for fold in whole.folds] == [4] * 6
    assert whole.folds[0].test == ("s000", "s001", "s002", "s003")


def test_the_default_is_the_published_one_of_a_whole_corpus() -> None:
    assert default_protocol(corpus(24, name="ravdess")) == "ravdess8-6fold"
    assert default_protocol(corpus(23, name="ravdess")) == "5fold"
    assert apply_protocol("default", corpus(9)).name == "5fold"
    assert "cremad4-5fold" in protocol_names()


@pytest.fixture
def voted(tmp_path: Path) -> Path:
    """91 actors, the first with pairs of identical clips under two labels."""
    rows, votes = [], []
    for actor in range(1001, 1092):
        for emotion, vote in (("ANG", "A"), ("HAP", "H"), ("NEU", "N"), ("SAD", "S"), ("DIS", "D")):
            rows.append(f"{actor}_DFA_{emotion}_XX")
            votes.append(f"{rows[-1]},{vote}")
    for sentence, first, second in (("TIE", "N", "N"), ("WSI", "N", "S")):
        rows += [f"1001_{sentence}_{emotion}_XX" for emotion in ("NEU", "SAD")]
        votes += [f"{rows[-2]},{first}", f"{rows[-1]},{second}"]
    for row in rows:
        twin = row[:8] if row[5:8] in ("TIE", "WSI") else row
        (tmp_path / f"{row}.wav").write_text(twin)
    (tmp_path / "summaryTable.csv").write_text("FileName,MultiModalVote\n" + "\n".join(votes))
    return tmp_path


def test_cremad4_goes_by_votes_and_takes_twins_back_whose_votes_agree(voted: Path) -> None:
    opened = open_corpus("cremad", voted)
    settled = apply_protocol("cremad4-5fold", opened)

    assert (len(opened.clips), len(opened.set_aside)) == (91 * 5, 4)
    assert len(settled.corpus.clips) == 91 * 4 + 2
    twins = {clip.clip_id: clip.emotion for clip in settled.corpus.clips if "TIE" in clip.clip_id}
    assert twins == {"1001_TIE_NEU_XX.wav": "neutral", "1001_TIE_SAD_XX.wav": "neutral"}
    assert {note.what: note.count for note in settled.findings} == {
        "clips voted otherwise than exactly N, H, S or A": 91,
        "clips set aside whose votes agree": 2,
        "clips set aside whose votes differ too": 2,
    }
    assert [len(fold.test) for fold in settled.folds] == [19, 18, 18, 18, 18]


def test_cremad4_without_votes_says_where_they_are(voted: Path) -> None:
    (voted / "summaryTable.csv").unlink()
    opened = open_corpus("cremad", voted)

    with pytest.raises(CorpusError, match=r"put summaryTable\.csv .* or use cremad6-5fold"):
        apply_protocol("cremad4-5fold", opened)
    assert len(apply_protocol("cremad6-5fold", opened).corpus.clips) == 91 * 5


def one_speaker(each: int) -> tuple[Clip, ...]:
    return corpus(1, each=each).clips


@pytest.mark.parametrize(("asked", "enrolled"), [(0, 0), (1, 1), (4, 4), (5, 4), (99, 4)])
def test_at_most_half_of_the_neutral_clips_enrol(asked: int, enrolled: int) -> None:
    split = split_enrolment(one_speaker(9), neutral=asked, seed=1)

    assert len(split.neutral) == enrolled
    assert {clip.emotion for clip in split.neutral} <= {"neutral"}


@pytest.mark.parametrize("neutral", [0, 2, 5])
@pytest.mark.parametrize("labelled", [0, 5, 99])
def test_no_clip_enrols_and_is_scored(neutral: int, labelled: int) -> None:
    clips = one_speaker(6)
    split = split_enrolment(clips, neutral=neutral, labelled=labelled, seed=3)

    together = [c.clip_id for c in (*split.neutral, *split.labelled, *split.scored)]
    assert sorted(together) == sorted(clip.clip_id for clip in clips)
    assert {clip.emotion for clip in split.scored} == {"neutral", "happy", "sad"}


def test_labelled_clips_come_as_they_come_but_leave_one_of_each_emotion() -> None:
    drawn = [split_enrolment(one_speaker(6), labelled=5, seed=seed) for seed in range(30)]

    counts = {
        tuple(sorted(Counter(clip.emotion for clip in split.labelled).values())) for split in drawn
    }
    assert len(counts) > 1  # not by rounds through the emotions
    most = split_enrolment(one_speaker(6), labelled=100, seed=4)
    assert {clip.emotion for clip in most.scored} == {"neutral", "happy", "sad"}


def test_enrolment_repeats_grows_and_depends_on_the_seed() -> None:
    clips = one_speaker(40)
    few, more = (split_enrolment(clips, neutral=k, labelled=k, seed=1) for k in (3, 6))
    other = split_enrolment(clips, neutral=3, labelled=3, seed=2)

    assert split_enrolment(clips, neutral=3, labelled=3, seed=1) == few
    assert set(few.labelled) < set(more.labelled)
    assert other != few


def test_heads_get_the_same_clips_whatever_the_enrolment() -> None:
    clips = one_speaker(8)
    splits = [split_enrolment(clips, neutral=k, labelled=5, seed=1) for k in (0, 1, 4)]

    assert splits[0].labelled == splits[1].labelled == splits[2].labelled


def test_a_speaker_without_neutral_clips_enrols_none() -> None:
    clips = corpus(1, spoken={"sad": [0], "awe": [0]}, each=3).clips

    assert split_enrolment(clips, neutral=5, seed=0).neutral == ()


def test_enrolment_is_for_one_speaker_and_not_negative() -> None:
    with pytest.raises(CorpusError, match="one speaker, not of 2"):
        split_enrolment(corpus(2).clips, neutral=1, seed=0)
    with pytest.raises(SettingError, match="neutral is -1"):
        split_enrolment(one_speaker(2), neutral=-1, seed=0)
