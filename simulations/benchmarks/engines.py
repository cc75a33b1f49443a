"""The local engine and a plain PyTorch loop on the same work: the limit of what it can reach.

A small head: 100 users, a cohort of 20 a round by coins, three full-batch steps each, a bound on
every update and noise on their sum. The engine's devices read and write messages, keep ledgers and
answer each round once; its server validates, bounds again, and keeps every round. The loop does
none of it. A heavier client, for workers: cnn-attention on log-mel.
"""

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.client.owner import Clips, Facts
from sottovoce.server.job import Job
from sottovoce.server.round import Aggregation
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import identity
from sottovoce.shared.models.flat import flatten, load_flat
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.release import NoisedBy, UserNoise
from sottovoce.shared.privacy.users import UserPromise
from sottovoce.shared.training import LocalTraining, NoPrivacy
from sottovoce.simulations.devices.homes import LOCAL, home
from sottovoce.simulations.devices.shelf import ShelfHost
from sottovoce.simulations.engines import local

CLASSES: Final = 8
_LABELS: Final = tuple("abcdefgh")
_SEED: Final = 5
_CLIP: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What an engine is measured on.

    Attributes:
        name: How it is called in tables.
        spec: The model.
        users: How many there are.
        joins: Chance that a user joins a round.
        clips: Of each user.
        frames: Of each clip; 1 where the model reads vectors.
        steps: Local steps a round.
        rounds: Rounds of one run; the first is not counted.
    """

    name: str
    spec: ModelSpec
    users: int
    joins: float
    clips: int
    frames: int = 1
    steps: int = 3
    rounds: int = 20


SMALL: Final = Work(
    name="small head, about 100k parameters",
    spec=ModelSpec(kind="mlp", inputs=768, classes=CLASSES, hidden=128),
    users=100,
    joins=0.2,
    clips=60,
)
HEAVY: Final = Work(
    name="cnn-attention",
    spec=ModelSpec(kind="cnn-attention", inputs=64, classes=CLASSES),
    users=8,
    joins=1.0,
    clips=30,
    frames=150,
    rounds=4,
)


class Clock(logging.Handler):
    """Hears rounds end; counts clients that were asked to train.

    Args:
        cpu: Seconds of processor time so far.
    """

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        super().__init__(logging.INFO)
        self._cpu = cpu
        self.rounds: list[tuple[float, float]] = []
        self.clients: list[int] = []
        self.asked = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time."""
        if record.msg.startswith("round "):
            self.rounds.append((self._cpu(), time.perf_counter()))
            self.clients.append(self.asked)

    def count(self, message: Any) -> bool:  # noqa: ANN401  (Flower's message)
        """Count a message that asks for training; none is lost."""
        self.asked += message.metadata.message_type == "train"
        return False

    def per_client(self, which: int) -> list[float]:
        """Milliseconds a client, of every round but the first; 0 for CPU, 1 for wall."""
        return [
            1e3 * (self.rounds[n][which] - self.rounds[n - 1][which]) / clients
            for n in range(1, len(self.rounds))
            if (clients := self.clients[n] - self.clients[n - 1])
        ]


@contextmanager
def heard(clock: Clock) -> Iterator[None]:
    """Let a clock hear the server's rounds, and nobody else."""
    log = logging.getLogger("sottovoce.server")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(clock)
    try:
        yield
    finally:
        log.removeHandler(clock)


def on_engine(work: Work, *, workers: int) -> Clock:
    """One run on the local engine."""
    from sottovoce.client.app import app as client
    from sottovoce.server.app import app as server

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, heard(clock):
        config = world(Path(folder), work)
        host = partial(ShelfHost, Path(config["shelf"]), Path(config["job"]), shared=workers > 1)
        local.run(
            server,
            client,
            devices=work.users,
            config=config,
            workers=workers,
            host=host,
            lost=clock.count,
        )
    return clock


