"""The device's own store: one user's features, normaliser, head and outbox, sealed on the disk.

A vault is a folder (mode 0700)::

    vault.json       schema, the user's name, and how the key is kept
    key | key.wrapped  the key itself (mode 0600), or the key under the user's passphrase
    NAME.sealed      one sealed blob for each name
    NAME.lock        empty: whoever changes such a blob step by step holds it meanwhile

A key file protects against whoever gets the blobs (a backup, a synced folder, another account) but
not against whoever gets the whole folder. Only a passphrase does that; or an app keeps the key in
the system's keystore and makes :class:`FileVault` with it.

Not promised: that a blob is the newest one. Whoever can write to the disk can put an older copy of
a whole vault back.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol, Self

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sottovoce.client.device.user_key import UserKey, unwrap_key
from sottovoce.shared import atomic_files, crypto
from sottovoce.shared.errors import PrivacyError, SettingError, StorageError
from sottovoce.shared.folder_claims import claim_folder

_SCHEMA: Final = 1
_FACTS: Final = "vault.json"
_KEY: Final = "key"
_WRAPPED: Final = "key.wrapped"
_SUFFIX: Final = ".sealed"
_LOCK: Final = ".lock"
PASSPHRASE_VARIABLE: Final = "SOTTOVOCE_PASSPHRASE"  # noqa: S105 (the name of one)
"""The variable of the environment that programs of this house take a passphrase from."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Vault(Protocol):
    """Store of one user's named blobs on a device.

    On a user's machine it is a :class:`FileVault`; a simulation has its blobs in memory.
    """

    @property
    def user(self) -> str:
        """Whose vault it is."""

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Store bytes under a name, in place of what was there; see :meth:`FileVault.put`."""

    def overwrite(self, name: str, data: bytes) -> None:
        """Store a few bytes that change often; see :meth:`FileVault.overwrite`."""

    def get(self, name: str) -> bytes:
        """Read the bytes under a name.

        Raises:
            PrivacyError: There are none, or they are not those that were stored.
        """

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], *, durable: bool = True
    ) -> None:
        """Store named tensors; see :meth:`put`."""

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """Read named tensors; see :meth:`get`."""

    def has_blob(self, name: str) -> bool:
        """Whether there is a blob under a name."""

    def delete(self, name: str) -> None:
        """Remove a name; nothing happens where there is none."""

    def lock_blob(self, name: str) -> AbstractContextManager[None]:
        """Hold a name while what lies under it is read, used and written back."""

    def seal(self, data: bytes, *binding: str | int, size: int = crypto.MIN_SEALED_BYTES) -> bytes:
        """Seal bytes that leave the device; see :meth:`UserKey.seal`."""

    def unseal(self, blob: bytes, *binding: str | int) -> bytes:
        """Open what :meth:`seal` made; see :meth:`UserKey.unseal`."""

    def derive_consent_key(self) -> bytes:
        """Derive the private key that signs consent; see :meth:`UserKey.derive_consent_key`."""


class FileVault:
    """Named sealed blobs of one user.

    Every blob is bound to the user and to its name: a blob of another user, or one renamed, does
    not open. Writes are atomic: after a crash a name holds its old bytes or its new ones. Several
    threads or processes may read and write; the last write of a name wins, unless they hold the
    name meanwhile (:meth:`lock_blob`).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "vault"
        >>> FileVault.create(folder, user="ada").put("note", b"mine")
        >>> FileVault.open(folder).get("note")
        b'mine'
    """

    def __init__(self, folder: Path, key: bytes, *, user: str) -> None:
        """A vault whose key the caller keeps.

        Args:
            folder: An existing folder.
            key: 32 bytes.
            user: Whose vault it is; part of what every blob is bound to.

        Raises:
            SettingError: No folder, a key of another length, or no user.
        """
        if not folder.is_dir():
            raise SettingError(f"{folder} is not a folder; make the vault with FileVault.create")
        self.folder: Final = folder
        self._key: Final = UserKey(key, user=user)

    @property
    def user(self) -> str:
        """Whose vault it is."""
        return self._key.user

    def __repr__(self) -> str:
        return f"FileVault({str(self.folder)!r}, user={self.user!r})"

    @classmethod
    def create(
        cls, folder: Path, *, user: str, passphrase: str | None = None, key: bytes | None = None
    ) -> Self:
        """Make a new vault.

        Args:
            folder: Made if missing; must hold no vault.
            user: Whose vault it is.
            passphrase: Seals the key on the disk; without one the key lies in a file (mode 0600).
            key: A key recovered from another device; without one a new key is drawn.

        Raises:
            PrivacyError: The folder holds a vault or sealed blobs already, another process makes
                one there, or it cannot be written.
            SettingError: A short passphrase, a key of another length, or no user.
        """
        try:
            with claim_folder(folder):
                return cls._create(folder, user=user, passphrase=passphrase, key=key)
        except StorageError as error:
            raise PrivacyError(str(error)) from error

    @classmethod
    def _create(cls, folder: Path, *, user: str, passphrase: str | None, key: bytes | None) -> Self:
        if cls.exists(folder) or any(folder.glob(f"*{_SUFFIX}")):
            raise PrivacyError(f"{folder} holds a vault already; open it, or choose another folder")
        _make_private(folder)
        vault = cls(folder, crypto.new_key() if key is None else key, user=user)
        if passphrase is None:
            write_file(folder / _KEY, vault._key.key)
        else:
            write_file(folder / _WRAPPED, vault.wrap_key(passphrase))
        # Written last: a vault is there once its facts are.
        facts = {"schema": _SCHEMA, "user": user, "key": "file" if passphrase is None else "phrase"}
        write_file(folder / _FACTS, json.dumps(facts).encode())
        return vault

    @classmethod
    def open(cls, folder: Path, *, passphrase: str | None = None) -> Self:
        """Open a vault that :meth:`create` made.

        Args:
            folder: The vault's folder.
            passphrase: Needed where the vault was made with one.

        Raises:
            PrivacyError: No vault, a damaged one, a wrong or missing passphrase, or a key file
                that others may read.
        """
        facts = _facts(folder)
        user = str(facts["user"])
        if facts["key"] == "file":
            return cls(folder, _key_file(folder / _KEY), user=user)
        if passphrase is None:
            raise PrivacyError(
                f"the vault in {folder} is kept under a passphrase; give it, or set "
                f"{PASSPHRASE_VARIABLE}"
            )
        wrapped = _read(folder / _WRAPPED)
        return cls(folder, unwrap_key(wrapped, passphrase, user=user), user=user)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether the folder holds a vault."""
        return (folder / _FACTS).is_file()

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Seal bytes under a name, in place of earlier ones.

        Args:
            name: 1 to 64 of a-z, 0-9, '.', '_' and '-'; starts with a letter or digit.
            data: Any bytes, less than a GiB.
            durable: Whether they must survive a power cut once this returns; a crash of the
                program alone loses nothing either way.

        Raises:
            SettingError: An unusable name, or too many bytes.
            PrivacyError: The disk cannot be written; the old bytes stay.
        """
        path = self._path(name)
        write_file(path, self._key.seal_blob(name, data), durable=durable)

    def overwrite(self, name: str, data: bytes) -> None:
        """Seal a few bytes in the place of others, without waiting for the disk.

        For what changes often: the blob is one sector, written over the old one in one call.

        Args:
            name: As in :meth:`put`.
            data: At most 479 bytes, so that the blob is a sector of 512.

        Guarantees:
            - After a crash of the program the new bytes are there.
            - After a power cut the old bytes or the new ones are there, never a mixture: a disk
              writes a sector whole. The first bytes under a name are durable.

        Raises:
            SettingError: An unusable name, or too many bytes.
            PrivacyError: The disk cannot be written.
        """
        path = self._path(name)
        blob = self._key.seal_blob(name, data)
        # A larger blob spans sectors, and a power cut could leave half of it.
        if len(blob) != crypto.MIN_SEALED_BYTES:
            raise SettingError(f"{name!r} is {len(data)} bytes, too many for one sector; use put")
        if not path.exists():
            write_file(path, blob)
            return
        try:
            atomic_files.overwrite_start(path, blob)
        except StorageError as error:
            raise PrivacyError(str(error)) from error

    def get(self, name: str) -> bytes:
        """Open the bytes under a name.

        Raises:
            SettingError: An unusable name.
            PrivacyError: No such name, a damaged blob, or one of another user, name or key.
        """
        blob = _read(self._path(name))
        try:
            return self._key.open_blob(name, blob)
        except PrivacyError as error:
            raise PrivacyError(
                f"{name!r} in the vault of {self.user!r} ({self.folder}): {error}"
            ) from error

    @contextmanager
    def lock_blob(self, name: str) -> Iterator[None]:
        """Hold a name while what lies under it is read, used and written back.

        Guarantees:
            - Of several threads or processes one goes on and the others wait until it is done, or
              dead, where the system has ``flock``. Whoever holds a name must not ask for it again.

        Raises:
            SettingError: An unusable name.
            PrivacyError: The disk refuses.
        """
        path = self._path(name).with_suffix(_LOCK)
        with ExitStack() as stack:
            try:
                stack.enter_context(atomic_files.lock_file(path))
            except StorageError as error:
                raise PrivacyError(str(error)) from error
            yield

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], *, durable: bool = True
    ) -> None:
        """Seal named tensors as safetensors; errors as in :meth:`put`."""
        ready = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        self.put(name, safetensors.torch.save(ready), durable=durable)

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """Open the tensors under a name; errors as in :meth:`get`, also where there are none."""
        data = self.get(name)
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise PrivacyError(f"{name!r} in the vault holds no tensors ({error})") from error

    def has_blob(self, name: str) -> bool:
        """Whether there is a blob under a name; it may still not open."""
        return self._path(name).is_file()

    def list_names(self) -> list[str]:
        """List all names of blobs, in order."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"*{_SUFFIX}"))

    def delete(self, name: str) -> None:
        """Remove a name; nothing happens where there is none.

        Flash storage may keep the ciphertext for a while; :meth:`erase` removes the key too.
        """
        self._path(name).unlink(missing_ok=True)
        # A removed name is only gone once its folder is synced.
        atomic_files.sync_folder(self.folder)

    def erase(self) -> None:
        """Forget everything: first the key, without which the rest is noise, then the rest."""
        self.erase_folder(self.folder)

    @staticmethod
    def erase_folder(folder: Path) -> None:
        """Erase a vault that need not be opened; nothing happens where there is none.

        Args:
            folder: The vault's folder.

        Guarantees:
            - The key goes first: if this is interrupted, what remains cannot be opened.
        """
        if not folder.is_dir():
            return
        for path in (folder / _KEY, folder / _WRAPPED, folder / _FACTS):
            path.unlink(missing_ok=True)
        atomic_files.sync_folder(folder)
        for pattern in (f"*{_SUFFIX}", f"*{_LOCK}", atomic_files.PARTIAL_FILES):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        atomic_files.sync_folder(folder)

    def seal(self, data: bytes, *binding: str | int, size: int = crypto.MIN_SEALED_BYTES) -> bytes:
        """Seal bytes that leave the device; see :meth:`UserKey.seal`."""
        return self._key.seal(data, *binding, size=size)

    def unseal(self, blob: bytes, *binding: str | int) -> bytes:
        """Open what :meth:`seal` made; see :meth:`UserKey.unseal`."""
        return self._key.unseal(blob, *binding)

    def derive_consent_key(self) -> bytes:
        """Derive the private key that signs consent; see :meth:`UserKey.derive_consent_key`."""
        return self._key.derive_consent_key()

    def wrap_key(self, passphrase: str) -> bytes:
        """Wrap the vault's key under a passphrase, for a second device: see :func:`unwrap_key`."""
        return self._key.wrap(passphrase)

    def _path(self, name: str) -> Path:
        """Path of a name's blob."""
        if not _NAME.fullmatch(name):
            raise SettingError(
                f"name is {name!r}; it must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and start"
                " with a letter or digit"
            )
        return self.folder / f"{name}{_SUFFIX}"


