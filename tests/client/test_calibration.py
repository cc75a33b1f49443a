"""A device's answer: what one utterance changes, what a user adds, what is taken back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.client import calibration, enrolment, given, participant
from sottovoce.client.device import Device, Randomness
from sottovoce.client.owner import Clips, Facts
from sottovoce.shared import normaliser
from sottovoce.shared.calibration import LEVELS, SENSITIVITY, WIDTH, CalibrationRelease, Question
from sottovoce.shared.errors import BudgetSpent, MessageError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import CentreRelease, NormaliserRelease, unknown
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.shared.privacy.release import Kind, NoisedBy, UserNoise
from sottovoce.shared.privacy.users import AdaptiveClip, UserPromise
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.shared.wire import CalibrateRequest

LABELS, INPUTS, CLIPS = ("angry", "happy", "sad"), 4, 12
FRONT = Front(mean=torch.zeros(INPUTS), matrix=torch.eye(INPUTS), length=1.0)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
PLAN = Plan(
    run="tiny",
    labels=LABELS,
    extractor="random",
    front=FRONT.digest(),
    model=MODEL,
    rounds=3,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=0.5, denominator=1.0),
    mechanism=UtteranceNoise(clip_norm=1.0, noise_multiplier=1.0),
    centre=CentreRelease(radius=1.5, noise_multiplier=4.0),
    normaliser=NormaliserRelease(radius=0.8, count_weight=0.24, noise_multiplier=4.0),
    count_noise=4.0,
    calibration=CalibrationRelease(noise_multiplier=4.0, taken_back=0.5),
)
HIDDEN = UserNoise(noise_multiplier=1.0, clip_norm=0.3, noised_by=NoisedBy.SERVER)
USER = replace(
    PLAN,
    mechanism=NoPrivacy(),
    centre=normaliser.EXACT_CENTRE,
    normaliser=normaliser.EXACT_MEAN,
    count_noise=0.0,
    calibration=CalibrationRelease(noise_multiplier=0.0, taken_back=0.5),
    user=UserPromise(counts=HIDDEN, centre=HIDDEN, update=HIDDEN, calibration=HIDDEN),
)
BOTH = replace(
    PLAN,
    mechanism=UtteranceNoise(clip_norm=1.0, noise_multiplier=1.0, sum_norm=0.3),
    user=replace(
        USER.user,
        **{
            name: replace(HIDDEN, noised_by=NoisedBy.DEVICES)
            for name in ("counts", "centre", "update", "calibration")
        },
    ),
)
WEIGHTS = torch.randn(len(flatten(build(MODEL, 0))), generator=torch.Generator().manual_seed(4))
QUESTION = Question(
    log_temperature=0.1,
    bend=0.3,
    edges=torch.linspace(0.2, 0.9, len(LEVELS)),
    shares=torch.full((len(LEVELS) + 1,), 1 / (len(LEVELS) + 1)),
)


class Silence:
    """No noise."""

    def normal(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Zeros."""
        del std
        return torch.zeros(shape, dtype=torch.float64)


def device(folder: Path, plan: Plan = PLAN, *, clips: int = CLIPS, **facts: Any) -> Device:
    """A device that has joined; it has the first of the same twelve clips."""
    features = 2 * torch.randn(CLIPS, INPUTS, generator=torch.Generator().manual_seed(5))
    everyone = torch.ones(clips, dtype=torch.bool)
    examples = Examples(
        features=features[:clips],
        frames=torch.ones(clips, dtype=torch.int64),
        labels=torch.arange(clips) % len(LABELS),
    )
    usual: dict[str, Any] = {"user": "ada", "budgets": (), "labels": LABELS, "simulated_seed": 7}
    held = Clips(examples=examples, enrols=everyone, calibrates=~everyone, trains=everyone)
    one = Device.create(folder, Facts(**usual | facts), held)
    enrolment.enrol(one, plan, FRONT, unknown(INPUTS))
    return one


def train(one: Device, plan: Plan = PLAN, number: int = 1, **changes: Any) -> Tensor:
    """One round."""
    request: dict[str, Any] = {
        "plan": plan.digest(),
        "number": number,
        "weights": WEIGHTS,
        "class_weights": torch.ones(len(LABELS)),
        "centre": torch.zeros(INPUTS),
        "denominator": 6.0,
        "share": 2.0,
    }
    return participant.train(one, **request | changes)


def ask(one: Device, agreed: Plan = PLAN, **changes: Any) -> Tensor:
    """What the device answers."""
    usual: dict[str, Any] = {
        "plan": agreed.digest(),
        "weights": WEIGHTS,
        "centre": torch.zeros(INPUTS),
        "question": QUESTION,
    }
    return calibration.calibrate(one, CalibrateRequest(**usual | changes))


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
    monkeypatch.setattr(Randomness, "noise", Silence())

    all_clips, one_fewer = ask(whole), ask(fewer)

    moved = float(torch.linalg.vector_norm(all_clips - one_fewer))
    assert 0.1 < moved <= SENSITIVITY * (1 + 1e-6)


