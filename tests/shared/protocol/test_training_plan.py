"""The plan: what is booked is what is done, all of it is noised or none, rubbish is refused."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.shared.privacy.user_level import AdaptiveClipping, UserLevelPrivacy
from sottovoce.shared.protocol.local_training import (
    Curriculum,
    ExampleLevelMechanism,
    LocalTraining,
    NoPrivacy,
)
from sottovoce.shared.protocol.training_plan import SCHEMA, Plan
from sottovoce.shared.speaker.normalisation import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)

PRIVATE = Plan(
    run="run/fold1",
    labels=("angry", "sad"),
    extractor="descriptors",
    projection_hash="0" * 64,
    model=ModelSpec(kind="linear", inputs=4, classes=2),
    rounds=3,
    training=LocalTraining(steps=2, sample_rate=0.5, learning_rate=0.1, denominator=1.0),
    mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5),
    centre=CentreRelease(clip_norm=1.5, noise_multiplier=4.0),
    normaliser=NormaliserRelease(clip_norm=0.8, count_weight=0.24, noise_multiplier=3.0),
    count_noise=10.0,
)
OPEN = replace(
    PRIVATE, mechanism=NoPrivacy(), centre=EXACT_CENTRE, normaliser=EXACT_MEAN, count_noise=0.0
)
HIDDEN = SumMechanism(noise_multiplier=3.0, clip_norm=2.0, noised_by=NoiseSource.SERVER)
USERS = UserLevelPrivacy(
    counts=replace(HIDDEN, clip_norm=30.0), centre=replace(HIDDEN, clip_norm=1.5), update=HIDDEN
)
USER = replace(OPEN, user=USERS)
BANDS = BandedNoise.from_square_root(bands=2, min_separation=2)
BANDED = replace(USER, user=replace(USERS, update=replace(HIDDEN, bands=BANDS)))
BOTH = replace(
    PRIVATE,
    training=replace(PRIVATE.training, steps=1),
    mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5, sum_norm=2.0),
    user=USERS,
)


@pytest.mark.parametrize(
    "plan",
    [
        PRIVATE,
        OPEN,
        replace(PRIVATE, centre=None),
        replace(PRIVATE, normaliser=None),
        replace(OPEN, centre=None, normaliser=None),
        USER,
        replace(USER, centre=None, user=replace(USERS, centre=None)),
        BOTH,
        BANDED,
    ],
)
def test_a_plan_travels_whole(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).content_hash() == plan.content_hash()


def test_a_plan_of_the_usual_loss_is_the_plan_that_it_was_before_there_were_others() -> None:
    assert "loss" not in json.loads(PRIVATE.to_json())["training"]
    for loss in (Loss(kind="focal"), Loss(kind="focal", gamma=1.0), Loss(kind="brier")):
        plan = replace(PRIVATE, training=replace(PRIVATE.training, loss=loss))
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.content_hash() != PRIVATE.content_hash()


def test_a_plan_says_whether_votes_are_trained_on() -> None:
    assert "targets" not in json.loads(PRIVATE.to_json())["training"]
    plan = replace(PRIVATE, training=replace(PRIVATE.training, targets="soft"))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.content_hash() != PRIVATE.content_hash()


def test_a_plan_places_its_classes_and_says_its_curriculum() -> None:
    assert "curriculum" not in json.loads(PRIVATE.to_json())["training"]
    loss = Loss(kind="ordinal").assign_coordinates(
        ("sad", "angry", "happy")[: PRIVATE.model.classes]
    )
    curriculum = Curriculum(kind="confidence")
    training = replace(PRIVATE.training, loss=loss, curriculum=curriculum)
    plan = replace(PRIVATE, training=training)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(SettingError, match="must place each"):
        replace(PRIVATE, training=replace(training, loss=Loss(kind="ordinal")))


def test_progress_goes_from_the_first_round_to_the_last() -> None:
    plan = replace(PRIVATE, rounds=5)
    assert [plan.progress(number) for number in (1, 3, 5)] == [0, 0.5, 1]
    assert replace(PRIVATE, rounds=1).progress(1) == 1


@pytest.mark.parametrize("plan", [PRIVATE, BOTH])
def test_a_loss_that_couples_utterances_is_refused_where_they_are_promised_anything(
    plan: Plan,
) -> None:
    training = replace(plan.training, loss=Loss(kind="mmce"))

    with pytest.raises(SettingError, match="couples the utterances"):
        replace(plan, training=training)
    text = replace(OPEN, training=training).to_json()
    assert Plan.from_json(text).training.loss.couples_utterances
    assert replace(USER, training=training).scheme.unit == "user"


def test_every_setting_shows_in_the_hash() -> None:
    others = [
        replace(PRIVATE, run="other"),
        replace(PRIVATE, labels=("sad", "angry")),
        replace(PRIVATE, rounds=4),
        replace(PRIVATE, count_noise=9.0),
        replace(PRIVATE, mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.4)),
        replace(PRIVATE, normaliser=None),
        OPEN,
        USER,
        replace(USER, user=replace(USERS, update=replace(HIDDEN, noise_multiplier=3.1))),
        BOTH,
        BANDED,
        replace(
            BANDED, user=replace(USERS, update=replace(HIDDEN, bands=BandedNoise(min_separation=2)))
        ),
    ]
    assert len({PRIVATE.content_hash(), *(other.content_hash() for other in others)}) == 13


def test_what_is_booked_is_what_is_done() -> None:
    counts, centre, normaliser = (
        PRIVATE.counts_release(),
        PRIVATE.centre_release(),
        PRIVATE.normaliser_release(),
    )
    gradient = PRIVATE.gradient_release(2)

    assert centre is not None
    assert normaliser is not None
    assert (counts.noise_multiplier, counts.sensitivity) == (10.0, 1.0)
    assert (centre.noise_multiplier, centre.sensitivity) == (4.0, 1.5)
    assert (normaliser.noise_multiplier, normaliser.sensitivity) == (3.0, math.hypot(0.8, 0.24))
    assert (gradient.noise_multiplier, gradient.sensitivity) == (1.5, 0.5)
    assert (gradient.sample_rate, gradient.steps, gradient.round) == (0.5, 2, 2)


def test_a_plans_releases_are_all_of_them() -> None:
    kinds = [release.kind for release in PRIVATE.all_releases()]
    assert sorted(kinds) == sorted(
        [ReleaseKind.CENTRE, ReleaseKind.NORMALISER, ReleaseKind.LABEL_COUNTS]
        + [ReleaseKind.GRADIENT] * 3
    )
    assert len(list(replace(PRIVATE, centre=None, normaliser=None).all_releases())) == 4
    assert {release.mechanism for release in PRIVATE.all_releases()} == {Mechanism.GAUSSIAN}
    assert {release.mechanism for release in OPEN.all_releases()} == {Mechanism.NONE}


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": NoPrivacy()},
        {"count_noise": 0.0},
        {"centre": EXACT_CENTRE},
        {"normaliser": EXACT_MEAN},
    ],
)
def test_a_plan_noises_all_of_its_releases_or_none(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="all of its releases or none"):
        replace(PRIVATE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("angry",)},
        {"labels": ("angry", "angry")},
        {"labels": ("angry", "sad", "happy")},
        {"rounds": 0},
        {"count_noise": math.nan},
        {"count_noise": -1.0},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        replace(PRIVATE, **change)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"schema": 1}',
        json.dumps(json.loads(PRIVATE.to_json()) | {"schema": 1}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"rounds": 0}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"rounds": "many"}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"labels": 3}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"model": {}}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"training": {"steps": 1}}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"mechanism": {"clip_norm": 1.0}}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"mechanism": None}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"centre": 1}),
        json.dumps(json.loads(PRIVATE.to_json()) | {"extra": 1}),
        PRIVATE.to_json().replace("1.5", "NaN"),
    ],
)
def test_rubbish_is_no_plan(text: str) -> None:
    with pytest.raises(MessageError):
        Plan.from_json(text)


def test_a_plan_of_an_older_release_is_refused_with_the_way_out() -> None:
    text = json.dumps(json.loads(PRIVATE.to_json()) | {"schema": SCHEMA - 1})
    with pytest.raises(
        MessageError, match=rf"schema {SCHEMA - 1}.*reads {SCHEMA}.*prepare the job"
    ):
        Plan.from_json(text)


def test_a_plan_says_what_it_protects() -> None:
    units = [plan.scheme.unit for plan in (OPEN, PRIVATE, USER, BOTH)]
    assert units == ["none", "utterance", "user", "both"]


def test_where_users_are_hidden_every_sum_hides_them() -> None:
    for plan in (USER, BOTH):
        booked = {release.kind: release for release in plan.all_releases()}
        assert booked[ReleaseKind.LABEL_COUNTS].user == USERS.counts
        assert booked[ReleaseKind.CENTRE].user == USERS.centre
        assert booked[ReleaseKind.GRADIENT].user == USERS.update
        assert math.isfinite(
            accounting.compute_epsilon(plan.all_releases(), 1e-3, unit=PrivacyUnit.USER)
        )
    assert (
        accounting.compute_epsilon(PRIVATE.all_releases(), 1e-3, unit=PrivacyUnit.USER) == math.inf
    )


def test_a_sampled_schedule_is_one_record_that_costs_what_its_rounds_cost() -> None:
    sampled = replace(USER, user=replace(USERS, update=replace(HIDDEN, sample_rate=0.2)))
    schedule = sampled.all_rounds_release()
    rounds = [sampled.gradient_release(number) for number in (1, 2, 3)]

    assert USER.all_rounds_release() is None
    assert schedule is not None
    for unit in PrivacyUnit:
        charged = accounting.compute_epsilon([schedule], 1e-3, unit=unit)
        assert charged == accounting.compute_epsilon(rounds, 1e-3, unit=unit)
    assert [release.kind for release in sampled.all_releases()].count(ReleaseKind.GRADIENT) == 1
    assert accounting.compute_epsilon(
        sampled.all_releases(), 1e-3, unit=PrivacyUnit.USER
    ) < accounting.compute_epsilon(USER.all_releases(), 1e-3, unit=PrivacyUnit.USER)


def test_users_in_participation_groups_are_charged_for_their_own_rounds() -> None:
    rounds = [one.round for one in BANDED.all_releases() if one.kind is ReleaseKind.GRADIENT]
    assert rounds == [1, 3]
    others = [BANDED.gradient_release(2)]  # of the other group: less, never more
    assert accounting.compute_epsilon(
        others, 1e-3, unit=PrivacyUnit.USER
    ) < accounting.compute_epsilon(
        [BANDED.gradient_release(number) for number in rounds], 1e-3, unit=PrivacyUnit.USER
    )
    assert "bands" not in USER.to_json(), "a plan without bands travels as it always did"


def test_bands_that_leave_users_out_or_that_no_round_takes_are_refused() -> None:
    with pytest.raises(SettingError, match="never train"):
        replace(BANDED, rounds=1)
    one = replace(HIDDEN, bands=BANDS)
    for wrong in ({"counts": one}, {"centre": one}, {"counts": one, "update": one}):
        with pytest.raises(SettingError, match="made once"):
            replace(USERS, **wrong)


def test_bands_go_with_users_alone_and_a_fixed_bound() -> None:
    with pytest.raises(SettingError, match="hide users alone"):
        replace(BOTH, user=replace(USERS, update=replace(HIDDEN, bands=BANDS)))
    learned = AdaptiveClipping(start=1.0)
    update = replace(HIDDEN, clip_norm=learned.norm_bound)
    replace(USERS, update=update, adaptive=learned)
    with pytest.raises(SettingError, match="fixed clip norm"):
        replace(USERS, update=replace(update, bands=BANDS), adaptive=learned)


def test_where_users_alone_are_hidden_the_normaliser_is_inside_their_updates() -> None:
    assert USER.normaliser is not None
    assert USER.normaliser_release() is None
    assert BOTH.normaliser_release() is not None


@pytest.mark.parametrize(
    "change",
    [
        {"user": replace(USERS, centre=None)},
        {"centre": None},
        {"user": replace(USERS, update=replace(HIDDEN, clip_norm=2.1))},
        {"mechanism": ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5)},
        {"training": replace(PRIVATE.training, steps=2)},
        {"user": replace(USERS, update=replace(HIDDEN, sample_rate=0.5))},
    ],
)
def test_a_promise_to_users_that_would_not_be_kept_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        replace(BOTH, **change)


def test_a_models_hash_is_bound_to_plan_and_weights() -> None:
    weights = torch.randn(10)
    nudged = weights.clone()
    nudged[3] += 1e-6
    hashes = {
        PRIVATE.hash_model(weights),
        PRIVATE.hash_model(nudged),
        replace(PRIVATE, projection_hash="1" * 64).hash_model(weights),
        OPEN.hash_model(weights),
    }
    assert len(hashes) == 4
    assert all(len(value) == 64 for value in hashes)
