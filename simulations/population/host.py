"""A population in one process: its description, its database, its devices' availability."""

import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sottovoce.client.device.device import Device
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.codec import Count, decode_json
from sottovoce.shared.errors import ModelError, SottovoceError
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.simulations.devices.database import DeviceDatabase
from sottovoce.simulations.devices.in_memory import plan_hash
from sottovoce.simulations.population import availability
from sottovoce.simulations.population.availability import Availability
from sottovoce.simulations.population.users import SyntheticPopulation, open_device
from sottovoce.simulations.population.voice_model import VoiceModel
from sottovoce.simulations.scenario.population import PopulationSettings

_DESCRIPTION: Final = "crowd.json"
_VOICES: Final = "voices.safetensors"
SERVER_FOLDER: Final = "server"


@dataclass(frozen=True, kw_only=True, slots=True)
class PopulationRecord:
    """Content of a population's description, but for the voices.

    Attributes:
        population: Its settings.
        labels: Emotions in the order of the classes.
        budgets: What every device may spend.
        seed: Decides who the users are.
        enrolment: What a held-out user's normaliser is learned from.
        neutral_clips: How many neutral clips that is.
        labelled_clips_per_user: How many labelled clips a head is fitted on.
    """

    population: PopulationSettings
    labels: tuple[str, ...]
    budgets: tuple[PrivacyBudget, ...]
    seed: Count
    enrolment: str
    neutral_clips: Count
    labelled_clips_per_user: Count


def save_population(
    folder: Path, settings: PopulationSettings, population: SyntheticPopulation
) -> None:
    """Describe a population, so that any process can make any of its users."""
    population.voice_model.save(folder / _VOICES)
    record = PopulationRecord(
        population=settings,
        labels=population.labels,
        budgets=population.budgets,
        seed=population.seed,
        enrolment=population.enrolment,
        neutral_clips=population.neutral_clips,
        labelled_clips_per_user=population.labelled_clips_per_user,
    )
    replace_file(folder / _DESCRIPTION, json.dumps(asdict(record), indent=1).encode())


class PopulationHost:
    """The population of a folder (see ``device_host.DeviceHost``).

    Args:
        folder: What :func:`save_population` described, with the run's job in ``server/``.
        database: Where ledgers are.

    Raises:
        ModelError: The folder holds no usable description.
        PrivacyError: The database cannot be used.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        try:
            content = (folder / _DESCRIPTION).read_bytes()
            record = decode_json(content, PopulationRecord, name=_DESCRIPTION, error=ModelError)
            self._settings = record.population
            self._population = SyntheticPopulation(
                users=self._settings.users,
                voice_model=VoiceModel.load(folder / _VOICES),
                clips=self._settings.clips,
                labels=record.labels,
                budgets=record.budgets,
                seed=record.seed,
                enrolment=record.enrolment,
                neutral_clips=record.neutral_clips,
                labelled_clips_per_user=record.labelled_clips_per_user,
            )
        except (OSError, SottovoceError) as error:
            raise ModelError(f"{folder} describes no population ({error}); remove it") from error
        self._job = Job.load(folder / SERVER_FOLDER)
        self._plan = plan_hash(self._job)
        self.database = DeviceDatabase(database)
        self._group, self._began = "", time.monotonic()
        self._last = self._began

    def open_device(self, index: int) -> Device:
        """See ``DeviceHost``."""
        return open_device(self._population, self.database, self._job, self._plan, index)

    def device_availability(self, index: int, group: str) -> str:
        """See ``DeviceHost``; those who are held out always answer."""
        if not group.isdigit() or index >= self._population.users:
            return Availability.AVAILABLE
        return availability.draw_availability(
            self._settings, self._population.seed, index, int(group)
        )

    def commit(self) -> None:
        """See ``DeviceHost``."""
        self.database.commit()

    def close(self) -> None:
        """See ``DeviceHost``."""
        self.database.close()

    def record_outcomes(self, group: str, outcomes: Mapping[str, int]) -> None:
        """See ``DeviceHost``; with resident memory, and how long the round took so far."""
        if group != self._group:  # a round begins where the one before it ended
            self._group, self._began = group, self._last
        self._last = time.monotonic()
        facts = {
            "outcomes": dict(outcomes),
            "rss_mb": resident_memory_mb(),
            "seconds": self._last - self._began,
            "process": os.getpid(),
        }
        self.database.write_round_notes(group, facts)


def resident_memory_mb() -> float:
    """Memory that this process and its children hold now, in MiB; the most so far where unknown.

    The children are the workers; only Linux tells of them.
    """
    try:
        return sum(_resident_bytes(pid) for pid in _process_and_children(os.getpid())) / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident_bytes(pid: int) -> int:
    """Bytes that a process holds; 0 where it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0 if pid != os.getpid() else _raise_not_found()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _raise_not_found() -> int:
    """There is no such file here."""
    raise FileNotFoundError("/proc")


def _process_and_children(pid: int) -> list[int]:
    """A process and its children."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(word) for word in listed.read_text().split()] if listed.exists() else []
    return [pid, *children]
