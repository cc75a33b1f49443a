"""A vault gives back what was put in, to its user and key only, whole or not at all."""

import json
import os
from pathlib import Path
from threading import Thread

import pytest
import torch

from sottovoce.client.device import vault as vaults
from sottovoce.client.device.vault import FileVault
from sottovoce.shared import crypto
from sottovoce.shared.errors import PrivacyError, SettingError

PHRASE = "quiet as a mouse"


@pytest.fixture(autouse=True)
def _cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crypto, "SCRYPT_LOG2_COST", 14)


@pytest.fixture
def vault(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "ada", user="ada")


def test_what_was_put_comes_back_after_reopening(vault: FileVault) -> None:
    vault.put("head", b"first")
    vault.put("head", b"second")
    vault.put("outbox", b"")

    again = FileVault.open(vault.folder)

    assert again.user == "ada"
    assert again.list_names() == ["head", "outbox"]
    assert (again.get("head"), again.get("outbox")) == (b"second", b"")


def test_tensors_come_back_bit_for_bit(vault: FileVault) -> None:
    put = {
        "clip/1": torch.tensor([[1.5, float("nan")], [float("inf"), -0.0]]).T,
        "labels": torch.tensor([3, 1]),
        "none": torch.zeros(0, 4),
    }
    vault.put_tensors("features", put)
    got = vault.get_tensors("features")

    assert got.keys() == put.keys()
    for name, tensor in put.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, equal_nan=True)
        assert got[name].dtype == tensor.dtype
    vault.put_tensors("features", {})
    assert vault.get_tensors("features") == {}


def test_bytes_that_are_no_tensors_are_refused(vault: FileVault) -> None:
    vault.put("features", b"not tensors")

    with pytest.raises(PrivacyError, match="no tensors"):
        vault.get_tensors("features")


def test_nothing_readable_lies_on_the_disk(vault: FileVault) -> None:
    vault.put("head", b"plain words" * 100)

    for path in vault.folder.iterdir():
        assert b"plain words" not in path.read_bytes()


def test_a_missing_name_says_so(vault: FileVault) -> None:
    assert not vault.has_blob("head")
    with pytest.raises(PrivacyError, match=r"no head\.sealed"):
        vault.get("head")


def test_every_changed_byte_is_noticed_and_named(vault: FileVault) -> None:
    vault.put("head", b"mine")
    path = vault.folder / "head.sealed"
    whole = path.read_bytes()

    for index in range(0, len(whole), 7):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 64]) + whole[index + 1 :])
        with pytest.raises(PrivacyError, match="'head' in the vault of 'ada'"):
            vault.get("head")
    path.write_bytes(whole)
    assert vault.get("head") == b"mine"


@pytest.mark.parametrize("length", [0, 1, 13, 100, 511])
def test_a_torn_blob_is_noticed(vault: FileVault, length: int) -> None:
    vault.put("head", b"mine")
    path = vault.folder / "head.sealed"
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(PrivacyError, match="not a sealed blob"):
        vault.get("head")


def test_a_renamed_blob_does_not_open(vault: FileVault) -> None:
    vault.put("head", b"mine")
    (vault.folder / "head.sealed").rename(vault.folder / "normaliser.sealed")

    with pytest.raises(PrivacyError, match="belongs to"):
        vault.get("normaliser")


def test_swapped_users_do_not_open_even_under_one_key(tmp_path: Path) -> None:
    key = crypto.new_key()
    ada, bob = (FileVault.create(tmp_path / user, user=user, key=key) for user in ("ada", "bob"))
    ada.put("head", b"ada's")
    (bob.folder / "head.sealed").write_bytes((ada.folder / "head.sealed").read_bytes())

    with pytest.raises(PrivacyError, match="belongs to"):
        bob.get("head")


def test_another_key_does_not_open(vault: FileVault) -> None:
    vault.put("head", b"mine")

    with pytest.raises(PrivacyError, match="key is wrong"):
        FileVault(vault.folder, crypto.new_key(), user="ada").get("head")


