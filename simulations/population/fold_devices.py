"""The devices of a population's fold: made when they are asked, from the seed and a database."""

import shutil
from functools import cached_property, partial
from pathlib import Path

from sottovoce.client.device.device import Device
from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.shared.errors import EngineError
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.events import EventListener
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.engines.local import run_apps
from sottovoce.simulations.population import host
from sottovoce.simulations.population.host import PopulationHost
from sottovoce.simulations.population.ledger_groups import DATABASE_NAME
from sottovoce.simulations.population.users import SyntheticPopulation, user_index
from sottovoce.simulations.population.voice_model import fit_voice_model
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.runs.ledger_archive import LedgerArchive
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.settings import EnrolmentSettings


class PopulationDevices:
    """Devices of a population (see ``fold.FoldDevices``).

    Args:
        spec: The fold.
        settings: The population's.
        population: Who the users are.
    """

    def __init__(
        self, spec: FoldSpec, settings: PopulationSettings, population: SyntheticPopulation
    ) -> None:
        self._spec, self._settings, self._population = spec, settings, population
        self._count = settings.users + settings.held_out

    @property
    def database(self) -> Path:
        """Where all ledgers of devices are."""
        return self._spec.ledgers.with_name(DATABASE_NAME)

    @cached_property
    def host(self) -> PopulationHost:
        """The population, in this process."""
        return PopulationHost(self._spec.folder, self.database)

    def prepare(self) -> None:
        """See ``FoldDevices``; describes the population, and makes no device."""
        server, settings = self._spec.server_folder, self._settings
        if server.exists() and not self.database.exists():
            # Rounds whose ledgers are gone must not count: the run begins anew.
            shutil.rmtree(self._spec.folder)
        host.save_population(self._spec.folder, settings, self._population)
        sampler = CohortSampler(
            users=settings.users, user_sampling_rate=settings.user_sampling_rate
        )
        self._spec.make_job(
            devices=self._count, quorum=settings.quorum, cohort_sampler=sampler
        ).save(server)

    def train(self, listener: EventListener | None) -> None:
        """See ``FoldDevices``."""
        server = self._spec.server_folder
        run_apps(
            host=partial(PopulationHost, self._spec.folder, self.database),
            devices=self._count,
            config={"job": str(server.resolve())},
            workers=self._spec.settings.workers,
            listener=listener,
        )
        if not (server / "released.safetensors").is_file():
            raise EngineError(
                f"{self._spec.fold.name}: the engine ended without a model; run again with --resume"
            )

    def open_device(self, user: str) -> Device:
        """See ``FoldDevices``."""
        return self.host.open_device(user_index(user))

    def archive_ledgers(self, archive: LedgerArchive) -> dict[str, str]:  # noqa: ARG002
        """See ``FoldDevices``; the database is the archive of all devices' ledgers."""
        self.host.database.merge_journal()
        return {}

    def close(self) -> None:
        """See ``FoldDevices``."""
        self.host.database.close()


def build_population(
    settings: PopulationSettings,
    fold_inputs: FoldInputs,
    *,
    budgets: tuple[PrivacyBudget, ...],
    enrolment: EnrolmentSettings,
    seed: int,
) -> SyntheticPopulation:
    """Build the population of a run from the voices that its users are drawn from.

    Args:
        settings: The population's.
        fold_inputs: What pretraining gave, with the voices' clips.
        budgets: What every device may spend.
        enrolment: What held-out users bring.
        seed: The run's.
    """
    return SyntheticPopulation(
        users=settings.users,
        voice_model=fit_voice_model(fold_inputs.labels, fold_inputs.clips, fold_inputs.features),
        clips=settings.clips,
        labels=fold_inputs.labels,
        budgets=budgets,
        seed=seed,
        enrolment=enrolment.enrolment.partition(":")[0],
        neutral_clips=enrolment.neutral_clips or 0,
        labelled_clips_per_user=enrolment.labelled_clips_per_user,
    )
