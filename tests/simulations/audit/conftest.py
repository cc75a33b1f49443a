"""A small population of Gaussian voices, and the course of a server over it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sottovoce.shared.calibration import LEVELS, CalibrationRelease, Question
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
    unknown,
)
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import accountant
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.simulations.audit.case import Person
from sottovoce.simulations.audit.subject import Asked, Course

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, ROUNDS = 16, 12, 2
DELTA = 1e-5
FRONT = Front(
    mean=torch.zeros(FEATURES),
    matrix=torch.randn(FEATURES, INPUTS, generator=torch.Generator().manual_seed(1)) / 4,
    length=1.0,
)
OPEN = Plan(
    run="run",
    labels=LABELS,
    extractor="random",
    front=FRONT.digest(),
    model=ModelSpec(kind="linear", inputs=INPUTS, classes=3, bias_feature=0.3),
    rounds=ROUNDS,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    mechanism=NoPrivacy(),
    centre=EXACT_CENTRE,
    normaliser=EXACT_MEAN,
    count_noise=0.0,
    calibration=CalibrationRelease(noise_multiplier=0.0, taken_back=0.5),
)
QUESTION = Question(
    log_temperature=0.0,
    bend=0.1,
    edges=torch.linspace(0.3, 0.9, len(LEVELS)),
    shares=torch.zeros(len(LEVELS) + 1),
)

MakeCourse = Callable[..., Course]
MakePeople = Callable[..., dict[str, Person]]


def plan(epsilon: float | None) -> Plan:
    """A plan whose releases cost exactly so much; None for no privacy."""
    if epsilon is None:
        return OPEN
    precision = accountant.gaussian_mu(epsilon, DELTA) ** 2

    def noise(share: float) -> float:
        return float((share * precision) ** -0.5)

    return replace(
        OPEN,
        mechanism=UtteranceNoise(clip_norm=0.5, noise_multiplier=noise(0.7 / ROUNDS)),
        centre=CentreRelease(radius=1.5, noise_multiplier=noise(0.05)),
        normaliser=NormaliserRelease(radius=0.8, count_weight=0.24, noise_multiplier=noise(0.14)),
        count_noise=noise(0.01),
        calibration=CalibrationRelease(noise_multiplier=noise(0.1), taken_back=0.5),
    )


@pytest.fixture
def course() -> MakeCourse:
    """Makes the course of a server that promises so much; ``None`` for nothing."""

    def make(epsilon: float | None) -> Course:
        agreed = plan(epsilon)
        start = flatten(build(agreed.model, 0))
        return Course(
            plan=agreed,
            front=FRONT,
            population=unknown(INPUTS),
            centre=torch.zeros(INPUTS),
            class_weights=torch.ones(3),
            weights=[start] * ROUNDS,
            denominator=20.0,
            asked=Asked(weights=start, question=QUESTION),
        )

    return make


@pytest.fixture
def people() -> MakePeople:
    """Makes users whose voices differ, and lie apart by gender."""

    def make(
        number: int, clips: int = 20, *, seed: int = 3, apart: float = 1.0
    ) -> dict[str, Person]:
        draws = torch.Generator().manual_seed(seed)
        kinds = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(2))
        side = torch.randn(FEATURES, generator=torch.Generator().manual_seed(4))
        found = {}
        for place in range(number):
            labels = torch.arange(clips) % 3
            own = torch.randn(FEATURES, generator=draws) / 2 + apart * (place % 2 - 0.5) * side
            features = kinds[labels] + own + torch.randn(clips, FEATURES, generator=draws) / 2
            ones = torch.ones(clips, dtype=torch.int64)
            examples = Examples(features=features, frames=ones, labels=labels)
            gender = ("female", "male")[place % 2]
            found[f"u{place:02d}"] = Person(examples=examples, gender=gender)
        return found

    return make


@pytest.fixture
def terms() -> dict[str, float]:
    """What bounds are asked for."""
    return {"delta": DELTA, "confidence": 0.95}
