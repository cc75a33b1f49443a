"""A simulated device in memory: the vault that seals nothing, and the device around it.

What must outlive a process goes to the database; all else is made again when it is needed.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from torch import Tensor

from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.client.vault import Vault
from sottovoce.server.job import Job
from sottovoce.shared import crypto, seeds
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.newest import Newest
from sottovoce.simulations.devices.store import Store, StoredLedger

_PLAN: Final = "plan"
_AGREED: Final = "agreed"


class KeptVault(Vault):
    """A simulated device's vault in memory; what outlives it goes to the database.

    Blobs are not sealed here: the key would lie in the same database. What leaves sealed, a head,
    is sealed as ever, under a key from the seed.

    Args:
        store: Where it is kept.
        place: Whose, by place.
        user: Whose, by name.
        seed: The run's.
        outlives: Whether what lies under a name cannot be made again, and is kept; of the plan its
            hash is remembered.
    """

    def __init__(
        self, store: Store, place: int, *, user: str, seed: int, outlives: Callable[[str], bool]
    ) -> None:
        key = seeds.numpy_rng(seed, "vault", place).bytes(crypto.KEY_BYTES)
        super().__init__(store.path.parent, key, user=user)
        self._store, self._place, self._outlives = store, place, outlives
        self._blobs = store.kept(place)
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._sizes = {name: len(data) for name, data in self._blobs.items()}
        self._size = sum(self._sizes.values())

    @property
    def agreed(self) -> str:
        """SHA-256 of the plan that the device enrolled for; empty before."""
        return self._blobs.get(_AGREED, b"").decode()

    @property
    def size(self) -> int:
        """Bytes that it holds in memory, about; asked of every device in every exchange."""
        return self._size

    def _grow(self, name: str, size: int) -> None:
        """Note how much lies under a name now."""
        self._size += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002
        """See ``Vault``."""
        self._blobs[name] = data
        self._grow(name, len(data))
        if name == _PLAN:
            self._agree(_digest(data))
        elif self._outlives(name):
            self._store.keep(self._place, name, data)

    def _agree(self, plan: str) -> None:
        """Remember a plan by its hash."""
        if self.agreed != plan:
            self._blobs[_AGREED] = plan.encode()
            self._grow(_AGREED, len(plan))
            self._store.keep(self._place, _AGREED, plan.encode())

    def overwrite(self, name: str, data: bytes) -> None:
        """See ``Vault``."""
        self.put(name, data)

    def get(self, name: str) -> bytes:
        """See ``Vault``."""
        if name not in self._blobs:
            raise PrivacyError(f"the vault of {self.user!r} holds no {name!r}")
        return self._blobs[name]

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:  # noqa: ARG002
        """See ``Vault``; what lies in memory has one program alone."""
        yield

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], *, durable: bool = True
    ) -> None:
        """See ``Vault``."""
        if self._outlives(name):
            super().put_tensors(name, tensors, durable=durable)
        else:
            self._tensors[name] = dict(tensors)
            self._grow(name, sum(tensor.nbytes for tensor in tensors.values()))

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """See ``Vault``."""
        return dict(self._tensors[name]) if name in self._tensors else super().get_tensors(name)

    def has(self, name: str) -> bool:
        """See ``Vault``."""
        return name in self._blobs or name in self._tensors

    def names(self) -> list[str]:
        """See ``Vault``."""
        return sorted({*self._blobs, *self._tensors})

    def delete(self, name: str) -> None:
        """A simulated device forgets nothing that it may not forget.

        Raises:
            PrivacyError: Always; nothing in a run asks for it.
        """
        raise PrivacyError(f"{name!r} cannot be deleted from the vault of a simulated device")


class KeptDevice(Device):
    """A device of a simulation, made from what outlived its last process.

    Args:
        facts: What its owner decided.
        vault: What it keeps.
        ledger: What it let out.
        clips: Makes its clips.
    """

    def __init__(
        self, facts: Facts, vault: KeptVault, ledger: StoredLedger, clips: Callable[[], Clips]
    ) -> None:
        self.facts, self.vault, self.ledger = facts, vault, ledger
        self.folder = vault.folder
        self.training = Newest()
        self._kept, self._made = vault, clips

    @property
    def agreed(self) -> str:
        """SHA-256 of the plan that the device enrolled for; empty before."""
        return self._kept.agreed

    @property
    def size(self) -> int:
        """Bytes that it holds in memory, about: what it read last is as large as what it keeps."""
        return 2 * self._kept.size

    def clips(self) -> Clips:
        """See ``Device``."""
        return self._made()


def agreement(job: Job) -> str:
    """What a vault remembers of the job's plan."""
    return _digest(job.plan.to_json().encode())


def _digest(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
