"""A round on the server: a pure function of public figures, like its plain twin, whatever comes."""

import math
from dataclasses import replace

import pytest
import torch
from builders import make_plan
from torch import Tensor

from sottovoce.server.aggregation.server_optimizer import (
    AggregationSettings,
    ServerState,
    apply_update,
    compute_learning_rate,
    initial_state,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining

PARAMS = 6
OPEN = make_plan(
    rounds=10,
    training=LocalTraining(steps=2, sample_rate=0.5, learning_rate=0.1, denominator=1.0),
    centre=None,
)
PRIVATE = replace(
    OPEN, mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=2.0), count_noise=10.0
)


def draws(count: int, *, seed: int = 0) -> list[Tensor]:
    """Updates."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(PARAMS, generator=generator) for _ in range(count)]


# --- the step ---------------------------------------------------------------------------------


def _after(
    settings: AggregationSettings, updates: list[Tensor], *, rate: float = 0.1
) -> ServerState:
    state = initial_state(torch.zeros(PARAMS))
    for update in updates:
        state = apply_update(state, update, settings, rate=rate)
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

    state = _after(AggregationSettings(momentum=momentum), updates)

    assert torch.allclose(state.weights, weights.detach(), atol=1e-6)


def test_adam_is_torchs_adam() -> None:
    updates = draws(6)
    weights = torch.nn.Parameter(torch.zeros(PARAMS))
    twin = torch.optim.Adam([weights], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    for update in updates:
        weights.grad = -update
        twin.step()

    settings = AggregationSettings(optimiser="adam", momentum=0.9, second_moment_decay=0.99)

    assert torch.allclose(_after(settings, updates).weights, weights.detach(), atol=1e-6)


def test_a_step_changes_nothing_it_was_given() -> None:
    state, update = initial_state(torch.ones(PARAMS)), torch.ones(PARAMS)
    before = [
        tensor.clone()
        for tensor in (state.weights, state.first_moment, state.recent_weights, update)
    ]

    apply_update(state, update, AggregationSettings(optimiser="adam", momentum=0.5), rate=1.0)

    after = (state.weights, state.first_moment, state.recent_weights, update)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_update_moves_nothing() -> None:
    for optimiser in ("average", "adam"):
        state = _after(AggregationSettings(optimiser=optimiser), [torch.zeros(PARAMS)] * 3)
        assert state.weights.count_nonzero() == 0


@pytest.mark.parametrize("rounds", [1, 3, 100])
def test_the_released_model_is_the_mean_of_the_last_rounds(rounds: int) -> None:
    updates, weights, all_ = draws(5), torch.zeros(PARAMS), []
    for update in updates:
        weights = weights + 0.1 * update
        all_.append(weights)

    state = _after(AggregationSettings(averaged_rounds=rounds), updates)

    assert torch.allclose(state.released_weights, torch.stack(all_[-rounds:]).mean(0), atol=1e-6)
    assert state.round == 5
    assert torch.equal(initial_state(weights).released_weights, weights)


# --- the rate ---------------------------------------------------------------------------------


def test_without_noise_the_rate_is_the_settings() -> None:
    settings = AggregationSettings(learning_rate=3.0)
    rates = {
        compute_learning_rate(settings, OPEN, number, devices=5, denominator=5.0)
        for number in (1, 5, 10)
    }
    assert rates == {3.0}


def test_the_cosine_falls_from_one_towards_zero() -> None:
    settings = AggregationSettings(schedule="cosine")
    rates = [
        compute_learning_rate(settings, OPEN, n, devices=5, denominator=5.0) for n in range(1, 11)
    ]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.05


def test_with_noise_the_weights_end_no_noisier_than_asked() -> None:
    """Simulated: so much noise as the trainer adds, over all rounds, at the rate that is given."""
    devices, utterances = 8, 8 * 20.0
    settings = AggregationSettings(learning_rate=1e9, max_weight_noise_std=0.75)
    training, mechanism = PRIVATE.training, PRIVATE.mechanism
    generator = torch.Generator().manual_seed(0)
    denominator = utterances / devices * training.sample_rate
    rate = compute_learning_rate(settings, PRIVATE, 1, devices=devices, denominator=denominator)
    std = mechanism.clip_norm * mechanism.noise_multiplier * training.learning_rate / denominator
    steps = PRIVATE.rounds * training.steps

    noise = torch.randn(steps, devices, 4_000, generator=generator) * std
    spread = float((rate * noise.mean(1).sum(0)).std())

    assert spread == pytest.approx(0.75, rel=0.05)


def test_a_rate_that_is_quiet_enough_stays() -> None:
    settings = AggregationSettings(learning_rate=1e-6)
    assert compute_learning_rate(settings, PRIVATE, 1, devices=8, denominator=10.0) == 1e-6


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser": "magic"},
        {"schedule": "moon"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"max_weight_noise_std": 0.0},
        {"averaged_rounds": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"second_moment_decay": 1.0},
        {"adaptivity": 0.0},
        {"max_update_norm": math.inf},
    ],
)
def test_an_aggregation_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(change))):
        AggregationSettings(**change)  # type: ignore[arg-type]
