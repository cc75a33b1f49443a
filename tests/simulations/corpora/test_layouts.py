from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.simulations.corpora import Corpus, open_corpus

WriteWav = Callable[..., Path]


def found(corpus: Corpus) -> dict[str, int]:
    return {note.what: note.count for note in corpus.findings}


def test_ravdess(tmp_path: Path, wav: WriteWav) -> None:
    wav("Actor_01/03-01-01-01-02-01-01.wav", rate=48_000)
    wav("Actor_12/03-01-06-02-01-02-12.wav")
    wav("Actor_12/03-02-06-02-01-02-12.wav")  # song

    corpus = open_corpus("ravdess", tmp_path)

    first, second = corpus.clips
    assert (first.clip_id, first.speaker) == ("Actor_01/03-01-01-01-02-01-01.wav", "ravdess_01")
    assert (first.emotion, first.gender, first.intensity) == ("neutral", "male", "normal")
    assert first.statement == "Dogs are sitting by the door"
    assert (second.speaker, second.emotion, second.gender) == ("ravdess_12", "fearful", "female")
    assert second.intensity == "strong"
    assert found(corpus) == {"recordings whose name is no part of the layout": 1}


def test_a_copy_unpacked_twice_counts_once(tmp_path: Path, wav: WriteWav) -> None:
    for top in ("Actor_01", "audio_speech_actors_01-24/Actor_01"):
        wav(f"{top}/03-01-01-01-01-01-01.wav", seed=1)

    corpus = open_corpus("ravdess", tmp_path)

    assert [clip.clip_id for clip in corpus.clips] == ["Actor_01/03-01-01-01-01-01-01.wav"]
    assert found(corpus) == {"further files of a recording already met": 1}


@pytest.fixture
def cremad(tmp_path: Path, wav: WriteWav) -> Path:
    for name in ("1001_DFA_ANG_XX", "1002_IEO_SAD_HI", "1040_ITH_SAD_X", "1001_TIE_NEU_XX"):
        wav(f"AudioWAV/{name}.wav")
    (tmp_path / "VideoDemographics.csv").write_text(
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","C","N"\n1002,21,"Female","C","N"'
    )
    return tmp_path


def test_cremad(cremad: Path) -> None:
    corpus = open_corpus("cremad", cremad)

    anger, _, sad, odd = corpus.clips
    assert (anger.speaker, anger.emotion, anger.label) == ("cremad_1001", "angry", "anger")
    assert (anger.age, anger.gender, anger.vote) == (51, "male", None)
    assert anger.statement == "Don't forget a jacket"
    assert (sad.intensity, sad.gender) == ("high", "female")
    assert (odd.speaker, odd.intensity, odd.age) == ("cremad_1040", "unspecified", None)


@pytest.mark.parametrize("folder", [".", "extra", "processedResults", "AudioWAV/.."])
def test_cremad_votes_lie_beside_the_clips(cremad: Path, folder: str) -> None:
    (cremad / folder).mkdir(exist_ok=True)
    (cremad / folder / "summaryTable.csv").write_text(
        '"","FileName","VoiceVote","MultiModalVote"\n"1","1001_DFA_ANG_XX","N","A:D"\n'
        '"2","1040_ITH_SAD_XX","N","S"\n'
    )

    votes = {clip.speaker: clip.vote for clip in open_corpus("cremad", cremad).clips[::3]}

    assert votes == {"cremad_1001": "A:D", "cremad_1040": "S"}


def test_cremad_votes_are_found_from_the_folder_of_clips(cremad: Path) -> None:
    (cremad / "processedResults").mkdir()
    (cremad / "processedResults" / "summaryTable.csv").write_text(
        "FileName,MultiModalVote\n1001_DFA_ANG_XX,A\n"
    )

    corpus = open_corpus("cremad", cremad / "AudioWAV")

    assert corpus.clips[0].vote == "A"
    assert corpus.clips[0].age == 51
    assert found(corpus)["clips without a listeners' vote"] == 3


def test_a_damaged_table_of_votes_is_named(cremad: Path) -> None:
    (cremad / "summaryTable.csv").write_text("FileName\n1001_DFA_ANG_XX\n")

    with pytest.raises(CorpusError, match="lacks the columns FileName and MultiModalVote"):
        open_corpus("cremad", cremad)


def test_emodb(tmp_path: Path, wav: WriteWav) -> None:
    for name in ("03a01Fa", "16b10Lb", "08a02Wc"):
        wav(f"wav/{name}.wav")

    clips = open_corpus("emodb", tmp_path).clips

    assert [(c.speaker, c.label, c.emotion, c.gender, c.age) for c in clips] == [
        ("emodb_03", "happiness", "happy", "male", 31),
        ("emodb_08", "anger", "angry", "female", 34),
        ("emodb_16", "boredom", "bored", "female", 31),
    ]
    assert {clip.language for clip in clips} == {"de"}


