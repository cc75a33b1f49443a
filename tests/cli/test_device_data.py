"""A user's recordings by command: enrolled, listed, exported, forgotten, erased."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.client.device.device import Device

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ada(say: Say, tmp_path: Path) -> Path:
    """A device made by command, whose user consents to all."""
    folder = tmp_path / "ada"
    say("device", "create", folder, "--user", "ada", "--use", "research")
    grants = [
        word for one in ("recognise", "personalise", "contribute") for word in ("--grant", one)
    ]
    say("device", "consent", folder, *grants)
    return folder


def test_recordings_are_enrolled_by_files_and_by_a_table(
    say: Say, tiny_run: Any, ada: Path, tmp_path: Path
) -> None:
    wavs = [tiny_run.users / f"s03_0{index}.wav" for index in (0, 1, 2)]
    model = ("--model", tiny_run.folder)
    (tmp_path / "mine.csv").write_text(f"path,emotion\n{wavs[1]},angry\n{wavs[2]},\n")

    status, out, _ = say("device", "enrol", ada, wavs[0], "--neutral", *model)
    assert (status, out.count("enrolled as")) == (0, 1)
    status, out, last = say(
        "device", "enrol", ada, *model, tmp_path / "mine.csv", tmp_path / "none.wav"
    )
    assert (status, out.count("enrolled as"), "none.wav" in last) == (1, 2, True)

    listed = json.loads(say("device", "list", ada, "--json")[1])
    assert [one["emotion"] for one in listed] == ["neutral", "angry", None]
    assert listed[0]["uses"] == ["head", "training", "voice"]
    answer = json.loads(say("predict", wavs[1], *model, "--device", ada, "--json")[1])
    assert (answer["own_normaliser"], answer["own_head"]) == (True, True)
    assert int(Device.open(ada).load_features().for_training.sum()) == 2

    assert say("device", "forget", ada, *(one["name"] for one in listed))[0] == 0
    assert say("device", "list", ada)[1] == "no recordings\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "FILE"),
        (("empty.csv", "--extractor", "descriptors"), "no recordings to enrol"),
        (("a.wav",), "--extractor"),
        (("a.wav", "--extractor", "no-such"), "no-such"),
        (("a.wav", "--extractor", "descriptors", "--emotion", "sadd"), "did you mean sad"),
        (("a.wav", "--extractor", "descriptors", "--neutral", "--emotion", "sad"), "--neutral"),
        (("gone.csv", "--extractor", "descriptors"), "gone.csv"),
        (("odd.csv", "--extractor", "descriptors"), "no column path"),
    ],
)
def test_a_mistake_enrols_nothing(
    say: Say,
    ada: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(ada.parent)
    Path("empty.csv").write_text("path,emotion\n")
    Path("odd.csv").write_text("file,emotion\na.wav,sad\n")

    status, out, last = say("device", "enrol", ada, *words)

    assert (status in (1, 2), out, message in last) == (True, "", True), last


def test_a_users_data_is_exported_and_erased(say: Say, ada: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.zip"
    assert say("device", "export", ada, "--out", out)[0] == 0
    assert "my-data.json" in zipfile.ZipFile(out).namelist()
    assert say("device", "export", ada, "--out", out)[0] == 2, "it replaces nothing"

    status, _, last = say("device", "erase", ada)
    assert (status, "--yes" in last, ada.exists()) == (2, True, True)
    assert say("device", "erase", ada, "--yes")[0] == 0
    assert not ada.exists()
    assert say("device", "erase", ada, "--yes")[0] == 2
    assert say("device", "list", ada)[0] == 2