def test_behind_the_exact_mean_every_row_would_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap, and that the test above could fall into it."""
    one, fewer = device(tmp_path / "one"), device(tmp_path / "fewer", clips=2)

    def exact(held: Device, plan: Plan, weights: Tensor, centre: Tensor) -> Any:
        kept = held.vault.get_tensors("projected")
        model = participant.model_of(plan, weights).eval()
        mean = centre + kept["training.projected"].mean(0)
        return model, participant.finished(kept, "training", mean)

    rows = []
    monkeypatch.setattr(participant, "as_trained", exact)
    monkeypatch.setattr(calibration, "_together", lambda _plan, told: rows.append(told) or told[0])
    for held in (one, fewer):
        ask(held)

    assert not torch.allclose(rows[0][:2], rows[1], atol=1e-3)


@pytest.mark.parametrize("plan", [USER, BOTH])
@pytest.mark.parametrize("clips", [0, 1, CLIPS])
def test_a_user_adds_no_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan, clips: int
) -> None:
    monkeypatch.setattr(Randomness, "noise", Silence())
    one = device(tmp_path, plan, clips=clips)
    for number in (1, 2):
        train(one, plan, number=number)

    told = ask(one, plan)

    assert told.shape == (WIDTH,)
    assert float(torch.linalg.vector_norm(told)) <= HIDDEN.clip_norm * (1 + 1e-6)
    assert bool(told.any()) == bool(clips)


def test_the_answer_is_booked_once_and_repeated(tmp_path: Path) -> None:
    one = device(tmp_path)
    told = ask(one)

    assert torch.equal(ask(one), told)
    booked = [release.kind for release in Device(tmp_path).ledger.releases]
    assert booked.count(Kind.HEAD_STATISTICS) == 1
    assert PLAN.calibration_release() in Device(tmp_path).ledger.releases
    assert not torch.equal(ask(one, weights=WEIGHTS + 1), told)
    booked = [release.kind for release in Device(tmp_path).ledger.releases]
    assert booked.count(Kind.HEAD_STATISTICS) == 2


def test_a_whole_run_books_exactly_the_plans_releases(tmp_path: Path) -> None:
    one = device(tmp_path)
    for number in range(1, PLAN.rounds + 1):
        train(one, number=number)
    ask(one)

    assert sorted(map(repr, one.ledger.releases)) == sorted(map(repr, PLAN.releases()))


def test_above_the_budget_nothing_is_told(tmp_path: Path) -> None:
    one = device(tmp_path, budgets=(Budget(epsilon=3.0, delta=1e-5),))
    before = one.ledger.releases
    loud = replace(PLAN, calibration=CalibrationRelease(noise_multiplier=0.1, taken_back=0.5))
    enrolment.enrol(one, loud, FRONT, unknown(INPUTS))

    with pytest.raises(BudgetSpent):
        ask(one, loud)

    assert [one.kind for one in one.ledger.releases[len(before) :]].count(Kind.HEAD_STATISTICS) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"plan": "0" * 64}, "another plan"), ({"centre": torch.zeros(INPUTS + 1)}, "centre")],
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

    assert not one.vault.has("given")
    with pytest.raises(MessageError, match="asks nothing"):
        ask(one, plan)


# --- what is taken back -----------------------------------------------------------------------


def test_updates_count_once_each_in_their_share(tmp_path: Path) -> None:
    one = device(tmp_path)
    first = train(one)
    second = train(one, number=2, share=0.5)
    train(one, number=2, share=0.5, weights=WEIGHTS + 1)  # asked again for another model

    without = given.weights_without(one, PLAN, WEIGHTS)

    wanted = WEIGHTS.double() - 0.5 * (2.0 * first.double() + 0.5 * second.double())
    assert torch.allclose(without, wanted.float(), atol=1e-5)


def test_another_plans_updates_are_not_taken_back(tmp_path: Path) -> None:
    one = device(tmp_path)
    train(one)
    other = replace(PLAN, run="another")

    assert torch.equal(given.weights_without(one, other, WEIGHTS), WEIGHTS)


def test_where_the_bound_is_learned_updates_are_taken_back_in_weights(tmp_path: Path) -> None:
    assert USER.user is not None
    clip = AdaptiveClip(start=0.5)
    learned = replace(USER.user, adaptive=clip, update=replace(HIDDEN, clip_norm=clip.bound))
    plan = replace(USER, user=learned)
    one = device(tmp_path, plan)
    sent = train(one, plan, clip=0.5, share=1.0)

    without = given.weights_without(one, plan, WEIGHTS)

    assert torch.allclose(WEIGHTS - without, 0.5 * 0.5 * sent[:-1], atol=1e-6)