def test_renaming_the_user_in_the_facts_opens_nothing(vault: FileVault) -> None:
    vault.put("head", b"mine")
    facts = vault.folder / "vault.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"user": "bob"}))

    with pytest.raises(PrivacyError, match="belongs to"):
        FileVault.open(vault.folder).get("head")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_bytes(
    vault: FileVault, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    vault.put("head", b"old")
    full = OSError(28, "No space left on device")

    def fail(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", fail)
        elif call == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr(os, "open", fail)
        with pytest.raises(PrivacyError, match="No space left"):
            vault.put("head", b"new")

    assert vault.get("head") == b"old"
    assert list(vault.folder.glob(".*.tmp")) == []


def test_what_a_killed_write_left_changes_nothing(vault: FileVault) -> None:
    vault.put("head", b"old")
    (vault.folder / ".head.sealed.abc.tmp").write_bytes(b"\x01half")

    assert FileVault.open(vault.folder).get("head") == b"old"
    assert vault.list_names() == ["head"]


@pytest.mark.parametrize("name", ["", ".", "..", "../head", "a/b", "Head", ".hidden", "x" * 65])
def test_names_that_could_leave_the_folder_are_refused(vault: FileVault, name: str) -> None:
    with pytest.raises(SettingError, match="name is"):
        vault.put(name, b"")
    with pytest.raises(SettingError, match="name is"):
        vault.get(name)


def test_deleting_removes_one_name(vault: FileVault) -> None:
    vault.put("head", b"mine")
    vault.put("outbox", b"mine")
    vault.delete("head")
    vault.delete("head")

    assert vault.list_names() == ["outbox"]


def test_erasing_leaves_nothing(vault: FileVault) -> None:
    vault.put("head", b"mine")
    (vault.folder / ".head.sealed.abc.tmp").write_bytes(b"\x01half")
    with vault.lock_blob("head"):
        pass
    vault.erase()

    assert list(vault.folder.iterdir()) == []
    assert not FileVault.exists(vault.folder)


def test_a_held_name_is_waited_for_and_others_are_free(vault: FileVault) -> None:
    done: list[str] = []

    def hold(name: str) -> None:
        with FileVault.open(vault.folder).lock_blob(name):
            done.append(name)

    with vault.lock_blob("sum"):
        same, other = (Thread(target=hold, args=(name,)) for name in ("sum", "head"))
        same.start()
        other.start()
        other.join()
        same.join(0.2)
        assert done == ["head"]
    same.join()
    assert done == ["head", "sum"]
    assert vault.list_names() == []


def test_a_vault_is_never_made_over_another(vault: FileVault) -> None:
    vault.put("head", b"mine")
    with pytest.raises(PrivacyError, match="holds a vault already"):
        FileVault.create(vault.folder, user="ada")

    # A vault without its facts still holds blobs that a new key would orphan.
    (vault.folder / "vault.json").unlink()
    with pytest.raises(PrivacyError, match="holds a vault already"):
        FileVault.create(vault.folder, user="ada")


def test_no_vault_says_so(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="no vault"):
        FileVault.open(tmp_path)
    with pytest.raises(SettingError, match="not a folder"):
        FileVault(tmp_path / "none", crypto.new_key(), user="ada")


@pytest.mark.parametrize(
    "facts",
    [b"", b"{", b"[]", b"\xff", b'{"schema": 2, "user": "ada", "key": "file"}', b'{"schema": 1}'],
)
def test_damaged_facts_are_refused(vault: FileVault, facts: bytes) -> None:
    (vault.folder / "vault.json").write_bytes(facts)

    with pytest.raises(PrivacyError, match="damaged or of a newer release"):
        FileVault.open(vault.folder)


def test_a_file_in_the_way_says_so(tmp_path: Path) -> None:
    (tmp_path / "ada").write_text("in the way")

    with pytest.raises(PrivacyError, match="no vault can be made"):
        FileVault.create(tmp_path / "ada", user="ada")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_only_the_owner_may_read(vault: FileVault) -> None:
    vault.put("head", b"mine")

    modes = {path.name: path.stat().st_mode & 0o777 for path in vault.folder.iterdir()}
    assert modes == {"key": 0o600, "vault.json": 0o600, "head.sealed": 0o600}
    assert vault.folder.stat().st_mode & 0o777 == 0o700

    (vault.folder / "key").chmod(0o644)
    with pytest.raises(PrivacyError, match="chmod 600"):
        FileVault.open(vault.folder)


@pytest.mark.parametrize("content", [b"", b"k" * 31, b"k" * 64])
def test_a_damaged_key_file_is_refused(vault: FileVault, content: bytes) -> None:
    (vault.folder / "key").write_bytes(content)

    with pytest.raises(PrivacyError, match="not a key"):
        FileVault.open(vault.folder)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_makes_no_vault(tmp_path: Path, length: int) -> None:
    for make in (
        lambda: FileVault(tmp_path, b"k" * length, user="ada"),
        lambda: FileVault.create(tmp_path / "new", user="ada", key=b"k" * length),
    ):
        with pytest.raises(SettingError, match=f"the key has {length} bytes; it must have 32"):
            make()
    assert not FileVault.exists(tmp_path / "new")


def test_a_missing_key_file_is_refused(vault: FileVault) -> None:
    (vault.folder / "key").unlink()

    with pytest.raises(PrivacyError, match="holds no key"):
        FileVault.open(vault.folder)


def test_a_passphrase_keeps_the_key_off_the_disk(tmp_path: Path) -> None:
    made = FileVault.create(tmp_path / "ada", user="ada", passphrase=PHRASE)
    made.put("head", b"mine")

    assert not (made.folder / "key").exists()
    assert FileVault.open(made.folder, passphrase=PHRASE).get("head") == b"mine"
    with pytest.raises(PrivacyError, match="give it"):
        FileVault.open(made.folder)
    with pytest.raises(PrivacyError, match="passphrase is wrong"):
        FileVault.open(made.folder, passphrase="loud as a lion")


def test_a_short_passphrase_makes_no_vault(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="passphrase"):
        FileVault.create(tmp_path / "ada", user="ada", passphrase="short")

    assert not FileVault.exists(tmp_path / "ada")
    FileVault.create(tmp_path / "ada", user="ada", passphrase=PHRASE)


def test_a_second_device_opens_what_the_first_sealed(vault: FileVault, tmp_path: Path) -> None:
    sealed, wrapped = vault.seal(b"mine", "head", 3), vault.wrap_key(PHRASE)

    key = vaults.unwrap_key(wrapped, PHRASE, user="ada")
    second = FileVault.create(tmp_path / "second", user="ada", key=key)

    assert second.unseal(sealed, "head", 3) == b"mine"
    with pytest.raises(PrivacyError):
        second.unseal(sealed, "head", 2)
    with pytest.raises(PrivacyError, match="another user"):
        vaults.unwrap_key(wrapped, PHRASE, user="bob")


def test_the_key_is_not_shown(vault: FileVault) -> None:
    key = (vault.folder / "key").read_bytes()

    assert key.hex() not in repr(vault)
    assert repr(key) not in repr(vault)


# --- in place -----------------------------------------------------------------------------------


def test_what_is_written_over_comes_back_and_is_always_one_sector(vault: FileVault) -> None:
    for data in (b"first", b"", b"x" * 479):
        vault.overwrite("anchor", data)
        assert FileVault.open(vault.folder).get("anchor") == data
        assert (vault.folder / "anchor.sealed").stat().st_size == 512

    with pytest.raises(SettingError, match="480 bytes, too many"):
        vault.overwrite("anchor", b"x" * 480)
    with pytest.raises(SettingError, match="name"):
        vault.overwrite("../anchor", b"")


def test_only_the_first_bytes_wait_for_the_disk(
    vault: FileVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    vault.overwrite("anchor", b"first")
    assert len(synced) == 2, "the file and its folder"

    inode = (vault.folder / "anchor.sealed").stat().st_ino
    vault.overwrite("anchor", b"second")
    assert len(synced) == 2
    assert (vault.folder / "anchor.sealed").stat().st_ino == inode, "the same sector"


def test_a_disk_that_refuses_keeps_what_was_there(
    vault: FileVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.overwrite("anchor", b"first")
    for refused in (lambda *_: 0, lambda *_: (_ for _ in ()).throw(OSError(28, "full"))):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refused)
            with pytest.raises(PrivacyError, match="cannot be written"):
                vault.overwrite("anchor", b"second")
    assert vault.get("anchor") == b"first"


def test_a_folder_that_cannot_be_written_is_not_entered(vault: FileVault) -> None:
    (vault.folder / "head.lock").mkdir()
    with pytest.raises(PrivacyError, match="cannot be written"), vault.lock_blob("head"):
        pytest.fail("it was entered")
