"""The one fold of a run over a population: its server, its held-out users, its ledgers."""

import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER
from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.server.federation.membership import MembershipStore
from sottovoce.server.federation.sampled_coordinator import MEMBERSHIP_FILE
from sottovoce.server.federation.training_job import Job
from sottovoce.server.planning import noise_calibration
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.protocol.events import EventListener
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import Fold
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.devices.database import DeviceDatabase
from sottovoce.simulations.engines.local import run_apps
from sottovoce.simulations.evaluation import fold_result
from sottovoce.simulations.population import host
from sottovoce.simulations.population.host import PopulationHost
from sottovoce.simulations.population.ledger_groups import DATABASE_NAME, LedgerGroup, group_ledgers
from sottovoce.simulations.population.users import SyntheticPopulation, user_index, user_name
from sottovoce.simulations.results.schema import Json
from sottovoce.simulations.runs.fold import FoldRun
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.scenario import CLASS_EXPONENTS, Scenario

HELD_OUT_FOLD = "held-out"
"""The one fold: users who never train."""


class PopulationFoldRun(FoldRun):
    """One run over a population; its only listed users are those who are held out.

    Args:
        folder: The server's folder and the population's description are in it.
        ledgers: Where a fold of few users would archive its ledgers; all of these are beside it.
        plan: The run's.
        scenario: The settled scenario, with a population.
        fold_inputs: What pretraining gave.
        population: Who the users are.
        listener: Takes the events of the run's rounds.
    """

    def __init__(
        self,
        *,
        folder: Path,
        ledgers: Path,
        plan: Plan,
        scenario: Scenario,
        fold_inputs: FoldInputs,
        population: SyntheticPopulation,
        listener: EventListener | None = None,
    ) -> None:
        if scenario.population is None:
            raise SettingError("the scenario has no population; add a table [population]")
        self.settings: PopulationSettings = scenario.population
        self.population = population
        test = [user_name(index) for index in self._held_out_indices]
        super().__init__(
            folder=folder,
            ledgers=ledgers,
            fold=Fold(name=HELD_OUT_FOLD, train=(), test=tuple(test)),
            plan=plan,
            scenario=scenario,
            fold_inputs=_with_held_out_clips(fold_inputs, population, self._held_out_indices),
            listener=listener,
        )

    @property
    def database(self) -> Path:
        """Where all ledgers of devices are."""
        return self.ledgers.with_name(DATABASE_NAME)

    @cached_property
    def ledger_groups(self) -> tuple[LedgerGroup, ...]:
        """The devices' ledgers, every one verified, equal ones grouped."""
        database = DeviceDatabase(self.database, read_only=True)
        try:
            return tuple(group_ledgers(database, self.settings.users))
        finally:
            database.close()

    def round_outcomes(self) -> list[Json]:
        """What became of every round's cohort, the initial one first."""
        database = DeviceDatabase(self.database, read_only=True)
        notes = database.round_notes()
        database.close()
        found = []
        for number, outcome in (
            MembershipStore(self.folder / host.SERVER_FOLDER / MEMBERSHIP_FILE)
            .load_outcomes()
            .items()
        ):
            note = notes.get(str(number), {"outcomes": {}})
            failures = {kind: note["outcomes"].get(kind, 0) for kind in _FAILURES}
            row = {"round": number, "sampled": outcome.sampled, "newcomers": outcome.newcomers}
            row |= failures | {"refused": outcome.refused, "used": outcome.used}
            found.append(row | {key: note.get(key) for key in ("rss_mb", "seconds", "process")})
        return found

    @property
    def _held_out_indices(self) -> range:
        """Indices of the held-out users."""
        return range(self.settings.users, self.settings.users + self.settings.held_out)

    def _open_device(self, user: str) -> Device:
        """See ``FoldRun``."""
        return self._host.open_device(user_index(user))

    @cached_property
    def _host(self) -> PopulationHost:
        """The population, in this process."""
        return PopulationHost(self.folder, self.database)

    def _build(self) -> None:
        """Describe population and job; no device is made."""
        server = self.folder / host.SERVER_FOLDER
        if server.exists() and not self.database.exists():
            # Rounds whose ledgers are gone must not count: the run begins anew.
            shutil.rmtree(self.folder)
        host.save_population(self.folder, self.settings, self.population)
        job = Job(
            plan=self.plan,
            aggregation=self.scenario.recipe.aggregation,
            weights=self.fold_inputs.initial_weights,
            projection=self.fold_inputs.projection,
            speaker_statistics=self.fold_inputs.speaker_statistics,
            devices=self.settings.users + self.settings.held_out,
            quorum=self.settings.quorum,
            class_exponent=CLASS_EXPONENTS[self.scenario.recipe.class_weights],
            budgets=noise_calibration.server_budgets(self.scenario),
            simulated_seed=self._seed,
            held_out_path=self.fold_inputs.held_out_file,
            cohort_sampler=CohortSampler(
                users=self.settings.users, user_sampling_rate=self.settings.user_sampling_rate
            ),
        )
        job.save(server)

    def _train(self) -> None:
        """Run both apps."""
        run_apps(
            host=partial(PopulationHost, self.folder, self.database),
            devices=self.settings.users + self.settings.held_out,
            config={"job": str((self.folder / host.SERVER_FOLDER).resolve())},
            workers=self.scenario.workers,
            listener=self.listener,
        )
        if not (self.folder / host.SERVER_FOLDER / "released.safetensors").is_file():
            raise EngineError(
                f"{self.fold.name}: the engine ended without a model; run again with --resume"
            )

    def _finish(self) -> None:
        """Score, and archive the server's ledger; the devices' are archived already."""
        scores, facts = self._score()
        facts["ledgers"] = {}
        if self.plan.user:
            sums = Ledger(
                self.folder / host.SERVER_FOLDER / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True
            )
            replace_file(self._server_ledger_archive, sums.path.read_bytes())
            facts["sums"] = sums.head_hash
        self._host.database.merge_journal()
        self._host.database.close()
        fold_result.write_result(self.folder, facts, scores)


_FAILURES = ("unavailable", "dropped", "late")


def _with_held_out_clips(
    fold_inputs: FoldInputs, population: SyntheticPopulation, indices: range
) -> FoldInputs:
    """The inputs with the held-out users' clips in place of the voices they were drawn from."""
    features: dict[str, Tensor] = {}
    clips: dict[str, tuple[Clip, ...]] = {}
    for index in indices:
        own, examples = population.draw_clips(index)
        clips[user_name(index)] = tuple(own)
        features |= {clip.clip_id: row for clip, row in zip(own, examples.features, strict=True)}
    return replace(fold_inputs, features=features, clips=clips)
