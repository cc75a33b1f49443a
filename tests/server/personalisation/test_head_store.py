"""The store keeps the newest ciphertext of each user through crashes, and nothing else."""

import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared import crypto
from sottovoce.shared.calibration import SealedHead
from sottovoce.shared.errors import MessageError, ModelError, PrivacyError

MODEL, NEXT = "ab" * 32, "cd" * 32
KEY = crypto.new_key()


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "server" / "heads.sqlite")


def a_head(version: int = 1, *, model_hash: str = MODEL, size: int = 2048) -> SealedHead:
    blob = crypto.seal(KEY, b"a head", context=b"", min_size=size)
    return SealedHead(model_hash=model_hash, version=version, blob=blob)


def test_what_was_put_is_there_after_reopening(store: HeadStore, tmp_path: Path) -> None:
    first, second = a_head(1), a_head(5, model_hash=NEXT)
    store.put("bob", first)
    store.put("ada", second)

    again = HeadStore(tmp_path / "server" / "heads.sqlite")

    assert again.list_users() == ["ada", "bob"]
    assert (again.get("bob"), again.get("ada")) == (first, second)
    assert again.get("eve") is None


def test_a_newer_head_takes_the_place(store: HeadStore) -> None:
    store.put("ada", a_head(1))
    newer = a_head(7, model_hash=NEXT)
    store.put("ada", newer)

    assert store.get("ada") == newer


@pytest.mark.parametrize("version", [1, 4, 5])
def test_an_older_or_equal_version_is_refused(store: HeadStore, version: int) -> None:
    stored = a_head(5)
    store.put("ada", stored)

    with pytest.raises(PrivacyError, match="not newer than 5"):
        store.put("ada", a_head(version))
    assert store.get("ada") == stored
    store.put("bob", a_head(version))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"plaintext head",
        b"\x01" * 511,
        b"\x02" + bytes(511),
        b"\x01" * 513,
        b"\x01" + bytes(3000),
    ],
)
def test_what_does_not_look_sealed_is_refused(store: HeadStore, blob: bytes) -> None:
    with pytest.raises(MessageError, match="no sealed blob"):
        store.put("ada", SealedHead(model_hash=MODEL, version=1, blob=blob))
    assert store.list_users() == []


def test_four_kib_is_the_limit(store: HeadStore) -> None:
    store.put("ada", a_head(size=4096))

    with pytest.raises(ModelError, match="8192 bytes"):
        store.put("ada", a_head(2, size=8192))


@pytest.mark.parametrize("user", ["", "x" * 129, "a\nb", "a\x00b"])
def test_odd_users_are_refused(store: HeadStore, user: str) -> None:
    with pytest.raises(MessageError, match="user is"):
        store.put(user, a_head())


@pytest.mark.parametrize("user", ["'; DROP TABLE heads; --", "Ädä", "🙂", "a b"])
def test_any_printable_user_is_only_a_name(store: HeadStore, user: str) -> None:
    store.put(user, a_head())

    assert store.list_users() == [user]


def test_a_forgotten_user_leaves_no_trace(store: HeadStore, tmp_path: Path) -> None:
    gone, newer, stored = a_head(1), a_head(2), a_head(1)
    store.put("ada-to-forget", gone)
    store.put("ada-to-forget", newer)
    store.put("bob", stored)

    assert store.delete_user("ada-to-forget")
    assert not store.delete_user("ada-to-forget")

    assert store.list_users() == ["bob"]
    content = (tmp_path / "server" / "heads.sqlite").read_bytes()
    assert stored.blob[:200] in content
    assert gone.blob[:200] not in content
    assert newer.blob[:200] not in content
    assert b"ada-to-forget" not in content
    store.put("ada-to-forget", a_head(1))


def test_a_head_that_was_displaced_can_be_brought_back(store: HeadStore) -> None:
    """Nobody proves a name yet: somebody else's head under it opens for nobody."""
    own = a_head(3)
    store.put("ada", own)
    assert store.previous("ada") is None
    store.put("ada", a_head(4))

    assert store.previous("ada") == own
    assert store.rollback("ada")
    assert store.get("ada") == own
    assert not store.rollback("ada"), "there is no other"
    store.put("ada", a_head(4))


