"""An owner withdraws a device: nothing leaves from then on, and the budget never starts anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_clips, make_device, make_examples, make_release
from torch import Tensor

from sottovoce.cli import main
from sottovoce.client.device import withdrawal
from sottovoce.client.device.consent import Purpose
from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.randomness import Randomness
from sottovoce.shared import atomic_files
from sottovoce.shared.errors import (
    BudgetSpent,
    ConsentWithdrawn,
    LedgerError,
    PrivacyError,
    SettingError,
    StorageError,
)
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.messages import WithdrawalConfirmation

BUDGET = PrivacyBudget(epsilon=3.0, delta=1e-5)
DIGEST = "a" * 64


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A real device that has released one round, and keeps a plan."""
    clips = make_clips(make_examples(torch.randn(2, 3), classes=2))
    made = make_device(tmp_path / "device", clips, simulated_seed=None, budgets=(BUDGET,))
    give(made, 1)
    made.vault.put("plan", b"a plan")
    return made


def give(device: Device, number: int, compute: Callable[[Randomness], Tensor] | None = None) -> Any:
    """Release a round."""
    make = compute or (lambda random: random.noise_source.sample_noise((2,), 1.0))
    return device.book_and_release(f"round-{number}", DIGEST, make_release(3.0), make)


def pending(name: str) -> PreparedRelease:
    """What was paid for in advance."""
    return PreparedRelease(
        name=name,
        request_digest=DIGEST,
        release=make_release(3.0),
        compute=lambda _: torch.ones(2),
    )


WAYS_OUT = {
    "a new release": lambda device: give(device, 2),
    "the same bytes again": lambda device: give(device, 1),
    "what the outbox has": lambda device: device.find_released(pending("round-1")),
    "what was paid for": lambda device: device.answer_once(pending("round-1")),
    "noise": lambda device: device.book_release("round-2", DIGEST, make_release(3.0)),
    "an advance": lambda device: device.book_in_advance("schedule", DIGEST, make_release(3.0)),
}


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("program", ["this", "another", "restarted"])
def test_nothing_is_booked_or_given_after_a_withdrawal(
    device: Device, way: str, program: str
) -> None:
    asked = Device.open(device.folder) if program == "another" else device
    device.withdraw()
    if program == "restarted":
        asked = Device.open(device.folder)
    before = device.ledger.path.read_bytes()

    with pytest.raises(ConsentWithdrawn):
        WAYS_OUT[way](asked)
    assert device.ledger.path.read_bytes() == before


def test_a_release_under_way_stays_on_the_device(device: Device) -> None:
    def withdraw_meanwhile(_: Randomness) -> Tensor:
        Device.open(device.folder).withdraw()
        return torch.ones(2)

    with pytest.raises(ConsentWithdrawn):
        give(device, 2, withdraw_meanwhile)

    assert not device.vault.has_blob("outbox-gradient")
    assert len(Device.open(device.folder).ledger.releases) == 2, "booked, for it was computed"


def test_what_would_answer_a_server_is_gone_and_the_rest_is_not(device: Device) -> None:
    device.withdraw()

    assert not device.vault.has_blob("plan")
    assert not device.vault.has_blob("outbox-gradient")
    assert len(Device.open(device.folder).load_features().examples) == 2


