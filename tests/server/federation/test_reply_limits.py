"""What is longer than any honest device's answer is refused; what an honest one sends never is."""

import math
from dataclasses import replace

import pytest
import torch
from builders import make_plan

from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation import reply_limits
from sottovoce.server.federation.reply_validation import ReplyValidator
from sottovoce.shared.calibration.head_statistics import SENSITIVITY, CalibrationRelease
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import scheme
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol import messages
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import CentreRelease

CLIPS, INPUTS, DENOMINATOR = 50, 3, 4.0
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=2)
WEIGHTS = flatten_parameters(build_network(MODEL, 0))
NONE = make_plan(
    projection_hash=identity_projection(INPUTS).content_hash(),
    model=MODEL,
    rounds=2,
    training=LocalTraining(
        steps=3, sample_rate=1.0, learning_rate=0.5, denominator=1.0, momentum=0.5
    ),
    calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.0),
)
UTTERANCE = replace(
    NONE,
    mechanism=ExampleLevelMechanism(clip_norm=0.01, noise_multiplier=2.0),
    centre=CentreRelease(clip_norm=1.5, noise_multiplier=2.0),
    count_noise=2.0,
    calibration=CalibrationRelease(noise_multiplier=2.0, subtracted_share=0.5),
)
HIDDEN = SumMechanism(noise_multiplier=3.0, clip_norm=2.0, noised_by=NoiseSource.SERVER)
USERS = UserLevelPrivacy(counts=HIDDEN, centre=HIDDEN, update=HIDDEN, calibration=HIDDEN)
USER = replace(NONE, user=USERS)
BOTH = replace(
    UTTERANCE,
    mechanism=ExampleLevelMechanism(clip_norm=0.01, noise_multiplier=2.0, sum_norm=2.0),
    training=replace(NONE.training, steps=1),
    user=USERS,
)


def longest(plan: Plan) -> float:
    """Of an update."""
    return reply_limits.max_update_norm(plan, params=len(WEIGHTS), denominator=DENOMINATOR)


@pytest.mark.parametrize("noise", [1e-9, 2.0])
def test_a_device_with_as_many_clips_as_one_may_have_is_within(
    monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    """All clips are the same: every gradient is clipped, all add up to the largest update."""
    monkeypatch.setattr(scheme, "MAX_UTTERANCES", CLIPS)
    plan = replace(
        UTTERANCE, mechanism=ExampleLevelMechanism(clip_norm=0.01, noise_multiplier=noise)
    )
    same = Examples(
        features=torch.ones(CLIPS, INPUTS),
        frames=torch.ones(CLIPS, dtype=torch.int64),
        labels=torch.zeros(CLIPS, dtype=torch.int64),
    )
    lengths = [
        float(
            compute_local_update(
                build_network(MODEL, 0),
                same,
                TrainingSettings(
                    local_training=replace(plan.training, denominator=DENOMINATOR),
                    mechanism=plan.mechanism,
                    class_weights=torch.ones(2),
                ),
                SeededGaussianSampler(torch.Generator().manual_seed(seed)),
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
    draw = SeededGaussianSampler(torch.Generator().manual_seed(1))
    user = plan.user is not None
    for _ in range(2_000):
        counts = draw.sample_noise((2,), plan.count_noise).norm() + (
            2.0 if user else scheme.MAX_UTTERANCES
        )
        sent = draw.sample_noise((9,), 2.0 * SENSITIVITY).norm() + (
            2.0 if user else scheme.MAX_UTTERANCES * SENSITIVITY
        )
        centre = draw.sample_noise((INPUTS,), 3.0).norm() + (
            2.0 if user else scheme.MAX_UTTERANCES * 1.5
        )
        assert counts <= reply_limits.max_counts_norm(plan)
        assert sent <= reply_limits.max_statistics_norm(plan)
        assert centre <= reply_limits.max_centre_norm(plan)


def test_where_users_are_bounded_a_device_is_too() -> None:
    for most in (
        reply_limits.max_counts_norm(USER),
        reply_limits.max_centre_norm(USER),
        reply_limits.max_statistics_norm(USER),
        longest(USER),
    ):
        assert most == pytest.approx(2.0, rel=2e-3)
    assert longest(BOTH) < 2.0 * longest(USER)
    assert reply_limits.max_counts_norm(NONE) == pytest.approx(scheme.MAX_UTTERANCES, rel=2e-3)
    assert longest(NONE) == reply_limits.max_centre_norm(NONE) == math.inf, (
        "where nothing is bounded"
    )


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
    plan: Plan, length: float, taken: bool
) -> None:
    validator = ReplyValidator(plan, max_update_norm=AggregationSettings().max_update_norm)
    value = torch.zeros_like(WEIGHTS)
    value[0] = length
    reply = messages.Reply(user="eve", status=messages.Status.OK, value=value)
    request = messages.TrainRequest(
        plan_hash=plan.content_hash(),
        round=1,
        weights=WEIGHTS,
        class_weights=torch.ones(2),
        centre=torch.zeros(INPUTS),
        denominator=DENOMINATOR,
    )

    assert (validator.update_norm(reply, request) is not None) == taken


@pytest.mark.parametrize("plan", [NONE, UTTERANCE, USER, BOTH])
def test_label_counts_that_no_honest_device_has_are_refused(plan: Plan) -> None:
    """They would break what rounds divide by."""
    validator = ReplyValidator(plan, max_update_norm=AggregationSettings().max_update_norm)

    def believed(counts: float) -> bool:
        value = torch.tensor([counts, 0.0, 0.0, 0.0, 0.0])
        return validator.accepts_enrolment(
            messages.Reply(user="eve", status=messages.Status.OK, value=value)
        )

    assert believed(2.0)
    assert not believed(3e38)
    assert not believed(-3e38)
