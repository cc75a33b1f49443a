"""One label a clip: raters, codes, numbers, and a user's own label map."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.simulations.corpora import Corpus, open_corpus
from sottovoce.simulations.corpora.speaker_splits import apply_protocol, default_protocol
from sottovoce.simulations.corpora.user_label_map import read_label_map

WriteWav = Callable[..., Path]
OpenLabels = Callable[..., Corpus]


@pytest.fixture
def open_labels(tmp_path: Path, wav: WriteWav) -> OpenLabels:
    """A corpus with one clip for each label, of two speakers in turn."""

    def write(labels: Sequence[str], *, label_map: str | None = None, own: bool = False) -> Corpus:
        rows = ["path,speaker,emotion"]
        for number, label in enumerate(labels):
            path = wav(f"{number}.wav", seed=number)
            rows.append(f'{path.name},s{number % 2},"{label}"')
        (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
        if label_map is None:
            return open_corpus("folder", tmp_path)
        file = tmp_path / ("labels.csv" if own else "mine.csv")
        file.write_text(label_map, encoding="utf-8")
        return open_corpus("folder", tmp_path, labels="" if own else file)

    return write


def classes(corpus: Corpus) -> list[str]:
    return [clip.emotion for clip in corpus.clips]


def found(corpus: Corpus) -> dict[str, int]:
    return {note.what: note.count for note in corpus.findings}


def open_rows(folder: Path, header: str, rows: Sequence[str]) -> Corpus:
    (folder / "manifest.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return open_corpus("folder", folder)


RATED = "path,speaker,emotion,rater"


@pytest.mark.parametrize(
    ("votes", "emotion"),
    [
        (["sad", "sad", "happy"], "sad"),
        (["sad", "Trauer", "happy"], "sad"),
        (["sad", "happy"], None),
        (["sad", "happy", "angry"], None),
        (["sad", "sad", "happy", "angry"], None),
        (["sad", "xxx", "sad"], "sad"),
        (["xxx", "xxx", "sad"], None),
        (["other", "other", "sad"], None),
        (["sad", "nan", "nan"], "sad"),
    ],
)
def test_more_than_half_of_the_raters_decide(
    tmp_path: Path, wav: WriteWav, votes: list[str], emotion: str | None
) -> None:
    wav("a.wav")
    wav("b.wav")
    rows = [f"a.wav,A,{vote},r{number}" for number, vote in enumerate(votes)]

    corpus = open_rows(tmp_path, RATED, [*rows, "b.wav,B,angry,r0"])

    assert classes(corpus) == ([emotion] if emotion else []) + ["angry"]
    assert corpus.clips_found == 2


def test_raters_need_no_column_and_a_cell_may_hold_them_all(tmp_path: Path, wav: WriteWav) -> None:
    for name in "abc":
        wav(f"{name}.wav")

    corpus = open_rows(
        tmp_path,
        "path,speaker,emotion",
        [
            "a.wav,A,sad",
            "a.wav,A,happy",
            "a.wav,A,sad",
            "b.wav,A,happy;sad;happy",
            "c.wav,A,sad/xxx",
        ],
    )

    assert [(clip.clip_id, clip.emotion) for clip in corpus.clips] == [
        ("a.wav", "sad"),
        ("b.wav", "happy"),
    ]
    assert found(corpus)["files with several votes"] == 2


def test_a_rater_votes_once_with_the_last_word(tmp_path: Path, wav: WriteWav) -> None:
    wav("a.wav")
    rows = ["a.wav,A,happy,Zoë", "a.wav,A,happy,Zoe\u0308", "a.wav,A,sad,ZOË ", "a.wav,A,sad,r2"]

    assert classes(open_rows(tmp_path, RATED, rows)) == ["sad"]


def test_raters_who_name_two_speakers_are_no_vote(tmp_path: Path, wav: WriteWav) -> None:
    wav("a.wav")
    wav("b.wav")
    rows = ["a.wav,A,sad,1", "a.wav,A,sad,2", "a.wav,B,sad,3", "b.wav,B,sad,1"]

    corpus = open_rows(tmp_path, RATED, rows)

    assert found(corpus) == {"files listed under two speakers or emotions": 1}


def test_codes_of_a_corpus_are_read_where_they_are_recognised(open_labels: OpenLabels) -> None:
    corpus = open_labels(["A", "S", "H", "N", "U", "X", "O"])

    assert classes(corpus) == ["angry", "sad", "happy", "neutral", "surprised"]
    assert found(corpus) == {
        "labels of one letter": 7,
        "clips whose raters did not agree": 1,
        "clips labelled with another emotion than those named": 1,
    }
    assert classes(open_labels(["W", "A", "F", "T", "N"]))[:3] == ["angry", "fearful", "happy"]


def test_letters_that_could_mean_anything_are_classes_and_are_named(
    open_labels: OpenLabels,
) -> None:
    corpus = open_labels(["A", "F", "N"])

    assert classes(corpus) == ["a", "f", "n"]
    assert found(corpus) == {"labels of one letter": 3}


@pytest.mark.parametrize("code", ["X", "xxx", "no agreement", "No-Agreement", "unknown", "未知"])
def test_no_agreement_is_no_class(open_labels: OpenLabels, code: str) -> None:
    corpus = open_labels(["happy", "sad", code])

    assert classes(corpus) == ["happy", "sad"]
    assert found(corpus)["clips whose raters did not agree"] == 1


@pytest.mark.parametrize("code", ["O", "oth", "Other", "sonstiges", "その他", "autre"])
def test_other_is_no_class(open_labels: OpenLabels, code: str) -> None:
    assert classes(open_labels(["happy", "sad", code])) == ["happy", "sad"]


@pytest.mark.parametrize(
    "labels",
    [["1", "2", "3"], ["3.5", "2,5", "4"], ["[2; 3]", "1/5", "happy"], ["80 %", "-1", "0"]],
)
def test_numbers_are_refused_as_ratings(open_labels: OpenLabels, labels: list[str]) -> None:
    with pytest.raises(CorpusError, match=r"labels are numbers .*--label-map"):
        open_labels(labels)


def test_a_number_among_words_is_left_out(open_labels: OpenLabels) -> None:
    assert found(open_labels(["happy", "sad", "3"])) == {"clips labelled with a number": 1}


@pytest.mark.parametrize("own", [True, False])
def test_a_label_map_keeps_merges_drops_and_renames(open_labels: OpenLabels, own: bool) -> None:
    text = "label;emotion\nexcited;happy\nJoy;keep\nOther;keep\nsad;drop\nMüde;Weary\n7;angry\n"

    corpus = open_labels(
        ["exc", "happy", "joy", "other", "sad", "mu\u0308de", "7", "angry"], label_map=text, own=own
    )

    assert classes(corpus) == ["happy", "happy", "joy", "other", "weary", "angry", "angry"]
    assert found(corpus) == {"clips whose label the label map drops": 1}


def test_the_four_classes_of_iemocap(tmp_path: Path, open_labels: OpenLabels) -> None:
    open_labels(["neu", "hap", "exc", "sad", "ang", "fru", "sur", "xxx", "oth"])

    corpus = open_corpus("folder", tmp_path, labels="iemocap4")

    assert corpus.emotions == ("neutral", "happy", "sad", "angry")
    assert len(corpus.clips) == 5
    assert found(corpus) == {"clips whose label the label map drops": 4}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("label,emotion\nexc,\n", "line 2: .*write both, and drop"),
        ("label,emotion\nexc,happy\nEXC,sad\n", "line 3: .*mapped twice"),
        ("name,emotion\nexc,happy\n", "0 columns label"),
        ("label,emotion,emotion\nexc,happy,sad\n", "2 columns emotion"),
        ("label,emotion\n*,keep\n", "leave this line out"),
        ("label,emotion\nexc,happy,sad\n", "more cells than columns"),
        ('label,emotion\n"exc,happy\nsad,drop\n', "never closed"),
        (f"label,emotion\n{'x' * 300},happy\n", "at most 200 characters"),
        ("", "is empty"),
    ],
)
def test_a_label_map_that_is_not_understood_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "mine.csv").write_text(text)

    with pytest.raises(CorpusError, match=says):
        read_label_map(tmp_path / "mine.csv")


def test_a_label_map_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no such file; .*iemocap4"):
        read_label_map(tmp_path / "mine.csv")


def test_a_label_that_no_clip_has_is_reported(open_labels: OpenLabels) -> None:
    corpus = open_labels(["happy", "sad"], label_map="label,emotion\nhapy,angry\n")

    assert found(corpus) == {"labels of the label map that no clip has": 1}


def test_a_published_protocol_has_labels_of_its_own(tmp_path: Path, wav: WriteWav) -> None:
    for actor in range(1, 25):
        wav(f"03-01-03-01-01-01-{actor:02d}.wav")
        wav(f"03-01-02-01-01-01-{actor:02d}.wav", seed=actor)
    plain = open_corpus("ravdess", tmp_path)
    (tmp_path / "labels.csv").write_text("label,emotion\ncalm,neutral\n")
    merged = open_corpus("ravdess", tmp_path)

    assert (default_protocol(plain), default_protocol(merged)) == ("ravdess8-6fold", "5fold")
    assert merged.emotions == ("neutral", "happy")
    with pytest.raises(SettingError, match="leave it out, or use 6fold"):
        apply_protocol("ravdess8-6fold", merged)


@pytest.mark.parametrize(
    "labels",
    [
        ["かんき", "がんき"],
        ["क्रोध", "करोध"],
        ["เศร้า", "เศรา"],
        ["злой", "злои"],
        ["σοφός", "σόφος"],
        ["سَعيد", "سعيد"],
        ["résigné", "resigne"],
        ["שָׂמֵחַ", "שמח"],
    ],
)
def test_a_label_that_the_table_does_not_know_keeps_its_marks(
    open_labels: OpenLabels, labels: list[str]
) -> None:
    corpus = open_labels(labels)

    assert sorted(corpus.emotions) == sorted(labels)


def test_one_label_in_several_forms_is_one_class(open_labels: OpenLabels) -> None:
    corpus = open_labels(
        ["がんき", "か\u3099んき", "Zärtlich", "za\u0308rtlich\u200b", "ＺÄＲＴＬＩＣＨ"]
    )

    assert set(classes(corpus)) == {"がんき", "zärtlich"}


def test_votes_of_raters_are_kept_by_class(tmp_path: Path, wav: WriteWav) -> None:
    wav("a.wav")
    wav("b.wav")
    rows = [f"a.wav,A,{vote},r{n}" for n, vote in enumerate(("sad", "Trauer", "joy", "sad", "xxx"))]

    corpus = open_rows(tmp_path, RATED, [*rows, "b.wav,B,angry,r0"])

    assert [clip.votes for clip in corpus.clips] == [(("happy", 1), ("sad", 3)), ()]
