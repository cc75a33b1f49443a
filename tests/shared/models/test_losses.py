import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models import cross_entropy
from sottovoce.shared.models.losses import (
    Loss,
    calibration_error,
    logit_gradients,
    recover_class_posterior,
    utterance_losses,
)


def test_an_utterance_costs_its_weight_times_its_surprise() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1])
    weights = torch.tensor([3.0, 5.0])
    surprise = -torch.log_softmax(logits, dim=1)

    losses = cross_entropy(logits, labels, weights)

    assert losses.tolist() == pytest.approx([3 * surprise[0, 0].item(), 5 * surprise[1, 1].item()])


def test_a_smoothed_target_is_partly_every_class() -> None:
    logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    weights = torch.tensor([3.0, 5.0])
    surprise = (-torch.log_softmax(logits, dim=1))[0] * weights

    smoothed = cross_entropy(logits, labels, weights, 0.2)

    assert smoothed.item() == pytest.approx(0.8 * surprise[0].item() + 0.2 * surprise.mean().item())


def test_an_utterance_costs_the_same_in_any_company() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 4.0])

    together = cross_entropy(logits, labels, weights)

    for index in range(6):
        alone = cross_entropy(logits[index : index + 1], labels[index : index + 1], weights)
        assert torch.equal(alone[0], together[index])


def test_nobody_costs_nothing() -> None:
    losses = cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.ones(3))

    assert losses.shape == (0,)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("size", [0.1, 3.0, 200.0])
def test_slopes_of_cross_entropy_are_those_of_autograd(smoothing: float, size: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = (size * torch.randn(50, 3, generator=random)).requires_grad_()
    labels, weights = torch.randint(3, (50,), generator=random), torch.tensor([3.0, 0.0, 0.5])
    each = cross_entropy(logits, labels, weights, smoothing)
    (wanted,) = torch.autograd.grad(each, logits, torch.full_like(each, 0.7))

    found = logit_gradients(Loss(), logits.detach(), labels, weights, smoothing, 0.7)

    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_slopes_of_logits_that_are_no_numbers_are_none() -> None:
    logits = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [math.inf, 0.0]])

    found = logit_gradients(Loss(), logits, torch.tensor([0, 1, 0]), torch.ones(2), 0.1)

    assert found.isfinite().all(1).tolist() == [True, False, False]


CHANCES = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
KINDS = [
    Loss(),
    Loss(kind="focal", gamma=0.5),
    Loss(kind="focal", gamma=2.0),
    Loss(kind="brier"),
    Loss(kind="mmce", weight=2.0),
]


def batch(utterances: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = seeding.torch_rng(seed, "losses")
    logits = 2 * torch.randn(utterances, 3, generator=rng)
    return logits, torch.randint(3, (utterances,), generator=rng), torch.tensor([1.0, 2.0, 0.5])


def least(loss: Loss) -> Tensor:
    """What a model says of one recording that is each emotion as often as ``CHANCES`` tells."""
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)
    labels, even = torch.arange(3), torch.ones(3, dtype=torch.float64)

    def cost() -> Tensor:
        optimiser.zero_grad()
        total = utterance_losses(loss, logits.expand(3, 3), labels, even) @ CHANCES
        total.backward()
        return total

    optimiser.step(cost)
    return torch.softmax(logits.detach(), 1)


def test_each_loss_is_what_its_paper_says() -> None:
    logits, labels, weights = batch()
    chances = torch.softmax(logits, 1)
    true, own = chances[torch.arange(12), labels], weights[labels]
    squares = (chances - torch.eye(3)[labels]).square().sum(1)

    focal = utterance_losses(Loss(kind="focal", gamma=2.0), logits, labels, weights)
    assert torch.allclose(focal, own * (1 - true) ** 2 * -true.log())
    assert torch.allclose(
        utterance_losses(Loss(kind="brier"), logits, labels, weights), own * squares
    )
    for loss in (Loss(), Loss(kind="focal", gamma=0.0)):
        found = utterance_losses(loss, logits, labels, weights)
        assert torch.allclose(found, cross_entropy(logits, labels, weights))


