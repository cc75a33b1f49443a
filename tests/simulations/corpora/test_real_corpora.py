"""Facts about the real corpora; skipped, saying so, where they are not."""

from pathlib import Path

import pytest

from sottovoce.simulations.corpora import inspect_corpus, open_corpus, speaker_splits

pytestmark = pytest.mark.corpora
TORN = "sets of identical recordings with contradictory labels or speakers"


@pytest.mark.parametrize(
    ("name", "clips", "speakers", "classes"),
    [("ravdess", 1_440, 24, 8), ("cremad", 7_442, 91, 6), ("emodb", 535, 10, 7)],
)
def test_nothing_is_missing(
    corpora_dir: Path, name: str, clips: int, speakers: int, classes: int
) -> None:
    corpus = open_corpus(name, corpora_dir / name)

    assert corpus.clips_found == len(corpus.clips) + len(corpus.set_aside) == clips
    assert len(corpus.speakers) == speakers
    assert len(corpus.emotions) == classes
    assert all(clip.gender in ("female", "male") for clip in corpus.clips)


def test_cremad_has_three_contradictory_pairs(corpora_dir: Path) -> None:
    corpus = open_corpus("cremad", corpora_dir / "cremad")

    (torn,) = [note for note in corpus.findings if note.what == TORN]
    assert torn.count == 3
    assert torn.examples[0] == "1006_TIE_HAP_XX happy = 1006_TIE_NEU_XX neutral"
    assert len(corpus.clips) == 7_436


def test_cremad4_keeps_4799_votes_the_silent_one_among_them(corpora_dir: Path) -> None:
    corpus = open_corpus("cremad", corpora_dir / "cremad")

    settled = speaker_splits.apply_protocol("cremad4-5fold", corpus)

    names = {Path(clip.clip_id).stem for clip in settled.corpus.clips}
    assert len(names) == 4_799
    assert "1076_MTI_SAD_XX" in names
    assert settled.corpus.emotions == ("neutral", "happy", "sad", "angry")
    assert [len(fold.test) for fold in settled.folds] == [19, 18, 18, 18, 18]
    assert settled.folds[0].test[-1] == "cremad_1019"


def test_listening_finds_the_silent_clip(corpora_dir: Path) -> None:
    corpus = open_corpus("cremad", corpora_dir / "cremad")
    mute = tuple(clip for clip in corpus.clips if clip.speaker == "cremad_1076")
    one = type(corpus)(name="cremad", clips=mute, mapping=corpus.mapping, clips_found=len(mute))

    (silent,) = [note for note in inspect_corpus(one).findings if note.what == "silent clips"]

    assert silent.examples == ("audio/1076_MTI_SAD_XX.opus",)


def test_the_published_folds_of_the_others(corpora_dir: Path) -> None:
    ravdess = speaker_splits.apply_protocol(
        "default", open_corpus("ravdess", corpora_dir / "ravdess")
    )
    emodb = speaker_splits.apply_protocol("default", open_corpus("emodb", corpora_dir / "emodb"))

    assert (ravdess.name, emodb.name) == ("ravdess8-6fold", "emodb7-loso")
    assert ravdess.folds[1].test == tuple(f"ravdess_{n:02d}" for n in (5, 6, 7, 8))
    assert emodb.folds[0].test == ("emodb_03",)
    assert len(emodb.folds) == 10
