"""The command ``predict``."""

import hashlib
import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Say = Callable[..., tuple[int, str, str]]


def test_predictions_are_lines_or_json(say: Say, tiny_run: Any) -> None:
    files = sorted(tiny_run.users.glob("s03_*.wav"))[:2]

    status, out, _ = say("predict", *files, "--model", tiny_run.folder / "model")
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [str(path) for path in files]

    status, out, _ = say("predict", *files, "--model", tiny_run.folder / "model", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [record["file"] for record in records] == [str(path) for path in files]
    assert all(set(record["probabilities"]) == {"neutral", "angry"} for record in records)


def test_an_app_chooses_its_risk_and_how_often_sets_are_right(say: Say, tiny_run: Any) -> None:
    words = ("predict", tiny_run.users / "s03_00.wav", "--model", tiny_run.folder / "model")

    def said(*more: str) -> Any:
        status, out, _ = say(*words, "--json", *more)
        assert status == 0
        return json.loads(out)

    bold, careful = said("--risk", "1"), said("--risk", "0")
    assert (bold["abstained"], careful["abstained"]) == (False, True)
    narrow, wide = said("--coverage", "0.1"), said("--coverage", "0.9999")
    assert narrow["set"] == [max(narrow["probabilities"], key=narrow["probabilities"].get)]
    assert set(wide["set"]) == set(wide["probabilities"])
    assert (narrow["coverage"], narrow["own_set"]) == (0.1, False)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--risk", "-0.1"), ("--risk", "1.1"), ("--risk", "nan"), ("--coverage", "1.5")],
)
def test_fractions_that_are_none_are_refused(
    say: Say, tiny_run: Any, option: str, value: str
) -> None:
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"

    status, _, last = say("predict", wav, "--model", model, option, value)

    assert status == 2
    assert f"{option}: {value}" in last


def test_a_bad_recording_fails_after_the_others_were_predicted(
    say: Say, tiny_run: Any, write_wav: Any, tmp_path: Path
) -> None:
    good = tiny_run.users / "s03_00.wav"
    write_wav(tmp_path / "silent.wav", level=0.0)
    (tmp_path / "junk.wav").write_bytes(b"RIFFjunk" * 20)
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    bad = [tmp_path / name for name in ("junk.wav", "none.wav", "gone.wav")]

    status, out, last = say(
        "predict", *bad, tmp_path / "silent.wav", good, "--model", tiny_run.folder / "model"
    )

    lines = out.splitlines()
    assert status == 1
    assert "gone.wav is not a file" in last
    assert len(lines) == 2
    assert "no answer: the recording is silent" in lines[0]
    assert lines[1].startswith(str(good))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.json", "{", ["no usable model", "copy"]),
        ("model.json", "[]", ["no usable model", "copy"]),
        ("model.json", None, ["no usable model", "model.json", "missing"]),
        ("model.safetensors", "x", ["not the one that manifest.json names", "copy"]),
        ("model.safetensors", None, ["model.safetensors"]),
    ],
)
def test_a_damaged_model_is_refused(
    say: Say, tiny_run: Any, copied: Path, file: str, content: str | None, words: list[str]
) -> None:
    path = copied / "model" / file
    path.unlink()
    if content is not None:
        path.write_text(content)

    status, out, last = say("predict", tiny_run.users / "s00_00.wav", "--model", copied / "model")

    assert (status, out) == (1, "")
    assert not [word for word in words if word not in last], last


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 4),
        ("labels", ["angry"]),
        ("labels", ["angry", "angry"]),
        ("extractor", "ears"),
        ("extractor", "log-mel"),
        ("row_norm", "long"),
        ("prior", {}),
        ("model", {}),
        ("model_hash", "00"),
        ("sha256", "00"),
    ],
)
def test_a_model_whose_words_were_changed_is_refused(
    say: Say, tiny_run: Any, copied: Path, key: str, value: object
) -> None:
    path = copied / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    manifest = copied / "model" / "manifest.json"  # hashed again: what is left are the values
    hashes = json.loads(manifest.read_text())
    hashes["files"]["model.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(hashes))

    status, out, last = say("predict", tiny_run.users / "s00_00.wav", "--model", copied / "model")

    assert (status, out) == (1, ""), last


def test_a_folder_that_is_no_device_is_a_usage_error(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    wav, model = tiny_run.users / "s00_00.wav", tiny_run.folder / "model"

    status, _, last = say("predict", wav, "--model", model, "--device", tmp_path)

    assert (status, "no device" in last) == (2, True)


def test_a_run_folder_names_its_model_and_letters_are_not_escaped(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    shutil.copy(tiny_run.users / "s03_00.wav", tmp_path / "à voix basse.wav")
    words = ("predict", tmp_path / "à voix basse.wav", "--json", "--model")

    status, out, _ = say(*words, tiny_run.folder)

    assert status == 0
    assert out == say(*words, tiny_run.folder / "model")[1]
    assert "à voix basse.wav" in out
