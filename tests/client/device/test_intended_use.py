"""A device is declared for a use; those that the EU AI Act forbids are refused with the reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.client.device.device import Device
from sottovoce.client.device.intended_use import (
    MAX_DESCRIPTION,
    PURPOSE_TEXTS,
    IntendedPurpose,
    parse_intended_use,
)
from sottovoce.client.device.profile import (
    DeviceProfile,
    LabelledFeatures,
    read_profile,
    write_profile,
)
from sottovoce.shared.errors import PrivacyError, SettingError


@pytest.mark.parametrize(
    "text",
    [
        "work",
        "hiring: whom we like",
        "education",
        "research: moods of our employees",
        "companion: at work",
        "entertainment: a game for the classroom",
        "self-reflection: for students before exams",
        "accessibility: help in job interviews",
    ],
)
def test_a_forbidden_use_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(SettingError, match=r"Article 5\(1\)\(f\).*(at work|in education)"):
        parse_intended_use(text)


@pytest.mark.parametrize(
    "text",
    [
        *IntendedPurpose,
        "self-reflection: a diary of moods, a working title",
        "health: therapy of pupils",
        "safety: fatigue of our drivers at work",
        " Research : a study ",
    ],
)
def test_other_uses_are_declared(text: str) -> None:
    use = parse_intended_use(text)

    assert parse_intended_use(str(use)) == use
    assert use.purpose in PURPOSE_TEXTS


def test_what_is_unknown_or_too_long_is_refused() -> None:
    with pytest.raises(SettingError, match="did you mean research"):
        parse_intended_use("reserch")
    with pytest.raises(SettingError, match="at most 500"):
        parse_intended_use("research: " + "a" * (MAX_DESCRIPTION + 1))


def test_a_declaration_is_sealed_with_the_owners_decisions(tmp_path: Path) -> None:
    profile = DeviceProfile(
        user="ada", budgets=(), labels=("sad",), intended_use=parse_intended_use("research: moods")
    )
    device = Device.create(tmp_path, profile, LabelledFeatures.without_recordings(width=1))
    assert Device.open(tmp_path).profile.intended_use == device.profile.intended_use

    path = tmp_path / "device.json"
    write_profile(path, replace(profile, intended_use=parse_intended_use("companion")))
    with pytest.raises(PrivacyError, match="intended_use"):
        Device.open(tmp_path)
    path.write_text(path.read_text().replace('"companion"', '"hiring"'))
    with pytest.raises(PrivacyError, match=r"damaged.*Article 5"):
        read_profile(path)
