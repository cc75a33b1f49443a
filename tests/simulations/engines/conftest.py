"""A small federation: random vectors for voices, four devices, a linear model."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_noised_plan
from torch import Tensor

with warnings.catch_warnings():  # Flower brings a typer that click 8.3 warns about
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from sottovoce.client.app import app as product_client
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.app import app as product_server
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.protocol.local_training import LocalTraining
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import (
    default_statistics,
)
from sottovoce.simulations.devices.backends import DeviceBackend, open_backend
from sottovoce.simulations.devices.device_pool import DevicePoolHost
from sottovoce.simulations.engines import local

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS = 6, 4, 12
DELTA = 1e-5
USERS = ("ada", "ben", "cleo", "dan")
"""Three train; ``dan`` only receives, and has labelled clips for a head."""

Tamper = Callable[[str, list[Message]], list[Message]]


@dataclass(frozen=True)
class Federation:
    """A prepared job and its devices."""

    folder: Path
    in_database: bool = False

    @property
    def backend(self) -> DeviceBackend:
        """Where the devices are."""
        return open_backend(self.folder, "local" if self.in_database else "ray")

    @property
    def config(self) -> dict[str, str]:
        """The run's configuration."""
        return {"job": str(self.folder / "server"), **self.backend.engine_config}

    def device(self, user: str) -> Device:
        """A user's device as it lies on disk."""
        return self.backend.open_device(USERS.index(user))

    def ledgers(self) -> dict[str, bytes]:
        """Every user's ledger, byte for byte; empty where nothing was booked."""
        return {user: self.device(user).ledger.raw_bytes for user in USERS}

    def released(self) -> Tensor:
        """The released weights, shape (params,)."""
        return checkpoint.load_released_model(self.folder / "server")[0]["weights"]

    def run(self, *, tamper: Tamper | None = None, **options: Any) -> None:
        """Run both apps on the local engine.

        Args:
            tamper: What becomes of an exchange's replies, by its type.
            options: As ``local.run_server_and_client`` takes them.
        """
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            if tamper:
                _tamper(grid, tamper)
            product_server(grid, context)

        settings: dict[str, Any] = {"devices": len(USERS), "config": self.config} | options
        if self.in_database:
            host = partial(
                DevicePoolHost, Path(self.config["device_database"]), Path(self.config["job"])
            )
            settings.setdefault("host", partial(host, shared=settings.get("workers", 1) > 1))
        local.run_server_and_client(server, settings.pop("client", product_client), **settings)


def _tamper(grid: Grid, tamper: Tamper) -> None:
    """Let a test have the replies before the server."""
    send = grid.send_and_receive

    def send_and_tamper(
        messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        return tamper(sent[0].metadata.message_type, list(send(sent, timeout=timeout)))

    grid.send_and_receive = send_and_tamper  # type: ignore[method-assign]


MakeFederation = Callable[..., Federation]


@pytest.fixture(scope="session")
def make_federation_at() -> MakeFederation:
    """Makes federations in a folder, the same but for what is asked for."""

    def make(
        folder: Path,
        *,
        epsilon: float | Mapping[str, float] = 20.0,
        seed: int | None = 7,
        users: tuple[str, ...] = USERS,
        in_database: bool = False,
        unit: PrivacyUnit | None = None,
        **changes: Any,
    ) -> Federation:
        federation, job = Federation(folder, in_database), make_job(devices=len(users), **changes)
        usual = job.plan.scheme.account_unit
        devices = federation.backend
        for index, user in enumerate(users):
            own = epsilon if isinstance(epsilon, float) else epsilon.get(user, 20.0)
            budget = PrivacyBudget(epsilon=own, delta=DELTA, unit=unit or usual)
            devices.create_device(index, *owned(user, budget, seed))
        devices.commit_changes()
        devices.close()
        job.save(folder / "server")
        return federation

    return make


@pytest.fixture
def make_federation(make_federation_at: MakeFederation, tmp_path: Path) -> MakeFederation:
    """Makes federations by name, the same but for what is asked for."""
    return lambda name, **changes: make_federation_at(tmp_path / name, **changes)


def plan(projection: PublicProjection, *, rounds: int = 3) -> Plan:
    """A private plan; three rounds cost an epsilon of 8.4 at delta 1e-5."""
    return make_noised_plan(
        run="tiny",
        labels=LABELS,
        extractor="random",
        projection_hash=projection.content_hash(),
        model=ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS)),
        rounds=rounds,
        training=LocalTraining(steps=2, sample_rate=0.5, learning_rate=0.5, denominator=1.0),
    )


@pytest.fixture(name="make_job")
def _make_job() -> Callable[..., Job]:
    """Makes jobs, the same but for what is asked for."""
    return make_job


def make_job(*, rounds: int = 3, **changes: Any) -> Job:
    """A job over random vectors."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(FEATURES, INPUTS, generator=generator)
    projection = PublicProjection(mean=torch.zeros(FEATURES), matrix=matrix, row_norm=1.0)
    agreed = plan(projection, rounds=rounds)
    settings = {
        "plan": agreed,
        "aggregation": AggregationSettings(max_update_norm=100.0),
        "weights": flatten_parameters(build_network(agreed.model, seed=0)),
        "projection": projection,
        "speaker_statistics": default_statistics(INPUTS),
        "timeout_s": 30.0,
    }
    return Job(**settings | changes)


def owned(
    user: str, budget: PrivacyBudget, seed: int | None
) -> tuple[DeviceProfile, LabelledFeatures]:
    """A user with a dozen random vectors; the last one only receives."""
    contributes = user != USERS[-1]
    generator = torch.Generator().manual_seed(USERS.index(user))
    labels = torch.arange(CLIPS) % len(LABELS)
    vectors = torch.randn(CLIPS, FEATURES, generator=generator)
    vectors[:, 0] += labels  # something to learn
    everyone = torch.ones(CLIPS, dtype=torch.bool)
    features = LabelledFeatures(
        examples=Examples(
            features=vectors, frames=torch.ones(CLIPS, dtype=torch.int64), labels=labels
        ),
        for_enrolment=everyone,
        for_head=everyone & (not contributes),
        for_training=everyone & contributes,
    )
    profile = DeviceProfile(
        user=user,
        budgets=(budget,),
        contributes=contributes,
        labels=LABELS,
        simulated_seed=seed,
        min_cohort=3,
        min_dishonest_share=0.0,
    )
    return profile, features
