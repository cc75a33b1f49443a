"""An owner's account: true, complete, and read without a trace."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.privacy_report import MAX_ROUNDS, build_report
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.shared.errors import BudgetSpent, LedgerError, SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

DELTA = 1e-5
FACTS = DeviceProfile(
    user="ada", budgets=(PrivacyBudget(epsilon=8.0, delta=DELTA),), labels=("angry",)
)
COUNTS = Release(
    kind=ReleaseKind.LABEL_COUNTS,
    mechanism=Mechanism.GAUSSIAN,
    run="first",
    round=0,
    noise_multiplier=10.0,
    sensitivity=1.0,
)
ROUND = replace(COUNTS, kind=ReleaseKind.GRADIENT, round=1, noise_multiplier=3.0)
HEAD = Release(kind=ReleaseKind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run="first", round=9)


def device(folder: Path, *releases: Release, facts: DeviceProfile = FACTS) -> Device:
    """A device that let these out."""
    none = torch.zeros(0, dtype=torch.bool)
    empty = torch.zeros(0, dtype=torch.int64)
    examples = Examples(features=torch.zeros(0, 3), frames=empty, labels=empty)
    made = Device.create(
        folder,
        facts,
        LabelledFeatures(examples=examples, for_enrolment=none, for_head=none, for_training=none),
    )
    for number, release in enumerate(releases):
        made.ledger.book_release(f"{number}", release, ())
    return made


def test_an_account_tells_what_the_ledger_holds(tmp_path: Path) -> None:
    budgets = (*FACTS.budgets, PrivacyBudget(epsilon=2.0, delta=1e-3, unit=PrivacyUnit.USER))
    later = replace(ROUND, run="second")
    own = device(tmp_path, COUNTS, ROUND, HEAD, later, facts=replace(FACTS, budgets=budgets))
    report = build_report(tmp_path)

    assert (report.user, report.ledger_sha256, report.anchored_releases) == (
        "ada",
        own.ledger.head_hash,
        4,
    )
    assert report.releases_by_run == {"first": 3, "second": 1}
    assert report.releases_by_kind == {"gradient": 2, "label-counts": 1, "sealed-head": 1}
    utterance, user = report.budgets
    assert utterance.epsilon_spent == accounting.compute_epsilon([COUNTS, ROUND, later], DELTA)
    assert utterance.epsilon_left == 8.0 - utterance.epsilon_spent
    assert utterance.epsilon_by_run == {
        "first": accounting.compute_epsilon([COUNTS, ROUND], DELTA),
        "second": accounting.compute_epsilon([later], DELTA),
    }
    assert (user.epsilon_spent, user.epsilon_left, user.rounds_left) == (float("inf"), 0.0, 0)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["budgets"][1]["spent"] is None
    wanted = {
        "user": "ada",
        "releases": 4,
        "ledger_sha256": own.ledger.head_hash,
        "chain": True,
        "anchor": True,
        "anchored": 4,
        "runs": report.releases_by_run,
        "kinds": report.releases_by_kind,
    }
    assert {name: told.get(name) for name in wanted} == wanted
    assert "spent, 0.0000 left" in "\n".join(report.format_lines())


@pytest.mark.parametrize("per_run", [None, 3.0])
def test_as_many_rounds_fit_as_are_told(tmp_path: Path, per_run: float | None) -> None:
    budgets = (PrivacyBudget(epsilon=4.0, delta=DELTA, per_run=per_run),)
    own = device(tmp_path, COUNTS, ROUND, HEAD, facts=replace(FACTS, budgets=budgets))
    more = build_report(tmp_path).budgets[0].rounds_left

    assert more == (6 if per_run is None else 3)
    for number in range(more):
        own.ledger.book_release(f"more-{number}", ROUND, budgets)
    assert build_report(tmp_path).budgets[0].rounds_left == 0
    with pytest.raises(BudgetSpent):
        own.ledger.book_release("one too many", ROUND, budgets)


def test_where_users_take_turns_as_many_turns_fit_as_are_told(tmp_path: Path) -> None:
    bands = BandedNoise.from_square_root(bands=3, min_separation=4)
    noise = SumMechanism(
        noise_multiplier=3.0, clip_norm=1.0, noised_by=NoiseSource.SERVER, bands=bands
    )
    turn = replace(ROUND, noise_multiplier=0.0, sensitivity=0.0, user=noise)
    budgets = (PrivacyBudget(epsilon=4.0, delta=1e-3, unit=PrivacyUnit.USER),)
    own = device(tmp_path, turn, facts=replace(FACTS, budgets=budgets))
    more = build_report(tmp_path).budgets[0].rounds_left

    assert more is not None
    assert more > 5
    for number in range(1, more + 1):
        own.ledger.book_release(f"more-{number}", replace(turn, round=1 + 4 * number), budgets)
    with pytest.raises(BudgetSpent):
        own.ledger.book_release("one too many", replace(turn, round=5 + 4 * more), budgets)


def test_a_device_that_gave_nothing_and_one_that_may_give_for_ever(tmp_path: Path) -> None:
    device(tmp_path / "fresh")
    fresh = build_report(tmp_path / "fresh")
    assert (fresh.release_count, fresh.anchored_releases) == (0, 0)
    assert (fresh.budgets[0].epsilon_spent, fresh.budgets[0].rounds_left) == (0.0, None)
    assert "no round yet" in "\n".join(fresh.format_lines())

    device(tmp_path / "quiet", replace(ROUND, noise_multiplier=1e6))
    quiet = build_report(tmp_path / "quiet")
    assert quiet.budgets[0].rounds_left == MAX_ROUNDS
    assert "10,000 or more" in "\n".join(quiet.format_lines())

    device(tmp_path / "free", facts=replace(FACTS, budgets=()))
    assert "nothing is promised" in "\n".join(build_report(tmp_path / "free").format_lines())


def test_looking_changes_nothing_even_at_a_booking_that_is_half_done(tmp_path: Path) -> None:
    own = device(tmp_path, COUNTS, ROUND)
    anchor = tmp_path / "vault" / "ledger-anchor.sealed"
    written = anchor.read_bytes()
    own.ledger.book_release("2", ROUND, ())
    anchor.write_bytes(written)  # between line and anchor
    own.ledger.path.write_bytes(own.ledger.path.read_bytes() + b"{")  # and in the next line
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    report = build_report(tmp_path)

    assert (report.anchored_releases, report.release_count, report.releases_by_kind["torn"]) == (
        2,
        4,
        1,
    )
    assert "anchor verified up to release 2" in "\n".join(report.format_lines())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_ledger_that_cannot_be_trusted_has_no_account(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no device"):
        build_report(tmp_path)
    own = device(tmp_path, COUNTS, ROUND)
    lines = own.ledger.path.read_bytes().splitlines(keepends=True)
    for left in (lines[:-1], [lines[0], *lines[2:]]):
        own.ledger.path.write_bytes(b"".join(left))
        with pytest.raises(LedgerError):
            build_report(tmp_path)