@pytest.mark.parametrize("step", range(4))
def test_a_crash_in_between_leaves_a_device_that_is_withdrawn(
    device: Device, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The record comes first; whatever did not follow is done when the device is opened."""
    crash_at(monkeypatch, step)
    with pytest.raises((PrivacyError, StorageError)):
        device.withdraw()
    monkeypatch.undo()

    if step == 0:  # nothing was written, nothing was removed
        assert Device.open(device.folder).vault.has_blob("plan")
        return
    reopened = Device.open(device.folder)
    assert reopened.profile.withdrawn
    assert not reopened.vault.has_blob("plan")
    with pytest.raises(ConsentWithdrawn):
        give(reopened, 2)


@pytest.mark.parametrize("step", [0, 1])
def test_a_crash_while_enrolling_anew_leaves_a_device_that_is_withdrawn(
    device: Device, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    device.withdraw()
    crash_at(monkeypatch, step)
    with pytest.raises(PrivacyError):
        device.enrol_anew()
    monkeypatch.undo()

    reopened = Device.open(device.folder)
    with pytest.raises(ConsentWithdrawn):
        give(reopened, 2)
    reopened.enrol_anew()
    reopened.consent.grant(Purpose.CONTRIBUTE)
    give(Device.open(device.folder), 2)


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the disk refuse from one of its changes on."""
    changes = iter(range(100))

    def refuse_later(whole: Callable[..., None]) -> Callable[..., None]:
        def change(*arguments: Any, **how: Any) -> None:
            if next(changes) >= step:
                raise StorageError("power cut")
            whole(*arguments, **how)

        return change

    for name in ("replace_file", "sync_folder"):
        monkeypatch.setattr(atomic_files, name, refuse_later(getattr(atomic_files, name)))


def test_whoever_lacks_the_key_can_withdraw_and_not_take_it_back(device: Device) -> None:
    path = device.folder / "device.json"
    given = path.read_text()
    path.write_text(json.dumps(json.loads(given) | {"withdrawn": True}))
    assert Device.open(device.folder).profile.withdrawn

    path.write_text(given)
    with pytest.raises(PrivacyError, match="withdrawn is False, sealed was True"):
        Device.open(device.folder)
    with pytest.raises(SettingError, match="sottovoce device consent"):
        Device.confirm_profile(device.folder)


def test_enrolling_anew_is_another_enrolment_with_the_same_ledger(device: Device) -> None:
    while True:
        try:
            give(device, len(device.ledger.releases) + 1)
        except BudgetSpent:
            break
    lines = device.ledger.path.read_bytes()
    with pytest.raises(SettingError, match="nothing to enrol anew"):
        device.enrol_anew()
    device.withdraw()

    device.enrol_anew()

    with pytest.raises(BudgetSpent, match="does not consent to contribute"):
        give(device, 99)
    device.consent.grant(Purpose.CONTRIBUTE)
    reopened = Device.open(device.folder)
    assert (reopened.profile.withdrawn, reopened.profile.enrolment) == (False, 2)
    assert reopened.ledger.path.read_bytes() == lines
    with pytest.raises(BudgetSpent, match="epsilon"):
        give(reopened, 99)


def test_a_withdrawn_device_whose_ledger_is_refused_stays_withdrawn(device: Device) -> None:
    device.withdraw()
    device.ledger.path.unlink()
    with pytest.raises(LedgerError):
        Device.open(device.folder)

    Device.retire(device.folder)

    assert Device.open(device.folder).profile.withdrawn


def test_a_withdrawal_is_proved_once_there_is_one(device: Device) -> None:
    with pytest.raises(PrivacyError, match="nothing to prove"):
        withdrawal.prove_withdrawal(device.vault, device.profile, b"c" * 32)
    device.withdraw()

    said = withdrawal.prove_withdrawal(device.vault, device.profile, b"c" * 32)

    assert said.enrolment == device.profile.enrolment


def test_confirmations_are_kept_of_the_enrolment_that_ended(device: Device) -> None:
    def confirm(enrolment: int, run: str = "r") -> None:
        said = WithdrawalConfirmation(run=run, enrolment=enrolment, deleted=("heads",))
        withdrawal.keep_confirmation(device.vault, device.profile, said)

    with pytest.raises(PrivacyError):
        confirm(1)
    device.withdraw()
    with pytest.raises(PrivacyError):
        confirm(2)
    for run in ("r", "r", "s"):
        confirm(1, run)

    kept = Device.open(device.folder).confirmed_deletions
    assert [(one["run"], one["enrolment"], one["deleted"]) for one in kept] == [
        ("r", 1, ["heads"]),
        ("s", 1, ["heads"]),
    ]
    (blob,) = (name for name in device.vault.list_names() if b"received" in device.vault.get(name))
    device.vault.put(blob, b"[1, 2")
    with pytest.raises(PrivacyError, match="list of confirmations"):
        withdrawal.list_confirmations(device.vault)


def test_the_commands_say_what_follows(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(device.folder)

    assert main.main(["device", "withdraw", folder]) == 0
    assert "enrolment 1 has ended" in capsys.readouterr().out
    assert main.main(["device", "privacy", folder]) == 0
    assert "no server has confirmed a deletion yet" in capsys.readouterr().out
    assert main.main(["device", "consent", folder, "--grant", "contribute"]) == 0
    assert "enrolment 2; what was spent before counts on" in capsys.readouterr().out
    assert Device.open(device.folder).contributes
