"""A small population of Gaussian voices, and the transcript of a server over it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from builders import make_plan

from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    CalibrationQuery,
    CalibrationRelease,
)
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import (
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
    default_statistics,
)
from sottovoce.simulations.audit.audited_fold import SpeakerExamples
from sottovoce.simulations.audit.device_under_test import StatisticsRequest, Transcript

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, ROUNDS = 16, 12, 2
DELTA = 1e-5
PROJECTION = PublicProjection(
    mean=torch.zeros(FEATURES),
    matrix=torch.randn(FEATURES, INPUTS, generator=torch.Generator().manual_seed(1)) / 4,
    row_norm=1.0,
)
NOT_PRIVATE = make_plan(
    run="run",
    labels=LABELS,
    extractor="random",
    projection_hash=PROJECTION.content_hash(),
    model=ModelSpec(kind="linear", inputs=INPUTS, classes=3, bias_feature=0.3),
    rounds=ROUNDS,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    normaliser=EXACT_MEAN,
    calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5),
)
QUERY = CalibrationQuery(
    log_temperature=0.0,
    curvature=0.1,
    edges=torch.linspace(0.3, 0.9, len(SCORE_QUANTILES)),
    shares=torch.zeros(len(SCORE_QUANTILES) + 1),
)

MakeTranscript = Callable[..., Transcript]
MakePeople = Callable[..., dict[str, SpeakerExamples]]


def plan(epsilon: float | None) -> Plan:
    """A plan whose releases cost exactly so much; None for no privacy."""
    if epsilon is None:
        return NOT_PRIVATE
    precision = accounting.gaussian_mu(epsilon, DELTA) ** 2

    def noise(share: float) -> float:
        return float((share * precision) ** -0.5)

    return replace(
        NOT_PRIVATE,
        mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=noise(0.7 / ROUNDS)),
        centre=CentreRelease(clip_norm=1.5, noise_multiplier=noise(0.05)),
        normaliser=NormaliserRelease(
            clip_norm=0.8, count_weight=0.24, noise_multiplier=noise(0.14)
        ),
        count_noise=noise(0.01),
        calibration=CalibrationRelease(noise_multiplier=noise(0.1), subtracted_share=0.5),
    )


@pytest.fixture
def make_transcript() -> MakeTranscript:
    """Makes the transcript of a server that promises so much; ``None`` for nothing."""

    def make(epsilon: float | None) -> Transcript:
        agreed = plan(epsilon)
        start = flatten_parameters(build_network(agreed.model, 0))
        return Transcript(
            plan=agreed,
            projection=PROJECTION,
            speaker_statistics=default_statistics(INPUTS),
            centre=torch.zeros(INPUTS),
            class_weights=torch.ones(3),
            weights=[start] * ROUNDS,
            denominator=20.0,
            statistics_request=StatisticsRequest(weights=start, query=QUERY),
        )

    return make


@pytest.fixture
def people() -> MakePeople:
    """Makes users whose voices differ, and differ by gender."""

    def make(
        number: int, clips: int = 20, *, seed: int = 3, gender_gap: float = 1.0
    ) -> dict[str, SpeakerExamples]:
        draws = torch.Generator().manual_seed(seed)
        kinds = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(2))
        side = torch.randn(FEATURES, generator=torch.Generator().manual_seed(4))
        found = {}
        for index in range(number):
            labels = torch.arange(clips) % 3
            own = torch.randn(FEATURES, generator=draws) / 2 + gender_gap * (index % 2 - 0.5) * side
            features = kinds[labels] + own + torch.randn(clips, FEATURES, generator=draws) / 2
            ones = torch.ones(clips, dtype=torch.int64)
            examples = Examples(features=features, frames=ones, labels=labels)
            gender = ("female", "male")[index % 2]
            found[f"u{index:02d}"] = SpeakerExamples(examples=examples, gender=gender)
        return found

    return make


@pytest.fixture
def terms() -> dict[str, float]:
    """What bounds are asked for."""
    return {"delta": DELTA, "confidence": 0.95}
