import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora import Corpus, open_corpus

WriteWav = Callable[..., Path]

HEAD = "path,speaker,emotion\n"


def open_with(folder: Path, text: str | bytes) -> Corpus:
    raw = text.encode() if isinstance(text, str) else text
    (folder / "manifest.csv").write_bytes(raw)
    return open_corpus("folder", folder)


def found(corpus: Corpus) -> dict[str, int]:
    return {note.what: note.count for note in corpus.findings}


@pytest.fixture
def pair(tmp_path: Path, wav: WriteWav) -> Path:
    wav("a/1.wav")
    wav("a/2.wav", rate=44_100)
    return tmp_path


def test_a_manifest_becomes_clips_with_everything_it_says(pair: Path) -> None:
    corpus = open_with(
        pair,
        "path,speaker,emotion,gender,age,language,intensity,statement,session\n"
        "a/1.wav,Ada,Freude,w,31,de,stark,Hallo,2\na/2.wav,Bo,colère,,,,,,\n",
    )

    first, second = corpus.clips
    assert (first.clip_id, first.speaker, first.emotion, first.label) == (
        "a/1.wav",
        "Ada",
        "happy",
        "Freude",
    )
    assert (first.gender, first.age, first.language) == ("female", 31, "de")
    assert (first.intensity, first.statement, first.session) == ("stark", "Hallo", "2")
    assert (second.emotion, second.gender, second.age, second.language) == (
        "angry",
        None,
        None,
        None,
    )
    assert corpus.format_mapping() == ["happy <- Freude", "angry <- colère"]
    assert corpus.emotions == ("happy", "angry")
    assert not corpus.findings


def test_a_clip_is_heard_at_16_khz_whatever_its_rate(pair: Path) -> None:
    corpus = open_with(pair, HEAD + "a/1.wav,A,sad\na/2.wav,B,sad\n")

    shapes = [clip.load_signal().samples.shape for clip in corpus.clips]

    assert shapes == [(1, 4_800), (1, 4_800)]
    assert {clip.load_signal().rate for clip in corpus.clips} == {16_000}


def test_a_clip_survives_the_way_to_a_worker(pair: Path) -> None:
    (clip,) = open_with(pair, HEAD + "a/1.wav,A,sad\n").clips

    assert pickle.loads(pickle.dumps(clip)) == clip  # noqa: S301
    assert len(clip.content_key()) == 64


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,speaker,emotion\r\na/1.wav,A,sad\r\na/2.wav,B,Wut\r\n",
        b"Path;Speaker;Emotion\na/1.wav;A;sad\na/2.wav;B;Wut\n",
        b"path\tspeaker\temotion\na/1.wav\tA\tsad\na/2.wav\tB\tWut\n",
        b"sep=;\npath;speaker;emotion\na/1.wav;A;sad\na/2.wav;B;Wut\n",
        b"path,speaker,emotion\na\\1.wav,A,sad\n.\\a\\2.wav,B,Wut\n",
        b"\n path , speaker , emotion \n\na/1.wav, A , sad \n,,\na/2.wav,B,Wut\n\n",
        b'path,speaker,emotion\n"a/1.wav","A","sad"\n"a//2.wav","B","Wut"\n',
        "path,speaker,emotion\na/1.wav,A,sad\na/2.wav,B,Wut\n".encode("utf-16"),
    ],
)
def test_dialects_are_understood(pair: Path, text: bytes) -> None:
    corpus = open_with(pair, text)

    assert [(c.clip_id, c.speaker, c.emotion) for c in corpus.clips] == [
        ("a/1.wav", "A", "sad"),
        ("a/2.wav", "B", "angry"),
    ]


def test_bytes_outside_utf_8_are_read_and_reported(pair: Path) -> None:
    corpus = open_with(pair, HEAD.encode() + "a/1.wav,Jörg,Ärger\n".encode("cp1252"))

    assert (corpus.clips[0].speaker, corpus.clips[0].emotion) == ("Jörg", "angry")
    assert found(corpus) == {"manifest bytes outside UTF-8": 1}


