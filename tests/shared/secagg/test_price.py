"""The price is never below a Gaussian's, moves the right way, and its inverse gives enough."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import GRAIN
from sottovoce.shared.secagg import price
from sottovoce.shared.secagg.arrangement import settings_for
from sottovoce.shared.secagg.settings import SecureAggregation

SETTINGS = SecureAggregation(
    devices=40,
    parameters=500,
    degree=20,
    threshold=14,
    quorum=30,
    clip_norm=1.0,
    granularity=1e-4,
    noise=2000.0,
)
NOISES = [0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 100.0, 1e6]


def epsilon(noise: float, sharers: int, sensitivity: float = 10.0, parameters: int = 100) -> float:
    return price.concentrated_epsilon(
        noise, sharers, sensitivity=sensitivity, parameters=parameters
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sharers", [1, 2, 10, 500])
def test_it_is_never_below_the_plain_gaussian(noise: float, sharers: int) -> None:
    assert epsilon(noise, sharers) > 10.0 / (math.sqrt(sharers) * noise)


@pytest.mark.parametrize("sharers", [1, 2, 10])
def test_more_noise_costs_less_and_more_reach_costs_more(sharers: int) -> None:
    prices = [epsilon(noise, sharers) for noise in NOISES]

    assert prices == sorted(prices, reverse=True)
    assert epsilon(1.0, sharers, sensitivity=11.0) > epsilon(1.0, sharers)
    assert epsilon(1.0, sharers + 1, parameters=101) > epsilon(1.0, sharers + 1)


def test_from_a_scale_of_two_on_more_sharers_cost_less() -> None:
    prices = [epsilon(2.0, sharers) for sharers in range(1, 200)]

    assert prices == sorted(prices, reverse=True)
    assert prices[99] == pytest.approx(10.0 / 20, rel=1e-9)


def test_little_noise_costs_more_than_a_gaussian_by_the_papers_tau() -> None:
    tau = 10 * (math.exp(-(math.pi**2) * 0.5) + math.exp(-4 / 3 * math.pi**2 * 0.5))
    noise = math.sqrt(0.5)
    plain = 10 / (math.sqrt(3) * noise)
    expected = min(math.sqrt(plain**2 + 2 * tau * 100), plain + tau * 10)

    assert epsilon(noise, 3) == pytest.approx(expected, rel=1e-9)
    assert expected > plain * 1.001


def renyi(noise: float, sharers: int, shift: int, order: float) -> float:
    """Renyi divergence between the sum of discrete Gaussians and itself moved by ``shift``."""
    reach = np.arange(-60, 61)
    one = np.exp(-(reach**2) / (2 * noise**2))
    mass = one = one / one.sum()
    for _ in range(sharers - 1):
        mass = np.convolve(mass, one)
    moved, still = mass[shift:], mass[:-shift]
    kept = (still > 1e-250) & (moved > 1e-250)
    logs = order * np.log(still[kept]) + (1 - order) * np.log(moved[kept])
    return float(np.logaddexp.reduce(logs) / (order - 1))


@pytest.mark.parametrize("noise", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("sharers", [1, 2, 5])
@pytest.mark.parametrize("order", [1.01, 2.0, 8.0])
def test_it_bounds_the_true_divergence(noise: float, sharers: int, order: float) -> None:
    """By summing the exact masses, one value moved by 1 or 3 steps."""
    for shift in (1, 3):
        true = renyi(noise, sharers, shift, order)
        bound = order * epsilon(noise, sharers, sensitivity=shift, parameters=1) ** 2 / 2
        assert true <= bound * (1 + 1e-9)
        if noise >= 2:
            assert true > 0.98 * bound


@pytest.mark.parametrize(("noise", "sharers"), [(0.0, 10), (0.49, 10), (1.0, 0)])
def test_too_little_noise_promises_nothing(noise: float, sharers: int) -> None:
    assert epsilon(noise, sharers) == math.inf


def test_nothing_promised_is_a_multiplier_of_nothing() -> None:
    assert price.effective_multiplier(replace(SETTINGS, noise=0.0), 30) == 0
    assert price.effective_multiplier(SETTINGS, 0) == 0


@pytest.mark.parametrize("multiplier", [0.01, 0.5, 1.0, 7.3, 50.0])
@pytest.mark.parametrize("sharers", [1, 3, 27])
def test_the_inverse_gives_enough_and_hardly_more(multiplier: float, sharers: int) -> None:
    noise = price.local_noise(SETTINGS, multiplier, sharers=sharers)
    at = price.effective_multiplier(replace(SETTINGS, noise=noise), sharers)

    assert at >= multiplier
    less = price.concentrated_epsilon(
        noise * (1 - 1e-6), sharers, sensitivity=SETTINGS.rounded_norm, parameters=500
    )
    assert 1 / less < multiplier


def test_the_multiplier_is_over_the_rounded_norm() -> None:
    coarse = replace(SETTINGS, granularity=0.1, noise=2000.0, clip_norm=1.0)
    found = price.effective_multiplier(coarse, 16)

    assert found == pytest.approx(4 * 2000.0 / coarse.rounded_norm)
    assert found < 4 * 2000.0 / (coarse.clip_norm / coarse.granularity)


def test_liars_and_dropouts_are_not_counted_on() -> None:
    assert price.noise_sharers(81, 10) == 71
    with pytest.raises(SettingError, match="nobody"):
        price.noise_sharers(5, 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_rubbish_has_no_price(bad: float) -> None:
    with pytest.raises(SettingError):
        epsilon(1.0, 3, sensitivity=bad)
    with pytest.raises(SettingError):
        price.local_noise(SETTINGS, bad, sharers=3)


# --- the grain --------------------------------------------------------------------------------


def coarse(noise: float, parameters: int) -> SecureAggregation:
    """A sum whose steps are large beside its noise."""
    return replace(
        SETTINGS,
        devices=3,
        degree=2,
        threshold=2,
        quorum=3,
        parameters=parameters,
        clip_norm=3.0,
        granularity=1.0,
        noise=noise,
    )


def chances(noise: float, sharers: int, moved: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of every sum near 0, with and without what one user adds; values side by side are axes."""
    reach = math.ceil(12 * noise)
    single = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * noise**2))
    line = single / single.sum()
    for _ in range(sharers - 1):
        line = np.convolve(line, single / single.sum())
    line = np.pad(line, 8)
    here, there = np.ones(()), np.ones(())
    for step in moved:
        here, there = np.multiply.outer(here, line), np.multiply.outer(there, np.roll(line, step))
    return here, there


