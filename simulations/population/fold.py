"""The one fold of a run over a population: its held-out users, its ledgers, its rounds."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from sottovoce.server.federation.membership import MembershipStore
from sottovoce.server.federation.sampled_coordinator import MEMBERSHIP_FILE
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import Fold
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.devices.database import DeviceDatabase
from sottovoce.simulations.population.fold_devices import PopulationDevices
from sottovoce.simulations.population.ledger_groups import LedgerGroup, group_ledgers
from sottovoce.simulations.population.users import SyntheticPopulation, user_name
from sottovoce.simulations.results.schema import Json
from sottovoce.simulations.runs.fold import FoldRun
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.scenario.population import PopulationSettings

HELD_OUT_FOLD = "held-out"
"""The one fold: users who never train."""

_FAILURES = ("unavailable", "dropped", "late")


class PopulationFoldRun(FoldRun):
    """One run over a population; its only listed users are those who are held out.

    Args:
        spec: The fold, of held-out users, see :func:`make_held_out_fold`.
        settings: The population's.
        population: Who the users are.
    """

    def __init__(
        self, spec: FoldSpec, settings: PopulationSettings, population: SyntheticPopulation
    ) -> None:
        self.settings, self.population = settings, population
        self.population_devices = PopulationDevices(spec, settings, population)
        super().__init__(spec, self.population_devices)

    @property
    def database(self) -> Path:
        """Where all ledgers of devices are."""
        return self.population_devices.database

    @cached_property
    def ledger_groups(self) -> tuple[LedgerGroup, ...]:
        """The devices' ledgers, every one verified, equal ones grouped."""
        database = DeviceDatabase(self.database, read_only=True)
        try:
            return tuple(group_ledgers(database, self.settings.users))
        finally:
            database.close()

    def round_outcomes(self) -> list[Json]:
        """List what became of every round's cohort, the initial one first."""
        database = DeviceDatabase(self.database, read_only=True)
        notes = database.round_notes()
        database.close()
        membership = MembershipStore(self.spec.server_folder / MEMBERSHIP_FILE)
        found = []
        for number, outcome in membership.load_outcomes().items():
            note = notes.get(str(number), {"outcomes": {}})
            failures = {kind: note["outcomes"].get(kind, 0) for kind in _FAILURES}
            row = {"round": number, "sampled": outcome.sampled, "newcomers": outcome.newcomers}
            row |= failures | {"refused": outcome.refused, "used": outcome.used}
            found.append(row | {key: note.get(key) for key in ("rss_mb", "seconds", "process")})
        return found


def make_held_out_fold(settings: PopulationSettings) -> Fold:
    """Make the fold whose test users are those who never train.

    Example:
        >>> make_held_out_fold(PopulationSettings(users=100, cohort=5, held_out=2)).test
        ('user-000000100', 'user-000000101')
    """
    names = tuple(user_name(index) for index in _held_out_indices(settings))
    return Fold(name=HELD_OUT_FOLD, train=(), test=names)


def with_held_out_clips(
    fold_inputs: FoldInputs, settings: PopulationSettings, population: SyntheticPopulation
) -> FoldInputs:
    """Put the held-out users' clips in place of the voices that users were drawn from.

    Args:
        fold_inputs: What pretraining gave, with the voices' clips.
        settings: The population's.
        population: Who the users are.
    """
    features: dict[str, Tensor] = {}
    clips: dict[str, tuple[Clip, ...]] = {}
    for index in _held_out_indices(settings):
        own, examples = population.draw_clips(index)
        clips[user_name(index)] = tuple(own)
        features |= {clip.clip_id: row for clip, row in zip(own, examples.features, strict=True)}
    return replace(fold_inputs, features=features, clips=clips)


def _held_out_indices(settings: PopulationSettings) -> range:
    return range(settings.users, settings.users + settings.held_out)
