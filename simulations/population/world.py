"""The one world of a run over a crowd: its server, its held-out users, its books."""

import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from sottovoce.client.device import Device
from sottovoce.server import checkpoint
from sottovoce.server.cohorts import Cohorts
from sottovoce.server.crowd import MEMBERS
from sottovoce.server.job import Job
from sottovoce.server.members import Members
from sottovoce.server.sums import LEDGER, OWNER
from sottovoce.shared.errors import EngineError, SettingError
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.simulations import outcome, promise
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.devices.store import Store
from sottovoce.simulations.engines.local import run_apps
from sottovoce.simulations.material import Material
from sottovoce.simulations.population import host
from sottovoce.simulations.population.books import NAME, Kind, kinds
from sottovoce.simulations.population.crowd import Crowd, name_of, place_of
from sottovoce.simulations.population.host import PopulationHost
from sottovoce.simulations.population.settings import PopulationSettings
from sottovoce.simulations.protocols import Fold
from sottovoce.simulations.runfile import Json
from sottovoce.simulations.scenario import CLASS_EXPONENTS, Scenario
from sottovoce.simulations.world import World

HELD_OUT = "held-out"
"""The one fold: users who never train."""


class CrowdWorld(World):
    """One run over a crowd; its only listed users are those who are held out.

    Args:
        folder: Where the server lives.
        ledgers: Where a world of few users would keep its ledgers; all of these lie beside it.
        plan: The run's.
        scenario: The settled scenario, with a population.
        material: What public voices taught.
        crowd: Who the users are.
    """

    def __init__(
        self,
        *,
        folder: Path,
        ledgers: Path,
        plan: Plan,
        scenario: Scenario,
        material: Material,
        crowd: Crowd,
    ) -> None:
        if scenario.population is None:
            raise SettingError("the scenario has no population; add a table [population]")
        self.settings: PopulationSettings = scenario.population
        self.crowd = crowd
        test = [name_of(place) for place in self._held_out]
        super().__init__(
            folder=folder,
            ledgers=ledgers,
            fold=Fold(name=HELD_OUT, train=(), test=tuple(test)),
            plan=plan,
            scenario=scenario,
            material=_heard(material, crowd, self._held_out),
        )

    @property
    def database(self) -> Path:
        """Where all ledgers of devices are."""
        return self.ledgers.with_name(NAME)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The devices' ledgers, every one verified, those alike together."""
        store = Store(self.database, read_only=True)
        try:
            return tuple(kinds(store, self.settings.users))
        finally:
            store.close()

    def rounds(self) -> list[Json]:
        """What became of every round's cohort, the founding one first."""
        store = Store(self.database, read_only=True)
        notes = store.notes()
        store.close()
        found = []
        for number, tally in Members(self.folder / host.SERVER / MEMBERS).rounds().items():
            note = notes.get(str(number), {"fates": {}})
            fates = {kind: note["fates"].get(kind, 0) for kind in _FATES}
            row = {"round": number, "sampled": tally.sampled, "newcomers": tally.newcomers}
            row |= fates | {"refused": tally.refused, "used": tally.used}
            found.append(row | {key: note.get(key) for key in ("rss_mb", "seconds", "process")})
        return found

    @property
    def _held_out(self) -> range:
        """Places of the held-out users."""
        return range(self.settings.users, self.settings.users + self.settings.held_out)

    def _opened(self, user: str) -> Device:
        """See ``World``."""
        return self._host.device(place_of(user))

    @cached_property
    def _host(self) -> PopulationHost:
        """The crowd, in this process."""
        return PopulationHost(self.folder, self.database)

    def _build(self) -> None:
        """Describe crowd and job; nobody is made."""
        server = self.folder / host.SERVER
        if server.exists() and not self.database.exists():
            # Rounds whose ledgers are gone must not count: the run begins anew.
            shutil.rmtree(self.folder)
        host.save(self.folder, self.settings, self.crowd)
        job = Job(
            plan=self.plan,
            aggregation=self.scenario.recipe.aggregation,
            weights=self.material.start,
            front=self.material.front,
            population=self.material.population,
            devices=self.settings.users + self.settings.held_out,
            quorum=self.settings.quorum,
            class_exponent=CLASS_EXPONENTS[self.scenario.recipe.class_weights],
            budgets=promise.sum_budgets(self.scenario),
            simulated_seed=self._seed,
            held_out=self.material.held_out,
            crowd=Cohorts(users=self.settings.users, rate=self.settings.rate),
        )
        job.save(server)

    def _train(self) -> None:
        """Run both apps."""
        run_apps(
            host=partial(PopulationHost, self.folder, self.database),
            devices=self.settings.users + self.settings.held_out,
            config={"job": str((self.folder / host.SERVER).resolve())},
            workers=self.scenario.workers,
        )
        if not (self.folder / host.SERVER / "released.safetensors").is_file():
            raise EngineError(
                f"{self.fold.name}: the engine ended without a model; run again with --resume"
            )

    def _finish(self) -> None:
        """Score, and keep the server's ledger; the devices' lie where they are kept."""
        scores, facts = self._score()
        facts["ledgers"] = {}
        if self.plan.user:
            sums = Ledger(self.folder / host.SERVER / LEDGER, owner=OWNER, read_only=True)
            checkpoint.replace_file(self._kept_sums, sums.path.read_bytes())
            facts["sums"] = sums.head
        self._host.store.settle()
        self._host.store.close()
        outcome.write(self.folder, facts, scores)


_FATES = ("unavailable", "dropped", "late")


def _heard(material: Material, crowd: Crowd, places: range) -> Material:
    """The material with the held-out users' clips in place of the voices they were drawn from."""
    features: dict[str, Tensor] = {}
    clips: dict[str, tuple[Clip, ...]] = {}
    for place in places:
        own, examples = crowd.spoken(place)
        clips[name_of(place)] = tuple(own)
        features |= {clip.clip_id: row for clip, row in zip(own, examples.features, strict=True)}
    return replace(material, features=features, clips=clips)
