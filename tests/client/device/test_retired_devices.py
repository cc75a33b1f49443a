"""A device whose ledger is refused: its owner can end its training, and nobody spends twice."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.cli import main
from sottovoce.client.device import profile as profiles
from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.shared import atomic_files
from sottovoce.shared.errors import (
    BudgetSpent,
    LedgerError,
    PrivacyError,
    SettingError,
    StorageError,
)
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind

REAL = DeviceProfile(
    user="ada", budgets=(PrivacyBudget(epsilon=8.0, delta=1e-5),), labels=("angry", "sad")
)
SIMULATED = replace(REAL, simulated_seed=7)
HEAD = Release(kind=ReleaseKind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run="run", round=1)


def release(number: int) -> Release:
    """One round's gradients."""
    return Release(
        kind=ReleaseKind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="run",
        round=number,
        noise_multiplier=3.0,
        sensitivity=1.0,
    )


def made(folder: Path, facts: DeviceProfile) -> Device:
    """A device that has released three times."""
    everyone = torch.ones(2, dtype=torch.bool)
    examples = Examples(
        features=torch.randn(2, 3),
        frames=torch.ones(2, dtype=torch.int64),
        labels=torch.arange(2),
    )
    clips = LabelledFeatures(
        examples=examples, for_enrolment=everyone, for_head=~everyone, for_training=everyone
    )
    device = Device.create(folder, facts, clips)
    for number in (1, 2, 3):
        give(device, number)
    return device


def give(device: Device, number: int) -> torch.Tensor:
    """One more release."""
    return device.book_and_release(
        f"round-{number}",
        "a" * 64,
        release(number),
        lambda random: random.noise_source.sample_noise((2,), 1.0),
    )


def cut(device: Device) -> None:
    """Drop the newest line."""
    lines = device.ledger.path.read_bytes().splitlines(keepends=True)
    device.ledger.path.write_bytes(b"".join(lines[:-1]))


def change(device: Device) -> None:
    """Change a line in the middle."""
    text = device.ledger.path.read_text()
    device.ledger.path.write_text(text.replace('"round": 2', '"round": 9'))


def lose(device: Device) -> None:
    """Lose the ledger."""
    device.ledger.path.unlink()


def unanchor(device: Device) -> None:
    """Lose the anchor."""
    (device.folder / "vault" / "ledger-anchor.sealed").unlink()


FAULTS = (cut, change, lose, unanchor)


@pytest.mark.parametrize("facts", [REAL, SIMULATED])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_retired_device_opens_gives_nothing_and_keeps_heads(
    tmp_path: Path, facts: DeviceProfile, fault: Callable[[Device], None]
) -> None:
    folder = made(tmp_path / "device", facts).folder
    fault(Device.open(folder))
    with pytest.raises(LedgerError, match="sottovoce device retire"):
        Device.open(folder)

    Device.retire(folder)

    device = Device.open(folder)
    assert not device.profile.contributes
    assert math.isinf(device.ledger.epsilon_spent(1e-5))
    for number in (1, 4):  # what it gave before, and what is new
        with pytest.raises(BudgetSpent):
            give(device, number)
    device.ledger.book_release("run/head-1", HEAD, device.profile.budgets)  # heads cost nothing
    assert len(Device.open(folder).load_features().examples) == 2


def test_an_owner_who_wants_it_back_meets_a_spent_ledger(tmp_path: Path) -> None:
    folder = made(tmp_path / "device", REAL).folder
    cut(Device.open(folder))
    Device.retire(folder)
    path = folder / "device.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"contributes": True}))
    with pytest.raises(PrivacyError, match="sottovoce device confirm"):
        Device.open(folder)
    Device.confirm_profile(folder)

    with pytest.raises(BudgetSpent):
        give(Device.open(folder), 4)


def test_the_refused_ledger_is_kept_and_cannot_be_put_back(tmp_path: Path) -> None:
    device = made(tmp_path / "device", REAL)
    whole = device.ledger.path.read_bytes()
    cut(device)
    refused = device.ledger.path.read_bytes()

    aside = Device.retire(device.folder)

    assert aside is not None
    assert aside.read_bytes() == refused
    device.ledger.path.write_bytes(whole)
    with pytest.raises(LedgerError):
        Device.open(device.folder)
    assert Device.retire(device.folder) != aside  # nothing is written over


def test_what_was_paid_for_in_advance_is_not_answered_any_more(tmp_path: Path) -> None:
    device = made(tmp_path / "device", REAL)
    device.book_in_advance("schedule", "b" * 64, release(4))
    pending = PreparedRelease(
        name="round-4", request_digest="c" * 64, release=release(4), compute=lambda _: torch.ones(2)
    )
    assert device.answer_once(pending).tolist() == [1.0, 1.0]
    cut(device)
    Device.retire(device.folder)

    with pytest.raises(BudgetSpent):
        Device.open(device.folder).answer_once(replace(pending, name="round-5"))


def test_a_device_in_order_is_not_retired(tmp_path: Path) -> None:
    device = made(tmp_path / "device", REAL)
    before = device.ledger.path.read_bytes()

    with pytest.raises(SettingError, match="in order"):
        Device.retire(device.folder)
    assert device.ledger.path.read_bytes() == before
    give(Device.open(device.folder), 4)


@pytest.mark.parametrize("broken", ["facts", "aside", "ledger", "anchor"])
def test_a_crash_between_two_steps_leaves_a_refused_device_or_a_retired_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = made(tmp_path / "device", REAL).folder
    cut(Device.open(folder))

    whole = atomic_files.replace_file

    def crash(*_: Any, **__: Any) -> None:
        raise StorageError("power cut")

    def crash_at_ledger(path: Path, *data: Any, **how: Any) -> None:
        (crash if path.suffix == ".jsonl" else whole)(path, *data, **how)

    with monkeypatch.context() as patch:
        if broken == "facts":
            patch.setattr(profiles, "write_file", crash)
        elif broken == "anchor":
            patch.setattr("sottovoce.client.device.vault_anchor.VaultAnchor.write", crash)
        else:
            name = {"aside": "append_to_file", "ledger": "replace_file"}[broken]
            patch.setattr(atomic_files, name, crash_at_ledger)
        with pytest.raises((StorageError, PrivacyError)):
            Device.retire(folder)

    with pytest.raises(LedgerError):
        Device.open(folder)
    Device.retire(folder)
    with pytest.raises(BudgetSpent):
        give(Device.open(folder), 4)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = made(tmp_path / "device", REAL)
    assert main.main(["device", "retire", str(device.folder)]) == 2
    assert "in order" in capsys.readouterr().err
    cut(device)

    assert main.main(["device", "retire", str(device.folder)]) == 0

    assert "ledger-refused-1.jsonl" in capsys.readouterr().out
    assert main.main(["device", "privacy", str(device.folder)]) == 0
    assert "of 8 spent" in capsys.readouterr().out


def test_a_new_ledger_without_its_charge_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "device", replace(REAL, contributes=True)).folder
    cut(Device.open(folder))
    monkeypatch.setattr(
        "sottovoce.shared.privacy.ledger.find_costliest_release",
        lambda _: replace(release(0), kind=ReleaseKind.TORN),
    )
    Device.retire(folder)

    assert not math.isinf(Ledger(folder / "ledger.jsonl", owner="ada").epsilon_spent(1e-5))
