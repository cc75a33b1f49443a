"""The commands on corpora."""

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Say = Callable[..., tuple[int, str, str]]


def test_corpora_are_listed_and_checked(say: Say, tiny_run: Any) -> None:
    status, out, _ = say("corpora", "list", "--json")
    assert (status, "synthetic" in json.loads(out)) == (0, True)

    status, out, _ = say("corpora", "check", "folder", "--data", tiny_run.users, "--json")
    assert status == 0
    assert json.loads(out)

    assert say("corpora", "check")[0] == 2
    assert say("corpora", "check", "folder")[0] == 2


def test_example_recordings_are_16_bit_and_repeat(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    status, out, _ = say("corpora", "sample", "hello.wav", "again.wav", "--silence")

    assert (status, out) == (0, "hello.wav: angry\nagain.wav: neutral\nsilence.wav: silence\n")
    for name in ("hello.wav", "again.wav", "silence.wav"):
        with wave.open(name) as file:
            assert (file.getsampwidth(), file.getnchannels(), file.getframerate()) == (2, 1, 16_000)
            assert any(file.readframes(file.getnframes())) == (name != "silence.wav")
    hello = Path("hello.wav").read_bytes()
    assert say("corpora", "sample", "same.wav", "--emotion", "angry", "--seed", "1")[0] == 0
    assert say("corpora", "sample", "other.wav", "--seed", "2")[0] == 0
    assert Path("same.wav").read_bytes() == hello
    assert Path("other.wav").read_bytes() != hello


def test_an_example_recording_replaces_no_file(say: Say, tmp_path: Path) -> None:
    mine = tmp_path / "mine.wav"
    mine.write_bytes(b"mine")

    status, _, last = say("corpora", "sample", tmp_path / "new.wav", mine)

    assert (status, "mine.wav" in last) == (2, True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    assert say("corpora", "sample", tmp_path / "a.wav", tmp_path / "a.wav")[0] == 2
    assert say("corpora", "sample", tmp_path / "a.wav", "--seed", "-1")[0] == 2
