"""A round on the server: a pure function of public figures, like its plain twin, whatever comes."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sottovoce.server.round import (
    Aggregation,
    State,
    advance,
    begin,
    learning_rate,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.plan import Plan
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise

PARAMS = 6
OPEN = Plan(
    run="r",
    labels=("a", "b"),
    extractor="x",
    front="",
    model=ModelSpec(kind="linear", inputs=2, classes=2),
    rounds=10,
    training=LocalTraining(steps=2, sample_rate=0.5, learning_rate=0.1, denominator=1.0),
    mechanism=NoPrivacy(),
    centre=None,
    normaliser=None,
    count_noise=0.0,
)
PRIVATE = replace(
    OPEN, mechanism=UtteranceNoise(clip_norm=0.5, noise_multiplier=2.0), count_noise=10.0
)


def draws(count: int, *, seed: int = 0) -> list[Tensor]:
    """Updates."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(PARAMS, generator=generator) for _ in range(count)]


# --- the step ---------------------------------------------------------------------------------


def _after(settings: Aggregation, updates: list[Tensor], *, rate: float = 0.1) -> State:
    state = begin(torch.zeros(PARAMS))
    for update in updates:
        state = advance(state, update, settings, rate=rate)
    return state


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_averaging_is_torchs_gradient_descent(momentum: float) -> None:
    """An update is a negative gradient; heavy ball in both."""
    updates = draws(5)
    weights = torch.nn.Parameter(torch.zeros(PARAMS))
    twin = torch.optim.SGD([weights], lr=0.1, momentum=momentum)
    for update in updates:
        weights.grad = -update
        twin.step()

    state = _after(Aggregation(momentum=momentum), updates)

    assert torch.allclose(state.weights, weights.detach(), atol=1e-6)


def test_adam_is_torchs_adam() -> None:
    updates = draws(6)
    weights = torch.nn.Parameter(torch.zeros(PARAMS))
    twin = torch.optim.Adam([weights], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    for update in updates:
        weights.grad = -update
        twin.step()

    settings = Aggregation(optimiser="adam", momentum=0.9, second_moment=0.99)

    assert torch.allclose(_after(settings, updates).weights, weights.detach(), atol=1e-6)


def test_a_step_changes_nothing_it_was_given() -> None:
    state, update = begin(torch.ones(PARAMS)), torch.ones(PARAMS)
    before = [tensor.clone() for tensor in (state.weights, state.direction, state.tail, update)]

    advance(state, update, Aggregation(optimiser="adam", momentum=0.5), rate=1.0)

    after = (state.weights, state.direction, state.tail, update)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_update_moves_nothing() -> None:
    for optimiser in ("average", "adam"):
        state = _after(Aggregation(optimiser=optimiser), [torch.zeros(PARAMS)] * 3)
        assert state.weights.count_nonzero() == 0


@pytest.mark.parametrize("kept", [1, 3, 100])
def test_the_released_model_is_the_mean_of_the_last_rounds(kept: int) -> None:
    updates, weights, all_ = draws(5), torch.zeros(PARAMS), []
    for update in updates:
        weights = weights + 0.1 * update
        all_.append(weights)

    state = _after(Aggregation(averaged_rounds=kept), updates)

    assert torch.allclose(state.released, torch.stack(all_[-kept:]).mean(0), atol=1e-6)
    assert state.round == 5
    assert torch.equal(begin(weights).released, weights)


# --- the rate ---------------------------------------------------------------------------------


def test_without_noise_the_rate_is_the_settings() -> None:
    settings = Aggregation(learning_rate=3.0)
    rates = {
        learning_rate(settings, OPEN, number, devices=5, denominator=5.0) for number in (1, 5, 10)
    }
    assert rates == {3.0}


def test_the_cosine_falls_from_one_towards_zero() -> None:
    settings = Aggregation(schedule="cosine")
    rates = [learning_rate(settings, OPEN, n, devices=5, denominator=5.0) for n in range(1, 11)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.05


def test_with_noise_the_weights_end_no_noisier_than_asked() -> None:
    """Simulated: so much noise as the trainer adds, over all rounds, at the rate that is given."""
    devices, utterances = 8, 8 * 20.0
    settings = Aggregation(learning_rate=1e9, weight_noise=0.75)
    training, mechanism = PRIVATE.training, PRIVATE.mechanism
    generator = torch.Generator().manual_seed(0)
    denominator = utterances / devices * training.sample_rate
    rate = learning_rate(settings, PRIVATE, 1, devices=devices, denominator=denominator)
    std = mechanism.clip_norm * mechanism.noise_multiplier * training.learning_rate / denominator
    steps = PRIVATE.rounds * training.steps

    noise = torch.randn(steps, devices, 4_000, generator=generator) * std
    spread = float((rate * noise.mean(1).sum(0)).std())

    assert spread == pytest.approx(0.75, rel=0.05)


def test_a_rate_that_is_quiet_enough_stays() -> None:
    settings = Aggregation(learning_rate=1e-6)
    assert learning_rate(settings, PRIVATE, 1, devices=8, denominator=10.0) == 1e-6


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser": "magic"},
        {"schedule": "moon"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"weight_noise": 0.0},
        {"averaged_rounds": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"second_moment": 1.0},
        {"adaptivity": 0.0},
        {"update_norm": math.inf},
    ],
)
def test_an_aggregation_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(change))):
        Aggregation(**change)  # type: ignore[arg-type]