@pytest.mark.parametrize("known", [0, 3])
def test_a_version_that_leaves_none_to_come_is_refused(store: HeadStore, known: int) -> None:
    if known:
        store.put("ada", a_head(known))
    for version in (known + 2**20 + 1, 2**63 - 1):
        with pytest.raises(PrivacyError, match="versions count heads"):
            store.put("ada", a_head(version))
    store.put("ada", a_head(known + 2**20))


def test_a_store_from_before_heads_were_kept_twice_is_read(tmp_path: Path) -> None:
    path = tmp_path / "heads.sqlite"
    stored = a_head(3)
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE heads (user TEXT PRIMARY KEY, model_hash TEXT NOT NULL, "
            "version INTEGER NOT NULL, blob BLOB NOT NULL) STRICT"
        )
        row = ("ada", stored.model_hash, stored.version, stored.blob)
        database.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", row)
        database.execute("PRAGMA user_version = 1")
        database.commit()

    store = HeadStore(path)

    assert store.get("ada") == stored
    store.put("ada", a_head(4))
    assert store.previous("ada") == stored


def test_two_puts_at_once_keep_the_newest(store: HeadStore) -> None:
    refusals = []

    def put(version: int) -> None:
        try:
            store.put("ada", a_head(version))
        except PrivacyError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=put, args=(version,)) for version in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stored = store.get("ada")
    assert stored is not None
    assert stored.version == 20
    assert all("not newer" in refusal for refusal in refusals)


def test_a_put_that_returned_survives_kill_9(store: HeadStore, tmp_path: Path) -> None:
    path = tmp_path / "server" / "heads.sqlite"
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from sottovoce.server.personalisation.head_store import HeadStore
        from sottovoce.shared import crypto
        from sottovoce.shared.calibration import SealedHead
        store = HeadStore(Path(sys.argv[1]))
        for version in range(1, 1_000_000):
            blob = crypto.seal(b"k" * 32, b"head", context=b"")
            store.put("ada", SealedHead(model_hash="ab" * 32, version=version, blob=blob))
            print(version, flush=True)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 25:
                process.send_signal(signal.SIGKILL)
                break
        reported = 25 + len(process.stdout.read().splitlines())

    stored = store.get("ada")
    assert stored is not None
    assert reported <= stored.version <= reported + 1
    assert crypto.open_sealed(b"k" * 32, stored.blob, context=b"") == b"head"


def test_a_failed_put_leaves_the_old_head(
    store: HeadStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = a_head(1)
    store.put("ada", stored)
    monkeypatch.setattr("sottovoce.server.personalisation.head_store.LOCK_TIMEOUT_S", 0.0)

    with closing(sqlite3.connect(tmp_path / "server" / "heads.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(PrivacyError, match="locked"):
            store.put("ada", a_head(2))
        other.execute("ROLLBACK")
    assert store.get("ada") == stored


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\x00" + b"x" * 4096])
def test_a_damaged_store_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heads.sqlite"
    path.write_bytes(content)

    with pytest.raises(PrivacyError, match="restore the file from a backup"):
        HeadStore(path)


def test_a_newer_schema_is_refused(store: HeadStore, tmp_path: Path) -> None:
    path = tmp_path / "server" / "heads.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")

    with pytest.raises(PrivacyError, match="schema 9"):
        HeadStore(path)


def test_a_damaged_row_says_so(store: HeadStore, tmp_path: Path) -> None:
    store.put("ada", a_head())
    with closing(sqlite3.connect(tmp_path / "server" / "heads.sqlite")) as database:
        database.execute("UPDATE heads SET model_hash = 'none'")
        database.commit()

    with pytest.raises(PrivacyError, match="'ada' is damaged"):
        store.get("ada")


def test_a_folder_in_the_way_says_so(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="cannot be"):
        HeadStore(tmp_path)
