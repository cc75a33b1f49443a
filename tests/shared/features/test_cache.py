"""Contracts of the cache: what comes out is what went in, or nothing, and damage is counted."""

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sottovoce.shared.errors import FeatureError
from sottovoce.shared.features.cache import DATABASE_FILE, CacheEntry, FeatureCache

PRINT = "f" * 64


SWAP = """
UPDATE features SET (value, checksum) =
    (SELECT other.value, other.checksum FROM features other WHERE other.content = 'b')
WHERE content = 'a'
"""


def entry(seed: int, *shape: int, note: str = "") -> CacheEntry:
    rng = torch.Generator().manual_seed(seed)
    return CacheEntry(features=torch.randn(*shape, generator=rng), note=note)


def damage(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / DATABASE_FILE)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "stored", [entry(0, 1536), entry(1, 7, 64), entry(2, 0, 64), entry(3, 1, note='é "\n{}')]
)
def test_entries_come_back_bit_by_bit(tmp_path: Path, stored: CacheEntry) -> None:
    with FeatureCache(tmp_path) as cache:
        cache.put_entry("a", PRINT, stored)

    with FeatureCache(tmp_path) as cache:
        found = cache.get_entry("a", PRINT)
        assert found is not None
        assert found.features is not None
        assert stored.features is not None
        assert torch.equal(found.features, stored.features)
        assert found.note == stored.note
        assert cache.corrupt_count == 0


def test_a_refused_recording_is_kept_as_such(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put_entry("a", PRINT, CacheEntry(features=None, note="silent"))

    found = cache.get_entry("a", PRINT)
    assert found is not None
    assert found.features is None
    assert found.note == "silent"


def test_another_content_or_fingerprint_finds_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put_entry("a", PRINT, entry(0, 3))

    assert cache.get_entry("b", PRINT) is None
    assert cache.get_entry("a", "0" * 64) is None
    assert cache.corrupt_count == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE features SET value = substr(value, 1, length(value) - 4) WHERE content = 'a'",
        "UPDATE features SET value = value || x'00' WHERE content = 'a'",
        SWAP,
        "UPDATE features SET checksum = x'00' WHERE content = 'a'",
        "UPDATE features SET value = 'text' WHERE content = 'a'",
    ],
)
def test_a_damaged_entry_is_counted_and_can_be_replaced(tmp_path: Path, statement: str) -> None:
    with FeatureCache(tmp_path) as cache:
        cache.put_entries([("a", PRINT, entry(0, 3)), ("b", PRINT, entry(1, 3))])
    damage(tmp_path, statement)

    with FeatureCache(tmp_path) as cache:
        assert cache.get_entry("a", PRINT) is None
        assert cache.corrupt_count == 1
        assert cache.get_entry("b", PRINT) is not None
        cache.put_entry("a", PRINT, entry(0, 3))
        assert cache.get_entry("a", PRINT) is not None


def test_a_flipped_bit_anywhere_in_the_file_never_gets_out(tmp_path: Path) -> None:
    stored = {f"{n}": entry(n, 50) for n in range(20)}
    with FeatureCache(tmp_path) as cache:
        cache.put_entries((key, PRINT, value) for key, value in stored.items())
    sound = (tmp_path / DATABASE_FILE).read_bytes()
    rng = torch.Generator().manual_seed(0)
    for at in torch.randint(len(sound), (60,), generator=rng).tolist():
        broken = bytearray(sound)
        broken[at] ^= 0x55
        (tmp_path / DATABASE_FILE).write_bytes(broken)
        with FeatureCache(tmp_path) as cache:
            for key, value in stored.items():
                found = cache.get_entry(key, PRINT)
                if found is not None:
                    assert found.features is not None
                    assert value.features is not None
                    assert torch.equal(found.features, value.features)


@pytest.mark.parametrize("content", [b"not a database at all" * 100, None])
def test_a_damaged_database_is_set_aside_and_begun_anew(
    tmp_path: Path, content: bytes | None
) -> None:
    with FeatureCache(tmp_path) as cache:
        cache.put_entries((f"{n}", PRINT, entry(n, 200)) for n in range(50))
    path = tmp_path / DATABASE_FILE
    whole = path.read_bytes()
    path.write_bytes(content or whole[:4096] + b"\xff" * (len(whole) - 4096))

    with FeatureCache(tmp_path) as cache:
        assert cache.get_entry("1", PRINT) is None
        assert cache.corrupt_count >= 1
        cache.put_entry("1", PRINT, entry(1, 3))
        assert cache.get_entry("1", PRINT) is not None
    assert (tmp_path / f"{DATABASE_FILE}.corrupt").is_file()


def test_a_database_of_another_layout_is_set_aside(tmp_path: Path) -> None:
    damage(tmp_path, "CREATE TABLE features (content TEXT)")

    with FeatureCache(tmp_path) as cache:
        assert cache.get_entry("a", PRINT) is None
        cache.put_entry("a", PRINT, entry(0, 3))
        assert cache.corrupt_count == 1


def test_a_full_disk_is_said_clearly_and_what_was_kept_stays(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put_entry("a", PRINT, entry(0, 3))
    cache._connection.execute("PRAGMA max_page_count = 8")  # SQLite's own "disk is full"

    with pytest.raises(FeatureError, match=r"the disk is full.*free some space"):
        cache.put_entry("b", PRINT, entry(1, 100_000))
    assert cache.get_entry("a", PRINT) is not None
    assert cache.get_entry("b", PRINT) is None


def test_a_folder_that_cannot_be_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FeatureError, match="cannot be used"):
        FeatureCache(tmp_path / "file")


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(()),
        torch.zeros(1, 2, 3),
        torch.tensor([torch.nan]),
    ],
)
def test_what_models_cannot_read_is_not_kept(tmp_path: Path, features: torch.Tensor) -> None:
    with pytest.raises(FeatureError, match="finite float32"):
        FeatureCache(tmp_path).put_entry("a", PRINT, CacheEntry(features=features))


WRITER = """
import itertools, sys, torch
from sottovoce.shared.features.cache import CacheEntry, FeatureCache
cache = FeatureCache(sys.argv[1])
print("ready", flush=True)
for n in itertools.count():
    entry = CacheEntry(features=torch.full((2_000,), float(n)))
    cache.put_entry(f"{sys.argv[2]}-{n}", "f" * 64, entry)
"""


def test_two_writers_that_are_killed_leave_only_whole_entries(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name], stdout=subprocess.PIPE
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    time.sleep(0.7)
    for writer in writers:
        assert writer.poll() is None, "nobody may fail because another writes, too"
        writer.send_signal(signal.SIGKILL)
        writer.communicate()

    with FeatureCache(tmp_path) as cache:
        for name in ("a", "b"):
            count = 0
            while (found := cache.get_entry(f"{name}-{count}", PRINT)) is not None:
                assert found.features is not None
                assert torch.equal(found.features, torch.full((2_000,), float(count)))
                count += 1
            assert count > 3
        assert cache.corrupt_count == 0