def gaussian(epsilon: float, mu: float) -> float:
    """The delta of a Gaussian (Balle and Wang 2018)."""
    first, second = (math.erfc((epsilon / mu + half) / math.sqrt(2)) for half in (-mu / 2, mu / 2))
    return (first - math.exp(epsilon) * second) / 2


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sharers", [1, 2, 3])
@pytest.mark.parametrize("moved", [(4,), (1,), (3, 2), (1, 1)])
def test_a_sums_delta_is_a_gaussians_but_for_its_grain(
    noise: float, sharers: int, moved: tuple[int, ...]
) -> None:
    """Summed over the whole lattice, in both directions."""
    grain = price.grain(coarse(noise, len(moved)), sharers)
    mu = math.hypot(*moved) / (math.sqrt(sharers) * noise)
    here, there = chances(noise, sharers, moved)

    finer = False
    for epsilon in np.linspace(-1.0, 6.0, 141):
        for one, other in ((here, there), (there, here)):
            delta = float((one - math.exp(epsilon) * other).clip(min=0).sum())
            assert delta <= math.exp(grain) * gaussian(epsilon - grain, mu) + 1e-14
            finer = finer or delta > gaussian(epsilon, mu) + 1e-14
    assert finer, "a Gaussian alone would have covered it: the test could not fail"


def test_a_grain_is_small_wherever_sums_are_made() -> None:
    for devices, parameters in ((10, 9), (20, 1_032), (91, 10_000), (1_000, 100_000)):
        settings = settings_for(
            devices, parameters, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=1.5
        )
        sharers = price.noise_sharers(settings.quorum, math.ceil(devices / 10))
        assert 0 < price.grain(settings, sharers) < GRAIN
    few_bits = settings_for(
        20, 1_032, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=1.5, bits=16
    )
    assert price.grain(few_bits, 14) > GRAIN
    assert price.grain(replace(few_bits, noise=0.0), 14) == math.inf
    assert price.grain(few_bits, 0) == math.inf
