"""Coins say yes as often as they should, and only in a simulation can they be tossed again."""

import pytest
import torch

from sottovoce.shared.privacy.coins import Coins, SeededCoins, SystemCoins


def _seeded(seed: int = 1) -> SeededCoins:
    return SeededCoins(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("coins", [_seeded(), SystemCoins()])
@pytest.mark.parametrize("chance", [0.03, 0.25, 0.9])
def test_coins_say_yes_as_often_as_asked(coins: Coins, chance: float) -> None:
    size = 200_000
    share = float(coins.toss(size, chance).double().mean())

    assert abs(share - chance) < 6 * (chance * (1 - chance) / size) ** 0.5


@pytest.mark.parametrize("coins", [_seeded(), SystemCoins()])
def test_the_ends_are_exact(coins: Coins) -> None:
    assert coins.toss(1000, 1.0).all()
    assert len(coins.toss(0, 0.5)) == 0
    # With coins of 24 bits some 600 of these would say yes.
    assert not any(coins.toss(10_000_000, 1e-13).any() for _ in range(10))


def test_only_a_simulation_repeats() -> None:
    first, again = (_seeded(5).toss(100, 0.5) for _ in range(2))
    system = SystemCoins()

    assert torch.equal(first, again)
    assert not torch.equal(system.toss(100, 0.5), system.toss(100, 0.5))
