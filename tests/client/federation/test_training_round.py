"""What a device does for a run, held to its ledger: all that leaves is booked, and nothing else."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_clips, make_device, make_examples, make_noised_plan
from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.profile import UNKNOWN_LABEL
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.federation import enrolment, final_model, model_inputs, training_round
from sottovoce.client.federation.training_set import load_training_set
from sottovoce.client.personalisation.speaker_adapter import SpeakerAdapter
from sottovoce.client.training.local_trainer import LocalUpdate
from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.errors import BudgetSpent, MessageError, ModelError, PrivacyError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining, NoPrivacy
from sottovoce.shared.protocol.messages import FinalModelRequest, TrainRequest
from sottovoce.shared.speaker.normalisation import (
    EXACT_CENTRE,
    EXACT_MEAN,
    default_statistics,
)

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS = 6, 4, 12
DELTA = 1e-5
PEOPLE = default_statistics(INPUTS)
FRONT = PublicProjection(
    mean=torch.zeros(FEATURES),
    matrix=torch.randn(FEATURES, INPUTS, generator=torch.Generator().manual_seed(1)),
    row_norm=1.0,
)
PLAN = make_noised_plan(
    run="run",
    labels=LABELS,
    extractor="random",
    projection_hash=FRONT.content_hash(),
    model=ModelSpec(kind="linear", inputs=INPUTS, classes=3),
    training=LocalTraining(steps=2, sample_rate=0.5, learning_rate=0.5, denominator=1.0),
    mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=2.0),
)
WEIGHTS = flatten_parameters(build_network(PLAN.model, 0)) + 0.1
CENTRE = torch.zeros(INPUTS)
AMPLE = PrivacyBudget(epsilon=50.0, delta=DELTA)


def device(
    folder: Path,
    *,
    budget: PrivacyBudget | None = AMPLE,
    contributes: bool = True,
    labels: tuple[str, ...] = LABELS,
    calibrates: int = 0,
    neutral: bool = False,
    seed: int | None = 7,
) -> Device:
    """A device with a dozen random vectors; the last ``calibrates`` ones fit the head."""
    held = torch.arange(CLIPS) >= CLIPS - calibrates
    features = torch.randn(CLIPS, FEATURES, generator=torch.Generator().manual_seed(5))
    return make_device(
        folder,
        make_clips(make_examples(features, classes=len(labels)), for_head=held),
        budgets=(budget,) if budget else (),
        contributes=contributes,
        labels=labels,
        neutral_enrolment=neutral,
        simulated_seed=seed,
    )


def train(one: Device, number: int = 1, **changes: Any) -> Tensor:
    """One round as the server asks for it."""
    request: dict[str, Any] = {
        "plan_hash": PLAN.content_hash(),
        "round": number,
        "weights": WEIGHTS,
        "class_weights": torch.ones(3),
        "centre": CENTRE,
        "denominator": 6.0,
    }
    return training_round.train_round(one, TrainRequest(**request | changes))


def enrolled(folder: Path, **how: Any) -> Device:
    """A device that has joined."""
    one = device(folder, **how)
    enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
    return one


def _kinds(one: Device) -> list[ReleaseKind]:
    return [release.kind for release in Device.open(one.folder).ledger.releases]


# --- all that leaves is booked ----------------------------------------------------------------


def test_a_whole_run_books_exactly_the_plans_releases(tmp_path: Path) -> None:
    one = enrolled(tmp_path)
    for number in range(1, PLAN.rounds + 1):
        train(one, number)

    booked = Device.open(tmp_path).ledger

    assert sorted(map(repr, booked.releases)) == sorted(map(repr, PLAN.all_releases()))
    assert booked.epsilon_spent(DELTA) == accounting.compute_epsilon(PLAN.all_releases(), DELTA)


def test_what_leaves_is_noised_labels_and_centre_then_updates(tmp_path: Path) -> None:
    one = device(tmp_path)
    value = enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)

    assert value is not None
    assert value.shape == (len(LABELS) + INPUTS,)
    counts = value[: len(LABELS)]
    assert not torch.allclose(counts, counts.round(), atol=1e-3), "counts are never exact"
    assert _kinds(one) == [ReleaseKind.LABEL_COUNTS, ReleaseKind.CENTRE]
    assert train(one).shape == WEIGHTS.shape
    assert _kinds(one)[2:] == [ReleaseKind.NORMALISER, ReleaseKind.GRADIENT]


def test_the_training_normaliser_is_released_once_and_reused(tmp_path: Path) -> None:
    one = enrolled(tmp_path)
    for number in (1, 2, 3):
        train(one, number)
    assert _kinds(one).count(ReleaseKind.NORMALISER) == 1

    train(one, 3, centre=CENTRE + 0.1)  # another centre makes another mean: paid for again
    assert _kinds(one).count(ReleaseKind.NORMALISER) == 2


def test_a_round_asked_twice_costs_once_and_a_changed_one_twice(tmp_path: Path) -> None:
    one = enrolled(tmp_path)
    first = train(one)

    assert torch.equal(train(one), first)
    assert _kinds(one).count(ReleaseKind.GRADIENT) == 1

    changes: list[dict[str, Any]] = [
        {"weights": WEIGHTS + 1e-3},
        {"class_weights": torch.tensor([1.0, 1.0, 2.0])},
        {"denominator": 7.0},
    ]
    for changed in changes:
        assert not torch.equal(train(one, **changed), first)
    assert _kinds(one).count(ReleaseKind.GRADIENT) == 1 + len(changes)


def test_what_a_device_heard_since_shapes_nothing_that_leaves(tmp_path: Path) -> None:
    bundle = ModelPackage(
        labels=LABELS,
        extractor=PLAN.extractor,
        spec=PLAN.model,
        weights=WEIGHTS,
        projection=FRONT,
        centre=CENTRE,
        speaker_statistics=PEOPLE,
        prior=HeadPrior(mean=identity_head(3)),
        subtracts_user_mean=True,
        model_hash=PLAN.hash_model(WEIGHTS),
    )
    left, means = [], []
    for name in ("deaf", "hears"):
        one = device(tmp_path / name, calibrates=4)
        if name == "hears":
            listener = SpeakerAdapter(one.folder, bundle)
            for loud in range(1, 5):
                listener.add(torch.full((FEATURES,), 10.0 * loud))
        joined = enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
        assert joined is not None
        left += [(joined, train(one))]
        head = {"plan_hash": PLAN.content_hash(), "weights": WEIGHTS, "centre": CENTRE}
        final_model.finalise_model(one, FinalModelRequest(**head, prior=bundle.prior))
        means.append(SpeakerAdapter(one.folder, bundle).speaker_mean())
        assert len(_kinds(one)) == 5
        left[-1] += (one.vault.get("head"),)

    for quiet, loud in zip(*left, strict=True):
        assert torch.equal(quiet, loud) if isinstance(quiet, Tensor) else quiet == loud
    assert means[0] is not None
    assert means[1] is not None
    assert not torch.equal(means[0], means[1]), "what it heard counts, for prediction alone"


def test_a_resumed_enrolment_costs_nothing_more(tmp_path: Path) -> None:
    one = device(tmp_path)
    first = enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
    again = enrolment.enrol_device(Device.open(tmp_path), PLAN, FRONT, PEOPLE)

    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert len(_kinds(one)) == 2


# --- hiding the user --------------------------------------------------------------------------

NOISE = SumMechanism(noise_multiplier=3.0, clip_norm=0.1, noised_by=NoiseSource.SERVER)
USERS = UserLevelPrivacy(
    counts=replace(NOISE, clip_norm=5.0), centre=replace(NOISE, clip_norm=0.7), update=NOISE
)
USER = replace(
    PLAN,
    training=replace(PLAN.training, steps=1, sample_rate=1.0),
    mechanism=NoPrivacy(),
    centre=EXACT_CENTRE,
    normaliser=EXACT_MEAN,
    count_noise=0.0,
    user=USERS,
)
BOTH = replace(
    PLAN,
    training=USER.training,
    mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=2.0, sum_norm=0.1),
    user=USERS,
)
ANYTHING = PrivacyBudget(epsilon=50.0, delta=1e-3, unit=PrivacyUnit.USER)


def test_whoever_hides_users_sends_no_more_than_a_user_may(tmp_path: Path) -> None:
    one = device(tmp_path, budget=ANYTHING)
    value = enrolment.enrol_device(one, USER, FRONT, PEOPLE)
    update = train(one, plan_hash=USER.content_hash())

    assert value is not None
    assert float(value[: len(LABELS)].norm()) == pytest.approx(5.0)  # 12 clips: bounded
    assert float(value[len(LABELS) :].norm()) <= 0.7 * (1 + 1e-6)
    assert float(update.norm()) == pytest.approx(0.1)
    assert _kinds(one) == [ReleaseKind.LABEL_COUNTS, ReleaseKind.CENTRE, ReleaseKind.GRADIENT]
    booked = Device.open(tmp_path).ledger.releases
    assert [release.user for release in booked] == [USERS.counts, USERS.centre, USERS.update]


def test_hiding_users_alone_training_may_use_the_exact_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(_model: object, examples: Examples, *_: object, **_more: object) -> LocalUpdate:
        seen.append(examples.features)
        return LocalUpdate(vector=torch.zeros_like(WEIGHTS), zeroed=0)

    monkeypatch.setattr(training_round, "compute_local_update", look)
    one = device(tmp_path, budget=ANYTHING)
    enrolment.enrol_device(one, USER, FRONT, PEOPLE)
    train(one, plan_hash=USER.content_hash())

    rows = FRONT.project_features(one.load_features().examples.features)
    unit = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    assert torch.allclose(seen[0], unit, atol=1e-5)


def test_a_user_without_clips_sends_zeros(tmp_path: Path) -> None:
    one = device(tmp_path, budget=ANYTHING, calibrates=CLIPS)
    value = enrolment.enrol_device(one, USER, FRONT, PEOPLE)

    assert value is not None
    assert not value.any()
    assert not train(one, plan_hash=USER.content_hash()).any()


def test_a_sampled_schedule_is_paid_for_once_and_each_round_answered_once(tmp_path: Path) -> None:
    sampled = replace(USER, user=replace(USERS, update=replace(NOISE, sample_rate=0.3)))
    one = device(tmp_path, budget=ANYTHING)
    for _ in range(2):  # a run that was resumed enrols again
        enrolment.enrol_device(one, sampled, FRONT, PEOPLE)
    first = train(one, plan_hash=sampled.content_hash())

    assert torch.equal(train(Device.open(tmp_path), plan_hash=sampled.content_hash()), first)
    with pytest.raises(PrivacyError, match="answered already"):
        train(Device.open(tmp_path), plan_hash=sampled.content_hash(), weights=WEIGHTS + 0.1)
    train(Device.open(tmp_path), 3, plan_hash=sampled.content_hash())
    assert _kinds(one).count(ReleaseKind.GRADIENT) == 1
    booked = Device.open(tmp_path).ledger.releases
    assert sorted(map(repr, booked)) == sorted(map(repr, sampled.all_releases()))


def test_hiding_both_bounds_the_sum_before_the_noise_and_not_after(tmp_path: Path) -> None:
    loud, still = [], []
    for noise, bounded in ((2.0, loud), (1e-9, still)):
        mechanism = ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=noise, sum_norm=0.1)
        plan = replace(BOTH, mechanism=mechanism)
        one = device(tmp_path / str(noise), budget=None)
        enrolment.enrol_device(one, plan, FRONT, PEOPLE)
        bounded.append(
            train(one, plan_hash=plan.content_hash(), denominator=1.0) / plan.training.learning_rate
        )

    assert float(still[0].norm()) == pytest.approx(0.1, rel=1e-3)
    assert float(loud[0].norm()) > 1.0


def test_hiding_both_books_one_record_of_both_with_the_normaliser(tmp_path: Path) -> None:
    one = device(tmp_path, budget=None)
    enrolment.enrol_device(one, BOTH, FRONT, PEOPLE)
    train(one, plan_hash=BOTH.content_hash())

    booked = Device.open(tmp_path).ledger
    assert _kinds(one) == [
        ReleaseKind.LABEL_COUNTS,
        ReleaseKind.CENTRE,
        ReleaseKind.NORMALISER,
        ReleaseKind.GRADIENT,
    ]
    assert booked.epsilon_spent(DELTA) < math.inf
    assert booked.epsilon_spent(1e-3, PrivacyUnit.USER) < math.inf


# --- refusals, before anything is booked or computed ------------------------------------------


def test_a_spent_budget_stops_training_and_keeps_the_promise(tmp_path: Path) -> None:
    cost = accounting.GAUSSIAN_FILTER.compute_epsilon(
        [r for r in PLAN.all_releases() if r.kind is not ReleaseKind.GRADIENT or r.round < 3], DELTA
    )
    one = enrolled(tmp_path, budget=PrivacyBudget(epsilon=cost, delta=DELTA))
    train(one, 1)
    train(one, 2)
    ledger = one.ledger.path.read_bytes()

    with pytest.raises(BudgetSpent):
        train(one, 3)

    assert one.ledger.path.read_bytes() == ledger
    assert Device.open(tmp_path).ledger.epsilon_spent(DELTA) <= cost
    final_model.finalise_model(  # it keeps receiving models
        one,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(),
            weights=WEIGHTS,
            centre=CENTRE,
            prior=HeadPrior(mean=identity_head(3)),
        ),
    )
    assert one.vault.has_blob("normaliser")
    assert Device.open(tmp_path).ledger.epsilon_spent(DELTA) <= cost


def test_a_plan_without_noise_is_refused_by_a_device_with_a_budget(tmp_path: Path) -> None:
    from sottovoce.shared.protocol.local_training import NoPrivacy
    from sottovoce.shared.speaker.normalisation import EXACT_CENTRE, EXACT_MEAN

    bare = replace(
        PLAN, mechanism=NoPrivacy(), centre=EXACT_CENTRE, normaliser=EXACT_MEAN, count_noise=0.0
    )
    one = device(tmp_path / "careful")
    with pytest.raises(BudgetSpent):
        enrolment.enrol_device(one, bare, FRONT, PEOPLE)
    assert _kinds(one) == []

    careless = device(tmp_path / "careless", budget=None)
    counts = enrolment.enrol_device(careless, bare, FRONT, PEOPLE)
    assert counts is not None
    assert counts[: len(LABELS)].tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"plan_hash": "0" * 64}, MessageError),
        ({"round": 0}, MessageError),
        ({"round": 4}, MessageError),
        ({"weights": WEIGHTS[:-1]}, ModelError),
        ({"weights": WEIGHTS * float("nan")}, ModelError),
        ({"centre": torch.zeros(INPUTS + 1)}, MessageError),
        ({"centre": torch.zeros(1)}, MessageError),
    ],
)
def test_a_request_that_does_not_fit_books_nothing(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    one = enrolled(tmp_path)
    with pytest.raises(error):
        train(one, **changes)
    assert ReleaseKind.GRADIENT not in _kinds(one)
    assert ReleaseKind.NORMALISER not in _kinds(one)


def test_nobody_trains_without_having_enrolled(tmp_path: Path) -> None:
    with pytest.raises(MessageError, match="enrol first"):
        train(device(tmp_path))


def test_a_label_that_the_plan_lacks_trains_nothing_and_does_not_show(tmp_path: Path) -> None:
    one = device(tmp_path, labels=("angry", "bored", "sad"))

    clips = load_training_set(one, PLAN, len(FRONT.mean))
    value = enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)

    unknown = clips.examples.labels == UNKNOWN_LABEL
    assert unknown.any()
    assert not (clips.for_training | clips.for_head)[unknown].any()
    assert clips.for_enrolment[unknown].all()
    assert value is not None


# --- labels, receivers, heads -----------------------------------------------------------------


def test_labels_are_put_into_the_plans_order_and_unknown_ones_stay(tmp_path: Path) -> None:
    one = device(tmp_path, labels=("sad", "angry"))
    clips = load_training_set(one, PLAN, len(FRONT.mean))
    assert clips.examples.labels.tolist() == [2, 0] * (CLIPS // 2)

    stored = one.load_features()
    hidden = replace(stored.examples, labels=torch.full((CLIPS,), UNKNOWN_LABEL))
    other = Device.create(tmp_path / "b", one.profile, replace(stored, examples=hidden))
    hidden_set = load_training_set(other, PLAN, len(FRONT.mean))
    assert set(hidden_set.examples.labels.tolist()) == {UNKNOWN_LABEL}


def test_who_only_receives_releases_nothing_but_a_sealed_head(tmp_path: Path) -> None:
    one = device(tmp_path, contributes=False, calibrates=6)

    assert enrolment.enrol_device(one, PLAN, FRONT, PEOPLE) is None
    head = final_model.finalise_model(
        one,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(),
            weights=WEIGHTS,
            centre=CENTRE,
            prior=HeadPrior(mean=identity_head(3)),
        ),
    )

    assert _kinds(one) == [ReleaseKind.SEALED_HEAD]
    assert Device.open(tmp_path).ledger.epsilon_spent(DELTA) == 0.0
    assert head.model_hash == PLAN.hash_model(WEIGHTS)


def test_neutral_clips_enrol_along_what_the_model_hears(tmp_path: Path) -> None:
    request: dict[str, Any] = {
        "plan_hash": PLAN.content_hash(),
        "weights": WEIGHTS,
        "centre": CENTRE,
        "prior": HeadPrior(mean=identity_head(3)),
    }
    direction = torch.eye(INPUTS)[0]
    means = {}
    for neutral in (False, True):
        for sent in (None, direction):
            one = device(tmp_path / f"{neutral}-{sent is None}", neutral=neutral)
            enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
            final_model.finalise_model(one, FinalModelRequest(**request, neutral_direction=sent))
            means[neutral, sent is None] = one.vault.get_tensors("normaliser")["mean"]

    assert torch.equal(means[False, True], means[False, False])
    moved = means[True, False] - means[True, True]
    assert float(moved[0]) < -0.01, "neutral speech lies there, so the user does not"


def test_statistics_that_were_enrolled_under_the_old_name_of_a_field_are_read(
    tmp_path: Path,
) -> None:
    one = enrolled(tmp_path)
    tensors = one.vault.get_tensors("population")
    assert torch.equal(tensors["offset_variance"], PEOPLE.offset_variance)
    tensors["offset_spread"] = tensors.pop("offset_variance")
    one.vault.put_tensors("population", tensors)

    read = model_inputs.load_speaker_statistics(one)

    assert torch.equal(read.offset_variance, PEOPLE.offset_variance)
    assert torch.equal(read.between, PEOPLE.between)


@pytest.mark.parametrize("wrong", [torch.ones(INPUTS), torch.ones(1)])
def test_a_direction_that_is_none_is_refused(tmp_path: Path, wrong: Tensor) -> None:
    one = device(tmp_path)
    enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
    before = one.vault.get_tensors("normaliser") if one.vault.has_blob("normaliser") else None

    with pytest.raises(MessageError, match=r"direction of neutral speech.*nothing was learned"):
        final_model.finalise_model(
            one,
            FinalModelRequest(
                plan_hash=PLAN.content_hash(),
                weights=WEIGHTS,
                centre=CENTRE,
                prior=HeadPrior(mean=identity_head(3)),
                neutral_direction=wrong,
            ),
        )
    after = one.vault.get_tensors("normaliser") if one.vault.has_blob("normaliser") else None
    assert (before is None) == (after is None)


def test_asking_again_for_a_head_fits_and_books_none_anew(tmp_path: Path) -> None:
    one = device(tmp_path, contributes=False, calibrates=6)
    enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
    request: dict[str, Any] = {
        "plan_hash": PLAN.content_hash(),
        "weights": WEIGHTS,
        "centre": CENTRE,
        "prior": HeadPrior(mean=identity_head(3)),
    }

    versions = [final_model.finalise_model(one, FinalModelRequest(**request)) for _ in range(2)]

    assert [head.version for head in versions] == [1, 1]
    assert _kinds(one) == [ReleaseKind.SEALED_HEAD]
    newer = final_model.finalise_model(one, FinalModelRequest(**request | {"weights": WEIGHTS + 1}))
    assert newer.version == 2


@pytest.mark.parametrize("calibrates", [0, 1, 6])
def test_a_head_comes_whether_or_not_its_user_labelled_a_clip(
    tmp_path: Path, calibrates: int
) -> None:
    one = device(tmp_path, contributes=False, calibrates=calibrates)
    enrolment.enrol_device(one, PLAN, FRONT, PEOPLE)
    prior = HeadPrior(mean=identity_head(3))

    head = final_model.finalise_model(
        one,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(), weights=WEIGHTS, centre=CENTRE, prior=prior
        ),
    )

    assert (len(head.blob), head.version) == (2048, 1)
    assert _kinds(one) == [ReleaseKind.SEALED_HEAD]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_broken_clip_is_left_out_of_the_head_and_refuses_nothing(
    tmp_path: Path, value: float
) -> None:
    one = device(tmp_path / "sound", contributes=False, calibrates=6)
    clips = one.load_features()
    features = clips.examples.features.clone()
    features[[0, -1]] = value
    broken = replace(clips, examples=replace(clips.examples, features=features))
    other = Device.create(tmp_path / "broken", one.profile, broken)
    enrolment.enrol_device(other, PLAN, FRONT, PEOPLE)
    prior = HeadPrior(mean=identity_head(3))

    head = final_model.finalise_model(
        other,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(), weights=WEIGHTS * 1e3, centre=CENTRE, prior=prior
        ),
    )

    assert (len(head.blob), head.version) == (2048, 1)


def test_at_prediction_the_mean_is_exact_and_stays_on_the_device(tmp_path: Path) -> None:
    one = enrolled(tmp_path)
    final_model.finalise_model(
        one,
        FinalModelRequest(
            plan_hash=PLAN.content_hash(),
            weights=WEIGHTS,
            centre=CENTRE,
            prior=HeadPrior(mean=identity_head(3)),
        ),
    )

    exact = FRONT.project_features(one.load_features().examples.features).mean(0)
    stored = one.vault.get_tensors("normaliser")
    assert torch.allclose(stored["mean"], exact, atol=1e-5)
    assert bytes(stored["front"].tolist()).hex() == FRONT.content_hash()
    assert ReleaseKind.NORMALISER not in _kinds(one), "nothing of it was released"


def test_training_never_sees_the_exact_mean(tmp_path: Path) -> None:
    """Behind the same noise, exact mean and released mean give different updates."""
    one = enrolled(tmp_path)
    examples = model_inputs.load_training_examples(one, PLAN, PLAN.content_hash(), CENTRE)
    projected = FRONT.project_features(one.load_features().examples.features)
    exact = projected - projected.mean(0)
    exact = exact / torch.linalg.vector_norm(exact, dim=1, keepdim=True)

    assert not torch.allclose(examples.features, exact, atol=1e-2)
    assert _kinds(one)[-1] is ReleaseKind.NORMALISER


def _answers_to_a_hostile_model(folder: Path, others: int, seed: int) -> Tensor:
    """What a real device sends, in clip norms, with so many other utterances and one more.

    The server's front says every direction twice, and its weights take the one off the other: what
    is left of them is what rounding left, a billion times as large.
    """
    draws = torch.Generator().manual_seed(seed)
    size, half = 1536, 64
    once = torch.randn(size, half, generator=draws) / 40
    front = PublicProjection(
        mean=torch.zeros(size), matrix=torch.cat([once, once * 1.7], 1), row_norm=0.0
    )
    signs = torch.randn(len(LABELS), half, generator=draws).sign() * 1e9
    weights = torch.cat([torch.cat([1.7 * signs, -signs], 1).flatten(), torch.zeros(len(LABELS))])
    hush = 1e-9
    plan = replace(
        PLAN,
        projection_hash=front.content_hash(),
        model=ModelSpec(kind="linear", inputs=2 * half, classes=len(LABELS)),
        training=replace(PLAN.training, steps=1, sample_rate=1.0, learning_rate=1e9),
        mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=hush),
        centre=None,
        normaliser=None,
        count_noise=hush,
    )
    features = torch.randn(others + 1, size, generator=draws)
    labels = torch.randint(0, len(LABELS), (others + 1,), generator=draws)
    sent = []
    for count in (others, others + 1):
        frames = torch.ones(others + 1, dtype=torch.int64)
        held = Examples(features=features, frames=frames, labels=labels)
        one = make_device(
            folder / f"{seed}-{others}-{count}",
            make_clips(held.select(slice(count))),
            labels=LABELS,
            simulated_seed=None,
        )
        enrolment.enrol_device(one, plan, front, default_statistics(2 * half))
        asked = {"weights": weights, "centre": torch.zeros(2 * half), "denominator": 1.0}
        sent.append(train(one, plan_hash=plan.content_hash(), **asked).double() / 1e9)
    return torch.linalg.vector_norm(sent[1] - sent[0])


def test_a_real_device_asks_torch_for_no_random_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who joined a step must be a secret: torch's generator keeps 32 bits of its seed."""
    real, simulated = (enrolled(tmp_path / str(seed), seed=seed) for seed in (None, 7))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("torch drew a number")

    for name in ("rand", "randn", "randint", "bernoulli", "normal"):
        monkeypatch.setattr(torch, name, fail)
    assert PLAN.training.sample_rate < 1
    train(real)
    with pytest.raises(AssertionError, match="torch drew"):
        train(simulated)


