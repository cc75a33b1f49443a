"""A vault, a device and a database of devices whose files hold anything: read, or refused."""

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, mutated_bytes, mutated_json, mutated_json_texts

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.device.vault import FileVault
from sottovoce.shared.errors import LedgerError, PrivacyError
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.simulations.devices.database import DatabaseLedger, DeviceDatabase

BUDGET = PrivacyBudget(epsilon=8.0, delta=1e-5)
PROFILE = DeviceProfile(user="ada", budgets=(BUDGET,), labels=("a", "b"), simulated_seed=7)
RELEASE = Release(
    kind=ReleaseKind.GRADIENT,
    mechanism=Mechanism.GAUSSIAN,
    run="r",
    round=1,
    noise_multiplier=2.0,
    sensitivity=1.0,
)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that has booked one release."""
    folder = tmp_path_factory.mktemp("device") / "ada"
    made = Device.create(folder, PROFILE, LabelledFeatures.without_recordings(width=4))
    made.ledger.book_release("r/round-1", RELEASE, (BUDGET,))
    made.vault.put("note", b"mine")
    return folder


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as other:
        yield Path(shutil.copytree(folder, Path(other) / "copy"))


def read(folder: Path) -> Device:
    opened = Device.open(folder)
    opened.vault.get("note")
    opened.vault.get_tensors("clips")
    return opened


def use(folder: Path) -> None:
    """Open, read and book: the only refusal is a broken promise; what was booked stays booked."""
    with contextlib.suppress(PrivacyError):
        opened = read(folder)
        if opened.profile.simulated_seed is not None:
            assert opened.ledger.is_booked("r/round-1")
        opened.ledger.book_release("r/round-2", RELEASE, opened.profile.budgets)


NAMES = ("device.json", "ledger.jsonl", "vault/vault.json", "vault/key", "vault/note.sealed",
         "vault/clips.sealed", "vault/ledger-anchor.sealed")  # fmt: skip


@FUZZ
@given(st.data(), st.sampled_from(NAMES))
def test_a_changed_file_is_refused_and_no_budget_begins_anew(
    device: Path, data: st.DataObject, name: str
) -> None:
    with copied(device) as own:
        path = own / name
        path.write_bytes(data.draw(mutated_bytes(path.read_bytes())))
        use(own)


@FUZZ
@given(mutated_json_texts(PROFILE.to_dict() | {"schema": 2}))
def test_a_profile_of_anything_is_read_or_refused(device: Path, text: bytes) -> None:
    with copied(device) as own:
        (own / "device.json").write_bytes(text)
        use(own)


@FUZZ
@given(mutated_json({"schema": 1, "user": "ada", "key": "file"}))
def test_facts_of_anything_open_a_vault_or_are_refused(device: Path, facts: Any) -> None:
    with copied(device) as own:
        (own / "vault" / "vault.json").write_text(json.dumps(facts))
        with contextlib.suppress(PrivacyError):
            FileVault.open(own / "vault").get("note")


@pytest.mark.parametrize("user", ["", "\ud800", None, 7, ["ada"], {}])
def test_a_vault_of_nobody_is_refused(device: Path, user: Any) -> None:
    facts = {"schema": 1, "user": user, "key": "file"}
    with copied(device) as own:
        (own / "vault" / "vault.json").write_text(json.dumps(facts))
        with pytest.raises(PrivacyError, match="damaged"):
            FileVault.open(own / "vault")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_where_a_file_belongs_is_refused(device: Path, name: str) -> None:
    with copied(device) as own:
        (own / name).unlink()
        (own / name).mkdir()
        with pytest.raises(PrivacyError):
            read(own)


def test_a_device_without_its_ledger_has_no_fresh_budget(device: Path) -> None:
    with copied(device) as own:
        (own / "ledger.jsonl").unlink()
        with pytest.raises(LedgerError):
            Device.open(own)


# --- the database of simulated devices ----------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "devices.sqlite"
    store = DeviceDatabase(path)
    DatabaseLedger(store, 0, owner="ada").book_release("r/round-1", RELEASE, (BUDGET,))
    store.stage_vault_entry(0, "note", b"mine")
    store.stage_device(0, {"user": "ada"}, b"features")
    store.write_round_notes("round-1", {"done": 1})
    store.commit()
    store.merge_journal()
    store.close()
    return path


def read_database(path: Path) -> None:
    with contextlib.suppress(PrivacyError):
        store = DeviceDatabase(path)
        try:
            ledger = DatabaseLedger(store, 0, owner="ada")
            assert store.vault_entries(0) in ({}, {"note": b"mine"})
            if store.device_profile(0) is not None:
                assert store.device_features(0) == b"features"
            store.round_notes()
            list(store.iterate_users())
            ledger.book_release("r/round-2", RELEASE, (BUDGET,))
            store.commit()
        finally:
            store.close()


@FUZZ
@given(st.data())
def test_a_changed_database_is_refused_or_holds_what_was_written(
    database: Path, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "devices.sqlite"
        path.write_bytes(data.draw(mutated_bytes(database.read_bytes())))
        read_database(path)


SCHEMAS = [
    "ALTER TABLE kept RENAME TO old; CREATE TABLE kept (user, name, value)",
    "DROP TABLE owners; CREATE TABLE owners (user TEXT)",
    "DROP TABLE anchors; CREATE TABLE anchors AS SELECT 0 user, 'many' releases, 5 head",
    "UPDATE anchors SET releases = -1",
    "UPDATE anchors SET releases = 9223372036854775807",
    "UPDATE owners SET facts = '[' || facts",
    "UPDATE rounds SET facts = 'x'",
    "UPDATE kept SET value = x'00'",
    "UPDATE owners SET clips = x'00'",
    "DROP TABLE lines; CREATE TABLE lines (user, n, line); INSERT INTO lines VALUES (0, 0, 'x')",
]


@pytest.mark.parametrize("statements", SCHEMAS)
def test_another_schema_or_content_is_refused(database: Path, statements: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(database, folder))
        connection = sqlite3.connect(path)
        connection.executescript(statements)
        connection.close()
        read_database(path)
