"""Simulated devices in memory: vaults that are not sealed at rest, and a ledger.

What must outlive a process goes to the database; all else is recomputed when needed.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import LabelledFeatures
from sottovoce.client.device.user_key import UserKey
from sottovoce.server.federation.training_job import Job
from sottovoce.shared import crypto, seeding
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.simulations.devices.database import DeviceDatabase

_PLAN: Final = "plan"
_AGREED_PLAN: Final = "agreed"
_FEATURES: Final = "clips"


class InMemoryVault:
    """A simulated user's vault in memory (see ``vault.Vault``).

    Blobs are not sealed here: the key would lie beside them. What leaves sealed, a head, is sealed
    as ever.

    Args:
        key: Key of the user.
        make_features: Makes the features of the user's clips whenever they are read.
    """

    def __init__(self, key: UserKey, make_features: Callable[[], LabelledFeatures]) -> None:
        self._key = key
        self._make_features = make_features
        self._blobs: dict[str, bytes] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0

    @property
    def user(self) -> str:
        """Identifier of the user."""
        return self._key.user

    @property
    def memory_bytes(self) -> int:
        """Approximate number of bytes in memory; asked of every device in every exchange."""
        return self._size

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002
        """See ``Vault``."""
        self._blobs[name] = data
        self._record_size(name, len(data))

    def overwrite(self, name: str, data: bytes) -> None:
        """See ``Vault``."""
        self.put(name, data)

    def get(self, name: str) -> bytes:
        """See ``Vault``."""
        if name not in self._blobs:
            raise PrivacyError(f"the vault of {self.user!r} holds no {name!r}")
        return self._blobs[name]

    @contextmanager
    def lock_blob(self, name: str) -> Iterator[None]:  # noqa: ARG002
        """See ``Vault``; only one program has what lies in its memory."""
        yield

    def put_tensors(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        durable: bool = True,  # noqa: ARG002  (there is no disk)
    ) -> None:
        """See ``Vault``."""
        self._tensors[name] = dict(tensors)
        self._record_size(name, sum(tensor.nbytes for tensor in tensors.values()))

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """See ``Vault``."""
        if name in self._tensors:
            # A copy of the dictionary: callers may add to theirs.
            return dict(self._tensors[name])
        return self._make_features().to_tensors() if name == _FEATURES else self._load(name)

    def has_blob(self, name: str) -> bool:
        """See ``Vault``."""
        return name in self._blobs or name in self._tensors or name == _FEATURES

    def seal(self, data: bytes, *binding: str | int, size: int = crypto.MIN_SEALED_BYTES) -> bytes:
        """See ``Vault``."""
        return self._key.seal(data, *binding, size=size)

    def unseal(self, blob: bytes, *binding: str | int) -> bytes:
        """See ``Vault``."""
        return self._key.unseal(blob, *binding)

    def derive_consent_key(self) -> bytes:
        """See ``Vault``."""
        return self._key.derive_consent_key()

    def delete(self, name: str) -> None:
        """See ``Vault``."""
        self._blobs.pop(name, None)
        self._tensors.pop(name, None)
        self._record_size(name, 0)

    def _load(self, name: str) -> dict[str, Tensor]:
        """Read tensors that were stored as bytes."""
        return safetensors.torch.load(self.get(name))

    def _record_size(self, name: str, size: int) -> None:
        """Note how much lies under a name now."""
        # An entry that is written again replaces the old one: only the difference counts.
        self._size += size - self._sizes.get(name, 0)
        self._sizes[name] = size


class DatabaseVault(InMemoryVault):
    """A vault in memory, some of whose entries go to the database and outlive the process.

    Args:
        database: Where persistent blobs are stored.
        index: Index of the user.
        user: Name of the user.
        seed: Seed of the run, which the user's key is derived from.
        is_persistent: Tells whether the entry of a name cannot be recomputed, and is stored; of the
            plan the hash is.
        make_features: As for ``InMemoryVault``.
    """

    def __init__(
        self,
        database: DeviceDatabase,
        index: int,
        *,
        user: str,
        seed: int,
        is_persistent: Callable[[str], bool],
        make_features: Callable[[], LabelledFeatures],
    ) -> None:
        key = seeding.numpy_rng(seed, "vault", index).bytes(crypto.KEY_BYTES)
        super().__init__(UserKey(key, user=user), make_features)
        self._database, self._index, self._is_persistent = database, index, is_persistent
        # Straight into memory: they come from the database and must not be staged again.
        for name, data in database.vault_entries(index).items():
            super().put(name, data)

    @property
    def agreed_plan_hash(self) -> str:
        """SHA-256 of the plan that the device enrolled for; empty before enrolment."""
        return self._blobs.get(_AGREED_PLAN, b"").decode()

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """See ``Vault``."""
        super().put(name, data, durable=durable)
        # The plan is large and the same for all devices: a hash is enough to recognise it.
        if name == _PLAN:
            self._remember_plan(_digest(data))
        elif self._is_persistent(name):
            self._database.stage_vault_entry(self._index, name, data)

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], *, durable: bool = True
    ) -> None:
        """See ``Vault``."""
        if not self._is_persistent(name):
            super().put_tensors(name, tensors, durable=durable)
            return
        ready = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        self.put(name, safetensors.torch.save(ready), durable=durable)

    def _remember_plan(self, plan: str) -> None:
        """Remember a plan by its hash."""
        if self.agreed_plan_hash != plan:
            super().put(_AGREED_PLAN, plan.encode())
            self._database.stage_vault_entry(self._index, _AGREED_PLAN, plan.encode())


class InMemoryLedger(Ledger):
    """A ledger in memory: the same lines, the same chain, the same accounting.

    Args:
        owner: Name of the owner.
    """

    def __init__(self, owner: str) -> None:
        self._lines: list[bytes] = []
        super().__init__(Path(f"{owner}.jsonl"), owner=owner)

    def _load(self) -> bytes:
        """See ``Ledger``."""
        return b"".join(self._lines)

    def _write_line(self, line: bytes) -> None:
        """See ``Ledger``."""
        self._lines.append(line)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceInMemory:
    """A simulated device together with its vault.

    Attributes:
        device: The device.
        vault: Its vault.
    """

    device: Device
    vault: DatabaseVault

    @property
    def memory_bytes(self) -> int:
        """Approximate bytes in memory: what it read last is as large as what it stores."""
        return 2 * self.vault.memory_bytes


def plan_hash(job: Job) -> str:
    """Hash the job's plan as vaults store the hash."""
    return _digest(job.plan.to_json().encode())


def _digest(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
