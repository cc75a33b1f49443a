"""The command ``listen``, and timelines by ``predict --segments``."""

import io
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from sottovoce.simulations.corpora import open_corpus

Say = Callable[..., tuple[int, str, str]]
RATE = 16_000


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices with pauses, 22,050 Hz in two channels."""
    clips = open_corpus("synthetic", "speakers=1,clips=2,seed=99").clips
    pause = np.zeros(RATE, dtype=np.float32)
    parts = [part for clip in clips for part in (pause, clip.load_signal().waveform)]
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, np.stack([np.concatenate([*parts, pause])] * 2, axis=1), RATE)
    return path


def test_a_file_is_listened_to_as_it_was_spoken(say: Say, talk: Path) -> None:
    status, out, _ = say("listen", talk, "--json")
    results = [json.loads(line) for line in out.splitlines()]

    assert status == 0
    assert all(later["end_s"] > one["end_s"] for one, later in itertools.pairwise(results))
    assert results[-1]["end_s"] == pytest.approx(soundfile.info(talk).duration, abs=0.04)
    assert {one["emotion"] is None for one in results[:2]} == {True}  # a second of silence


def test_people_are_told_when_what_is_shown_changes(say: Say, talk: Path) -> None:
    status, out, _ = say("listen", talk, "--stride", "0.25")
    lines = out.splitlines()

    assert status == 0
    assert 1 <= len(lines) < soundfile.info(talk).duration / 0.25
    assert "no answer" in lines[0]


def test_samples_from_a_pipe_are_heard_like_the_file(
    say: Say, talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _ = soundfile.read(talk, dtype="int16", always_2d=True)
    piped = io.BytesIO(samples[:, 0].astype("<i2").tobytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=piped))

    status, out, _ = say("listen", "-", "--json")
    assert status == 0
    _, from_file, _ = say("listen", talk, "--json")
    ends = [[json.loads(line)["end_s"] for line in text.splitlines()] for text in (out, from_file)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"RIFF\0\0\0\0WAVEfmt ", "standard input is an audio file"), (None, "is a terminal")],
)
def test_a_pipe_that_is_none_is_refused(
    say: Say, monkeypatch: pytest.MonkeyPatch, data: bytes | None, words: str
) -> None:
    stdin = SimpleNamespace(isatty=lambda: data is None, buffer=io.BytesIO(data or b""))
    monkeypatch.setattr(sys, "stdin", stdin)

    status, _, error = say("listen", "-")
    assert status in {1, 2}
    assert words in error


def test_a_device_without_a_microphone_is_told_so(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoneThereError(Exception):
        pass

    def find(**_: object) -> object:
        raise NoneThereError("no default input device")

    library = SimpleNamespace(query_devices=find, PortAudioError=NoneThereError)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    status, _, error = say("listen", "microphone")
    assert (status, "no microphone was found" in error) == (2, True)

    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, _, error = say("listen", "microphone")
    assert status == 1
    assert "pip install 'sottovoce[microphone]'" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--window", "0.1"), "window_s is 0.1"),
        (("--stride", "9"), "stride_s is 9"),
        (("--rate", "0"), "the rate is 0"),
    ],
)
def test_streams_that_cannot_be_are_refused(
    say: Say, options: tuple[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO()))
    status, _, error = say("listen", "-", *options)
    assert status in {1, 2}
    assert words in error


def test_a_timeline_has_a_line_an_utterance(say: Say, talk: Path) -> None:
    status, out, _ = say("predict", talk, "--segments")

    assert status == 0
    assert len(out.splitlines()) == 2
    assert all(line.startswith(f"{talk} ") for line in out.splitlines())


@pytest.mark.parametrize(
    ("name", "begins"),
    [("json", "{"), ("csv", "start_s,"), ("audacity", "0."), ("textgrid", "File type")],
)
def test_timelines_are_printed_or_written(
    say: Say, talk: Path, tmp_path: Path, name: str, begins: str
) -> None:
    out_file = tmp_path / f"timeline.{name}"
    status, printed, _ = say("predict", talk, "--segments", "--format", name)
    say("predict", talk, "--segments", "--format", name, "--out", out_file)

    assert status == 0
    assert printed.startswith(begins)
    assert out_file.read_text() == printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "csv"), "add --segments"),
        (("--out", "x.json"), "add --segments"),
        (("--segments", "--label", "sad", "--device", "d"), "leave out --segments"),
        (("--segments", "--json", "--format", "csv"), "choose one"),
    ],
)
def test_options_that_contradict_are_refused(
    say: Say, talk: Path, options: tuple[str, ...], words: str
) -> None:
    status, _, error = say("predict", talk, *options)
    assert (status, words in error) == (2, True)


def test_one_timeline_a_file(say: Say, talk: Path) -> None:
    status, _, error = say("predict", talk, talk, "--segments", "--out", "x.json")
    assert (status, "2 recordings were given" in error) == (2, True)


def test_a_bad_file_fails_after_the_others_were_done(say: Say, talk: Path, tmp_path: Path) -> None:
    status, out, error = say("predict", tmp_path / "none.wav", talk, "--segments")
    assert (status, len(out.splitlines())) == (1, 2)
    assert "none.wav" in error