def test_the_calibration_error_is_that_of_all_pairs() -> None:
    logits, labels, weights = batch()
    sure, guess = torch.softmax(logits, 1).max(1)
    total = 0.0
    for i in range(12):
        for j in range(12):
            here = weights[labels[i]] * weights[labels[j]]
            gaps = [float(guess[k] == labels[k]) - sure[k] for k in (i, j)]
            total += here * gaps[0] * gaps[1] * math.exp(-abs(sure[i] - sure[j]) / 0.4)
    expected = math.sqrt(total) / weights[labels].sum()

    found = calibration_error(logits, labels, weights)

    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    usual = utterance_losses(Loss(kind="mmce", weight=3.0), logits, labels, weights)
    assert torch.allclose(usual, cross_entropy(logits, labels, weights) + 3 * found)


def test_a_model_that_is_as_right_as_sure_has_no_calibration_error() -> None:
    logits = torch.tensor([[0.75, 0.25]]).log().repeat(4, 1)

    assert calibration_error(logits, torch.tensor([0, 0, 0, 1]), torch.ones(2)) < 1e-5
    assert calibration_error(logits, torch.tensor([0, 0, 1, 1]), torch.ones(2)) > 0.2


@pytest.mark.parametrize("loss", [one for one in KINDS if not one.couples_utterances])
def test_every_loss_but_a_coupled_one_is_alone(loss: Loss) -> None:
    logits, labels, weights = batch()
    together = utterance_losses(loss, logits, labels, weights)

    for index in range(len(labels)):
        alone = utterance_losses(
            loss, logits[index : index + 1], labels[index : index + 1], weights
        )
        assert torch.equal(alone[0], together[index])
    loss.require_uncoupled()


def test_a_coupled_loss_is_refused_where_an_utterance_must_be_alone() -> None:
    logits, labels, weights = batch()
    coupled = Loss(kind="mmce")

    alone = utterance_losses(coupled, logits[:1], labels[:1], weights)
    assert not torch.allclose(alone, utterance_losses(coupled, logits, labels, weights)[:1])
    with pytest.raises(SettingError, match="couples the utterances"):
        coupled.require_uncoupled()


@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_slopes_are_numbers_however_sure_a_model_is(loss: Loss, scale: float) -> None:
    logits, labels, weights = batch()
    logits = (logits * scale).requires_grad_()

    utterance_losses(loss, logits, labels, weights).sum().backward()

    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("loss", KINDS)
def test_one_broken_utterance_breaks_no_other(loss: Loss) -> None:
    logits, labels, weights = batch()
    logits[3, 1] = torch.nan
    logits.requires_grad_()

    utterance_losses(loss, logits, labels, weights).sum().backward()

    assert logits.grad is not None
    others = torch.arange(12) != 3
    assert bool(logits.grad[others].isfinite().all())
    assert not bool(logits.grad[3].isfinite().all())


@pytest.mark.parametrize("loss", KINDS)
def test_nobody_costs_nothing_under_any_loss(loss: Loss) -> None:
    found = utterance_losses(
        loss, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.ones(3)
    )

    assert found.shape == (0,)


@pytest.mark.parametrize("loss", [one for one in KINDS if not one.couples_utterances])
def test_what_a_model_believes_is_true_where_its_loss_is_least(loss: Loss) -> None:
    said = least(loss)

    assert torch.allclose(recover_class_posterior(loss, said), CHANCES[None], atol=1e-4)
    assert torch.allclose(said, CHANCES[None], atol=1e-3) == loss.is_proper


def test_focal_makes_a_model_less_sure() -> None:
    said = least(Loss(kind="focal", gamma=2.0))

    assert said.max() < CHANCES.max() - 0.05


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kind": "hinge"}, "kind"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"gamma": 11.0}, "gamma"),
        ({"weight": 0.0}, "weight"),
        ({"weight": math.inf}, "weight"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingError, match=word):
        Loss(**change)


@pytest.mark.parametrize("kind", ["focal", "brier"])
def test_targets_are_smoothed_only_where_there_are_targets(kind: str) -> None:
    with pytest.raises(SettingError, match="with the loss"):
        Loss(kind=kind).check_smoothing(0.1)
    Loss(kind=kind).check_smoothing(0.0)
    Loss(kind="mmce").check_smoothing(0.1)


SOFT = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.9, 0.0, 0.1]])


