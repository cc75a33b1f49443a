"""The log of what left: every release in words, in order, and how much of a promise is used."""

from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.client.device.device import Device
from sottovoce.client.device.privacy_report import build_report
from sottovoce.client.user_data.creation import create_device
from sottovoce.client.user_data.release_log import describe_budgets, describe_releases
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.shared.privacy.target import PrivacyTarget

GRADIENT = Release(
    kind=ReleaseKind.GRADIENT,
    mechanism=Mechanism.GAUSSIAN,
    run="autumn",
    round=1,
    noise_multiplier=4.0,
    sensitivity=1.0,
)


@pytest.mark.parametrize("kind", ReleaseKind)
@pytest.mark.parametrize("mechanism", [Mechanism.ENCRYPTION, Mechanism.NONE])
def test_every_release_has_words(kind: ReleaseKind, mechanism: Mechanism) -> None:
    (line,) = describe_releases([Release(kind=kind, mechanism=mechanism, run="autumn", round=2)])

    assert len(line.what.split()) > 3
    assert line.protection
    assert (line.run, line.round, line.count) == ("autumn", 2, 1)


def test_releases_alike_are_one_line_and_order_is_kept() -> None:
    other = replace(GRADIENT, round=2)
    lines = describe_releases([GRADIENT, GRADIENT, other, GRADIENT])

    assert [(line.round, line.count) for line in lines] == [(1, 2), (2, 1), (1, 1)]
    assert lines[1].details == other.to_dict()


def test_how_much_is_used_is_said_for_each_promise(tmp_path: Path) -> None:
    folder = tmp_path / "ada"
    target = PrivacyTarget(unit="both", epsilon=8.0)
    create_device(folder, user="ada", use="research", target=target).consent.grant("contribute")
    said = describe_budgets(build_report(folder))
    assert len(said) == 2
    assert all(sentence.startswith("Nothing is used") for sentence in said)

    Device.open(folder).ledger.book_release("a", GRADIENT, ())

    used, whole = describe_budgets(build_report(folder))
    spent = build_report(folder).budgets[0].epsilon_spent / 8
    assert used.startswith(f"{spent:.0%} of what may be used")
    assert "used up" in whole, "nothing hides the user in this release"
