"""The database of simulated devices: ledgers that keep their promises, and survive being killed."""

import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.shared.errors import BudgetSpent, LedgerError, PrivacyError
from sottovoce.shared.privacy.hash_chain import Anchor
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.simulations.devices.database import DatabaseLedger, DeviceDatabase

NOISE = SumMechanism(
    noise_multiplier=2.0, clip_norm=1.0, noised_by=NoiseSource.SERVER, sample_rate=0.1
)
USUAL = Release(
    kind=ReleaseKind.GRADIENT, mechanism=Mechanism.GAUSSIAN, run="r", round=1, user=NOISE
)
BUDGET = PrivacyBudget(epsilon=8.0, delta=1e-6, unit=PrivacyUnit.USER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "population.sqlite"


def _ledger(database: DeviceDatabase, user: int = 7) -> DatabaseLedger:
    return DatabaseLedger(database, user, owner=f"user-{user}")


def _lines(path: Path, user: int = 7) -> list[bytes]:
    """What another process finds."""
    database = DeviceDatabase(path, read_only=True)
    found = database.ledger_lines(user)
    database.close()
    return found


def test_its_lines_are_those_of_a_ledger_in_a_file(path: Path, tmp_path: Path) -> None:
    database, filed = DeviceDatabase(path), Ledger(tmp_path / "ledger.jsonl", owner="user-7")
    for number in range(3):
        for ledger in (_ledger(database), filed):
            ledger.book_release(f"r/round-{number}", USUAL, [BUDGET])
        database.commit()

    assert b"".join(_lines(path)) == (tmp_path / "ledger.jsonl").read_bytes()
    assert _ledger(database).head_hash == filed.head_hash
    assert _ledger(database).epsilon_spent(1e-6, PrivacyUnit.USER) == filed.epsilon_spent(
        1e-6, PrivacyUnit.USER
    )


def test_what_is_staged_is_seen_here_and_on_disk_once_it_is_committed(path: Path) -> None:
    database = DeviceDatabase(path)
    _ledger(database).book_release("r/a", USUAL, [BUDGET])

    assert _ledger(database).is_booked("r/a")
    assert _lines(path) == []
    database.commit()
    assert len(_lines(path)) == 1


def test_a_full_disk_is_named_and_nothing_is_written(path: Path) -> None:
    database = DeviceDatabase(path)
    _ledger(database).book_release("r/a", USUAL, [BUDGET])
    database.commit()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    database.stage_vault_entry(7, "big", bytes(2**23))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
    try:
        with pytest.raises(PrivacyError, match="the disk") as refused:
            database.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    assert "rollback" not in str(refused.value)
    assert "free some space" in str(refused.value)
    _ledger(database).book_release("r/b", USUAL, [BUDGET])
    database.commit()  # nothing is left of the transaction that failed
    assert len(_lines(path)) == 2
    assert database.committed_vault_entry(7, "big") is None


def test_lines_of_another_process_are_named_as_such(path: Path) -> None:
    first, second = DeviceDatabase(path), DeviceDatabase(path)
    for database in (first, second):
        _ledger(database).book_release("r/a", USUAL, [BUDGET])
    first.commit()
    with pytest.raises(PrivacyError, match="another process has written the same entries"):
        second.commit()


def test_a_database_that_was_removed_while_in_use_takes_nothing_more(path: Path) -> None:
    database = DeviceDatabase(path)
    _ledger(database).book_release("r/a", USUAL, [BUDGET])
    path.unlink()
    with pytest.raises(PrivacyError, match="moved, removed or replaced while it was in use"):
        database.commit()


def test_a_budget_ends_here_too(path: Path) -> None:
    database = DeviceDatabase(path)
    tight = PrivacyBudget(epsilon=0.05, delta=1e-6, unit=PrivacyUnit.USER)
    with pytest.raises(BudgetSpent):
        _ledger(database).book_release("r/a", USUAL, [tight])
    database.commit()
    assert _lines(path) == []


def _spoiled(path: Path, *statements: str) -> None:
    """What whoever can open the file can do, triggers and all."""
    with sqlite3.connect(path) as connection:
        for trigger in ("lines_stay", "lines_remain"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)


ANOTHER = "UPDATE lines SET line = CAST(replace(CAST(line AS TEXT), '2.0', '9.0') AS BLOB)"


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["DELETE FROM lines WHERE n = 2"], "lines were dropped"),
        (["DELETE FROM lines WHERE n = 1"], "breaks the chain"),
        ([f"{ANOTHER} WHERE n = 1"], "breaks the chain"),
        (["UPDATE lines SET user = 8", "UPDATE anchors SET user = 8"], "begun for somebody else"),
        (["DELETE FROM anchors"], "anchor of user 7 is gone"),
        (["UPDATE anchors SET head = '" + "0" * 64 + "'"], "not the one that its owner"),
    ],
)
def test_a_ledger_that_was_tampered_with_does_not_open(
    path: Path, statements: list[str], says: str
) -> None:
    database = DeviceDatabase(path)
    for name in "abc":
        _ledger(database).book_release(f"r/{name}", USUAL, [BUDGET])
    database.commit()
    database.close()
    _spoiled(path, *statements)

    user = 8 if len(statements) == 2 else 7
    with pytest.raises(LedgerError, match=says):
        _ledger(DeviceDatabase(path), user)


