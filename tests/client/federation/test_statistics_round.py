"""A device's answer: what one utterance changes, what a user adds, what is taken back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_noised_plan
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.federation import (
    enrolment,
    model_inputs,
    own_contribution,
    statistics_round,
    training_round,
)
from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    SENSITIVITY,
    STATISTICS_SIZE,
    CalibrationQuery,
    CalibrationRelease,
)
from sottovoce.shared.errors import BudgetSpent, MessageError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import AdaptiveClipping, UserLevelPrivacy
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, NoPrivacy
from sottovoce.shared.protocol.messages import HeadStatisticsRequest, TrainRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import (
    default_statistics,
)

LABELS, INPUTS, CLIPS = ("angry", "happy", "sad"), 4, 12
FRONT = PublicProjection(mean=torch.zeros(INPUTS), matrix=torch.eye(INPUTS), row_norm=1.0)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
PLAN = make_noised_plan(
    run="tiny",
    labels=LABELS,
    extractor="random",
    projection_hash=FRONT.content_hash(),
    model=MODEL,
    calibration=CalibrationRelease(noise_multiplier=4.0, subtracted_share=0.5),
)
HIDDEN = SumMechanism(noise_multiplier=1.0, clip_norm=0.3, noised_by=NoiseSource.SERVER)
USER = replace(
    PLAN,
    mechanism=NoPrivacy(),
    centre=normalisation.EXACT_CENTRE,
    normaliser=normalisation.EXACT_MEAN,
    count_noise=0.0,
    calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5),
    user=UserLevelPrivacy(counts=HIDDEN, centre=HIDDEN, update=HIDDEN, calibration=HIDDEN),
)
BOTH = replace(
    PLAN,
    mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0, sum_norm=0.3),
    user=replace(
        USER.user,
        **{
            name: replace(HIDDEN, noised_by=NoiseSource.DEVICES)
            for name in ("counts", "centre", "update", "calibration")
        },
    ),
)
WEIGHTS = torch.randn(
    len(flatten_parameters(build_network(MODEL, 0))), generator=torch.Generator().manual_seed(4)
)
QUERY = CalibrationQuery(
    log_temperature=0.1,
    curvature=0.3,
    edges=torch.linspace(0.2, 0.9, len(SCORE_QUANTILES)),
    shares=torch.full((len(SCORE_QUANTILES) + 1,), 1 / (len(SCORE_QUANTILES) + 1)),
)


class Silence:
    """No noise."""

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        """The values."""
        del std
        return values.double()


def device(
    folder: Path,
    plan: Plan = PLAN,
    *,
    clips: int = CLIPS,
    votes: Tensor | None = None,
    **facts: Any,
) -> Device:
    """A device that has joined; it has the first of the same twelve clips."""
    features = 2 * torch.randn(CLIPS, INPUTS, generator=torch.Generator().manual_seed(5))
    everyone = torch.ones(clips, dtype=torch.bool)
    examples = Examples(
        features=features[:clips],
        frames=torch.ones(clips, dtype=torch.int64),
        labels=torch.arange(clips) % len(LABELS),
        votes=votes,
    )
    usual: dict[str, Any] = {"user": "ada", "budgets": (), "labels": LABELS, "simulated_seed": 7}
    held = LabelledFeatures(
        examples=examples, for_enrolment=everyone, for_head=~everyone, for_training=everyone
    )
    one = Device.create(folder, DeviceProfile(**usual | facts), held)
    enrolment.enrol_device(one, plan, FRONT, default_statistics(INPUTS))
    return one


def train(one: Device, plan: Plan = PLAN, number: int = 1, **changes: Any) -> Tensor:
    """One round."""
    request: dict[str, Any] = {
        "plan_hash": plan.content_hash(),
        "round": number,
        "weights": WEIGHTS,
        "class_weights": torch.ones(len(LABELS)),
        "centre": torch.zeros(INPUTS),
        "denominator": 6.0,
        "update_scale": 2.0,
    }
    return training_round.train_round(one, TrainRequest(**request | changes))


def ask(one: Device, agreed: Plan = PLAN, **changes: Any) -> Tensor:
    """What the device answers."""
    usual: dict[str, Any] = {
        "plan_hash": agreed.content_hash(),
        "weights": WEIGHTS,
        "centre": torch.zeros(INPUTS),
        "query": QUERY,
    }
    return statistics_round.release_head_statistics(one, HeadStatisticsRequest(**usual | changes))


# --- the promise ------------------------------------------------------------------------------


def _released_alike(one: Device, other: Device) -> None:
    """Give a device what another one released before: both worlds look alike until now."""
    for name in ("given", "outbox-normaliser"):
        one.vault.put_tensors(name, other.vault.get_tensors(name))


def test_one_utterance_fewer_changes_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, fewer = device(tmp_path / "whole"), device(tmp_path / "fewer", clips=CLIPS - 1)
    for one in (whole, fewer):
        for number in range(1, PLAN.rounds + 1):
            train(one, number=number)
    _released_alike(fewer, whole)
    monkeypatch.setattr(Randomness, "noise_source", Silence())

    all_clips, one_fewer = ask(whole), ask(fewer)

    moved = float(torch.linalg.vector_norm(all_clips - one_fewer))
    assert 0.1 < moved <= SENSITIVITY * (1 + 1e-6)


def test_votes_of_raters_do_not_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks how often the model is right by the majority, so its bound is that of labels."""
    soft = replace(PLAN, training=replace(PLAN.training, targets="soft"))
    monkeypatch.setattr(Randomness, "noise_source", Silence())
    even = torch.full((CLIPS, len(LABELS)), 1 / len(LABELS))

    voted = ask(device(tmp_path / "voted", soft, votes=even), soft)

    assert torch.equal(voted, ask(device(tmp_path / "plain", soft), soft))


