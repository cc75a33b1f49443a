"""A world small enough to look at: random vectors for voices, four devices, a linear model."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():  # Flower brings a typer that click 8.3 warns about
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app  # noqa: F401

from sottovoce.client.device import Clips, Device, Facts
from sottovoce.client.ledger import Budget
from sottovoce.server import checkpoint
from sottovoce.server.job import Job
from sottovoce.server.round import Aggregation
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import CentreRelease, NormaliserRelease, unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.training import LocalTraining, UtteranceNoise

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS = 6, 4, 12
USERS = ("ada", "ben", "cleo", "dan")
"""Three train; ``dan`` only receives, and has labelled clips for a head."""


@dataclass(frozen=True)
class World:
    """A prepared job and its devices."""

    folder: Path

    @property
    def config(self) -> dict[str, str]:
        """The run's configuration."""
        return {"job": str(self.folder / "server"), "devices": str(self.folder / "devices")}

    def device(self, user: str) -> Device:
        """A user's device as it lies on disk."""
        return Device(self.folder / "devices" / f"{USERS.index(user):06d}")

    def ledgers(self) -> dict[str, bytes]:
        """Every user's ledger, byte for byte; empty where nothing was booked."""
        paths = {user: self.device(user).ledger.path for user in USERS}
        return {user: path.read_bytes() if path.exists() else b"" for user, path in paths.items()}

    def released(self) -> Tensor:
        """The released weights, shape (params,)."""
        return checkpoint.released(self.folder / "server")[0]["weights"]


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> MakeWorld:
    """Makes worlds that are alike but for what is asked for."""

    def make(name: str, *, epsilon: float = 20.0, **changes: Any) -> World:
        folder = tmp_path / name
        seed = changes.pop("seed", 1)
        for place, user in enumerate(USERS):
            _device(folder / "devices" / f"{place:06d}", user, Budget(epsilon=epsilon, delta=1e-5))
        _job(seed, **changes).save(folder / "server")
        return World(folder)

    return make


def plan(front: Front, *, rounds: int = 3) -> Plan:
    """A private plan, some epsilon of 14 at delta 1e-5 for three rounds."""
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


def _job(seed: int, *, rounds: int = 3, **changes: Any) -> Job:
    """A job over the four devices."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(FEATURES, INPUTS, generator=generator)
    front = Front(mean=torch.zeros(FEATURES), matrix=matrix, length=1.0)
    agreed = plan(front, rounds=rounds)
    settings = {
        "plan": agreed,
        "aggregation": Aggregation(update_norm=100.0),
        "weights": flatten(build(agreed.model, seed=0)),
        "front": front,
        "population": unknown(INPUTS),
        "devices": len(USERS),
        "timeout_s": 30.0,
    }
    return Job(**settings | changes)


def _device(folder: Path, user: str, budget: Budget) -> None:
    """A device with a dozen random vectors; the last user only receives."""
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
        user=user, budget=budget, contributes=contributes, labels=LABELS, simulated_seed=7
    )
    Device.create(folder, facts, clips)
