"""Corpora that ``simulate`` cannot use, and public corpora that are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Say = Callable[..., tuple[int, str, str]]


def _simulate(say: Say, path: Path, out: Path, *more: object) -> tuple[int, str]:
    """A run that must not succeed: exit status and the last line."""
    status, _, last = say("simulate", path, "--out", out, "--quiet", *more)
    return status, last


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, ["manifest.csv", "path, speaker, emotion"]),
        ("", ["is empty", "path, speaker, emotion"]),
        ("path,speaker,emotion\n", ["no rows"]),
        ("file,speaker,emotion\na.wav,a,angry\n", ["column path", "file", "needed"]),
        ("path,speaker,emotion\na.wav,a,angry\n", ["no usable clip", "missing: 1"]),
    ],
)
def test_a_manifest_that_cannot_be_used_fails(
    say: Say,
    scenario: Callable[..., Path],
    tmp_path: Path,
    manifest: str | None,
    words: list[str],
) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    if manifest is not None:
        (folder / "manifest.csv").write_text(manifest)

    status, last = _simulate(say, scenario(users=folder), tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_fails(
    say: Say, scenario: Callable[..., Path], tmp_path: Path
) -> None:
    status, last = _simulate(say, scenario(users=tmp_path / "gone"), tmp_path / "out")
    assert (status, str(tmp_path / "gone") in last) == (1, True)

    status, last = _simulate(say, scenario(public=tmp_path / "gone"), tmp_path / "out")
    assert (status, str(tmp_path / "gone") in last) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"speakers": 1}, ["one speaker only", "at least 2"]),
        ({"labels": ("angry",)}, ["one class only", "at least 2"]),
    ],
)
def test_too_little_to_split_or_tell_apart_fails(
    say: Say,
    scenario: Callable[..., Path],
    make_corpus: Any,
    tmp_path: Path,
    shape: dict[str, Any],
    words: list[str],
) -> None:
    users = make_corpus(tmp_path / "users", clips=2, **shape)

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last


def test_a_class_that_no_training_speaker_has_fails(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    rows = (users / "manifest.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith("neutral") or ",s03," in row]
    (users / "manifest.csv").write_text("\n".join(kept))

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert "'neutral'" in last
    assert "s03" in last


def _silence(users: Path, write_wav: Any, *speakers: str) -> None:
    for number, path in enumerate(sorted(users.glob("*.wav"))):
        if path.name[:3] in speakers:
            write_wav(path, level=0.0, seconds=0.5 + number / 100)


def test_a_speaker_without_a_usable_clip_is_left_out_and_counted(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, write_wav: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    _silence(users, write_wav, "s01")

    status, _, last = say("corpora", "check", "folder", "--data", users, "--json")
    assert status == 0, last
    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 0, last
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["exclusions"]["speakers without a usable clip"] == 1
    assert run["exclusions"]["silent"] == 4
    assert "s01" not in run["accuracy"]["per_speaker"]


def test_a_silent_speaker_is_missed_before_features_are_computed(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, write_wav: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    _silence(users, write_wav, "s01")

    status, said, last = say(
        "simulate", scenario(users=users), "--out", tmp_path / "out", "--protocol", "4fold"
    )

    assert status == 2
    assert "it must be at most 3fold" in last
    assert "features of" not in said + last


def test_silence_that_leaves_one_speaker_fails(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, write_wav: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    _silence(users, write_wav, "s00", "s01", "s02")

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert "one speaker only, s03" in last


def test_silence_that_leaves_a_class_untrained_fails(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, write_wav: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    for number, path in enumerate(sorted(users.glob("s0[012]_0[13].wav"))):
        write_wav(path, level=0.0, seconds=0.5 + number / 100)

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert "no clip of class 'neutral' to train on" in last


def test_neutral_enrolment_needs_neutral_clips(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4, labels=("angry", "sad"))

    status, last = _simulate(
        say, scenario(users=users), tmp_path / "out", "--enrolment", "neutral:2"
    )

    assert status == 2
    assert "neutral:2" in last
    assert "none or all" in last


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../users", "{}/manifest.csv"])
def test_the_users_folder_cannot_be_public(
    say: Say, scenario: Callable[..., Path], tiny_run: Any, tmp_path: Path, spelling: str
) -> None:
    public = spelling.format(tiny_run.users)

    status, last = _simulate(say, scenario(), tmp_path / "out", "--public", f"folder={public}")

    assert status == 2
    assert "users' corpus" in last


def test_a_users_recording_cannot_be_public_under_another_name(
    say: Say, scenario: Callable[..., Path], tiny_run: Any, make_corpus: Any, tmp_path: Path
) -> None:
    public = make_corpus(tmp_path / "public", speakers=6, clips=5, hertz=60.0)
    shutil.copy(tiny_run.users / "s00_00.wav", public / "s05_04.wav")

    status, last = _simulate(say, scenario(public=public), tmp_path / "out")

    assert status == 1
    assert "1 recordings of the users' corpus are in the public corpus" in last
    assert "s00_00.wav" in last


def test_made_up_users_cannot_be_public_either(say: Say, tmp_path: Path) -> None:
    words = ("--corpus", "synthetic", "--data", "speakers=3,clips=6,seed=5")
    words += ("--encoder", "descriptors", "--public", "synthetic=speakers=2,clips=6,seed=5")

    status, _, last = say("simulate", *words, "--out", tmp_path / "out", "--quiet")

    assert status == 1
    assert "no recording can be both" in last
