from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora import Corpus, open_corpus

WriteWav = Callable[..., Path]

HEAD = "path,speaker,emotion\n"


def open_with(folder: Path, text: str) -> Corpus:
    (folder / "manifest.csv").write_text(text)
    return open_corpus("folder", folder)


def found(corpus: Corpus) -> dict[str, int]:
    return {note.what: note.count for note in corpus.findings}


TORN = "sets of identical recordings with contradictory labels or speakers"
SAME = "sets of identical recordings with one label"


def test_identical_recordings_with_contradictory_labels_are_set_aside(
    tmp_path: Path, wav: WriteWav
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        wav(f"{name}.wav", seed=seed)

    corpus = open_with(tmp_path, HEAD + "a.wav,A,sad\nb.wav,A,happy\nc.wav,A,sad\n")

    assert [clip.clip_id for clip in corpus.clips] == ["c.wav"]
    assert [clip.clip_id for clip in corpus.set_aside] == ["a.wav", "b.wav"]
    assert found(corpus) == {TORN: 1}
    assert corpus.findings[0].examples == ("a sad = b happy",)


def test_identical_recordings_of_two_speakers_are_set_aside(tmp_path: Path, wav: WriteWav) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        wav(f"{name}.wav", seed=seed)

    corpus = open_with(tmp_path, HEAD + "a.wav,A,sad\nb.wav,B,sad\nc.wav,A,sad\n")

    assert found(corpus) == {TORN: 1}
    assert len(corpus.clips) == 1


def test_identical_recordings_that_agree_are_kept_and_reported(
    tmp_path: Path, wav: WriteWav
) -> None:
    for name in "ab":
        wav(f"{name}.wav", seed=1)

    corpus = open_with(tmp_path, HEAD + "a.wav,A,sad\nb.wav,A,sadness\n")

    assert len(corpus.clips) == 2
    assert found(corpus) == {SAME: 1}


def test_the_digest_of_the_original_tells_twins_that_were_encoded_anew(
    tmp_path: Path, wav: WriteWav
) -> None:
    for name in "abc":
        wav(f"{name}.wav")
    one, other = "1" * 64, "2" * 64

    corpus = open_with(
        tmp_path,
        "path,speaker,emotion,source_sha256\n"
        f"a.wav,A,sad,{one}\nb.wav,A,happy,{one}\nc.wav,A,sad,{other}\n",
    )

    assert [clip.clip_id for clip in corpus.clips] == ["c.wav"]
    assert found(corpus) == {TORN: 1}


def test_a_digest_that_is_none_is_not_believed(tmp_path: Path, wav: WriteWav) -> None:
    for name in "ab":
        wav(f"{name}.wav")

    corpus = open_with(
        tmp_path, "path,speaker,emotion,source_sha256\na.wav,A,sad,x\nb.wav,A,happy,x\n"
    )

    assert len(corpus.clips) == 2
    assert not corpus.findings


def test_files_without_sound_in_them_are_counted(tmp_path: Path, wav: WriteWav) -> None:
    wav("a.wav")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "lfs.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")

    corpus = open_with(tmp_path, HEAD + "a.wav,A,sad\nempty.wav,A,sad\nlfs.wav,A,sad\n")

    assert len(corpus.clips) == 1
    assert found(corpus) == {
        "files of zero bytes": 1,
        "Git LFS pointers instead of recordings (run: git lfs pull)": 1,
    }


def test_a_corpus_of_pointers_only_says_so(tmp_path: Path) -> None:
    (tmp_path / "1001_DFA_ANG_XX.wav").write_text("version https://git-lfs.github.com/spec/v1\n")

    with pytest.raises(CorpusError, match="git lfs pull"):
        open_corpus("cremad", tmp_path)
