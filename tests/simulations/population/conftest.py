"""Small crowds that run in seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.simulations import reading
from sottovoce.simulations.population.run import world_of
from sottovoce.simulations.population.world import CrowdWorld
from sottovoce.simulations.scenario import Scenario

SCENARIO = """
corpus = "synthetic"
data = "speakers=4,clips=12,seed=7"
encoder = "descriptors"
unit = "{unit}"
epsilon = 8.0
user_delta = 1e-4
rounds = {rounds}
head_clips = 3
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

[recipe.front]
dims = 8
"""

Read = Callable[..., Scenario]
MakeWorld = Callable[..., CrowdWorld]


@pytest.fixture(scope="session")
def read_crowd() -> Read:
    """A settled scenario over a crowd of 500, 20 a round."""

    def read(*, unit: str = "user", rounds: int = 4, workers: int = 1, more: str = "") -> Scenario:
        text = SCENARIO.format(unit=unit, rounds=rounds, workers=workers, more=more)
        return reading.read(text, source="test")

    return read


@pytest.fixture(scope="session")
def make_crowd_world(read_crowd: Read) -> MakeWorld:
    """The world of such a scenario, not yet run."""

    def make(out: Path, **settings: object) -> CrowdWorld:
        scenario = read_crowd(**settings)
        return world_of(scenario, out, lambda _line: None, lambda *_: None)[1]

    return make