@pytest.mark.parametrize("kind", ["cross-entropy", "focal", "brier", "mmce"])
def test_votes_that_all_agree_cost_what_their_label_does(kind: str) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([3.0, 1.0, 0.5])
    votes = torch.nn.functional.one_hot(labels, 3).float()
    loss = Loss(kind=kind)

    found = utterance_losses(loss, logits, votes, weights)

    torch.testing.assert_close(found, utterance_losses(loss, logits, labels, weights))
    torch.testing.assert_close(
        logit_gradients(loss, logits.clone(), votes, weights),
        logit_gradients(loss, logits.clone(), labels, weights),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_slopes_towards_soft_targets_are_those_of_autograd(smoothing: float) -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.tensor([3.0, 1.0, 0.5])
    each = cross_entropy(logits, SOFT, weights, smoothing)
    (wanted,) = torch.autograd.grad(each, logits, torch.full_like(each, 0.7))

    found = logit_gradients(Loss(), logits.detach(), SOFT, weights, smoothing, 0.7)

    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["cross-entropy", "brier"])
def test_shares_of_the_votes_minimise_a_proper_loss(kind: str) -> None:
    slopes = logit_gradients(Loss(kind=kind), SOFT[:1].log(), SOFT[:1], torch.ones(3))

    assert slopes.abs().max() < 1e-6


PLANE = ("angry", "fearful", "sad", "calm", "neutral", "happy")
STRUCTURED = ["ordinal", "hierarchical"]


@pytest.mark.parametrize("kind", STRUCTURED)
def test_the_wrong_emotion_costs_more_the_farther_it_lies(kind: str) -> None:
    loss = Loss(kind=kind).assign_coordinates(PLANE)
    truth = torch.full((4,), PLANE.index("angry"))
    # Equally sure of the right one, of a near one, of a quiet one and of a pleasant quiet one.
    guesses = [PLANE.index(name) for name in ("angry", "fearful", "sad", "calm")]
    logits = 5 * torch.nn.functional.one_hot(torch.tensor(guesses), len(PLANE)).float()

    costs = utterance_losses(loss, logits, truth, torch.ones(len(PLANE)))

    extra = costs - utterance_losses(Loss(), logits, truth, torch.ones(len(PLANE)))
    # Both unpleasant and roused: the near one is in the same branch, and costs next to nothing.
    assert extra[0] < extra[1] + 0.1 < extra[2]
    assert extra[2] < extra[3] + (0.01 if kind == "hierarchical" else 0)


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_losses_are_proper(kind: str) -> None:
    loss = Loss(kind=kind, weight=2.0).assign_coordinates(PLANE)
    truth = torch.tensor([[0.3, 0.2, 0.1, 0.1, 0.25, 0.05]])
    weights = torch.ones(len(PLANE))

    soft = logit_gradients(loss, truth.log(), truth, weights)
    every = torch.arange(len(PLANE))
    hard = logit_gradients(loss, truth.log().expand(6, 6).clone(), every, weights)

    assert soft.abs().max() < 1e-5
    assert (truth @ hard).abs().max() < 1e-5, "nor do labels drawn from it pull elsewhere"


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_losses_couple_nothing(kind: str) -> None:
    loss = Loss(kind=kind).assign_coordinates(PLANE)
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    logits[2] = math.nan
    labels, weights = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 1.0])

    found = logit_gradients(loss, logits.clone(), labels, weights)

    for index in (0, 1, 3, 4):
        alone = logit_gradients(
            loss, logits[index : index + 1].clone(), labels[index : index + 1], weights
        )
        assert torch.equal(alone[0], found[index])


def test_a_loss_says_where_its_classes_lie() -> None:
    placed = Loss(kind="hierarchical", weight=0.5).assign_coordinates(("Sad", "happy"))

    assert placed.coordinates == ((-0.6, -0.3), (0.8, 0.5))
    assert Loss.from_dict(placed.to_dict()) == placed
    assert Loss(kind="focal").assign_coordinates(("stage fright",)) == Loss(kind="focal")
    with pytest.raises(SettingError, match="is known of stage fright"):
        Loss(kind="ordinal").assign_coordinates(("sad", "stage fright"))
    with pytest.raises(SettingError, match="2 coordinates for 3"):
        utterance_losses(placed, torch.zeros(1, 3), torch.tensor([0]), torch.ones(3))
    with pytest.raises(SettingError, match="valence"):
        Loss(kind="ordinal", coordinates=((math.nan, 0.0),))
    with pytest.raises(SettingError, match="leave them out"):
        Loss(coordinates=((0.0, 0.0),))
