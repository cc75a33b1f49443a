"""What ``device.json`` decides is what the device's owner sealed, whoever writes to the folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_clips, make_examples

from sottovoce.cli import main
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile
from sottovoce.client.device.stored_clips import load_enrolment_features, load_head_examples
from sottovoce.client.device.vault import FileVault
from sottovoce.shared.errors import LedgerError, PrivacyError, SettingError
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind

REAL = DeviceProfile(
    user="ada", budgets=(PrivacyBudget(epsilon=8.0, delta=1e-5),), labels=("angry", "sad")
)
SIMULATED = replace(REAL, simulated_seed=7)
HEAD = Release(kind=ReleaseKind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run="run", round=1)


def make(folder: Path, profile: DeviceProfile, *, used: bool = False) -> Path:
    """Make a device, and perhaps book a release."""
    device = Device.create(folder, profile, make_clips(make_examples(torch.zeros(2, 3), classes=2)))
    if used:
        device.ledger.book_release("run/head-1", HEAD, profile.budgets)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Write other decisions into ``device.json``, as anybody can who writes to the folder."""
    path = folder / "device.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def age(folder: Path) -> None:
    """Make of a device one of an earlier release: nothing sealed, an old anchor."""
    vault = FileVault.open(folder / "vault")
    vault.delete("profile")
    anchor = json.loads(vault.get("ledger-anchor"))
    del anchor["profile"]
    vault.overwrite("ledger-anchor", json.dumps(anchor).encode())


BUDGET = {"epsilon": 1e6, "delta": 1e-5, "unit": "utterance", "per_run": None}
EDITS: list[dict[str, Any]] = [
    {"simulated_seed": 7},
    {"budgets": [BUDGET]},
    {"budgets": []},
    {"labels": ["sad", "angry"]},
    {"neutral_enrolment": True},
    {"user": "bob"},
]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("changes", EDITS)
def test_an_edited_profile_opens_for_nobody(
    tmp_path: Path, changes: dict[str, Any], used: bool
) -> None:
    folder = make(tmp_path / "device", REAL, used=used)
    edit(folder, **changes)

    for read_only in (False, True):
        with pytest.raises((PrivacyError, LedgerError), match=next(iter(changes))) as raised:
            Device.open(folder, read_only=read_only)
        assert "sottovoce device confirm" in str(raised.value)


@pytest.mark.parametrize("changes", [{"labels": ["sad", "angry"]}, {"neutral_enrolment": True}])
def test_what_is_learned_from_clips_follows_no_edit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make(tmp_path / "device", REAL)
    vault = FileVault.open(folder / "vault")
    edit(folder, **changes)

    with pytest.raises(PrivacyError, match="not what the device's owner sealed"):
        load_enrolment_features(folder, vault)
    with pytest.raises(PrivacyError, match="not what the device's owner sealed"):
        load_head_examples(folder, vault, ("angry", "sad"))


def test_a_simulated_device_does_not_become_a_real_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "device", SIMULATED)
    edit(folder, simulated_seed=None)

    with pytest.raises(PrivacyError, match="simulated_seed is None, sealed was 7"):
        Device.open(folder)
    with pytest.raises(SettingError, match="make another device"):
        Device.confirm_profile(folder)


@pytest.mark.parametrize("used", [False, True])
def test_a_sealed_copy_that_is_gone_is_missed(tmp_path: Path, used: bool) -> None:
    folder = make(tmp_path / "device", REAL, used=used)
    FileVault.open(folder / "vault").delete("profile")
    edit(folder, budgets=[BUDGET])

    with pytest.raises(PrivacyError, match="gone from the vault"):
        Device.open(folder)


def test_a_sealed_copy_of_another_vault_does_not_open(tmp_path: Path) -> None:
    folder, other = make(tmp_path / "device", REAL), make(tmp_path / "other", SIMULATED)
    for name in ("device.json", "vault/profile.sealed"):
        (folder / name).write_bytes((other / name).read_bytes())

    with pytest.raises(PrivacyError, match="'profile' in the vault"):
        Device.open(folder)


def test_a_seed_beside_a_real_ledger_is_refused_even_when_sealed(tmp_path: Path) -> None:
    folder = make(tmp_path / "device", REAL)
    age(folder)
    edit(folder, simulated_seed=7)

    with pytest.raises(PrivacyError, match="protects nobody"):
        Device.open(folder)
    Device.confirm_profile(folder)
    with pytest.raises(PrivacyError, match="protects nobody"):
        Device.open(folder)


def test_an_unused_device_of_an_earlier_release_is_sealed_when_opened(tmp_path: Path) -> None:
    folder = make(tmp_path / "device", REAL)
    age(folder)

    assert Device.open(folder).profile == REAL

    edit(folder, budgets=[BUDGET])
    with pytest.raises(PrivacyError, match="not what the device's owner sealed"):
        Device.open(folder)


def test_a_used_device_of_an_earlier_release_waits_for_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "device", REAL, used=True)
    age(folder)
    with pytest.raises(PrivacyError, match="sottovoce device confirm"):
        Device.open(folder)

    assert main.main(["device", "confirm", str(folder)]) == 0

    assert "simulated_seed is None" in capsys.readouterr().out
    assert Device.open(folder).profile == REAL


def test_an_owner_confirms_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "device", REAL)
    edit(folder, budgets=[BUDGET])

    assert main.main(["device", "confirm", str(folder)]) == 0

    assert "budgets is (PrivacyBudget(epsilon=1000000.0" in capsys.readouterr().out
    assert Device.open(folder).profile.budgets[0].epsilon == 1e6
    assert main.main(["device", "confirm", str(folder)]) == 0
    assert "nothing has changed" in capsys.readouterr().out


def test_to_contribute_nothing_more_needs_no_key_and_stays(tmp_path: Path) -> None:
    folder = make(tmp_path / "device", REAL)
    edit(folder, contributes=False)
    assert not Device.open(folder).profile.contributes

    edit(folder, contributes=True)
    with pytest.raises(PrivacyError, match="contributes is True, sealed was False"):
        Device.open(folder)
    Device.confirm_profile(folder)
    assert Device.open(folder).profile.contributes


def test_a_passphrase_is_needed_to_confirm(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    clips = make_clips(make_examples(torch.zeros(2, 3), classes=2))
    Device.create(folder, REAL, clips, passphrase="correct horse")
    edit(folder, budgets=[BUDGET])

    with pytest.raises(PrivacyError, match="passphrase"):
        Device.confirm_profile(folder)


def test_enrolments_are_counted_up_to_a_million() -> None:
    usual: dict[str, Any] = {"user": "ada", "budgets": (), "labels": ("a", "b")}
    DeviceProfile(**usual, enrolment=10**6)
    for number in (0, 10**6 + 1):
        with pytest.raises(SettingError, match="enrolment"):
            DeviceProfile(**usual, enrolment=number)
