"""A device as an app has it: one object for consent, recognition, corrections and rights."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.client.user_device import UserDevice
from sottovoce.shared import crypto
from sottovoce.shared.audio import load_signal
from sottovoce.shared.errors import AudioError, ConsentError, PrivacyError, SettingError

PHRASE = "quiet as a mouse"


@pytest.fixture
def device(tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UserDevice:
    """Ada's, with a model, under a passphrase; she consents to all but to contribute."""
    monkeypatch.setattr(crypto, "SCRYPT_LOG2_COST", 14)
    made = UserDevice.create(tmp_path / "ada", user="ada", use="research", passphrase=PHRASE)
    made.consent.grant("recognise", "personalise")
    return UserDevice.open(tmp_path / "ada", model=tiny_run.folder, passphrase=PHRASE)


def test_a_user_is_recognised_corrected_exported_and_erased(
    device: UserDevice, tiny_run: Any, tmp_path: Path
) -> None:
    wav = tiny_run.users / "s03_00.wav"
    signal = load_signal(wav)
    before = device.predict(wav)
    assert not before.uses_own_head
    assert device.predict(signal.samples, signal.rate) == before
    assert device.predict(signal.samples.numpy()[0], signal.rate) == before

    name = device.correct(wav, "angry")
    assert device.predict(wav).uses_own_head
    assert device.learn_voice(wav) == name
    assert [(one.name, one.emotion) for one in device.list_recordings()] == [(name, "angry")]
    device.export_my_data(tmp_path / "mine.zip")
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        assert name in archive.read("my-data.json").decode()

    device.forget(name)
    assert device.predict(wav) == before
    assert device.privacy().release_count == 0
    assert device.erase() == ()
    assert not (tmp_path / "ada").exists()


def test_enrolled_recordings_count_at_once_without_a_run(
    device: UserDevice, tiny_run: Any, tmp_path: Path
) -> None:
    wavs = [tiny_run.users / f"s03_0{index}.wav" for index in (0, 1, 2)]

    names = device.enrol([(wavs[0], "angry"), (wavs[1], "")])
    after = device.predict(wavs[2])
    assert (after.uses_own_head, after.uses_own_normaliser) == (True, True)
    device.enrol([(wavs[2], "")], is_neutral=True)
    assert {one.emotion for one in device.list_recordings()} == {"angry", "", "neutral"}

    without_model = UserDevice.open(tmp_path / "ada", passphrase=PHRASE)
    for name in [one.name for one in without_model.list_recordings()]:
        without_model.forget(name)
    with pytest.raises(SettingError, match=f"keeps no recording '{names[0]}'"):
        without_model.forget(names[0])
    again = UserDevice.open(tmp_path / "ada", model=tiny_run.folder, passphrase=PHRASE)
    last = again.predict(wavs[2])
    assert (last.uses_own_head, last.uses_own_normaliser) == (False, False)


def test_mistakes_are_answered_with_the_way_out(device: UserDevice, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"UserDevice\.create"):
        UserDevice.open(tmp_path / "nobody")
    with pytest.raises(PrivacyError, match="passphrase"):
        UserDevice.open(tmp_path / "ada")
    with pytest.raises(SettingError, match="model="):
        UserDevice.open(tmp_path / "ada", passphrase=PHRASE).predict("a.wav")
    with pytest.raises(SettingError, match="sampling rate"):
        device.predict(torch.zeros(16_000))
    with pytest.raises(AudioError, match=r"a\.wav"):
        device.predict(tmp_path / "a.wav")
    with pytest.raises(SettingError, match="did you mean contribute"):
        device.consent.grant("contribut")
    device.consent.withdraw("recognise")
    with pytest.raises(ConsentError):
        device.predict(torch.zeros(16_000), 16_000)
