"""Devices made by command: declared, within a budget, and asking before anything is done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.client.device.device import Device
from sottovoce.client.personalisation.feedback import list_recordings
from sottovoce.client.personalisation.speaker_adapter import list_utterances
from sottovoce.shared import crypto

Say = Callable[..., tuple[int, str, str]]
USE = "self-reflection: a diary"


def test_a_device_is_made_without_recordings(say: Say, tmp_path: Path) -> None:
    folder = tmp_path / "ada"

    status, out, _ = say("device", "create", folder, "--user", "ada", "--use", USE)

    assert status == 0
    assert "epsilon 8 for one utterance at delta 1e-05" in out
    profile = Device.open(folder).profile
    assert (profile.user, str(profile.intended_use)) == ("ada", USE)
    assert say("device", "privacy", folder)[0] == 0
    status, _, last = say("device", "create", folder, "--user", "eve", "--use", USE)
    assert (status, "holds a vault already" in last) == (1, True)


def test_a_device_promises_each_unit_that_is_named(say: Say, tmp_path: Path) -> None:
    words = ("--user", "ada", "--use", USE, "--unit", "both", "--epsilon", "3")

    assert say("device", "create", tmp_path, *words, "--labels", "sad, happy,sad")[0] == 0

    profile = Device.open(tmp_path).profile
    assert [(one.unit.value, one.epsilon, one.delta) for one in profile.budgets] == [
        ("utterance", 3.0, 1e-5),
        ("user", 3.0, 1e-3),
    ]
    assert profile.labels == ("sad", "happy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--use", "hiring"), "Article 5(1)(f)"),
        (("--use", "research: moods of our staff"), "'staff'"),
        (("--use", USE, "--unit", "none"), "promises nothing"),
        (("--use", USE, "--unit", "utterence"), "utterance"),
        (("--use", USE, "--epsilon", "nan"), "epsilon"),
        (("--use", USE, "--epsilon", "-1"), "epsilon"),
        (("--use", USE, "--delta", "0"), "delta"),
        (("--use", USE, "--passphrase"), "SOTTOVOCE_PASSPHRASE"),
        ((), "--use"),
    ],
)
def test_a_mistake_makes_no_device(
    say: Say, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    status, _, last = say("device", "create", tmp_path / "ada", "--user", "ada", *words)

    assert (status, message in last) == (2, True), last
    assert not (tmp_path / "ada").exists()


def test_a_passphrase_of_the_environment_seals_a_new_device(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto, "SCRYPT_LOG2_COST", 14)
    monkeypatch.setenv("SOTTOVOCE_PASSPHRASE", "quiet as a mouse")

    assert say("device", "create", tmp_path, "--user", "ada", "--use", USE)[0] == 0

    assert not (tmp_path / "vault" / "key").exists()
    assert say("device", "consent", tmp_path, "--grant", "recognise")[0] == 0
    monkeypatch.delenv("SOTTOVOCE_PASSPHRASE")
    status, _, last = say("device", "consent", tmp_path)
    assert (status, "SOTTOVOCE_PASSPHRASE" in last) == (1, True)


def test_consent_is_shown_with_its_texts_granted_and_withdrawn(say: Say, tmp_path: Path) -> None:
    say("device", "create", tmp_path, "--user", "ada", "--use", USE)
    status, out, _ = say("device", "consent", tmp_path)
    assert (status, out.count("not allowed")) == (0, 3)
    assert "can be wrong" in out

    grant = ("--grant", "recognise", "--grant", "contribute")
    assert "recognise: allowed" in say("device", "consent", tmp_path, *grant)[1]
    status, out, _ = say("device", "consent", tmp_path, "--withdraw", "contribute", "--json")

    shown = json.loads(out)
    assert {name: one["allowed"] for name, one in shown["purposes"].items()} == {
        "recognise": True,
        "personalise": False,
        "contribute": False,
    }
    assert [one["is_granted"] for one in shown["log"]["decisions"]] == [True, True, False]
    for wrong in (("--grant", "everything"), ("--grant", "recognise", "--withdraw", "recognise")):
        assert say("device", "consent", tmp_path, *wrong)[0] == 2


def test_what_is_not_consented_to_is_refused(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    say("device", "create", tmp_path, "--user", "ada", "--use", USE)
    predict = ("predict", tiny_run.users / "s03_00.wav", "--model", tiny_run.folder / "model")
    words = (*predict, "--device", tmp_path)
    status, out, last = say(*words)
    assert (status, out, "--grant recognise" in last) == (1, "", True)

    say("device", "consent", tmp_path, "--grant", "recognise")
    assert say(*words)[0] == 0
    for option in (("--learn",), ("--label", "angry")):
        status, out, last = say(*words, *option)
        assert (status, "--grant personalise" in last, "learned as" in out) == (1, True, False)
    assert list_utterances(tmp_path) == list_recordings(tmp_path) == ()

    say("device", "consent", tmp_path, "--grant", "personalise")
    assert say(*words, "--learn", "--label", "angry")[0] == 0
    say("device", "consent", tmp_path, "--withdraw", "recognise")
    assert say(*words)[0] == 1