def test_unknown_columns_are_reported_and_ignored(pair: Path) -> None:
    corpus = open_with(pair, ",path,speaker,emotion,mood\n0,a/1.wav,A,sad,blue\n")

    assert corpus.findings[0].examples == ("(unnamed)", "mood")
    assert len(corpus.clips) == 1


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("path,speaker,emotoin", "rename 'emotoin' to 'emotion'"),
        ("file,spk,label", "lacks the columns path, speaker, emotion; found file, spk, label"),
        ("path", "needed path, speaker, emotion"),
        ("path,speaker,emotion,emotion", "more than one column emotion"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(pair: Path, header: str, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        open_with(pair, f"{header}\na/1.wav,A,sad\n")


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", HEAD, HEAD + ",,\n"])
def test_an_empty_manifest_is_refused(pair: Path, text: str) -> None:
    with pytest.raises(CorpusError, match=r"empty|no rows"):
        open_with(pair, text)


def test_rows_that_lack_something_are_counted(pair: Path) -> None:
    corpus = open_with(
        pair,
        HEAD + "a/1.wav,A,sad\n,A,sad\na/2.wav,,sad\na/2.wav,B,nan\na/2.wav\ngone.wav,A,sad\n",
    )

    assert [clip.clip_id for clip in corpus.clips] == ["a/1.wav"]
    assert corpus.clips_found == 2
    assert found(corpus) == {
        "rows without a path": 1,
        "rows without a speaker": 2,
        "rows without an emotion": 1,
        "files that are missing": 1,
    }


@pytest.mark.parametrize(
    "path", ["../x.wav", "/etc/passwd", "a/../../x.wav", "..\\x.wav", "C:\\a\\1.wav", ".", "~/../x"]
)
def test_a_path_never_leads_out_of_the_folder(pair: Path, wav: WriteWav, path: str) -> None:
    (pair / "in").mkdir()
    wav("x.wav")
    (pair / "in" / "ok.wav").write_bytes((pair / "a" / "1.wav").read_bytes())

    corpus = open_with(pair / "in", HEAD + f"ok.wav,A,sad\n{path},A,sad\n")

    assert [clip.clip_id for clip in corpus.clips] == ["ok.wav"]
    assert found(corpus) == {"paths that lead out of the corpus folder": 1}


def test_an_absolute_path_into_the_folder_is_taken(pair: Path) -> None:
    corpus = open_with(pair, HEAD + f"{pair}/a/1.wav,A,sad\n")

    assert corpus.clips[0].clip_id == "a/1.wav"


@pytest.mark.parametrize("path", ["x" * 5_000, "a\x00b.wav", "a", "a/1.wav/b"])
def test_an_odd_path_is_a_missing_file(pair: Path, path: str) -> None:
    corpus = open_with(pair, HEAD + f"a/1.wav,A,sad\n{path},A,sad\n")

    assert found(corpus) == {"files that are missing": 1}


def test_a_manifest_without_a_usable_clip_is_refused(pair: Path) -> None:
    with pytest.raises(CorpusError, match="no usable clip: files that are missing: 2"):
        open_with(pair, HEAD + "b/1.wav,A,sad\nb/2.wav,A,sad\n")


def test_ages_that_are_no_number_are_counted(pair: Path) -> None:
    corpus = open_with(
        pair, "path,speaker,emotion,age\na/1.wav,A,sad,thirties\na/2.wav,B,sad,42.0\n"
    )

    assert [clip.age for clip in corpus.clips] == [None, 42]
    assert found(corpus) == {"ages that are not a number of years": 1}


def test_a_file_listed_twice_counts_once_and_a_contradiction_not_at_all(pair: Path) -> None:
    corpus = open_with(
        pair,
        HEAD + "a/1.wav,A,sad\na/1.wav,A,Trauer\na/2.wav,B,sad\na\\2.wav,B,happy\n",
    )

    assert [clip.clip_id for clip in corpus.clips] == ["a/1.wav"]
    assert found(corpus) == {
        "files listed more than once": 1,
        "files listed under two speakers or emotions": 1,
    }


def test_sixty_speakers_of_another_language_need_no_code(tmp_path: Path, wav: WriteWav) -> None:
    labels = ["Freude", "Wut", "Trauer", "sarkastisch"]
    rows = [
        f"{wav(f'{s:02d}_{label}.wav', seed=4 * s + i, rate=22_050).name};Sprecher {s};{label};de"
        for s in range(63)
        for i, label in enumerate(labels)
    ]

    corpus = open_with(tmp_path, "path;speaker;emotion;language\n" + "\n".join(rows))

    assert (len(corpus.clips), len(corpus.speakers)) == (252, 63)
    assert corpus.emotions == ("happy", "sad", "angry", "sarkastisch")
    assert not corpus.findings


def test_a_missing_folder_and_a_missing_manifest_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a folder; name the one"):
        open_corpus("folder", tmp_path / "gone")
    with pytest.raises(CorpusError, match=r"has no manifest.csv; write one"):
        open_corpus("folder", tmp_path)


def test_the_manifest_itself_may_be_named(pair: Path) -> None:
    open_with(pair, HEAD + "a/1.wav,A,sad\n")

    assert len(open_corpus("folder", pair / "manifest.csv").clips) == 1


QUOTED = "path,speaker,emotion,statement\n"


@pytest.mark.parametrize(
    ("cell", "statement"),
    [
        ('"Well then, she said', "Well then, she said"),
        ('"', ""),
        ('"Well', "Well"),
        ('"a ""b"" c', 'a "b" c'),
        ('"two\nlines"', "two\nlines"),
        ('"two, lines\n\nand a blank one"', "two, lines\n\nand a blank one"),
        ('say "yes"', 'say "yes"'),
    ],
)
def test_no_quotation_mark_swallows_a_row(
    tmp_path: Path, wav: WriteWav, cell: str, statement: str
) -> None:
    names = [wav(f"{number}.wav", seed=number).name for number in range(6)]
    rows = [f"{name},A,sad,hello" for name in names]
    rows[2] = f"{names[2]},A,sad,{cell}"
    rows[4] = f'{names[4]},A,sad,"also open'

    corpus = open_with(tmp_path, QUOTED + "\n".join(rows) + "\n")

    assert [clip.clip_id for clip in corpus.clips] == names
    assert corpus.clips[2].statement == (statement or None)
    assert corpus.clips[4].statement == "also open"


@pytest.mark.parametrize(
    ("header", "row", "read"),
    [
        ("path,statement,speaker,emotion", 'a/1.wav,"Well, yes,Ada,sad', ("Ada", "sad")),
        ("path,speaker,emotion", 'a/1.wav,"Ada,sad', ("Ada", "sad")),
        ("path;speaker;emotion", 'a/1.wav;"Ada;sad', ("Ada", "sad")),
        ("speaker,path,emotion", '"Ada,a/1.wav,sad', ("Ada", "sad")),
    ],
)
def test_an_open_quotation_mark_moves_no_cell(
    pair: Path, header: str, row: str, read: tuple[str, str]
) -> None:
    separator = ";" if ";" in header else ","
    columns = header.split(separator)
    last = separator.join({"path": "a/2.wav", "emotion": "sad"}.get(c, "B") for c in columns)

    corpus = open_with(pair, f"{header}\n{row}\n{last}\n")

    assert [(clip.speaker, clip.emotion) for clip in corpus.clips] == [read, ("B", "sad")]
    assert found(corpus) == {"quotation marks that are never closed": 1}


def test_a_row_with_too_many_cells_gives_no_clip_another_speaker(pair: Path) -> None:
    corpus = open_with(pair, QUOTED + "a/1.wav,Ada, Countess,sad,hello\na/2.wav,Bo,sad,hello,,\n")

    assert [clip.speaker for clip in corpus.clips] == ["Bo"]
    assert found(corpus) == {"rows with more cells than columns": 1}


@pytest.mark.parametrize(
    "text",
    [
        (HEAD + "a/1.wav,A,sad\na/2.wav,B,Wut\n").encode("utf-16-le"),
        (HEAD + "a/1.wav,A,sad\na/2.wav,B,Wut\n").encode("utf-16-be"),
        (HEAD + "a/1.wav,A,sad\na/2.wav,B,Wut\n").encode("utf-32"),
        b"path,speaker,emotion\ra/1.wav,A,sad\ra/2.wav,B,Wut\r",
        b"p\xe2\x80\x8bath,\xef\xbb\xbfspeaker,EMOTION\na/1.wav,A,sad\na/2.wav,B,Wut\n",
        b"speaker;path;emotion;a,b,c,d\nA;a/1.wav;sad;\nB;a/2.wav;Wut;\n",
        b"sep=,\r\n\r\npath,speaker,emotion\r\na/1.wav,A,sad\r\na/2.wav,B,Wut\r\n",
    ],
)
def test_more_dialects_are_understood(pair: Path, text: bytes) -> None:
    corpus = open_with(pair, text)

    assert [(c.clip_id, c.speaker, c.emotion) for c in corpus.clips] == [
        ("a/1.wav", "A", "sad"),
        ("a/2.wav", "B", "angry"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"PK\x03\x04 and so on", "spreadsheet or an archive; save the table as CSV"),
        (b"\x1f\x8b\x08", "is compressed"),
        (",".join(["path", "speaker", "emotion", *map(str, range(1_000))]), "1003 columns"),
        (HEAD + "\n" * 2_000_001, "more than 2000000 lines"),
    ],
)
def test_what_is_no_table_says_so(pair: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        open_with(pair, text)


def test_a_manifest_that_would_never_end_is_refused(pair: Path) -> None:
    (pair / "manifest.csv").symlink_to("/dev/zero")
    with pytest.raises(CorpusError, match=r"has no manifest\.csv"):
        open_corpus("folder", pair)

    (pair / "manifest.csv").unlink()
    with (pair / "manifest.csv").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CorpusError, match="at most 67108864"):
        open_corpus("folder", pair)


def test_absurd_cells_are_counted(pair: Path) -> None:
    corpus = open_with(
        pair,
        HEAD
        + f"a/1.wav,A,sad\na/2.wav,{'A' * 150_000},sad\na/2.wav,{'B' * 300},sad\n"
        + f'a/2.wav,"{"C" * 150_000}",sad\n',
    )

    assert found(corpus) == {
        "rows with a cell that is too long": 2,
        "rows whose speaker or emotion has more than 200 characters": 1,
    }


def test_one_speaker_in_many_spellings_is_one_client(tmp_path: Path, wav: WriteWav) -> None:
    spellings = ["José", "Jose\u0301", "JOSÉ", "Jos\u200bé", "\u202aJosé\u202c"]
    rows = [f"{wav(f'{n}.wav').name},{name},sad\n" for n, name in enumerate(spellings)]
    other = f"{wav('x.wav').name},Jose,sad\n"

    corpus = open_with(tmp_path, HEAD + "".join(rows) + other)

    assert corpus.speakers == ("Jose", "José")
    assert found(corpus) == {"speakers whose name is written in several ways": 1}


@pytest.mark.parametrize("name", ["Nan", "Null", "None"])
def test_somebody_may_be_called_nan(pair: Path, name: str) -> None:
    assert open_with(pair, HEAD + f"a/1.wav,{name},sad\n").speakers == (name,)


def test_nobody_is_called_unknown(pair: Path) -> None:
    corpus = open_with(pair, HEAD + "a/1.wav,A,sad\na/2.wav,Unknown,sad\n")

    assert found(corpus) == {"rows without a speaker": 1}


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (b"Jos\xc3\xa9.wav", b"Jose\xcc\x81.wav"),
        (b"Jose\xcc\x81.wav", b"Jos\xc3\xa9.wav"),
        (b"Erkl\xe4rung.wav", b"Erkl\xe4rung.wav"),
        ("Erklärung.wav".encode(), b"Erkl\xe4rung.wav"),
    ],
)
def test_a_file_is_found_whatever_form_its_name_has(
    tmp_path: Path, wav: WriteWav, written: bytes, stored: bytes
) -> None:
    wav("a.wav").rename(tmp_path / os.fsdecode(stored))

    corpus = open_with(tmp_path, HEAD.encode() + written + b",A,sad\n")

    (clip,) = corpus.clips
    clip.clip_id.encode()
    assert clip.load_signal().duration_s == pytest.approx(0.3)


def test_one_file_under_two_spellings_is_one_clip(tmp_path: Path, wav: WriteWav) -> None:
    wav("José.wav")

    corpus = open_with(tmp_path, HEAD + "José.wav,A,sad\nJose\u0301.wav,A,sad\n")

    assert len(corpus.clips) == 1
    assert found(corpus) == {"files listed more than once": 1}