def test_sums_of_gradients_ask_torch_for_no_random_number_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(recipe.default_recipe(unit="utterance", secure=True), sample_rate=0.5)
    target = PrivacyTarget(unit="utterance", secure=True, shares=own.shares)
    facts: dict[str, Any] = {"run": "r", "labels": LABELS, "inputs": INPUTS, "rounds": 2}
    plan = noise_calibration.plan_without_noise(own, **facts, extractor="random")
    plan = noise_calibration.add_noise(
        replace(plan, projection_hash=FRONT.content_hash()), target, own.bounds
    )
    plan = noise_calibration.add_secure_aggregation(plan, target, own.bounds, devices=12)
    request = TrainRequest(
        plan_hash=plan.content_hash(),
        round=1,
        weights=flatten_parameters(build_network(plan.model, 0)),
        class_weights=torch.ones(3),
        centre=CENTRE,
        denominator=6.0,
    )
    found: dict[int | None, tuple[Device, PreparedRelease]] = {}
    for seed in (None, 7):
        one = device(tmp_path / str(seed), budget=None, seed=seed)
        enrolment.enrol_device(one, plan, FRONT, PEOPLE)
        found[seed] = one, training_round.prepare_round(one, request)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("torch drew a number")

    for name in ("rand", "randn", "randint", "bernoulli", "normal"):
        monkeypatch.setattr(torch, name, fail)
    real, simulated = found[None], found[7]
    assert real[1].compute(Randomness(real[0].profile, "round-1")).isfinite().all()
    with pytest.raises(AssertionError, match="torch drew"):
        simulated[1].compute(Randomness(simulated[0].profile, "round-1"))


