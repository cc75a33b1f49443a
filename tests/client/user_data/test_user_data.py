"""What a device holds of its user is listed, exported whole, forgotten everywhere and erased."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.client.user_data import data_export, device_erasure, enrolment, recordings
from sottovoce.client.user_data.creation import create_device
from sottovoce.client.user_data.enrolment import Clip
from sottovoce.shared import seeding
from sottovoce.shared.errors import ConsentError, ModelError, SettingError
from sottovoce.shared.privacy.target import PrivacyTarget

SPEECH = torch.randn(4, 5, generator=seeding.torch_rng(0, "speech"))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device whose user consents to personalise."""
    made = create_device(tmp_path / "ada", user="ada", use="research", target=PrivacyTarget())
    made.consent.grant("personalise")
    return made


def enrol(device: Device, *clips: Clip, extractor: str = "ears") -> tuple[str, ...]:
    return enrolment.enrol_clips(device, vault_of(device), clips, extractor=extractor)


def vault_of(device: Device) -> FileVault:
    return FileVault.open(device.folder / "vault")


def clips(**changes: Any) -> tuple[Clip, ...]:
    """One sad recording, and one of which nothing is said."""
    return Clip(features=SPEECH[0], emotion="Sad", **changes), Clip(features=SPEECH[1], **changes)


def test_recordings_are_enrolled_and_listed_by_what_they_serve(device: Device) -> None:
    names = enrol(device, *clips())

    assert [(one.name, one.emotion, one.uses) for one in recordings.list_recordings(device)] == [
        (names[0], "sad", ("head", "training", "voice")),
        (names[1], "", ("voice",)),
    ]
    again = enrol(device, *clips(), Clip(features=SPEECH[1], emotion="happy"))
    assert again == (*names, names[1])
    assert [one.emotion for one in recordings.list_recordings(device)] == ["sad", "happy"]


def test_recordings_of_frames_have_one_name_however_long_others_are(device: Device) -> None:
    long, short = torch.randn(7, 5), torch.randn(3, 5)
    names = enrol(device, Clip(features=short, emotion="sad"))
    names += enrol(device, Clip(features=long, emotion="happy"))

    assert enrol(device, Clip(features=short, emotion="angry")) == names[:1]

    assert {one.name: one.emotion for one in recordings.list_recordings(device)} == {
        names[0]: "angry",
        names[1]: "happy",
    }


def test_what_cannot_be_enrolled_changes_nothing(device: Device) -> None:
    enrol(device, *clips())
    before = vault_of(device).get("clips")

    with pytest.raises(SettingError, match=r"'sadd' \(did you mean sad\?\).*nothing was enrolled"):
        enrol(device, Clip(features=SPEECH[2], emotion="sadd"))
    with pytest.raises(ModelError, match="finite"):
        enrol(device, Clip(features=torch.full((5,), torch.nan)))
    with pytest.raises(SettingError, match=r"of ears.* of nose"):
        enrol(device, Clip(features=SPEECH[2]), extractor="nose")
    with pytest.raises(SettingError, match="no recordings"):
        enrol(device)
    device.consent.withdraw("personalise")
    with pytest.raises(ConsentError):
        enrol(device, Clip(features=SPEECH[2]))
    assert vault_of(device).get("clips") == before


def test_a_recording_is_forgotten_wherever_it_lies(device: Device) -> None:
    names = enrol(device, *clips())

    assert recordings.forget_recording(device, vault_of(device), names[0]), "the head is let go"

    assert [one.name for one in recordings.list_recordings(device)] == [names[1]]
    recordings.forget_recording(device, vault_of(device), names[0])  # it may be repeated
    recordings.forget_recording(device, vault_of(device), "abc")
    assert [one.name for one in recordings.list_recordings(device)] == [names[1]]


def test_an_export_holds_every_blob_of_the_vault_but_keys(device: Device) -> None:
    names = enrol(device, *clips())
    _ = device.identity_key  # drawn when first asked for
    vault = vault_of(device)
    vault.put("note", b"\xff\x00")
    vault.put("word", "zärtlich".encode())

    data = data_export.export_data(device, vault)

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = json.loads(archive.read("my-data.json"))
        rows = np.load(io.BytesIO(archive.read("vault/clips/features.npy")))
        readme = archive.read("README.txt").decode()
    assert sorted([*content["vault"], *content["left_out"]]) == vault.list_names()
    assert list(content["left_out"]) == ["identity"]
    assert device.identity_key not in data
    assert np.array_equal(rows, SPEECH[:2].numpy())
    assert [one["name"] for one in content["recordings"]] == list(names)
    assert content["recordings"][0]["emotion"] == "sad"
    assert content["profile"]["intended_use"]["purpose"] == "research"
    assert content["consent"]["decisions"][0]["purpose"] == "personalise"
    assert "learn your voice" in content["consent"]["texts"]["personalise"]["text"]
    assert (content["vault"]["word"], content["ledger"]) == ("zärtlich", [])
    assert "not encrypted" in readme


def test_an_export_replaces_no_file_and_is_its_owners_alone(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    data_export.write_export(device, vault_of(device), path)

    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(SettingError, match="is there already"):
        data_export.write_export(device, vault_of(device), path)


@pytest.mark.parametrize("half", [False, True])
def test_erasing_leaves_nothing_of_the_device(device: Device, half: bool) -> None:
    enrol(device, *clips())
    folder = device.folder
    (folder / "ledger-refused-1.jsonl").write_text("{}\n")
    if half:  # killed once the key was gone
        (folder / "vault" / "key").unlink()

    assert device_erasure.erase_device(folder) == ()

    assert not folder.exists()
    with pytest.raises(SettingError, match="nothing to erase"):
        device_erasure.erase_device(folder)


def test_the_key_goes_first_and_foreign_files_stay(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = device.folder
    (folder / "holiday.wav").write_bytes(b"mine")
    gone: list[str] = []
    unlink = Path.unlink

    def note(path: Path, **options: bool) -> None:
        gone.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", note)

    assert device_erasure.erase_device(folder) == (folder / "holiday.wav",)
    assert (gone[0], gone[-1]) == ("key", "device.json")