@pytest.mark.parametrize("names", [("DC_a01", "KL_su12"), ("DC/a01", "AudioData/KL/su12")])
def test_savee(tmp_path: Path, wav: WriteWav, names: tuple[str, str]) -> None:
    for name in names:
        wav(f"{name}.wav")
    wav("Info/a01.wav")

    corpus = open_corpus("savee", tmp_path)

    known = {(c.speaker, c.emotion, c.gender) for c in corpus.clips}
    assert known == {("savee_DC", "angry", "male"), ("savee_KL", "surprised", "male")}
    assert found(corpus) == {"recordings whose name is no part of the layout": 1}


def test_tess(tmp_path: Path, wav: WriteWav) -> None:
    names = ("OAF_angry/OAF_back_angry", "OAF_neutral/OA_bite_neutral", "YAF_ps/YAF_dog_ps")
    for name in names:
        wav(f"{name}.wav")

    clips = open_corpus("tess", tmp_path).clips

    assert [(c.speaker, c.emotion, c.age, c.statement) for c in clips] == [
        ("tess_OAF", "angry", 64, "Say the word back"),
        ("tess_OAF", "neutral", 64, "Say the word bite"),
        ("tess_YAF", "surprised", 26, "Say the word dog"),
    ]


def test_a_manifest_goes_before_the_file_names(tmp_path: Path, wav: WriteWav) -> None:
    wav("audio/03a01Wa.wav")
    wav("03a01Fa.wav")
    (tmp_path / "manifest.csv").write_text("path,speaker,emotion\naudio/03a01Wa.wav,x,fear\n")

    (clip,) = open_corpus("emodb", tmp_path).clips

    assert (clip.clip_id, clip.speaker, clip.emotion) == ("audio/03a01Wa.wav", "x", "fearful")


@pytest.mark.parametrize(
    ("asked", "names", "right"),
    [
        ("ravdess", ["03a01Fa", "16b10Lb", "08a02Wc"], "they look like emodb; use --corpus emodb"),
        ("emodb", ["1001_DFA_ANG_XX", "1002_DFA_ANG_XX", "03a01Fa"], "use --corpus cremad"),
        ("cremad", ["DC_a01", "KL_su12"], "use --corpus savee"),
        ("tess", ["one", "two", "OAF_back_angry"], "use --corpus folder"),
    ],
)
def test_a_manifest_of_another_corpus_is_refused(
    tmp_path: Path, wav: WriteWav, asked: str, names: list[str], right: str
) -> None:
    rows = [f"{wav(f'audio/{name}.wav').relative_to(tmp_path)},x,fear" for name in names]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,speaker,emotion", *rows]))

    with pytest.raises(CorpusError, match=right):
        open_corpus(asked, tmp_path)

    assert len(open_corpus("folder", tmp_path).clips) == len(names)


def test_a_lossless_file_goes_before_a_lossy_one(tmp_path: Path, wav: WriteWav) -> None:
    wav("AudioWAV/1001_DFA_ANG_XX.wav")
    wav("AudioMP3/1001_DFA_ANG_XX.mp3")

    assert [c.clip_id for c in open_corpus("cremad", tmp_path).clips] == [
        "AudioWAV/1001_DFA_ANG_XX.wav"
    ]


def test_leavings_of_archives_are_no_recordings(tmp_path: Path, wav: WriteWav) -> None:
    wav("wav/03a01Fa.wav")
    wav("__MACOSX/wav/._03a01Fa.wav")

    corpus = open_corpus("emodb", tmp_path)

    assert len(corpus.clips) == 1
    assert not corpus.findings


def test_a_folder_of_something_else_says_what_was_looked_for(tmp_path: Path, wav: WriteWav) -> None:
    wav("hello.wav")

    with pytest.raises(CorpusError, match=r"no file like wav/03a01Fa\.wav and no manifest"):
        open_corpus("emodb", tmp_path)


def test_an_unknown_name_and_a_missing_folder_are_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="must be one of synthetic, folder, ravdess"):
        open_corpus("iemocap", tmp_path)
    with pytest.raises(SettingError, match="needs its folder: --data DIR"):
        open_corpus("ravdess")


def test_cremad_s_raters_are_counted_by_what_they_heard_and_saw(cremad: Path) -> None:
    (cremad / "tabulatedVotes.csv").write_text(
        '"","A","D","F","H","N","S","fileName","numResponses"\n'
        '"100001",1,0,0,0,9,0,"1001_DFA_ANG_XX",10\n'
        '"300001",7,2,0,0,0,NA,"1001_DFA_ANG_XX",9\n'
        '"300002",0,0,0,0,1,8,"1040_ITH_SAD_XX",9\n'
    )

    votes = {clip.speaker: clip.votes for clip in open_corpus("cremad", cremad).clips[::3]}

    assert votes == {
        "cremad_1001": (("angry", 7), ("disgust", 2)),
        "cremad_1040": (("neutral", 1), ("sad", 8)),
    }


def test_a_damaged_table_of_raters_is_named(cremad: Path) -> None:
    (cremad / "tabulatedVotes.csv").write_text("fileName,A\n1001_DFA_ANG_XX,3\n")

    with pytest.raises(CorpusError, match="lacks the columns fileName, A, D, F, H, N, S"):
        open_corpus("cremad", cremad)
