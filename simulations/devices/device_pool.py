"""Pool of a fold's devices in one database, for the local engine."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from secrets import token_bytes
from typing import Final

import safetensors.torch
from safetensors import SafetensorError

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.federation import enrolment
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import PrivacyError, SettingError
from sottovoce.simulations.devices.database import DatabaseLedger, DeviceDatabase
from sottovoce.simulations.devices.in_memory import DatabaseVault, DeviceInMemory, plan_hash

_RECOMPUTED: Final = frozenset({"population", "projected"})
"""What enrolment prepares from the job and the clips; replies are made again from the seed."""
_REPLY_PREFIX: Final = "outbox-"
_LAST_PROCESS: Final = "holder"
MAX_MEMORY_BYTES: Final = 2**29
"""Bytes of devices that a process keeps in memory, about; those unused for longest go first."""


class DevicePool:
    """Simulated devices by index, stored in one database.

    Args:
        path: The database; made if missing.

    Raises:
        PrivacyError: It cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.database = DeviceDatabase(path)

    def has_device(self, index: int) -> bool:
        """Tell whether there is a device of this index."""
        return self.database.device_profile(index) is not None

    def create_device(self, index: int, profile: DeviceProfile, features: LabelledFeatures) -> None:
        """Create a device; it exists once it is committed.

        Raises:
            SettingError: Its owner is real: what lies here is not sealed.
        """
        if profile.simulated_seed is None:
            raise SettingError(
                f"{profile.user} is no simulated user; a real device lies in a folder of its own"
            )
        data = safetensors.torch.save(
            # Views share storage, which safetensors refuses to write.
            {name: tensor.contiguous().clone() for name, tensor in features.to_tensors().items()}
        )
        self.database.stage_device(index, profile.to_dict(), data)

    def open_device(self, index: int) -> DeviceInMemory:
        """Open a device in the state of the last commit.

        Raises:
            SettingError: There is none.
            PrivacyError: What is kept of it is damaged.
        """
        record = self.database.device_profile(index)
        if record is None:
            raise SettingError(f"{self.database.path} holds no device of index {index}")
        profile = DeviceProfile.from_dict(record, name=f"device {index} of {self.database.path}")
        seed = profile.simulated_seed
        if seed is None:
            raise PrivacyError(f"{self.database.path} names a real device; it is damaged")
        vault = DatabaseVault(
            self.database,
            index,
            user=profile.user,
            seed=seed,
            is_persistent=_is_persistent,
            make_features=lambda: self._load_features(index),
        )
        ledger = DatabaseLedger(self.database, index, owner=profile.user)
        return DeviceInMemory(Device(profile, vault, ledger), vault)

    def _load_features(self, index: int) -> LabelledFeatures:
        """The recordings of a device."""
        try:
            return LabelledFeatures.from_tensors(
                safetensors.torch.load(self.database.device_features(index))
            )
        except (SafetensorError, KeyError) as error:
            raise PrivacyError(f"the clips of device {index} are damaged ({error})") from error

    def commit_changes(self) -> None:
        """Write to disk the changes of devices; see ``DeviceDatabase.commit``."""
        self.database.commit()

    def close(self) -> None:
        """Close the database of devices."""
        self.database.close()


def _is_persistent(name: str) -> bool:
    """Whether a device cannot make again what lies under a name."""
    return name not in _RECOMPUTED and not name.startswith(_REPLY_PREFIX)


class DevicePoolHost:
    """A pool's devices in one process of the local engine (see ``device_host.DeviceHost``).

    A device stays in memory from message to message.

    Args:
        path: The database.
        job: Folder of the run's job, whose plan devices enrol for.
        shared: Whether other processes answer for the same devices: then whoever answered for one
            last is noted, and only that one uses what it has in memory.
    """

    def __init__(self, path: Path, job: Path, *, shared: bool) -> None:
        self._pool = DevicePool(path)
        self._job = Job.load(job)
        self._plan = plan_hash(self._job)
        self._devices: OrderedDict[int, DeviceInMemory] = OrderedDict()
        self._process_name = token_bytes(8) if shared else b""

    def open_device(self, index: int) -> Device:
        """See ``DeviceHost``; a device is read again if another process answered for it since."""
        found = self._devices.get(index)
        if found is None or not self._has_newest_state(index):
            found = self._load_device(index)
            self._devices[index] = found
        self._devices.move_to_end(index)
        if self._process_name:
            self._pool.database.stage_vault_entry(index, _LAST_PROCESS, self._process_name)
        return found.device

    def _has_newest_state(self, index: int) -> bool:
        """Whether what this process has of a device is the newest."""
        return (
            not self._process_name
            or self._pool.database.committed_vault_entry(index, _LAST_PROCESS) == self._process_name
        )

    def _load_device(self, index: int) -> DeviceInMemory:
        """A device as it was left, with what enrolment prepared."""
        found = self._pool.open_device(index)
        # Only after enrolment: before, there is no agreed plan to prepare features for.
        if found.vault.agreed_plan_hash == self._plan:
            enrolment.store_projected_features(
                found.device, self._job.plan, self._job.projection, self._job.speaker_statistics
            )
        return found

    def device_availability(self, index: int, group: str) -> str:  # noqa: ARG002  (one shape)
        """See ``DeviceHost``; everybody answers."""
        return ""

    def commit(self) -> None:
        """See ``DeviceHost``; and makes room."""
        try:
            self._pool.commit_changes()
        except PrivacyError:
            self._devices.clear()  # what was forgotten must not be believed
            raise
        held = sum(found.memory_bytes for found in self._devices.values())
        # At least one stays, however large: the next message may be for it.
        while held > MAX_MEMORY_BYTES and len(self._devices) > 1:
            _, oldest = self._devices.popitem(last=False)
            held -= oldest.memory_bytes

    def record_outcomes(self, group: str, outcomes: Mapping[str, int]) -> None:
        """See ``DeviceHost``; nobody asks."""

    def close(self) -> None:
        """See ``DeviceHost``."""
        self._pool.close()
