"""A world small enough to look at: random vectors for voices, four devices, a linear model."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():  # Flower brings a typer that click 8.3 warns about
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from sottovoce.client.app import app as product_client
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.server import checkpoint
from sottovoce.server.app import app as product_server
from sottovoce.server.job import Job
from sottovoce.server.round import Aggregation
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import CentreRelease, NormaliserRelease, unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.shared.privacy.release import Unit
from sottovoce.shared.training import LocalTraining, UtteranceNoise
from sottovoce.simulations.devices.homes import Home, home
from sottovoce.simulations.devices.shelf import ShelfHost
from sottovoce.simulations.engines import local

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS = 6, 4, 12
DELTA = 1e-5
USERS = ("ada", "ben", "cleo", "dan")
"""Three train; ``dan`` only receives, and has labelled clips for a head."""

Tamper = Callable[[str, list[Message]], list[Message]]


@dataclass(frozen=True)
class World:
    """A prepared job and its devices."""

    folder: Path
    shelved: bool = False

    @property
    def home(self) -> Home:
        """Where the devices are."""
        return home(self.folder, "local" if self.shelved else "ray")

    @property
    def config(self) -> dict[str, str]:
        """The run's configuration."""
        return {"job": str(self.folder / "server"), **self.home.config}

    def device(self, user: str) -> Device:
        """A user's device as it lies on disk."""
        return self.home.device(USERS.index(user))

    def ledgers(self) -> dict[str, bytes]:
        """Every user's ledger, byte for byte; empty where nothing was booked."""
        return {user: self.device(user).ledger.lines for user in USERS}

    def released(self) -> Tensor:
        """The released weights, shape (params,)."""
        return checkpoint.released(self.folder / "server")[0]["weights"]

    def run(self, *, tamper: Tamper | None = None, **options: Any) -> None:
        """Run both apps on the local engine.

        Args:
            tamper: What becomes of an exchange's replies, by its type.
            options: As ``local.run`` takes them.
        """
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            if tamper:
                _tamper(grid, tamper)
            product_server(grid, context)

        settings: dict[str, Any] = {"devices": len(USERS), "config": self.config} | options
        if self.shelved:
            host = partial(ShelfHost, Path(self.config["shelf"]), Path(self.config["job"]))
            settings.setdefault("host", partial(host, shared=settings.get("workers", 1) > 1))
        local.run(server, settings.pop("client", product_client), **settings)


def _tamper(grid: Grid, tamper: Tamper) -> None:
    """Let a test have the replies before the server."""
    send = grid.send_and_receive

    def send_and_tamper(
        messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        given = list(messages)
        return tamper(given[0].metadata.message_type, list(send(given, timeout=timeout)))

    grid.send_and_receive = send_and_tamper  # type: ignore[method-assign]


MakeWorld = Callable[..., World]


@pytest.fixture(scope="session")
def make_world_at() -> MakeWorld:
    """Makes worlds in a given folder, alike but for what is asked for."""

    def make(
        folder: Path,
        *,
        epsilon: float | Mapping[str, float] = 20.0,
        seed: int | None = 7,
        users: tuple[str, ...] = USERS,
        shelved: bool = False,
        unit: Unit | None = None,
        **changes: Any,
    ) -> World:
        world, job = World(folder, shelved), make_job(devices=len(users), **changes)
        usual = Unit.USER if job.plan.unit == "user" else Unit.UTTERANCE
        devices = world.home
        for place, user in enumerate(users):
            own = epsilon if isinstance(epsilon, float) else epsilon.get(user, 20.0)
            budget = Budget(epsilon=own, delta=DELTA, unit=unit or usual)
            devices.put(place, *owned(user, budget, seed))
        devices.commit()
        devices.close()
        job.save(folder / "server")
        return world

    return make


@pytest.fixture
def make_world(make_world_at: MakeWorld, tmp_path: Path) -> MakeWorld:
    """Makes worlds by name, alike but for what is asked for."""
    return lambda name, **changes: make_world_at(tmp_path / name, **changes)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of tests that start a federation of processes."""
    config.addinivalue_line("markers", 'slow: takes a minute or more; leave out by -m "not slow"')


def plan(front: Front, *, rounds: int = 3) -> Plan:
    """A private plan; three rounds cost an epsilon of 8.4 at delta 1e-5."""
    return Plan(
        run="tiny",
        labels=LABELS,
        extractor="random",
        front=front.digest(),
        model=ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS)),
        rounds=rounds,
        training=LocalTraining(steps=2, sample_rate=0.5, learning_rate=0.5, denominator=1.0),
        mechanism=UtteranceNoise(clip_norm=1.0, noise_multiplier=1.0),
        centre=CentreRelease(radius=1.5, noise_multiplier=4.0),
        normaliser=NormaliserRelease(radius=0.8, count_weight=0.24, noise_multiplier=4.0),
        count_noise=4.0,
    )


@pytest.fixture(name="make_job")
def _make_job() -> Callable[..., Job]:
    """Makes jobs, alike but for what is asked for."""
    return make_job


def make_job(*, rounds: int = 3, **changes: Any) -> Job:
    """A job over random vectors."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(FEATURES, INPUTS, generator=generator)
    front = Front(mean=torch.zeros(FEATURES), matrix=matrix, length=1.0)
    agreed = plan(front, rounds=rounds)
    settings = {
        "plan": agreed,
        "aggregation": Aggregation(update_norm=100.0),
        "weights": flatten(build(agreed.model, seed=0)),
        "front": front,
        "population": unknown(INPUTS),
        "timeout_s": 30.0,
    }
    return Job(**settings | changes)


def owned(user: str, budget: Budget, seed: int | None) -> tuple[Facts, Clips]:
    """A user with a dozen random vectors; the last one only receives."""
    contributes = user != USERS[-1]
    generator = torch.Generator().manual_seed(USERS.index(user))
    labels = torch.arange(CLIPS) % len(LABELS)
    features = torch.randn(CLIPS, FEATURES, generator=generator)
    features[:, 0] += labels  # something to learn
    everyone = torch.ones(CLIPS, dtype=torch.bool)
    clips = Clips(
        examples=Examples(
            features=features, frames=torch.ones(CLIPS, dtype=torch.int64), labels=labels
        ),
        enrols=everyone,
        calibrates=everyone & (not contributes),
        trains=everyone & contributes,
    )
    facts = Facts(
        user=user, budgets=(budget,), contributes=contributes, labels=LABELS, simulated_seed=seed
    )
    return facts, clips
