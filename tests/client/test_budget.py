"""An owner's account: true, complete, and read without a trace."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sottovoce.client.budget import MOST_ROUNDS, account
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.shared.errors import BudgetSpent, LedgerError, SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.bands import Bands
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.shared.privacy.release import (
    Kind,
    Mechanism,
    NoisedBy,
    Release,
    Unit,
    UserNoise,
)

DELTA = 1e-5
FACTS = Facts(user="ada", budgets=(Budget(epsilon=8.0, delta=DELTA),), labels=("angry",))
COUNTS = Release(
    kind=Kind.LABEL_COUNTS,
    mechanism=Mechanism.GAUSSIAN,
    run="first",
    round=0,
    noise_multiplier=10.0,
    sensitivity=1.0,
)
ROUND = replace(COUNTS, kind=Kind.GRADIENT, round=1, noise_multiplier=3.0)
HEAD = Release(kind=Kind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run="first", round=9)


def device(folder: Path, *releases: Release, facts: Facts = FACTS) -> Device:
    """A device that let these out."""
    none = torch.zeros(0, dtype=torch.bool)
    empty = torch.zeros(0, dtype=torch.int64)
    examples = Examples(features=torch.zeros(0, 3), frames=empty, labels=empty)
    made = Device.create(
        folder, facts, Clips(examples=examples, enrols=none, calibrates=none, trains=none)
    )
    for number, release in enumerate(releases):
        made.ledger.book(f"{number}", release, ())
    return made


def test_an_account_tells_what_the_ledger_holds(tmp_path: Path) -> None:
    budgets = (*FACTS.budgets, Budget(epsilon=2.0, delta=1e-3, unit=Unit.USER))
    later = replace(ROUND, run="second")
    own = device(tmp_path, COUNTS, ROUND, HEAD, later, facts=replace(FACTS, budgets=budgets))
    told = account(tmp_path)

    assert (told.user, told.ledger, told.anchored) == ("ada", own.ledger.head, 4)
    assert told.runs == {"first": 3, "second": 1}
    assert told.kinds == {"gradient": 2, "label-counts": 1, "sealed-head": 1}
    utterance, user = told.spending
    assert utterance.spent == accountant.epsilon([COUNTS, ROUND, later], DELTA)
    assert utterance.left == 8.0 - utterance.spent
    assert utterance.runs == {
        "first": accountant.epsilon([COUNTS, ROUND], DELTA),
        "second": accountant.epsilon([later], DELTA),
    }
    assert (user.spent, user.left, user.more_rounds) == (float("inf"), 0.0, 0)
    assert json.loads(json.dumps(told.to_dict()))["budgets"][1]["spent"] is None
    assert "spent, 0.0000 left" in "\n".join(told.lines())


@pytest.mark.parametrize("per_run", [None, 3.0])
def test_as_many_rounds_fit_as_are_told(tmp_path: Path, per_run: float | None) -> None:
    budgets = (Budget(epsilon=4.0, delta=DELTA, per_run=per_run),)
    own = device(tmp_path, COUNTS, ROUND, HEAD, facts=replace(FACTS, budgets=budgets))
    more = account(tmp_path).spending[0].more_rounds

    assert more == (6 if per_run is None else 3)
    for number in range(more):
        own.ledger.book(f"more-{number}", ROUND, budgets)
    assert account(tmp_path).spending[0].more_rounds == 0
    with pytest.raises(BudgetSpent):
        own.ledger.book("one too many", ROUND, budgets)


def test_where_users_take_turns_as_many_turns_fit_as_are_told(tmp_path: Path) -> None:
    bands = Bands.square_root(bands=3, spacing=4)
    noise = UserNoise(noise_multiplier=3.0, clip_norm=1.0, noised_by=NoisedBy.SERVER, bands=bands)
    turn = replace(ROUND, noise_multiplier=0.0, sensitivity=0.0, user=noise)
    budgets = (Budget(epsilon=4.0, delta=1e-3, unit=Unit.USER),)
    own = device(tmp_path, turn, facts=replace(FACTS, budgets=budgets))
    more = account(tmp_path).spending[0].more_rounds

    assert more is not None
    assert more > 5
    for number in range(1, more + 1):
        own.ledger.book(f"more-{number}", replace(turn, round=1 + 4 * number), budgets)
    with pytest.raises(BudgetSpent):
        own.ledger.book("one too many", replace(turn, round=5 + 4 * more), budgets)


def test_a_device_that_gave_nothing_and_one_that_may_give_for_ever(tmp_path: Path) -> None:
    device(tmp_path / "fresh")
    fresh = account(tmp_path / "fresh")
    assert (fresh.releases, fresh.anchored) == (0, 0)
    assert (fresh.spending[0].spent, fresh.spending[0].more_rounds) == (0.0, None)
    assert "no round yet" in "\n".join(fresh.lines())

    device(tmp_path / "quiet", replace(ROUND, noise_multiplier=1e6))
    quiet = account(tmp_path / "quiet")
    assert quiet.spending[0].more_rounds == MOST_ROUNDS
    assert "10,000 or more" in "\n".join(quiet.lines())

    device(tmp_path / "free", facts=replace(FACTS, budgets=()))
    assert "nothing is promised" in "\n".join(account(tmp_path / "free").lines())


def test_looking_changes_nothing_even_at_a_booking_that_is_half_done(tmp_path: Path) -> None:
    own = device(tmp_path, COUNTS, ROUND)
    anchor = tmp_path / "vault" / "ledger-anchor.sealed"
    kept = anchor.read_bytes()
    own.ledger.book("2", ROUND, ())
    anchor.write_bytes(kept)  # between line and anchor
    own.ledger.path.write_bytes(own.ledger.path.read_bytes() + b"{")  # and in the next line
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    told = account(tmp_path)

    assert (told.anchored, told.releases, told.kinds["torn"]) == (2, 4, 1)
    assert "anchor verified up to release 2" in "\n".join(told.lines())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_ledger_that_cannot_be_trusted_has_no_account(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no device"):
        account(tmp_path)
    own = device(tmp_path, COUNTS, ROUND)
    lines = own.ledger.path.read_bytes().splitlines(keepends=True)
    for left in (lines[:-1], [lines[0], *lines[2:]]):
        own.ledger.path.write_bytes(b"".join(left))
        with pytest.raises(LedgerError):
            account(tmp_path)
