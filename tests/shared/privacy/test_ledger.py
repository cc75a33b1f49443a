"""The ledger: booked before anything exists, chained, charged when torn, never over the budget."""

import hashlib
import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import make_release

from sottovoce.shared import atomic_files
from sottovoce.shared.errors import BudgetSpent, LedgerError, PrivacyError, SottovoceError
from sottovoce.shared.privacy import accounting, hash_chain
from sottovoce.shared.privacy.hash_chain import GENESIS, Anchor
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

DELTA = 1e-5
AMPLE = (PrivacyBudget(epsilon=50.0, delta=DELTA),)


def release(number: int = 1, *, noise: float = 4.0) -> Release:
    """One round's gradients."""
    return make_release(noise, number=number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger will lie."""
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def booked_path(path: Path) -> Path:
    """A ledger of four releases."""
    ledger = Ledger(path)
    for number in range(1, 5):
        ledger.book_release(f"round-{number}", release(number), AMPLE)
    return path


# --- what is booked ---------------------------------------------------------------------------


def test_what_was_booked_is_read_back(booked_path: Path) -> None:
    ledger = Ledger(booked_path)

    assert ledger.releases == tuple(release(number) for number in range(1, 5))
    assert ledger.is_booked("round-4")
    assert not ledger.is_booked("round-5")
    assert ledger.epsilon_spent(DELTA) == accounting.compute_epsilon(ledger.releases, DELTA)


def test_every_line_names_the_one_before(booked_path: Path) -> None:
    lines = booked_path.read_bytes().splitlines(keepends=True)
    heads = [GENESIS, *(hashlib.sha256(line).hexdigest() for line in lines)]

    assert [json.loads(line)["prev"] for line in lines] == heads[:-1]
    assert Ledger(booked_path).head_hash == heads[-1]


def test_a_ledger_without_a_file_is_empty_and_makes_none(path: Path) -> None:
    assert (Ledger(path).releases, Ledger(path).head_hash) == ((), GENESIS)
    assert Ledger(path).epsilon_spent(DELTA) == 0.0
    assert not path.exists()


def test_others_on_the_machine_cannot_read_it(booked_path: Path) -> None:
    assert booked_path.stat().st_mode & 0o077 == 0


def test_a_release_is_on_the_disk_when_booking_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(path.read_bytes())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    Ledger(path).book_release("round-1", release(), AMPLE)

    assert synced[0] == path.read_bytes()
    assert len(synced) == 2, "the file, and the folder that got a new name"


# --- tampering --------------------------------------------------------------------------------


def _swap(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


TAMPERED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "changed": lambda lines: [lines[0].replace(b"4.0", b"9.0"), *lines[1:]],
    "dropped first": lambda lines: lines[1:],
    "dropped inside": lambda lines: [lines[0], *lines[2:]],
    "reordered": _swap,
    "repeated": lambda lines: [*lines, lines[-1]],
    "blank": lambda lines: [lines[0], b"\n", *lines[1:]],
    "rubbish": lambda lines: [*lines[:2], b"\xff\xfe{\n", *lines[2:]],
    "foreign": lambda lines: [*lines, b"{}\n"],
    "no release": lambda lines: [*lines, b'{"id": "x", "n": 4, "prev": "0", "release": 3}\n'],
}


@pytest.mark.parametrize("harm", TAMPERED)
def test_tampering_shows(booked_path: Path, harm: str) -> None:
    lines = booked_path.read_bytes().splitlines(keepends=True)
    booked_path.write_bytes(b"".join(TAMPERED[harm](lines)))

    with pytest.raises(LedgerError, match=r"line \d of the ledger .* breaks the chain"):
        Ledger(booked_path)


def test_any_flipped_bit_before_the_last_line_shows(booked_path: Path) -> None:
    whole = booked_path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n")
    for place in random.Random(1).sample(range(last), 60):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << (place % 7)
        booked_path.write_bytes(spoilt)
        with pytest.raises(LedgerError):
            Ledger(booked_path)


def test_a_change_to_the_last_line_shows_in_the_head(booked_path: Path) -> None:
    head = Ledger(booked_path).head_hash
    booked_path.write_bytes(booked_path.read_bytes().replace(b'"round": 4', b'"round": 5'))
    assert Ledger(booked_path).head_hash != head


# --- whose it is ------------------------------------------------------------------------------


def _booked(path: Path, owner: str | None, count: int = 2) -> Ledger:
    """A ledger with a few releases, read again."""
    ledger = Ledger(path, owner=owner)
    for number in range(1, count + 1):
        ledger.book_release(f"round-{number}", release(number), AMPLE)
    return Ledger(path, owner=owner)


def test_two_users_who_let_out_the_same_have_different_ledgers(tmp_path: Path) -> None:
    ada, ben = _booked(tmp_path / "a", "ada"), _booked(tmp_path / "b", "ben")

    assert ada.releases == ben.releases
    assert ada.head_hash != ben.head_hash
    assert Ledger(ada.path).head_hash == ada.head_hash, "whoever only verifies needs no name"
    assert _booked(tmp_path / "again", "ada").head_hash == ada.head_hash, "a simulation repeats"


@pytest.mark.parametrize("opened", [False, True])
def test_a_ledger_swapped_for_another_users_is_refused(tmp_path: Path, opened: bool) -> None:
    path = tmp_path / "ledger.jsonl"
    if opened:
        Ledger.create(path, "ben")
    _booked(path, "ben")

    with pytest.raises(LedgerError, match=r"not that of 'ada'.* Put the user's own ledger back"):
        Ledger(path, owner="ada")


def test_an_opening_line_tells_nobody_whose_ledger_it_is(tmp_path: Path) -> None:
    heads = set()
    for name in ("one", "two"):
        path = tmp_path / name
        Ledger.create(path, "zoe")
        assert b"zoe" not in path.read_bytes()
        heads.add(_booked(path, "zoe").head_hash)
        assert len(path.read_bytes().splitlines()) == 3

    assert len(heads) == 2, "without the random bytes, hashes could be tried for every name"
    with pytest.raises(LedgerError, match="never begun again"):
        Ledger.create(tmp_path / "one", "zoe")


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"salt": "', b'"salt": "00'), (b'"owner": "', b'"owner": "0'), (b'"owner"', b'"name"')],
)
def test_a_changed_opening_shows_whoever_reads(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger.create(path, "ada")
    _booked(path, "ada")
    path.write_bytes(path.read_bytes().replace(old, new, 1))

    for owner in (None, "ada"):
        with pytest.raises(LedgerError):
            Ledger(path, owner=owner)


def test_a_ledger_of_the_first_format_is_read_and_continued(booked_path: Path) -> None:
    assert json.loads(booked_path.read_bytes().splitlines()[0])["prev"] == GENESIS
    ledger = Ledger(booked_path, owner="ada")
    ledger.book_release("round-5", release(5), AMPLE)

    assert len(Ledger(booked_path, owner="ada").releases) == 5
    assert Ledger(booked_path).head_hash == ledger.head_hash


def test_a_lone_blank_line_is_no_empty_ledger(path: Path) -> None:
    path.write_bytes(b"\n")
    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path)


# --- its end ----------------------------------------------------------------------------------


class Memory:
    """A keeper that remembers, and may be unable to write."""

    def __init__(self, anchor: Anchor | None = None) -> None:
        self.anchor = anchor
        self.full = False
        self.written = 0

    def read(self) -> Anchor | None:
        return self.anchor

    def write(self, anchor: Anchor) -> None:
        if self.full:
            raise PrivacyError("the anchor cannot be written")
        self.anchor, self.written = anchor, self.written + 1


@pytest.mark.parametrize("dropped", [1, 3, 4])
def test_lines_dropped_at_the_end_show(booked_path: Path, dropped: int) -> None:
    keeper = Memory()
    Ledger(booked_path, anchor_store=keeper)
    lines = booked_path.read_bytes().splitlines(keepends=True)
    booked_path.write_bytes(b"".join(lines[:-dropped]))

    Ledger(booked_path)  # the chain alone does not tell
    with pytest.raises(LedgerError, match=f"holds {4 - dropped} .* booked 4.* newest copy"):
        Ledger(booked_path, anchor_store=keeper)
    booked_path.unlink()
    with pytest.raises(LedgerError, match="holds 0 "):
        Ledger(booked_path, anchor_store=keeper)


def test_another_end_of_the_same_length_shows(booked_path: Path) -> None:
    keeper = Memory()
    Ledger(booked_path, anchor_store=keeper)
    booked_path.write_bytes(booked_path.read_bytes().replace(b'"round": 4', b'"round": 5'))
    with pytest.raises(LedgerError, match="not the one that its owner has written"):
        Ledger(booked_path, anchor_store=keeper)


def test_a_line_torn_after_it_was_anchored_shows_and_nothing_is_touched(booked_path: Path) -> None:
    keeper = Memory()
    Ledger(booked_path, anchor_store=keeper)
    booked_path.write_bytes(booked_path.read_bytes()[:-9])
    before = booked_path.read_bytes()

    with pytest.raises(LedgerError, match="holds 3 "):
        Ledger(booked_path, anchor_store=keeper)

    assert booked_path.read_bytes() == before


@pytest.mark.parametrize("known", [0, 2, 3])
def test_a_ledger_ahead_of_its_anchor_counts_in_full_and_is_anchored_again(
    booked_path: Path, known: int
) -> None:
    heads = [
        GENESIS,
        *map(hash_chain.sha256_hex, booked_path.read_bytes().splitlines(keepends=True)),
    ]
    keeper = Memory(Anchor(releases=known, head=heads[known]))

    assert len(Ledger(booked_path, anchor_store=keeper).releases) == 4
    assert keeper.anchor == Anchor(releases=4, head=heads[4])

    Ledger(booked_path, anchor_store=keeper)
    assert keeper.written == 1


def test_an_anchor_that_cannot_be_written_stops_the_release_and_is_tried_again(
    booked_path: Path,
) -> None:
    keeper = Memory()
    ledger = Ledger(booked_path, anchor_store=keeper)
    keeper.full = True
    with pytest.raises(PrivacyError, match="anchor"):
        ledger.book_release("round-5", release(5), AMPLE)
    keeper.full = False

    assert ledger.is_booked("round-5"), "it is on the disk: it counts"
    ledger.sync_anchor()
    assert keeper.anchor == Anchor(releases=5, head=ledger.head_hash)


def test_a_reader_writes_nothing(booked_path: Path) -> None:
    keeper = Memory(Anchor(releases=0, head=GENESIS))
    booked_path.write_bytes(booked_path.read_bytes() + b"{")
    before = booked_path.read_bytes()

    ledger = Ledger(booked_path, anchor_store=keeper, read_only=True)

    assert ledger.releases[-1].kind is ReleaseKind.TORN
    assert (booked_path.read_bytes(), keeper.written) == (before, 0)
    assert [file.name for file in booked_path.parent.iterdir()] == [booked_path.name]
    with pytest.raises(LedgerError, match="opened to be read"):
        ledger.book_release("round-5", release(5), AMPLE)


@pytest.mark.parametrize(("releases", "head"), [(-1, GENESIS), (math.nan, GENESIS), (1, "x" * 64)])
def test_an_anchor_that_is_none_is_refused(releases: Any, head: str) -> None:
    with pytest.raises(SottovoceError):
        Anchor(releases=releases, head=head)


# --- a power cut ------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 40, -2, -1])
def test_a_torn_line_is_charged_as_the_costliest_release(path: Path, left: int) -> None:
    ledger = Ledger(path)
    ledger.book_release("a", release(noise=9.0), AMPLE)
    ledger.book_release("b", release(noise=2.0), AMPLE)
    ledger.book_release("c", release(noise=9.0), AMPLE)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(whole[: last + left] if left > 0 else whole[:left])

    again = Ledger(path)

    assert [entry.noise_multiplier for entry in again.releases] == [9.0, 2.0, 2.0]
    assert again.releases[-1].kind is ReleaseKind.TORN
    assert again.epsilon_spent(DELTA) >= accounting.compute_epsilon(
        [release(noise=n) for n in (9, 2, 9)], DELTA
    )
    assert path.with_suffix(".torn").exists(), "the owner may look at what was left"
    assert Ledger(path).releases == again.releases, "charged once"


def test_a_torn_first_line_counts_as_unprotected(path: Path) -> None:
    path.write_bytes(b'{"n": 0, "prev"')
    assert Ledger(path).epsilon_spent(DELTA) == math.inf


def test_a_torn_line_is_charged_for_both_units(path: Path) -> None:
    """One release hides utterances alone, the other its user in a sum: either may be the torn."""
    summed = SumMechanism(noise_multiplier=1.5, clip_norm=1.0, noised_by=NoiseSource.DISTRIBUTED)
    in_sum = replace(release(), noise_multiplier=0.0, sensitivity=0.0, user=summed)
    hidden_well = replace(summed, noise_multiplier=500.0)
    for known in (
        [in_sum],
        [in_sum, release()],
        [replace(release(), user=summed), in_sum],
        [replace(release(), user=hidden_well)],
    ):
        path.unlink(missing_ok=True)
        ledger = Ledger(path)
        for number, one in enumerate(known):
            ledger.book_release(f"{number}", one, ())
        path.write_bytes(path.read_bytes() + b"{")

        torn = Ledger(path).releases[-1]

        for unit in PrivacyUnit:
            prices = [accounting.compute_epsilon([one], DELTA, unit=unit) for one in known]
            assert accounting.compute_epsilon([torn], DELTA, unit=unit) >= max(prices)


# --- budgets ----------------------------------------------------------------------------------


def test_the_release_that_would_pass_the_budget_is_refused(path: Path) -> None:
    three = accounting.compute_epsilon([release()] * 3, DELTA)
    budget, ledger = PrivacyBudget(epsilon=three, delta=DELTA), Ledger(path)
    for number in range(3):
        ledger.book_release(f"{number}", release(), (budget,))
    before = path.read_bytes()

    with pytest.raises(BudgetSpent, match=r"from 1\.698 to 1\.993") as refused:
        ledger.book_release("3", release(), (budget,))

    # Nothing is sampled, so no filter is named: all of them count alike.
    assert f" is {budget.epsilon:g}. A device keeps" in str(refused.value)
    assert path.read_bytes() == before
    assert ledger.epsilon_spent(DELTA) <= budget.epsilon
    ledger.book_release(
        "3", release(noise=1e6), (PrivacyBudget(epsilon=three + 1e-3, delta=DELTA),)
    )


def test_a_hair_below_the_price_is_too_little(path: Path) -> None:
    price = accounting.compute_epsilon([release()], DELTA)
    with pytest.raises(BudgetSpent):
        Ledger(path).book_release(
            "a", release(), (PrivacyBudget(epsilon=price - 1e-9, delta=DELTA),)
        )
    assert not path.exists()


def test_an_unprotected_release_passes_only_without_a_budget(path: Path) -> None:
    unprotected = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)
    with pytest.raises(BudgetSpent):
        Ledger(path).book_release("a", unprotected, (PrivacyBudget(epsilon=1e9, delta=DELTA),))
    Ledger(path).book_release("a", unprotected, ())
    with pytest.raises(BudgetSpent):  # and nothing repairs it
        Ledger(path).book_release("b", release(noise=1e6), AMPLE)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [
        (0.0, DELTA),
        (-1.0, DELTA),
        (math.nan, DELTA),
        (math.inf, DELTA),
        (1.0, 0.0),
        (1.0, 1.0),
        (1.0, math.nan),
    ],
)
def test_a_budget_that_is_none_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(LedgerError):
        PrivacyBudget(epsilon=epsilon, delta=delta)


def test_one_run_may_spend_its_allowance_and_no_more(path: Path) -> None:
    two = accounting.compute_epsilon([release()] * 2, DELTA)
    budget, ledger = PrivacyBudget(epsilon=50.0, delta=DELTA, per_run=two), Ledger(path)
    for number in range(2):
        ledger.book_release(f"r/{number}", release(), (budget,))
    before = path.read_bytes()

    with pytest.raises(BudgetSpent, match=r"allowance of the run 'r' is 1\.3") as refused:
        ledger.book_release("r/2", release(), (budget,))

    assert path.read_bytes() == before
    assert "only its owner" in str(refused.value)
    ledger.book_release("s/0", replace(release(), run="s"), (budget,))  # another run has its own
    ledger.book_release("r/2", release(), (replace(budget, per_run=None),))
    assert ledger.releases_of("s") == (replace(release(), run="s"),)


@pytest.mark.parametrize("first", [None, 20.0])
def test_every_budget_is_looked_at_for_the_life_and_for_the_run(
    path: Path, first: float | None
) -> None:
    """One allowance must not end the search, nor must a budget that has none."""
    ample = PrivacyBudget(epsilon=50.0, delta=DELTA, per_run=first)
    user = partial(PrivacyBudget, delta=1e-3, unit=PrivacyUnit.USER)
    noise = SumMechanism(noise_multiplier=4.0, clip_norm=1.0, noised_by=NoiseSource.SERVER)
    both = replace(release(), user=noise)
    price = accounting.compute_epsilon([both], 1e-3, unit=PrivacyUnit.USER)
    ledger = Ledger(path)
    ledger.check_budget([both], (ample, user(epsilon=50.0, per_run=price + 0.1)))

    for poor in (user(epsilon=price - 0.1), user(epsilon=50.0, per_run=price - 0.1)):
        for budgets in ((ample, poor), (poor, ample)):
            with pytest.raises(BudgetSpent, match="one user"):
                ledger.check_budget([both], budgets)


def test_what_is_asked_for_together_is_allowed_together(path: Path) -> None:
    three = accounting.compute_epsilon([release()] * 3, DELTA)
    budget = PrivacyBudget(epsilon=50.0, delta=DELTA, per_run=three)
    mixed = [release(), replace(release(), run="s"), release()]
    Ledger(path).check_budget([*mixed, release()], (budget,))
    with pytest.raises(BudgetSpent):
        Ledger(path).check_budget([*mixed, release(), release()], (budget,))
    with pytest.raises(BudgetSpent, match="'s'"):  # each run has its own, the second named too
        Ledger(path).check_budget([release(), *[replace(release(), run="s")] * 4], (budget,))


def test_a_torn_release_counts_in_every_run(path: Path) -> None:
    ledger = Ledger(path)
    ledger.book_release("r/1", release(), AMPLE)
    path.write_bytes(path.read_bytes() + b"{")
    price = accounting.compute_epsilon([release()] * 2, DELTA)
    allowed = PrivacyBudget(epsilon=50.0, delta=DELTA, per_run=price - 1e-3)

    with pytest.raises(BudgetSpent, match="'s'"):
        Ledger(path).book_release("s/1", replace(release(), run="s"), (allowed,))


@pytest.mark.parametrize("per_run", [0.0, -1.0, math.nan, math.inf])
def test_an_allowance_that_is_none_is_refused(per_run: float) -> None:
    with pytest.raises(LedgerError, match="per_run"):
        PrivacyBudget(epsilon=1.0, delta=DELTA, per_run=per_run)


def test_what_is_projected_is_what_it_will_cost(path: Path) -> None:
    ledger, budget = Ledger(path), PrivacyBudget(epsilon=50.0, delta=DELTA)
    projected = ledger.projected_epsilon([release(1), release(2)], DELTA)
    assert not path.exists()
    for number in (1, 2):
        ledger.book_release(f"{number}", release(number), (budget,))

    assert ledger.epsilon_spent(DELTA) == projected
    assert ledger.projected_epsilon([], DELTA) == projected


# --- refusals ---------------------------------------------------------------------------------


def test_a_name_is_booked_once(booked_path: Path) -> None:
    before = booked_path.read_bytes()
    with pytest.raises(LedgerError, match="booked already"):
        Ledger(booked_path).book_release("round-2", release(), AMPLE)
    assert booked_path.read_bytes() == before


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_refuses_books_nothing(
    booked_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before, ledger = booked_path.read_bytes(), Ledger(booked_path)

    def refuse(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(LedgerError, match="No space left on device"):
            ledger.book_release("round-5", release(5), AMPLE)

    assert booked_path.read_bytes() == before
    assert not ledger.is_booked("round-5")
    ledger.book_release("round-5", release(5), AMPLE)
    assert Ledger(booked_path).releases == ledger.releases


def test_half_a_line_on_a_full_disk_does_not_spoil_the_next(
    booked_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, real = Ledger(booked_path), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, data[:10]))
        with pytest.raises(LedgerError):
            ledger.book_release("round-5", release(5), AMPLE)

    ledger.book_release("round-5", release(5), AMPLE)

    assert Ledger(booked_path).head_hash == ledger.head_hash
    assert len(Ledger(booked_path).releases) == 5


# --- two programs on one device ----------------------------------------------------------------


def test_of_two_programs_that_read_the_same_lines_one_books(booked_path: Path) -> None:
    first, second = Ledger(booked_path), Ledger(booked_path)
    first.book_release("round-5", release(5), AMPLE)
    there = booked_path.read_bytes()

    with pytest.raises(LedgerError, match="another program books"):
        second.book_release("round-6", release(6), AMPLE)

    assert booked_path.read_bytes() == there
    assert not second.is_booked("round-6")
    Ledger(booked_path).book_release("round-6", release(6), AMPLE)
    assert len(Ledger(booked_path).releases) == 6


def test_a_new_ledger_is_begun_by_one_program(path: Path) -> None:
    first, second = Ledger(path), Ledger(path)
    first.book_release("round-1", release(), AMPLE)

    with pytest.raises(LedgerError, match="another program books"):
        second.book_release("round-1", release(), AMPLE)

    assert len(Ledger(path).releases) == 1


def test_charging_a_torn_line_drops_nothing_that_was_booked_meanwhile(
    booked_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booked_path.write_bytes(booked_path.read_bytes() + b'{"torn')
    charge = atomic_files.replace_file

    def late(path: Path, data: bytes, **how: Any) -> None:
        monkeypatch.setattr(atomic_files, "replace_file", charge)
        Ledger(booked_path).book_release("round-5", release(5), AMPLE)  # another program is quicker
        charge(path, data, **how)

    monkeypatch.setattr(atomic_files, "replace_file", late)
    with pytest.raises(LedgerError, match="another program books"):
        Ledger(booked_path)

    assert Ledger(booked_path).is_booked("round-5")
    assert [one.kind for one in Ledger(booked_path).releases].count(ReleaseKind.TORN) == 1


def _book_what_can_be(path: Path, name: str, tries: int, queue: Any) -> None:
    """A program that books again and again, opening the ledger each time."""
    booked = []
    for number in range(tries):
        try:
            Ledger(path).book_release(f"{name}-{number}", release(), AMPLE)
            booked.append(f"{name}-{number}")
        except LedgerError:
            continue
    queue.put(booked)


def test_programs_that_race_leave_a_whole_chain_with_all_that_they_booked(
    booked_path: Path,
) -> None:
    spawn = multiprocessing.get_context("fork")
    queue = spawn.SimpleQueue()
    racers = [
        spawn.Process(target=_book_what_can_be, args=(booked_path, name, 25, queue))
        for name in "abc"
    ]
    for racer in racers:
        racer.start()
    booked = [name for _ in racers for name in queue.get()]
    for racer in racers:
        racer.join()

    ledger = Ledger(booked_path)
    assert len(booked) >= 25
    assert all(ledger.is_booked(name) for name in booked)
    assert len(ledger.releases) == 4 + len(booked)


def test_a_budget_is_read_back_as_it_was_written() -> None:
    for budget in (
        PrivacyBudget(epsilon=8.0, delta=1e-5),
        PrivacyBudget(epsilon=1.5, delta=1e-3, unit=PrivacyUnit.USER, per_run=0.5),
        PrivacyBudget(epsilon=8.0, delta=1e-5, renyi_order=4.0),
    ):
        assert PrivacyBudget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget
