"""The local engine beside a plain PyTorch loop on the same work, its lower limit.

A small head: 100 users, a Poisson cohort of 20 a round, three full-batch steps each, a norm bound
on every update and noise on their sum. The engine's devices read and write messages, keep ledgers
and answer each round once; its server validates, bounds again, and stores every round. The loop
does none of it. A heavier client, for workers: cnn-attention on log-mel.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters, load_parameters
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.events import Event, RoundEnded
from sottovoce.shared.protocol.local_training import LocalTraining, NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import default_statistics
from sottovoce.simulations.devices.backends import LOCAL_ENGINE, open_backend
from sottovoce.simulations.devices.device_pool import DevicePoolHost
from sottovoce.simulations.engines import local

CLASSES: Final = 8
_LABELS: Final = tuple("abcdefgh")
_SEED: Final = 5
_CLIP: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model, users and rounds on which an engine is measured.

    Attributes:
        name: Name in tables.
        spec: The model.
        users: Number of users.
        user_sampling_rate: Chance that a user joins a round.
        clips_per_user: Clips of each user.
        frames_per_clip: Frames of each clip; 1 where the model reads vectors.
        steps: Local steps per round.
        rounds: Rounds of one run; the first is not counted.
    """

    name: str
    spec: ModelSpec
    users: int
    user_sampling_rate: float
    clips_per_user: int
    frames_per_clip: int = 1
    steps: int = 3
    rounds: int = 20


SMALL: Final = Workload(
    name="small head, about 100k parameters",
    spec=ModelSpec(kind="mlp", inputs=768, classes=CLASSES, hidden=128),
    users=100,
    user_sampling_rate=0.2,
    clips_per_user=60,
)
HEAVY: Final = Workload(
    name="cnn-attention",
    spec=ModelSpec(kind="cnn-attention", inputs=64, classes=CLASSES),
    users=8,
    user_sampling_rate=1.0,
    clips_per_user=30,
    frames_per_clip=150,
    rounds=4,
)


class RoundTimer:
    """Listener that records when rounds end, and how many clients trained.

    Args:
        cpu: Seconds of processor time so far.
    """

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu = cpu
        self.rounds: list[tuple[float, float]] = []
        self.clients: list[int] = []

    def handle_event(self, event: Event, /) -> None:
        """Record the time of a round's end."""
        if isinstance(event, RoundEnded):
            self.rounds.append((self._cpu(), time.perf_counter()))
            self.clients.append(event.cohort_size or 0)

    def ms_per_client(self, which: int) -> list[float]:
        """Compute milliseconds per client, of every round but the first; 0 for CPU, 1 for wall."""
        return [
            1e3 * (self.rounds[n][which] - self.rounds[n - 1][which]) / clients
            for n in range(1, len(self.rounds))
            if (clients := self.clients[n])
        ]


def run_on_engine(work: Workload, *, workers: int) -> RoundTimer:
    """Make one run on the local engine and return its times."""
    from sottovoce.client.app import app as client
    from sottovoce.server.app import app as server

    clock = RoundTimer()
    with tempfile.TemporaryDirectory() as folder:
        config = prepare_workload(Path(folder), work)
        host = partial(
            DevicePoolHost, Path(config["device_database"]), Path(config["job"]), shared=workers > 1
        )
        local.run_server_and_client(
            local.with_listener(server, clock),
            client,
            devices=work.users,
            config=config,
            workers=workers,
            host=host,
        )
    return clock


def run_plain_loop(work: Workload) -> list[float]:
    """Run the same training without any engine; returns CPU milliseconds per client and round.

    Local steps, a bound on each update, noise on the sum, and nothing else.
    """
    model, examples = (
        build_network(work.spec, 0),
        [_examples(work, user) for user in range(work.users)],
    )
    weights, rng, times = flatten_parameters(model), torch.Generator().manual_seed(_SEED), []
    for _ in range(work.rounds):
        cohort = torch.nonzero(
            torch.rand(work.users, generator=rng) < work.user_sampling_rate
        ).flatten()
        started = time.process_time()
        total = torch.zeros_like(weights, dtype=torch.float64)
        for user in cohort.tolist():
            update = _trained(model, weights, examples[user], work.steps)
            total += update * min(1.0, _CLIP / float(torch.linalg.vector_norm(update)))
        # The noise multiplier is 1, as in the engine's plan.
        total += _CLIP * torch.randn(len(total), generator=rng, dtype=torch.float64)
        weights = weights + (total / (work.users * work.user_sampling_rate)).float()
        times.append(1e3 * (time.process_time() - started) / max(len(cohort), 1))
    # The first round is left out, as for engines: it pays for allocations.
    return times[1:]


