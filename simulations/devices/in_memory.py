"""A simulated device in memory: the vault that seals nothing, and the device around it.

What must outlive a process goes to the database; all else is made again when it is needed.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.device.vault import Vault
from sottovoce.server.federation.training_job import Job
from sottovoce.shared import crypto, seeding
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.memo import LastValueCache
from sottovoce.simulations.devices.database import DatabaseLedger, DeviceDatabase

_PLAN: Final = "plan"
_AGREED_PLAN: Final = "agreed"


class InMemoryVault(Vault):
    """A simulated device's vault in memory; what outlives it goes to the database.

    Blobs are not sealed here: the key would lie in the same database. What leaves sealed, a head,
    is sealed as ever, under a key from the seed.

    Args:
        database: Where persistent blobs are stored.
        index: Whose, by index.
        user: Whose, by name.
        seed: The run's.
        is_persistent: Whether the blob of a name cannot be made again, and is stored; of the plan
            its hash is.
    """

    def __init__(
        self,
        database: DeviceDatabase,
        index: int,
        *,
        user: str,
        seed: int,
        is_persistent: Callable[[str], bool],
    ) -> None:
        key = seeding.numpy_rng(seed, "vault", index).bytes(crypto.KEY_BYTES)
        super().__init__(database.path.parent, key, user=user)
        self._database, self._index, self._is_persistent = database, index, is_persistent
        self._blobs = database.vault_entries(index)
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._sizes = {name: len(data) for name, data in self._blobs.items()}
        self._size = sum(self._sizes.values())

    @property
    def agreed_plan_hash(self) -> str:
        """SHA-256 of the plan that the device enrolled for; empty before."""
        return self._blobs.get(_AGREED_PLAN, b"").decode()

    @property
    def memory_bytes(self) -> int:
        """Bytes that it holds in memory, about; asked of every device in every exchange."""
        return self._size

    def _record_size(self, name: str, size: int) -> None:
        """Note how much lies under a name now."""
        self._size += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002
        """See ``Vault``."""
        self._blobs[name] = data
        self._record_size(name, len(data))
        if name == _PLAN:
            self._remember_plan(_digest(data))
        elif self._is_persistent(name):
            self._database.stage_vault_entry(self._index, name, data)

    def _remember_plan(self, plan: str) -> None:
        """Remember a plan by its hash."""
        if self.agreed_plan_hash != plan:
            self._blobs[_AGREED_PLAN] = plan.encode()
            self._record_size(_AGREED_PLAN, len(plan))
            self._database.stage_vault_entry(self._index, _AGREED_PLAN, plan.encode())

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
        """See ``Vault``; what lies in memory has one program alone."""
        yield

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], *, durable: bool = True
    ) -> None:
        """See ``Vault``."""
        if self._is_persistent(name):
            super().put_tensors(name, tensors, durable=durable)
        else:
            self._tensors[name] = dict(tensors)
            self._record_size(name, sum(tensor.nbytes for tensor in tensors.values()))

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """See ``Vault``."""
        return dict(self._tensors[name]) if name in self._tensors else super().get_tensors(name)

    def has_blob(self, name: str) -> bool:
        """See ``Vault``."""
        return name in self._blobs or name in self._tensors

    def list_names(self) -> list[str]:
        """See ``Vault``."""
        return sorted({*self._blobs, *self._tensors})

    def delete(self, name: str) -> None:
        """Refuse: a simulated device deletes nothing.

        Raises:
            PrivacyError: Always; nothing in a run asks for it.
        """
        raise PrivacyError(f"{name!r} cannot be deleted from the vault of a simulated device")


class InMemoryDevice(Device):
    """A device of a simulation, made from what outlived its last process.

    Args:
        profile: What its owner decided.
        vault: What it keeps.
        ledger: Its releases.
        make_features: Makes the features of its clips.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        vault: InMemoryVault,
        ledger: DatabaseLedger,
        make_features: Callable[[], LabelledFeatures],
    ) -> None:
        self.profile, self.vault, self.ledger = profile, vault, ledger
        self.folder = vault.folder
        self.training_cache = LastValueCache()
        self._memory_vault, self._make_features = vault, make_features

    @property
    def agreed_plan_hash(self) -> str:
        """SHA-256 of the plan that the device enrolled for; empty before."""
        return self._memory_vault.agreed_plan_hash

    @property
    def memory_bytes(self) -> int:
        """Bytes that it holds in memory, about: what it read last is as large as what it keeps."""
        return 2 * self._memory_vault.memory_bytes

    def load_features(self) -> LabelledFeatures:
        """See ``Device``."""
        return self._make_features()


def plan_hash(job: Job) -> str:
    """What a vault remembers of the job's plan."""
    return _digest(job.plan.to_json().encode())


def _digest(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
