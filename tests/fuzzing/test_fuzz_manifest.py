"""Readers of a corpus folder raise only ``CorpusError`` and ``SettingError``, and lose no row."""

import contextlib
import csv
import io
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, HOSTILE_TEXTS, mutated_bytes

from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.identity import identity_key, tidy_name
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.corpora.speaker_splits import apply_protocol
from sottovoce.simulations.corpora.table import MAX_CELL, MAX_NAME, Tally, read_table
from sottovoce.simulations.corpora.user_label_map import read_label_map

MANIFESTS = (
    b"path,speaker,emotion,session,age,mood\n0.wav,Ana,sad,1,31,x\n1.wav,Ben,happy,2,,y\n",
    b'path;speaker;emotion;statement\n0.wav;Ana;sad;"a; b\nc"\n1.wav;Ben;Wut;"open\n2.wav;C;X;z\n',
    "sep=,\r\npath,speaker,emotion,rater\r\n0.wav,José,がんき,1\r\n0.wav,Jose\u0301,O,2\r\n".encode(),
    "path\tspeaker\temotion\r0.wav\tAna\tärgerlich\r1.wav\tBo\t3\r".encode("utf-16"),
    b"path,speaker,emotion\n..\\0.wav,Ana,sad\n/etc/passwd,B,happy\nout/0.wav,C,a;b\n",
)
LABEL_MAPS = (
    b"label,emotion\nexcited,happy\nother,drop\n*,drop\nJoy,keep\n",
    "label;emotion\nmüde;weary\n\u304c;\u304b\u3099\n".encode("utf-16-le"),
)
CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(HOSTILE_TEXTS),
    st.sampled_from(["sad", "happy", "0.wav", "1.wav", '"', '""', '"a', "a,b", "a\nb", "X", "3"]),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Two recordings, and a link out."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(3):
            with wave.open(f"{name}/{number}.wav", "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(bytes([number]) * 12_000)
        (Path(name) / "out").symlink_to("/etc")
        yield Path(name)


def check_manifest(folder: Path, data: bytes) -> None:
    """Open and split the corpus of a manifest; what comes back is clean and within the folder."""
    (folder / "manifest.csv").write_bytes(data)
    with contextlib.suppress(CorpusError, SettingError):
        corpus = open_corpus("folder", folder)
        for clip in corpus.clips:
            assert clip.path
            assert clip.path.resolve().is_relative_to(folder.resolve())
            assert tidy_name(clip.speaker) == clip.speaker != ""
            assert identity_key(clip.emotion)
            assert len(clip.speaker) <= MAX_NAME
        assert len({identity_key(name) for name in corpus.speakers}) == len(corpus.speakers)
        assert len({identity_key(name) for name in corpus.emotions}) == len(corpus.emotions)
        for protocol in ("default", "by:session", "by:mood"):
            with contextlib.suppress(CorpusError, SettingError):
                apply_protocol(protocol, corpus)


@FUZZ
@given(data=mutated_bytes(*MANIFESTS))
def test_any_bytes_are_a_manifest_or_refused(folder: Path, data: bytes) -> None:
    check_manifest(folder, data)


@FUZZ
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=5), max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_any_cells_are_a_manifest_or_refused(
    folder: Path, rows: list[list[str]], encoding: str
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["path", "speaker", "emotion", "session"], *rows])

    check_manifest(folder, text.getvalue().encode(encoding, errors="replace"))


@FUZZ
@given(data=mutated_bytes(*LABEL_MAPS))
def test_any_bytes_are_a_label_map_or_refused(folder: Path, data: bytes) -> None:
    path = folder / "map.csv"
    path.write_bytes(data)
    with contextlib.suppress(CorpusError, SettingError):
        mapped = read_label_map(path)
        for label in ("excited", "joy", "", "\u304b\u3099", "x" * 1_000):
            mapped.translate(label)


@FUZZ
@given(
    quotes=st.lists(
        st.sampled_from(["hello", '"open', '"', 'a"b', '"a"b', '""', '"a""']), min_size=1
    )
)
def test_no_quotation_mark_loses_another_row(folder: Path, quotes: list[str]) -> None:
    """Each row stands on a line of its own: as many come back, or are counted."""
    path = folder / "table.csv"
    lines = [f"{number}.wav,s{number},{quote}" for number, quote in enumerate(quotes)]
    path.write_text("\n".join(["path,speaker,statement", *lines]))

    table = read_table(
        path, Tally(), wanted=("path", "speaker"), is_row=lambda cell: cell.endswith(".wav")
    )

    rows = list(table.rows)
    assert [row["speaker"] for row in rows] == [f"s{number}" for number in range(len(quotes))]
    assert all(len(row["statement"]) <= MAX_CELL for row in rows)