def plain_loop(work: Work) -> list[float]:
    """The same training without any engine: CPU milliseconds a client, of every round.

    Local steps, a bound on each update, noise on the sum, and nothing else.
    """
    model, examples = build(work.spec, 0), [_examples(work, user) for user in range(work.users)]
    weights, coins, times = flatten(model), torch.Generator().manual_seed(_SEED), []
    for _ in range(work.rounds):
        cohort = torch.nonzero(torch.rand(work.users, generator=coins) < work.joins).flatten()
        started = time.process_time()
        total = torch.zeros_like(weights, dtype=torch.float64)
        for user in cohort.tolist():
            update = _trained(model, weights, examples[user], work.steps)
            total += update * min(1.0, _CLIP / float(torch.linalg.vector_norm(update)))
        total += _CLIP * torch.randn(len(total), generator=coins, dtype=torch.float64)
        weights = weights + (total / (work.users * work.joins)).float()
        times.append(1e3 * (time.process_time() - started) / max(len(cohort), 1))
    return times[1:]


def _trained(model: torch.nn.Module, weights: Tensor, examples: Examples, steps: int) -> Tensor:
    """One client's update."""
    load_flat(model, weights)
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(model(examples.features, examples.frames), examples.labels).backward()  # type: ignore[no-untyped-call]
        descent.step()
    return flatten(model) - weights


def world(folder: Path, work: Work, engine: str = LOCAL) -> dict[str, str]:
    """Job and devices on disk, where an engine finds them."""

    def hidden(rate: float = 1.0) -> UserNoise:
        return UserNoise(
            noise_multiplier=1.0, clip_norm=_CLIP, noised_by=NoisedBy.SERVER, sample_rate=rate
        )

    front = identity(work.spec.inputs)
    plan = Plan(
        run="bench",
        labels=_LABELS,
        extractor="log-mel",
        front=front.digest(),
        model=work.spec,
        rounds=work.rounds,
        training=LocalTraining(
            steps=work.steps, sample_rate=1.0, learning_rate=0.1, denominator=1.0
        ),
        mechanism=NoPrivacy(),
        centre=None,
        normaliser=None,
        count_noise=0.0,
        user=UserPromise(counts=hidden(), centre=None, update=hidden(work.joins)),
    )
    devices = home(folder, engine)
    for user in range(work.users):
        devices.put(user, *_device(f"user{user:03d}", _examples(work, user)))
    devices.commit()
    devices.close()
    Job(
        plan=plan,
        aggregation=Aggregation(),
        weights=flatten(build(work.spec, 0)),
        front=front,
        population=unknown(work.spec.inputs),
        devices=work.users,
        quorum=1.0,
        simulated_seed=_SEED,
    ).save(folder / "server")
    return {"job": str(folder / "server"), **devices.config}


def _device(user: str, examples: Examples) -> tuple[Facts, Clips]:
    """One user's device."""
    everything = torch.ones(len(examples), dtype=torch.bool)
    clips = Clips(examples=examples, enrols=everything, calibrates=~everything, trains=everything)
    return Facts(user=user, budgets=(), labels=_LABELS, simulated_seed=1), clips


def _examples(work: Work, user: int) -> Examples:
    """One user's clips, of noise."""
    random = torch.Generator().manual_seed(user)
    shape = (work.clips, work.frames, work.spec.inputs) if work.frames > 1 else (
        work.clips, work.spec.inputs
    )  # fmt: skip
    return Examples(
        features=torch.randn(shape, generator=random),
        frames=torch.full((work.clips,), work.frames),
        labels=torch.randint(CLASSES, (work.clips,), generator=random),
    )


def workers(turns: int) -> dict[str, float]:
    """What a second worker is worth on the heavier client, by the clock.

    Args:
        turns: Runs with one worker and with two, taking turns.
    """
    one, two = [], []
    for _ in range(turns):
        one.append(statistics.median(on_engine(HEAVY, workers=1).per_client(1)))
        two.append(statistics.median(on_engine(HEAVY, workers=2).per_client(1)))
    return {
        "one_worker_wall_ms_a_client": statistics.median(one),
        "two_workers_wall_ms_a_client": statistics.median(two),
        "two_workers_speed": statistics.median(a / b for a, b in zip(one, two, strict=True)),
    }


def peaks() -> dict[str, float]:
    """The most memory that a process of the small work holds, in MiB, each in one of its own."""
    works = {"plain loop": "plain_loop(SMALL)", "local engine": "on_engine(SMALL, workers=1)"}
    return {name: _peak(f"from {__name__} import *; {work}") for name, work in works.items()}


def _peak(program: str) -> float:
    """MiB that a program came to hold."""
    program += "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    words = [sys.executable, "-c", program]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(said.splitlines()[-1]) / (1024 if sys.platform == "linux" else 2**20)