def open_from_environment(folder: Path) -> FileVault | None:
    """Open a vault under a passphrase, if there is one and the environment holds the passphrase.

    Raises:
        PrivacyError: The passphrase is wrong, or the vault damaged.
    """
    phrase = os.environ.get(PASSPHRASE_VARIABLE)
    if phrase and FileVault.exists(folder):
        return FileVault.open(folder, passphrase=phrase)
    return None


def _is_encodable(text: str) -> bool:
    """Whether a text has a form in UTF-8."""
    return text.encode("utf-8", "replace").decode() == text


def _facts(folder: Path) -> dict[str, object]:
    """Read the vault's facts, and check them."""
    if not FileVault.exists(folder):
        raise PrivacyError(f"{folder} holds no vault; make one with FileVault.create")
    try:
        facts = json.loads(_read(folder / _FACTS))
        usable = facts["schema"] == _SCHEMA and facts["key"] in ("file", "phrase")
        user = facts["user"]
        # Half of a surrogate pair cannot be bound to a sealed blob: nobody has such a name.
        usable = usable and isinstance(user, str) and bool(user) and _is_encodable(user)
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise PrivacyError(f"{folder / _FACTS} is damaged or of a newer release; restore the vault")
    return dict(facts)


def _key_file(path: Path) -> bytes:
    """Read a key from a file that only its owner may read."""
    key = _read(path)
    mode = path.stat().st_mode & 0o777
    # A key that others can read is not secret; refusing it is the only honest answer.
    if os.name == "posix" and mode & 0o077:
        raise PrivacyError(f"{path} may be read by others (mode {mode:o}); chmod 600 it, or erase")
    if len(key) != crypto.KEY_BYTES:
        raise PrivacyError(
            f"{path} holds {len(key)} bytes, not a key of {crypto.KEY_BYTES}; restore it: without"
            " the key the vault cannot be opened"
        )
    return key


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter."""
    try:
        atomic_files.make_folder(folder)
        folder.chmod(0o700)
    except OSError as error:
        raise PrivacyError(f"no vault can be made in {folder}: {error}") from error


def _read(path: Path) -> bytes:
    """A file of the vault."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PrivacyError(f"the vault in {path.parent} holds no {path.name}") from None
    except OSError as error:
        raise PrivacyError(f"{path} cannot be read: {error}") from error


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file (mode 0600): old or new after a crash, never a mixture.

    Raises:
        PrivacyError: The disk refuses; the old file stays.
    """
    try:
        atomic_files.replace_file(path, data, durable=durable, secret=True)
    except StorageError as error:
        raise PrivacyError(str(error)) from error
