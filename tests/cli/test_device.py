"""Learning from a user, and the commands on a user's own device."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.personalisation import speaker_adapter
from sottovoce.shared import crypto
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind

Say = Callable[..., tuple[int, str, str]]


def _device(folder: Path, *, passphrase: str | None = None) -> Device:
    """A real device that let out its label counts."""
    none, empty = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    examples = Examples(features=torch.zeros(0, 3), frames=empty, labels=empty)
    features = LabelledFeatures(
        examples=examples, for_enrolment=none, for_head=none, for_training=none
    )
    budgets = (PrivacyBudget(epsilon=8.0, delta=1e-5, per_run=4.0),)
    profile = DeviceProfile(user="ada", budgets=budgets, labels=("sad",))
    device = Device.create(folder, profile, features, passphrase=passphrase)
    release = Release(
        kind=ReleaseKind.LABEL_COUNTS,
        mechanism=Mechanism.GAUSSIAN,
        run="r",
        round=0,
        noise_multiplier=3.0,
        sensitivity=1.0,
    )
    device.ledger.book_release("counts", release, budgets)
    return device


def test_a_voice_is_learned_and_forgotten(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    _device(tmp_path)
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--json")

    status, out, _ = say(*words, "--learn")
    name = json.loads(out)["learned"]
    assert (status, json.loads(out)["own_normaliser"]) == (0, False)
    assert json.loads(say(*words)[1])["own_normaliser"], "the next prediction knows the voice"
    status, out, _ = say("device", "forget", tmp_path, name)
    assert (status, "still kept: 0" in out) == (0, True)
    assert not json.loads(say(*words)[1])["own_normaliser"]
    assert say("device", "forget", tmp_path, name)[0] == 2, "it is gone"
    assert "learned as" in say(*words[:-1], "--learn")[1]
    assert say("predict", wav, "--model", model, "--learn")[0] == 2, "nothing could keep it"


def test_labels_move_the_head_until_they_are_forgotten(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    _device(tmp_path)
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--json")
    before = json.loads(say(*words)[1])
    least = min(before["probabilities"], key=before["probabilities"].get)

    status, out, _ = say(*words, "--label", least)
    name, after = json.loads(out)["labelled"], json.loads(say(*words)[1])
    assert (status, after["own_head"]) == (0, True)
    assert after["probabilities"][least] > before["probabilities"][least]

    status, out, _ = say("device", "forget", tmp_path, name, name, "--model", model)
    assert (status, out) == (0, "forgotten: 1; still kept: 0\n")
    assert json.loads(say(*words)[1]) == before
    status, _, last = say("predict", wav, "--model", model, "--label", least)
    assert (status, "--device" in last) == (2, True), "nothing could keep it"


def test_a_label_is_taken_back_without_the_model(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    _device(tmp_path)
    wavs = [tiny_run.users / f"s03_0{index}.wav" for index in (0, 1)]
    words = ("--model", tiny_run.folder / "model", "--device", tmp_path, "--json")
    said = say("predict", *wavs, *words, "--label", "angry")[1]
    names = [json.loads(line)["labelled"] for line in said.splitlines()]

    status, out, last = say("device", "forget", tmp_path, "abc", names[0], names[0])

    assert (status, "forgotten: 1; still kept: 1" in out) == (2, True)
    assert "head is let go" in out
    assert "keeps no recording abc; it keeps " + names[1] in last, "what could be done was done"
    after = json.loads(say("predict", wavs[0], *words)[1])
    assert after["own_head"], "it is fitted again, on the other one"
    assert say("device", "forget", tmp_path, names[1])[0] == 0
    assert not json.loads(say("predict", wavs[0], *words)[1])["own_head"]


def test_a_label_that_is_none_is_noticed_before_anything_is_learned(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    _device(tmp_path)
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--learn", "--json")

    status, out, last = say(*words, "--label", "melancholy")

    assert (status, out) == (2, "")
    assert "'melancholy'" in last
    assert "angry" in last
    assert speaker_adapter.list_utterances(tmp_path) == ()


def test_what_cannot_be_learned_from_is_predicted_still(
    say: Say, tiny_run: Any, write_wav: Any, tmp_path: Path
) -> None:
    _device(tmp_path)
    write_wav(tmp_path / "silent.wav", level=0.0)
    words = ("--model", tiny_run.folder / "model", "--device", tmp_path, "--learn")

    status, out, last = say("predict", tmp_path / "silent.wav", *words)

    assert status == 1
    assert "no answer: the recording is silent" in out
    assert "nothing was learned" in last


def test_a_passphrase_opens_all_that_a_user_does(
    say: Say, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto, "SCRYPT_LOG2_COST", 14)
    device = _device(tmp_path, passphrase="quiet as a mouse")
    assert not (tmp_path / "vault" / "key").exists()
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--json")
    commands: list[tuple[object, ...]] = [
        (*words, "--learn", "--label", "angry"),
        ("device", "privacy", tmp_path),
        ("device", "forget", tmp_path, "abc"),
        ("device", "retire", tmp_path),
    ]

    for value, message in (
        (None, "SOTTOVOCE_PASSPHRASE"),
        ("loud as a lion", "passphrase is wrong"),
    ):
        if value:
            monkeypatch.setenv("SOTTOVOCE_PASSPHRASE", value)
        for command in commands:
            status, _, last = say(*command)
            assert (status, message in last) == (1, True), command
    monkeypatch.setenv("SOTTOVOCE_PASSPHRASE", "quiet as a mouse")

    names = json.loads(say(*commands[0])[1])
    assert json.loads(say(*words)[1])["own_head"]
    assert say(*commands[1])[0] == 0
    assert say("device", "forget", tmp_path, names["labelled"], "--model", model)[0] == 0
    assert say("device", "forget", tmp_path, names["learned"])[0] == 2, "both were forgotten"
    assert not json.loads(say(*words)[1])["own_normaliser"]
    device.ledger.path.write_text("")
    assert say(*commands[3])[0] == 0


def test_a_devices_privacy_is_lines_or_json(say: Say, tmp_path: Path) -> None:
    device = _device(tmp_path)

    status, out, _ = say("device", "privacy", tmp_path)
    assert status == 0
    assert "one utterance, delta 1e-05: epsilon 1.2" in out
    assert out.splitlines()[-1] == "chain verified; anchor verified"

    status, out, _ = say("device", "privacy", tmp_path, "--json")
    report = json.loads(out)
    assert (status, report["ledger_sha256"], report["anchor"]) == (0, device.ledger.head_hash, True)
    assert (report["kinds"], report["budgets"][0]["per_run"]) == ({"label-counts": 1}, 4.0)


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (lambda path: path.with_name("device.json").unlink(), 2, ["holds no device"]),
        (lambda path: path.with_name("device.json").write_text("{"), 1, ["damaged", "backup"]),
        (lambda path: path.write_text(""), 1, ["0 releases", "booked 1", "newest copy"]),
        (lambda path: path.write_text("{}\n"), 1, ["line 1", "breaks the chain"]),
        (lambda path: path.write_bytes(b"\xff\n"), 1, ["line 1", "breaks the chain"]),
    ],
)
def test_a_device_that_cannot_be_trusted_fails(
    say: Say, tmp_path: Path, harm: Callable[[Path], object], code: int, words: list[str]
) -> None:
    harm(_device(tmp_path).ledger.path)

    status, out, last = say("device", "privacy", tmp_path, "--json")

    assert (status, out) == (code, "")
    assert not [word for word in words if word not in last], last


def test_device_wants_a_command_and_a_folder(say: Say, tmp_path: Path) -> None:
    assert say("device")[0] == 2
    assert say("device", "privacy")[0] == 2
    assert say("device", "fly")[0] == 2
    assert say("device", "privacy", tmp_path / "none")[0] == 2
