"""What is longer than any honest device's answer is refused; what an honest one sends never is."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sottovoce.client.training.trainer import local_update
from sottovoce.server import limits
from sottovoce.server.job import Job
from sottovoce.server.round import Aggregation
from sottovoce.server.strategy import Training
from sottovoce.shared import wire
from sottovoce.shared.calibration import SENSITIVITY, CalibrationRelease
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import identity
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import EXACT_CENTRE, CentreRelease, unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.noise import SeededNoise
from sottovoce.shared.privacy.release import NoisedBy, UserNoise
from sottovoce.shared.privacy.users import UserPromise
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise

CLIPS, INPUTS, DENOMINATOR = 50, 3, 4.0
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=2)
WEIGHTS = flatten(build(MODEL, 0))
NONE = Plan(
    run="r",
    labels=("a", "b"),
    extractor="x",
    front=identity(INPUTS).digest(),
    model=MODEL,
    rounds=2,
    training=LocalTraining(
        steps=3, sample_rate=1.0, learning_rate=0.5, denominator=1.0, momentum=0.5
    ),
    mechanism=NoPrivacy(),
    centre=EXACT_CENTRE,
    normaliser=None,
    count_noise=0.0,
    calibration=CalibrationRelease(noise_multiplier=0.0, taken_back=0.0),
)
UTTERANCE = replace(
    NONE,
    mechanism=UtteranceNoise(clip_norm=0.01, noise_multiplier=2.0),
    centre=CentreRelease(radius=1.5, noise_multiplier=2.0),
    count_noise=2.0,
    calibration=CalibrationRelease(noise_multiplier=2.0, taken_back=0.5),
)
HIDDEN = UserNoise(noise_multiplier=3.0, clip_norm=2.0, noised_by=NoisedBy.SERVER)
USERS = UserPromise(counts=HIDDEN, centre=HIDDEN, update=HIDDEN, calibration=HIDDEN)
USER = replace(NONE, user=USERS)
BOTH = replace(
    UTTERANCE,
    mechanism=UtteranceNoise(clip_norm=0.01, noise_multiplier=2.0, sum_norm=2.0),
    training=replace(NONE.training, steps=1),
    user=USERS,
)


def longest(plan: Plan) -> float:
    """Of an update."""
    return limits.update(plan, params=len(WEIGHTS), denominator=DENOMINATOR)


@pytest.mark.parametrize("noise", [1e-9, 2.0])
def test_a_device_with_as_many_clips_as_one_may_have_is_within(
    monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    """All alike, every gradient is clipped and all add up: the longest update there is."""
    monkeypatch.setattr(limits, "MOST_CLIPS", CLIPS)
    plan = replace(UTTERANCE, mechanism=UtteranceNoise(clip_norm=0.01, noise_multiplier=noise))
    alike = Examples(
        features=torch.ones(CLIPS, INPUTS),
        frames=torch.ones(CLIPS, dtype=torch.int64),
        labels=torch.zeros(CLIPS, dtype=torch.int64),
    )
    lengths = [
        float(
            local_update(
                build(MODEL, 0),
                alike,
                torch.ones(2),
                replace(plan.training, denominator=DENOMINATOR),
                plan.mechanism,
                SeededNoise(torch.Generator().manual_seed(seed)),
                torch.Generator().manual_seed(seed),
            ).vector.norm()
        )
        for seed in range(20)
    ]

    assert max(lengths) <= longest(plan)
    if noise < 1:
        assert min(lengths) > 0.7 * longest(plan), "and no looser than momentum's last step"


@pytest.mark.parametrize("plan", [UTTERANCE, BOTH])
def test_a_devices_own_noise_never_makes_it_too_long(plan: Plan) -> None:
    draw = SeededNoise(torch.Generator().manual_seed(1))
    user = plan.user is not None
    for _ in range(2_000):
        counts = draw.normal((2,), plan.count_noise).norm() + (2.0 if user else limits.MOST_CLIPS)
        told = draw.normal((9,), 2.0 * SENSITIVITY).norm() + (
            2.0 if user else limits.MOST_CLIPS * SENSITIVITY
        )
        centre = draw.normal((INPUTS,), 3.0).norm() + (2.0 if user else limits.MOST_CLIPS * 1.5)
        assert counts <= limits.counts(plan)
        assert told <= limits.answers(plan)
        assert centre <= limits.centre(plan)


def test_where_users_are_bounded_a_device_is_too() -> None:
    for most in (limits.counts(USER), limits.centre(USER), limits.answers(USER), longest(USER)):
        assert most == pytest.approx(2.0, rel=2e-3)
    assert longest(BOTH) < 2.0 * longest(USER)
    assert limits.counts(NONE) == pytest.approx(limits.MOST_CLIPS, rel=2e-3)
    assert longest(NONE) == limits.centre(NONE) == math.inf, "where nothing is bounded"


@pytest.mark.parametrize(
    ("plan", "length", "taken"),
    [
        (UTTERANCE, 20.0, True),
        (UTTERANCE, 1e3, False),
        (BOTH, 1e3, False),
        (USER, 2.0, True),
        (USER, 2.1, False),
        (NONE, 1e3, True),
        (NONE, 2e6, False),
    ],
)
def test_an_update_that_no_honest_device_sends_takes_no_part(
    tmp_path: Path, plan: Plan, length: float, taken: bool
) -> None:
    training = Training(a_job(plan), tmp_path, None)  # type: ignore[arg-type]
    value = torch.zeros_like(WEIGHTS)
    value[0] = length
    reply = wire.Reply(user="eve", status=wire.Status.OK, value=value)
    request = wire.TrainRequest(
        plan=plan.digest(),
        round=1,
        weights=WEIGHTS,
        class_weights=torch.ones(2),
        centre=torch.zeros(INPUTS),
        denominator=DENOMINATOR,
    )

    assert (training._length(reply, request) is not None) == taken


@pytest.mark.parametrize("plan", [NONE, UTTERANCE, USER, BOTH])
def test_label_counts_that_no_honest_device_has_are_refused(tmp_path: Path, plan: Plan) -> None:
    """They would break what rounds divide by."""
    training = Training(a_job(plan), tmp_path, None)  # type: ignore[arg-type]

    def believed(counts: float) -> bool:
        value = torch.tensor([counts, 0.0, 0.0, 0.0, 0.0])
        return training._believed(wire.Reply(user="eve", status=wire.Status.OK, value=value))

    assert believed(2.0)
    assert not believed(3e38)
    assert not believed(-3e38)


def a_job(plan: Plan) -> Job:
    """A job of this plan, with the usual validation."""
    return Job(
        plan=plan,
        aggregation=Aggregation(),
        weights=WEIGHTS,
        front=identity(INPUTS),
        population=unknown(INPUTS),
        devices=1,
    )