def test_the_database_itself_only_appends(path: Path) -> None:
    database = DeviceDatabase(path)
    _ledger(database).book_release("r/a", USUAL, [BUDGET])
    database.commit()
    with sqlite3.connect(path) as connection:
        for statement in ("DELETE FROM lines", "UPDATE lines SET n = 5"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
                connection.execute(statement)


def test_two_processes_never_build_on_the_same_line(path: Path) -> None:
    """The slower one's whole slice is refused, so that none of its replies leaves."""
    first, second = DeviceDatabase(path), DeviceDatabase(path)
    for database in (first, second):
        _ledger(database).book_release("r/a", USUAL, [BUDGET])
    _ledger(second, 8).book_release("r/a", USUAL, [BUDGET])
    first.commit()
    with pytest.raises(PrivacyError, match="UNIQUE"):
        second.commit()

    assert len(_lines(path)) == 1
    assert _lines(path, 8) == [], "all of a slice or nothing"
    assert _ledger(second).releases == (USUAL,), "what was staged is forgotten"


def test_what_devices_keep_comes_back(path: Path) -> None:
    database = DeviceDatabase(path)
    database.stage_vault_entry(7, "head", b"old")
    database.commit()
    database.stage_vault_entry(7, "head", b"new")
    assert database.vault_entries(7) == {"head": b"new"}
    assert DeviceDatabase(path).vault_entries(7) == {"head": b"old"}
    database.commit()
    assert DeviceDatabase(path).vault_entries(7) == {"head": b"new"}
    assert database.vault_entries(8) == {}


def test_everyone_with_a_ledger_is_found_in_order(path: Path) -> None:
    database = DeviceDatabase(path)
    for user in (900, 3, 40):
        _ledger(database, user).book_release("r/a", USUAL, [BUDGET])
    database.commit()
    assert list(database.iterate_users()) == [3, 40, 900]


def test_a_damaged_database_is_named(path: Path) -> None:
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(PrivacyError, match=r"population.sqlite cannot be used"):
        DeviceDatabase(path)


def _killed(work: Callable[[int], None], seconds: float) -> bytes:
    """Let a child work, kill -9 it; what it sent until then."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  (it is killed)
        os.close(out)
        work(into)
        os._exit(0)
    os.close(into)
    os.read(out, 1)  # it has begun
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(out, "rb") as pipe:
        return pipe.read()


def _hand_out(path: Path, into: int, *, early: bool) -> None:
    """Book users a slice at a time and send each one's number; ``early`` sends before the disk."""
    database = DeviceDatabase(path)
    os.write(into, b"\n")
    for start in range(0, 100_000, 4):
        sent = b""
        for user in range(start, start + 4):
            _ledger(database, user).book_release("r/a", USUAL, [])
            sent += f"{user}\n".encode()
        if early:
            os.write(into, sent)
            time.sleep(0.01)  # a slow disk: most kills fall here
        database.commit()
        if not early:
            os.write(into, sent)


def _unbooked(path: Path, said: bytes) -> list[int]:
    """Users whose reply left and whose ledger does not say so."""
    sent = [int(word) for word in said.split(b"\n")[:-1] if word]
    assert sent, "something must have left, or nothing was tested"
    database = DeviceDatabase(path)
    found = [user for user in sent if not _ledger(database, user).is_booked("r/a")]
    for user in range(max(sent) + 8):  # whatever was cut off: every ledger opens and goes on
        _ledger(database, user).book_release("r/b", USUAL, [])
    database.commit()
    database.close()
    return found


def test_nothing_leaves_that_is_not_booked_wherever_it_is_killed(tmp_path: Path) -> None:
    for turn in range(8):
        path = tmp_path / f"{turn}.sqlite"
        said = _killed(lambda into, path=path: _hand_out(path, into, early=False), 0.05 + turn / 40)
        assert _unbooked(path, said) == []


def test_a_database_that_answered_before_it_committed_would_be_found(tmp_path: Path) -> None:
    found = []
    for turn in range(40):
        path = tmp_path / f"{turn}.sqlite"
        said = _killed(lambda into, path=path: _hand_out(path, into, early=True), 0.05 + turn / 400)
        found += _unbooked(path, said)
        if found:
            return
    pytest.fail("forty kills found nothing")


def test_an_anchor_is_a_row_of_its_own(path: Path) -> None:
    database = DeviceDatabase(path)
    assert database.ledger_anchor(7) is None
    ledger = _ledger(database)
    ledger.book_release("r/a", USUAL, [BUDGET])
    assert database.ledger_anchor(7) == Anchor(releases=1, head=ledger.head_hash) == ledger.anchor
    database.commit()
    assert DeviceDatabase(path).ledger_anchor(7) == Anchor(releases=1, head=ledger.head_hash)
