"""Consent is opt-in by purpose, counts for the text that was shown, and is withdrawn at once."""

import json
from pathlib import Path

import pytest
import torch
from builders import make_clips, make_examples, make_plan

from sottovoce.client.device.consent import (
    BLOB_NAME,
    CONSENT_TEXTS,
    ConsentText,
    DeviceConsent,
    Purpose,
)
from sottovoce.client.device.device import Device
from sottovoce.client.device.intended_use import IntendedPurpose, IntendedUse
from sottovoce.client.device.profile import DeviceProfile
from sottovoce.client.device.vault import FileVault
from sottovoce.client.federation import enrolment
from sottovoce.shared.errors import BudgetSpent, ConsentError, PrivacyError
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.shared.speaker.normalisation import default_statistics

RELEASE = Release(kind=ReleaseKind.LABEL_COUNTS, mechanism=Mechanism.NONE, run="r", round=0)


def make_asking_device(folder: Path) -> Device:
    """A device with a declared use and two clips."""
    profile = DeviceProfile(
        user="ada",
        budgets=(),
        labels=("a", "b"),
        intended_use=IntendedUse(purpose=IntendedPurpose.RESEARCH),
    )
    return Device.create(folder, profile, make_clips(make_examples(torch.eye(2), classes=2)))


def release_counts(device: Device, digest: str = "ab" * 16) -> torch.Tensor:
    return device.book_and_release("counts", digest, RELEASE, lambda _: torch.ones(2))


def test_nothing_is_allowed_before_it_is_granted(tmp_path: Path) -> None:
    device = make_asking_device(tmp_path)
    assert not any(map(device.consent.allows, Purpose))
    with pytest.raises(BudgetSpent, match="does not consent"):
        release_counts(device)
    assert device.ledger.releases == ()

    device.consent.grant(Purpose.CONTRIBUTE)

    assert [one for one in Purpose if device.consent.allows(one)] == [Purpose.CONTRIBUTE]
    assert len(release_counts(device)) == 2
    with pytest.raises(ConsentError, match=r"ada has not consented.*--grant personalise"):
        device.consent.require(Purpose.PERSONALISE)


def test_a_withdrawal_stops_a_device_that_is_open_elsewhere(tmp_path: Path) -> None:
    device = make_asking_device(tmp_path)
    device.consent.grant(*Purpose)
    release_counts(device)

    Device.open(tmp_path, read_only=True).consent.withdraw(Purpose.CONTRIBUTE)

    with pytest.raises(BudgetSpent):
        release_counts(device, "cd" * 16)
    with pytest.raises(BudgetSpent):
        release_counts(device)  # the value that was released before, and perhaps not delivered
    with pytest.raises(BudgetSpent):
        device.book_in_advance("schedule", "ab" * 16, RELEASE)
    assert device.consent.allows(Purpose.RECOGNISE)
    with pytest.raises(ConsentError, match="withdrew consent on 20"):
        device.consent.require(Purpose.CONTRIBUTE)


@pytest.mark.parametrize("granted", [True, False])
def test_without_consent_a_device_joins_a_run_to_receive(tmp_path: Path, granted: bool) -> None:
    device = make_asking_device(tmp_path)
    if granted:
        device.consent.grant(Purpose.CONTRIBUTE)
    projection = identity_projection(2)
    plan = make_plan(projection_hash=projection.content_hash())

    value = enrolment.enrol_device(device, plan, projection, default_statistics(2))

    assert (value is not None, len(device.ledger.releases) > 0) == (granted, granted)


def test_consent_to_an_earlier_text_counts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = make_asking_device(tmp_path).consent
    consent.grant(Purpose.RECOGNISE)
    newer = ConsentText(version=CONSENT_TEXTS[Purpose.RECOGNISE].version + 1, text="More.")
    monkeypatch.setitem(CONSENT_TEXTS, Purpose.RECOGNISE, newer)

    with pytest.raises(ConsentError, match="earlier text"):
        consent.require(Purpose.RECOGNISE)


def test_every_decision_stays_in_the_log(tmp_path: Path) -> None:
    consent = make_asking_device(tmp_path).consent
    consent.grant(Purpose.RECOGNISE, Purpose.PERSONALISE)
    consent.withdraw(Purpose.RECOGNISE)

    log = Device.open(tmp_path).consent.read().decisions
    assert [(one.purpose.value, one.is_granted) for one in log] == [
        ("recognise", True),
        ("personalise", True),
        ("recognise", False),
    ]
    assert all(one.at.endswith("+00:00") and one.text_version == 1 for one in log)


@pytest.mark.parametrize("harm", ["gone", "damaged", "newer"])
def test_a_record_that_cannot_be_trusted_allows_nothing(tmp_path: Path, harm: str) -> None:
    device = make_asking_device(tmp_path)
    device.consent.grant(*Purpose)
    vault = FileVault.open(tmp_path / "vault")
    if harm == "gone":
        vault.delete(BLOB_NAME)
    else:
        content = {"schema": 99, "decisions": []} if harm == "newer" else {"schema": 1}
        vault.put(BLOB_NAME, json.dumps(content).encode())

    for purpose in Purpose:
        with pytest.raises(PrivacyError):
            device.consent.allows(purpose)
    with pytest.raises(PrivacyError):
        release_counts(device, "cd" * 16)


def test_without_a_declared_use_the_profile_decides_until_something_is_withdrawn(
    tmp_path: Path,
) -> None:
    consent = DeviceConsent(FileVault.create(tmp_path / "vault", user="ada"), required=False)
    assert all(map(consent.allows, Purpose))

    consent.withdraw(Purpose.CONTRIBUTE)

    assert [one for one in Purpose if not consent.allows(one)] == [Purpose.CONTRIBUTE]
