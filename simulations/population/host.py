"""Where a crowd lives in one process: its description, its database, its ways."""

import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from sottovoce.server.checkpoint import replace_file
from sottovoce.server.job import Job
from sottovoce.shared.errors import ModelError
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.simulations.devices.kept import KeptDevice, agreement
from sottovoce.simulations.devices.store import Store
from sottovoce.simulations.population import behaviour
from sottovoce.simulations.population.behaviour import Fate
from sottovoce.simulations.population.crowd import Crowd, device
from sottovoce.simulations.population.settings import PopulationSettings
from sottovoce.simulations.population.voices import Voices

_FACTS: Final = "crowd.json"
_VOICES: Final = "voices.safetensors"
SERVER: Final = "server"


def save(folder: Path, settings: PopulationSettings, crowd: Crowd) -> None:
    """Describe a crowd, so that any process can make any of its users."""
    crowd.voices.save(folder / _VOICES)
    facts = {
        "population": asdict(settings),
        "labels": list(crowd.labels),
        "budgets": [asdict(budget) for budget in crowd.budgets],
        "seed": crowd.seed,
        "enrolment": crowd.enrolment,
        "neutral": crowd.neutral,
        "head_clips": crowd.head_clips,
    }
    replace_file(folder / _FACTS, json.dumps(facts, indent=1).encode())


class PopulationHost:
    """The crowd of a folder (see ``engines.hosts.Host``).

    Args:
        folder: What :func:`save` described, with the run's job in ``server/``.
        database: Where ledgers are.

    Raises:
        ModelError: The folder holds no usable description.
        PrivacyError: The database cannot be used.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        try:
            facts = json.loads((folder / _FACTS).read_text())
            self._settings = PopulationSettings(**facts["population"])
            self._crowd = Crowd(
                users=self._settings.users,
                voices=Voices.load(folder / _VOICES),
                clips=self._settings.clips,
                labels=tuple(facts["labels"]),
                budgets=tuple(Budget.from_dict(budget) for budget in facts["budgets"]),
                seed=int(facts["seed"]),
                enrolment=str(facts["enrolment"]),
                neutral=int(facts["neutral"]),
                head_clips=int(facts["head_clips"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder} describes no crowd ({error}); remove it") from error
        self._job = Job.load(folder / SERVER)
        self._plan = agreement(self._job)
        self.store = Store(database)
        self._group, self._began = "", time.monotonic()
        self._last = self._began

    def device(self, place: int) -> KeptDevice:
        """See ``Host``."""
        return device(self._crowd, self.store, self._job, self._plan, place)

    def fate(self, place: int, group: str) -> str:
        """See ``Host``; those who are held out always answer."""
        if not group.isdigit() or place >= self._crowd.users:
            return Fate.ANSWERS
        return behaviour.fate(self._settings, self._crowd.seed, place, int(group))

    def commit(self) -> None:
        """See ``Host``."""
        self.store.commit()

    def close(self) -> None:
        """See ``Host``."""
        self.store.close()

    def note(self, group: str, fates: Mapping[str, int]) -> None:
        """See ``Host``; with how much memory is resident, and how long the round took so far."""
        if group != self._group:  # a round begins where the one before it ended
            self._group, self._began = group, self._last
        self._last = time.monotonic()
        facts = {
            "fates": dict(fates),
            "rss_mb": resident_mb(),
            "seconds": self._last - self._began,
            "process": os.getpid(),
        }
        self.store.note(group, facts)


def resident_mb() -> float:
    """Memory that this process and its children hold now, in MiB; the most so far where unknown.

    The children are the workers; only Linux tells of them.
    """
    try:
        return sum(_resident(pid) for pid in _family(os.getpid())) / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident(pid: int) -> int:
    """Bytes that a process holds; 0 where it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0 if pid != os.getpid() else _unknown()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _unknown() -> int:
    """There is no such file here."""
    raise FileNotFoundError("/proc")


def _family(pid: int) -> list[int]:
    """A process and its children."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(word) for word in listed.read_text().split()] if listed.exists() else []
    return [pid, *children]