@pytest.mark.parametrize("others", [1, 3])
def test_no_utterance_rounds_the_last_bits_of_another_on_a_device(
    tmp_path: Path, others: int
) -> None:
    """In one call for all of them, a processor's kernels moved what is sent by 1.8 clip norms."""
    moved = [float(_answers_to_a_hostile_model(tmp_path, others, seed)) for seed in range(5)]

    assert max(moved) <= 1 + 1e-5


def test_nothing_leaves_where_its_rounds_were_never_paid_for(tmp_path: Path) -> None:
    sampled = replace(USER, user=replace(USERS, update=replace(NOISE, sample_rate=0.3)))
    one = device(tmp_path, budget=PrivacyBudget(epsilon=0.01, delta=1e-3, unit=PrivacyUnit.USER))
    with pytest.raises(BudgetSpent):
        enrolment.enrol_device(one, sampled, FRONT, PEOPLE)

    with pytest.raises(BudgetSpent, match="never paid for"):
        train(one, plan_hash=sampled.content_hash())
    assert one.ledger.releases == ()


def test_noise_that_a_server_promises_is_worth_nothing_to_an_utterance(tmp_path: Path) -> None:
    """Its owner was promised that what the device sends hides one from the server too."""
    loud = replace(NOISE, noise_multiplier=1e9)
    promised = replace(USER, user=UserLevelPrivacy(counts=loud, centre=loud, update=loud))
    one = device(tmp_path, budget=PrivacyBudget(epsilon=8.0, delta=DELTA))

    with pytest.raises(BudgetSpent):
        enrolment.enrol_device(one, promised, FRONT, PEOPLE)
    assert one.ledger.releases == ()
