"""Coins say yes as often as they should, and only in a simulation can they be tossed again."""

import pytest
import torch

from sottovoce.shared.privacy.poisson_sampling import (
    PoissonSampler,
    SeededPoissonSampler,
    SystemPoissonSampler,
)


def _seeded(seed: int = 1) -> SeededPoissonSampler:
    return SeededPoissonSampler(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("coins", [_seeded(), SystemPoissonSampler()])
@pytest.mark.parametrize("chance", [0.03, 0.25, 0.9])
def test_coins_say_yes_as_often_as_asked(coins: PoissonSampler, chance: float) -> None:
    size = 200_000
    share = float(coins.sample(size, chance).double().mean())

    assert abs(share - chance) < 6 * (chance * (1 - chance) / size) ** 0.5


@pytest.mark.parametrize("coins", [_seeded(), SystemPoissonSampler()])
def test_the_ends_are_exact(coins: PoissonSampler) -> None:
    assert coins.sample(1000, 1.0).all()
    assert len(coins.sample(0, 0.5)) == 0
    # With coins of 24 bits some 600 of these would say yes.
    assert not any(coins.sample(10_000_000, 1e-13).any() for _ in range(10))


def test_only_a_simulation_repeats() -> None:
    first, again = (_seeded(5).sample(100, 0.5) for _ in range(2))
    system = SystemPoissonSampler()

    assert torch.equal(first, again)
    assert not torch.equal(system.sample(100, 0.5), system.sample(100, 0.5))