def test_behind_the_exact_mean_every_row_would_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap, and that the test above could fall into it."""
    one, fewer = device(tmp_path / "one"), device(tmp_path / "fewer", clips=2)

    def exact(held: Device, plan: Plan, weights: Tensor, centre: Tensor) -> Any:
        tensors = held.vault.get_tensors("projected")
        model = model_inputs.model_with_weights(plan, weights).eval()
        mean = centre + tensors["training.projected"].mean(0)
        return model, model_inputs.prepare_examples(tensors, "training", mean)

    rows = []
    monkeypatch.setattr(model_inputs, "load_model_and_examples", exact)
    monkeypatch.setattr(
        type(PLAN.scheme),
        "clip_statistics",
        lambda _scheme, _plan, answers: rows.append(answers) or answers[0],
    )
    for held in (one, fewer):
        ask(held)

    assert not torch.allclose(rows[0][:2], rows[1], atol=1e-3)


@pytest.mark.parametrize("plan", [USER, BOTH])
@pytest.mark.parametrize("clips", [0, 1, CLIPS])
def test_a_user_adds_no_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan, clips: int
) -> None:
    monkeypatch.setattr(Randomness, "noise_source", Silence())
    one = device(tmp_path, plan, clips=clips)
    for number in (1, 2):
        train(one, plan, number=number)

    answer = ask(one, plan)

    assert answer.shape == (STATISTICS_SIZE,)
    assert float(torch.linalg.vector_norm(answer)) <= HIDDEN.clip_norm * (1 + 1e-6)
    assert bool(answer.any()) == bool(clips)


def test_the_answer_is_booked_once_and_repeated(tmp_path: Path) -> None:
    one = device(tmp_path)
    answer = ask(one)

    assert torch.equal(ask(one), answer)
    booked = [release.kind for release in Device.open(tmp_path).ledger.releases]
    assert booked.count(ReleaseKind.HEAD_STATISTICS) == 1
    assert PLAN.calibration_release() in Device.open(tmp_path).ledger.releases
    assert not torch.equal(ask(one, weights=WEIGHTS + 1), answer)
    booked = [release.kind for release in Device.open(tmp_path).ledger.releases]
    assert booked.count(ReleaseKind.HEAD_STATISTICS) == 2


def test_a_whole_run_books_exactly_the_plans_releases(tmp_path: Path) -> None:
    one = device(tmp_path)
    for number in range(1, PLAN.rounds + 1):
        train(one, number=number)
    ask(one)

    assert sorted(map(repr, one.ledger.releases)) == sorted(map(repr, PLAN.all_releases()))
    # Noise of a simulation is drawn by these names: others would be other results.
    names = [name.split("/")[1] for name in one.ledger.release_names]
    rounds = [f"round-{number}" for number in range(1, PLAN.rounds + 1)]
    assert sorted(names) == sorted(
        ["label-counts", "centre", "normaliser", *rounds, "head-statistics"]
    )


@pytest.mark.parametrize(("seed", "sizes"), [(None, [1] * CLIPS), (7, [CLIPS])])
def test_on_a_device_each_clip_is_judged_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None, sizes: list[int]
) -> None:
    """In a batch, other rows can change how a row is rounded."""
    one = device(tmp_path, simulated_seed=seed)
    load, seen = model_inputs.load_model_and_examples, []

    def watched(*arguments: Any) -> tuple[Any, Examples]:
        model, examples = load(*arguments)
        model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return model, examples

    monkeypatch.setattr(model_inputs, "load_model_and_examples", watched)
    ask(one)

    assert seen == sizes


def test_above_the_budget_nothing_is_told(tmp_path: Path) -> None:
    one = device(tmp_path, budgets=(PrivacyBudget(epsilon=3.0, delta=1e-5),))
    before = one.ledger.releases
    loud = replace(PLAN, calibration=CalibrationRelease(noise_multiplier=0.1, subtracted_share=0.5))
    enrolment.enrol_device(one, loud, FRONT, default_statistics(INPUTS))

    with pytest.raises(BudgetSpent):
        ask(one, loud)

    assert [one.kind for one in one.ledger.releases[len(before) :]].count(
        ReleaseKind.HEAD_STATISTICS
    ) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"plan_hash": "0" * 64}, "another plan"), ({"centre": torch.zeros(INPUTS + 1)}, "centre")],
)
def test_what_was_not_agreed_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    one = device(tmp_path)
    with pytest.raises(MessageError, match=words):
        ask(one, **changes)


def test_a_plan_that_asks_nothing_is_told_nothing(tmp_path: Path) -> None:
    plan = replace(PLAN, calibration=None)
    one = device(tmp_path, plan)
    train(one, plan)

    assert not one.vault.has_blob("given")
    with pytest.raises(MessageError, match="no head statistics"):
        ask(one, plan)


# --- what is taken back -----------------------------------------------------------------------


def test_updates_count_once_each_in_their_share(tmp_path: Path) -> None:
    one = device(tmp_path)
    first = train(one)
    second = train(one, number=2, update_scale=0.5)
    train(one, number=2, update_scale=0.5, weights=WEIGHTS + 1)  # asked again for another model

    without = own_contribution.subtract_contribution(one, PLAN, WEIGHTS)

    wanted = WEIGHTS.double() - 0.5 * (2.0 * first.double() + 0.5 * second.double())
    assert torch.allclose(without, wanted.float(), atol=1e-5)


def test_another_plans_updates_are_not_taken_back(tmp_path: Path) -> None:
    one = device(tmp_path)
    train(one)
    other = replace(PLAN, run="another")

    assert torch.equal(own_contribution.subtract_contribution(one, other, WEIGHTS), WEIGHTS)


def test_where_the_bound_is_learned_updates_are_taken_back_in_weights(tmp_path: Path) -> None:
    assert USER.user is not None
    clip = AdaptiveClipping(start=0.5)
    learned = replace(USER.user, adaptive=clip, update=replace(HIDDEN, clip_norm=clip.norm_bound))
    plan = replace(USER, user=learned)
    one = device(tmp_path, plan)
    sent = train(one, plan, clip_norm=0.5, update_scale=1.0)

    without = own_contribution.subtract_contribution(one, plan, WEIGHTS)

    assert torch.allclose(WEIGHTS - without, 0.5 * 0.5 * sent[:-1], atol=1e-6)
