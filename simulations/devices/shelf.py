"""A world's devices in one database, which the local engine takes them from."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from secrets import token_bytes
from typing import Final

import safetensors.torch
from safetensors import SafetensorError

from sottovoce.client import enrolment
from sottovoce.client.owner import Clips, Facts
from sottovoce.server.job import Job
from sottovoce.shared.errors import PrivacyError, SettingError
from sottovoce.simulations.devices.kept import KeptDevice, KeptVault, agreement
from sottovoce.simulations.devices.store import Store, StoredLedger

_MADE_AGAIN: Final = frozenset({"population", "projected"})
"""What enrolment prepares from the job and the clips; answers are made again from the seed."""
_ANSWERS: Final = "outbox-"
_HOLDER: Final = "holder"
_ROOM: Final = 2**29
"""Bytes of devices that a process keeps in memory, about; those not asked for longest go first."""


class Shelf:
    """Simulated devices by place, in one database.

    Args:
        path: The database; made if missing.

    Raises:
        PrivacyError: It cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.store = Store(path)

    def holds(self, place: int) -> bool:
        """Whether there is a device of this place."""
        return self.store.owner(place) is not None

    def put(self, place: int, facts: Facts, clips: Clips) -> None:
        """Make a device; it is there once it is committed.

        Raises:
            SettingError: Its owner is real: what lies here is not sealed.
        """
        if facts.simulated_seed is None:
            raise SettingError(
                f"{facts.user} is no simulated user; a real device lies in a folder of its own"
            )
        data = safetensors.torch.save(
            {name: tensor.contiguous().clone() for name, tensor in clips.tensors().items()}
        )
        self.store.move_in(place, facts.as_dict(), data)

    def device(self, place: int) -> KeptDevice:
        """A device as the last commit left it.

        Raises:
            SettingError: There is none.
            PrivacyError: What is kept of it is damaged.
        """
        record = self.store.owner(place)
        if record is None:
            raise SettingError(f"{self.store.path} holds no device of place {place}")
        facts = Facts.from_dict(record)
        seed = facts.simulated_seed
        if seed is None:
            raise PrivacyError(f"{self.store.path} names a real device; it is damaged")
        vault = KeptVault(self.store, place, user=facts.user, seed=seed, outlives=_outlives)
        ledger = StoredLedger(self.store, place, owner=facts.user)
        return KeptDevice(facts, vault, ledger, lambda: self._clips(place))

    def _clips(self, place: int) -> Clips:
        """The recordings of a device."""
        try:
            return Clips.of(safetensors.torch.load(self.store.clips(place)))
        except (SafetensorError, KeyError) as error:
            raise PrivacyError(f"the clips of place {place} are damaged ({error})") from error

    def commit(self) -> None:
        """Bring to disk what devices booked and kept; see ``Store.commit``."""
        self.store.commit()

    def close(self) -> None:
        """Let go of the file."""
        self.store.close()


def _outlives(name: str) -> bool:
    """Whether a device cannot make again what lies under a name."""
    return name not in _MADE_AGAIN and not name.startswith(_ANSWERS)


class ShelfHost:
    """A shelf's devices in one process of the local engine (see ``engines.hosts.Host``).

    A device stays in memory from message to message.

    Args:
        path: The database.
        job: Folder of the run's job, whose plan devices enrol for.
        shared: Whether other processes answer for the same devices: then whoever answered for one
            last is noted, and only that one uses what it has in memory.
    """

    def __init__(self, path: Path, job: Path, *, shared: bool) -> None:
        self._shelf = Shelf(path)
        self._job = Job.load(job)
        self._plan = agreement(self._job)
        self._live: OrderedDict[int, KeptDevice] = OrderedDict()
        self._name = token_bytes(8) if shared else b""

    def device(self, place: int) -> KeptDevice:
        """See ``Host``."""
        device = self._live.get(place)
        if device is None or not self._answered_last(place):
            device = self._opened(place)
            self._live[place] = device
        self._live.move_to_end(place)
        if self._name:
            self._shelf.store.keep(place, _HOLDER, self._name)
        return device

    def _answered_last(self, place: int) -> bool:
        """Whether what this process has of a device is the newest."""
        return not self._name or self._shelf.store.kept_under(place, _HOLDER) == self._name

    def _opened(self, place: int) -> KeptDevice:
        """A device as it was left, with what enrolment prepared."""
        device = self._shelf.device(place)
        if device.agreed == self._plan:
            enrolment.prepare(device, self._job.plan, self._job.front, self._job.population)
        return device

    def fate(self, place: int, group: str) -> str:  # noqa: ARG002  (one shape)
        """See ``Host``; everybody answers."""
        return ""

    def commit(self) -> None:
        """See ``Host``; and makes room."""
        try:
            self._shelf.commit()
        except PrivacyError:
            self._live.clear()  # what was forgotten must not be believed
            raise
        held = sum(device.size for device in self._live.values())
        while held > _ROOM and len(self._live) > 1:
            _, device = self._live.popitem(last=False)
            held -= device.size

    def note(self, group: str, fates: Mapping[str, int]) -> None:
        """See ``Host``; nobody asks."""

    def close(self) -> None:
        """See ``Host``."""
        self._shelf.close()
