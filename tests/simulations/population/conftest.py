"""Small populations that run in seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.simulations.population.fold import PopulationFoldRun
from sottovoce.simulations.population.run import prepare_fold_run
from sottovoce.simulations.scenario import loading
from sottovoce.simulations.scenario.scenario import Scenario

SCENARIO = """
corpus = "synthetic"
data = "speakers=4,clips=12,seed=7"
encoder = "descriptors"
unit = "{unit}"
epsilon = 2.0
user_delta = 1e-4
rounds = {rounds}
labelled_clips_per_user = 3
workers = {workers}

[population]
users = 500
cohort = 20
held_out = 6
{more}

[[public]]
name = "synthetic"
data = "speakers=6,clips=12,seed=90210"

[recipe]
model = "linear"

[recipe.projection]
dims = 8
"""

Read = Callable[..., Scenario]
MakeFoldRun = Callable[..., PopulationFoldRun]


@pytest.fixture(scope="session")
def read_scenario() -> Read:
    """A settled scenario over a population of 500, 20 a round."""

    def read(*, unit: str = "user", rounds: int = 4, workers: int = 1, more: str = "") -> Scenario:
        text = SCENARIO.format(unit=unit, rounds=rounds, workers=workers, more=more)
        return loading.parse_scenario(text, source="test")

    return read


@pytest.fixture(scope="session")
def make_fold_run(read_scenario: Read) -> MakeFoldRun:
    """The fold of such a scenario, not yet run."""

    def make(out: Path, **settings: object) -> PopulationFoldRun:
        scenario = read_scenario(**settings)
        return prepare_fold_run(scenario, out, lambda _line: None, lambda *_: None)[1]

    return make