def _trained(model: torch.nn.Module, weights: Tensor, examples: Examples, steps: int) -> Tensor:
    """One client's update."""
    load_parameters(model, weights)
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(model(examples.features, examples.frames), examples.labels).backward()  # type: ignore[no-untyped-call]
        descent.step()
    return flatten_parameters(model) - weights


def prepare_workload(folder: Path, work: Workload, engine: str = LOCAL_ENGINE) -> dict[str, str]:
    """Write job and devices to disk, in the layout of an engine."""

    def hidden(rate: float = 1.0) -> SumMechanism:
        return SumMechanism(
            noise_multiplier=1.0, clip_norm=_CLIP, noised_by=NoiseSource.SERVER, sample_rate=rate
        )

    projection = identity_projection(work.spec.inputs)
    plan = Plan(
        run="bench",
        labels=_LABELS,
        extractor="log-mel",
        projection_hash=projection.content_hash(),
        model=work.spec,
        rounds=work.rounds,
        training=LocalTraining(
            steps=work.steps, sample_rate=1.0, learning_rate=0.1, denominator=1.0
        ),
        mechanism=NoPrivacy(),
        centre=None,
        normaliser=None,
        count_noise=0.0,
        # User-level privacy, so that the server's clipping and noise are part of what is measured.
        user=UserLevelPrivacy(counts=hidden(), centre=None, update=hidden(work.user_sampling_rate)),
    )
    devices = open_backend(folder, engine)
    for user in range(work.users):
        devices.create_device(user, *_device(f"user{user:03d}", _examples(work, user)))
    devices.commit_changes()
    devices.close()
    Job(
        plan=plan,
        aggregation=AggregationSettings(),
        weights=flatten_parameters(build_network(work.spec, 0)),
        projection=projection,
        speaker_statistics=default_statistics(work.spec.inputs),
        devices=work.users,
        quorum=1.0,
        simulated_seed=_SEED,
    ).save(folder / "server")
    return {"job": str(folder / "server"), **devices.engine_config}


def _device(user: str, examples: Examples) -> tuple[DeviceProfile, LabelledFeatures]:
    """One user's device."""
    everything = torch.ones(len(examples), dtype=torch.bool)
    features = LabelledFeatures(
        examples=examples, for_enrolment=everything, for_head=~everything, for_training=everything
    )
    # No budget: a benchmark repeats rounds at will.
    return DeviceProfile(user=user, budgets=(), labels=_LABELS, simulated_seed=1), features


def _examples(work: Workload, user: int) -> Examples:
    """One user's clips, of noise."""
    random = torch.Generator().manual_seed(user)
    frames = (work.frames_per_clip,) if work.frames_per_clip > 1 else ()
    shape = (work.clips_per_user, *frames, work.spec.inputs)
    return Examples(
        features=torch.randn(shape, generator=random),
        frames=torch.full((work.clips_per_user,), work.frames_per_clip),
        labels=torch.randint(CLASSES, (work.clips_per_user,), generator=random),
    )


def compare_workers(repeats: int) -> dict[str, float]:
    """Measure the speed of two workers against one on the heavier client, by the clock.

    Args:
        repeats: Runs with one worker and with two, alternating.
    """
    one, two = [], []
    for _ in range(repeats):
        one.append(statistics.median(run_on_engine(HEAVY, workers=1).ms_per_client(1)))
        two.append(statistics.median(run_on_engine(HEAVY, workers=2).ms_per_client(1)))
    return {
        "one_worker_wall_ms_a_client": statistics.median(one),
        "two_workers_wall_ms_a_client": statistics.median(two),
        "two_workers_speed": statistics.median(a / b for a, b in zip(one, two, strict=True)),
    }


def measure_peak_memory() -> dict[str, float]:
    """Measure the peak memory of a process for the small work, in MiB, each in its own."""
    works = {
        "plain loop": "run_plain_loop(SMALL)",
        "local engine": "run_on_engine(SMALL, workers=1)",
    }
    return {name: _peak(f"from {__name__} import *; {work}") for name, work in works.items()}


def _peak(program: str) -> float:
    """MiB that a program came to hold."""
    program += "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    words = [sys.executable, "-c", program]
    # Linux counts in KiB, macOS in bytes.
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(printed.splitlines()[-1]) / (1024 if sys.platform == "linux" else 2**20)
