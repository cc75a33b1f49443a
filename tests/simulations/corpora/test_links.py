"""Links in corpora: what the owner laid in is read or named, nothing else is read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora import Corpus, open_corpus

WriteWav = Callable[..., Path]
LINKED = "paths that lead out of the corpus folder through a link"
HEAD = "path,speaker,emotion\n"


def found(corpus: Corpus) -> dict[str, int]:
    return {note.what: note.count for note in corpus.findings}


@pytest.fixture
def store(tmp_path: Path, wav: WriteWav) -> Path:
    """Four actors in a store, and an empty corpus folder beside it."""
    for actor in range(1, 5):
        wav(f"store/Actor_{actor:02d}/03-01-03-01-01-01-{actor:02d}.wav", seed=actor)
    (tmp_path / "ravdess").mkdir()
    return tmp_path / "store"


@pytest.mark.parametrize("relative", [True, False])
def test_linked_folders_are_entered_and_named(store: Path, relative: bool) -> None:
    use = store.parent / "ravdess"
    for folder in store.iterdir():
        target = Path("..") / "store" / folder.name if relative else folder
        (use / folder.name).symlink_to(target)

    corpus = open_corpus("ravdess", use)

    assert len(corpus.speakers) == 4
    assert found(corpus) == {"linked folders": 4}


def test_a_corpus_that_is_one_link_is_entered(store: Path) -> None:
    use = store.parent / "ravdess"
    (use / "all").symlink_to(store)

    assert len(open_corpus("ravdess", use).clips) == 4


def test_links_to_files_are_read_and_links_to_nothing_are_named(store: Path) -> None:
    use = store.parent / "ravdess"
    for path in store.rglob("*.wav"):
        (use / path.name).symlink_to(path)
    (use / "Actor_05").symlink_to(store / "gone")
    (use / "03-01-03-01-01-01-06.wav").symlink_to(store / "gone.wav")

    corpus = open_corpus("ravdess", use)

    assert len(corpus.speakers) == 4
    assert found(corpus) == {"links that lead nowhere": 2, "files that are missing": 1}


def test_links_that_lead_back_end(store: Path) -> None:
    (store / "Actor_01" / "back").symlink_to(store)
    (store / "again").symlink_to(store / "Actor_02")
    (store / "self").symlink_to(store / "self")

    corpus = open_corpus("ravdess", store)

    assert len(corpus.clips) == 4
    assert found(corpus) == {
        "links to folders that were read already": 2,
        "links that lead nowhere": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens every folder")
def test_a_folder_that_cannot_be_opened_is_named(store: Path) -> None:
    (store / "Actor_01").chmod(0)
    try:
        assert found(open_corpus("ravdess", store)) == {"folders that cannot be opened": 1}
    finally:
        (store / "Actor_01").chmod(0o700)


@pytest.fixture
def linking(tmp_path: Path, wav: WriteWav) -> Path:
    """A corpus whose manifest goes by links, to outside and within."""
    wav("private/secret.wav")
    folder = tmp_path / "corpus"
    wav("corpus/real/1.wav", seed=1)
    (folder / "out").symlink_to(tmp_path / "private")
    (folder / "out.wav").symlink_to(tmp_path / "private" / "secret.wav")
    (folder / "in").symlink_to(folder / "real")
    (folder / "twice").symlink_to(folder / "out")
    return folder


@pytest.mark.parametrize("path", ["out/secret.wav", "out.wav", "twice/secret.wav", "in/../out.wav"])
def test_a_manifest_does_not_lead_out_by_a_link(linking: Path, path: str) -> None:
    (linking / "manifest.csv").write_text(f"{HEAD}in/1.wav,A,sad\n{path},B,sad\n")

    corpus = open_corpus("folder", linking)

    assert [clip.clip_id for clip in corpus.clips] == ["in/1.wav"]
    assert [note.count for note in corpus.findings if "lead out" in note.what] == [1]


@pytest.mark.parametrize("path", ["out/secret.wav", "out.wav", "twice/secret.wav"])
def test_the_owner_may_allow_links(linking: Path, path: str) -> None:
    (linking / "manifest.csv").write_text(f"{HEAD}{path},B,sad\n")

    with pytest.raises(CorpusError, match=f"{LINKED}: 1, left out; --follow-links reads them"):
        open_corpus("folder", linking)
    assert len(open_corpus("folder", linking, follow_links=True).clips) == 1


def test_a_corpus_folder_that_is_a_link_is_its_own_inside(linking: Path) -> None:
    (linking / "manifest.csv").write_text(f"{HEAD}real/1.wav,A,sad\n{linking}/in/1.wav,A,sad\n")
    there = linking.parent / "there"
    there.symlink_to(linking)

    corpus = open_corpus("folder", there)

    assert len(corpus.clips) == 2
    assert LINKED not in found(corpus)


def test_an_odd_file_name_is_shown(store: Path, wav: WriteWav) -> None:
    folder = store / os.fsdecode(b"Gespr\xe4ch")
    folder.mkdir()
    wav("x.wav").rename(folder / os.fsdecode(b"03-01-04-01-01-01-01.wav"))
    wav("y.wav").rename(store / os.fsdecode(b"Erkl\xe4rung.wav"))

    corpus = open_corpus("ravdess", store)

    assert "Gespräch/03-01-04-01-01-01-01.wav" in [clip.clip_id for clip in corpus.clips]
    assert corpus.findings[0].examples == ("Erklärung.wav",)
