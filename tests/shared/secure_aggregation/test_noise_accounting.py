"""The epsilon is never below a Gaussian's, moves the right way, and its inverse gives enough."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import DISCRETISATION_SLACK
from sottovoce.shared.secure_aggregation import noise_accounting
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.parameter_selection import (
    select_parameters,
    select_part_parameters,
)

SETTINGS = SecureAggregationConfig(
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


def epsilon(
    noise: float, contributors: int, sensitivity: float = 10.0, parameters: int = 100
) -> float:
    return noise_accounting.concentrated_epsilon(
        noise, contributors, sensitivity=sensitivity, parameters=parameters
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("contributors", [1, 2, 10, 500])
def test_it_is_never_below_the_plain_gaussian(noise: float, contributors: int) -> None:
    assert epsilon(noise, contributors) > 10.0 / (math.sqrt(contributors) * noise)


@pytest.mark.parametrize("contributors", [1, 2, 10])
def test_more_noise_costs_less_and_more_reach_costs_more(contributors: int) -> None:
    epsilons = [epsilon(noise, contributors) for noise in NOISES]

    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilon(1.0, contributors, sensitivity=11.0) > epsilon(1.0, contributors)
    assert epsilon(1.0, contributors + 1, parameters=101) > epsilon(1.0, contributors + 1)


def test_from_a_scale_of_two_on_more_contributors_cost_less() -> None:
    epsilons = [epsilon(2.0, contributors) for contributors in range(1, 200)]

    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilons[99] == pytest.approx(10.0 / 20, rel=1e-9)


def test_little_noise_costs_more_than_a_gaussian_by_the_papers_tau() -> None:
    tau = 10 * (math.exp(-(math.pi**2) * 0.5) + math.exp(-4 / 3 * math.pi**2 * 0.5))
    noise = math.sqrt(0.5)
    plain = 10 / (math.sqrt(3) * noise)
    expected = min(math.sqrt(plain**2 + 2 * tau * 100), plain + tau * 10)

    assert epsilon(noise, 3) == pytest.approx(expected, rel=1e-9)
    assert expected > plain * 1.001


def renyi(noise: float, contributors: int, shift: int, order: float) -> float:
    """Renyi divergence between the sum of discrete Gaussians and itself moved by ``shift``."""
    reach = np.arange(-60, 61)
    one = np.exp(-(reach**2) / (2 * noise**2))
    mass = one = one / one.sum()
    for _ in range(contributors - 1):
        mass = np.convolve(mass, one)
    moved, still = mass[shift:], mass[:-shift]
    usable = (still > 1e-250) & (moved > 1e-250)
    logs = order * np.log(still[usable]) + (1 - order) * np.log(moved[usable])
    return float(np.logaddexp.reduce(logs) / (order - 1))


@pytest.mark.parametrize("noise", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("contributors", [1, 2, 5])
@pytest.mark.parametrize("order", [1.01, 2.0, 8.0])
def test_it_bounds_the_true_divergence(noise: float, contributors: int, order: float) -> None:
    """By summing the exact masses, one value moved by 1 or 3 steps."""
    for shift in (1, 3):
        true = renyi(noise, contributors, shift, order)
        bound = order * epsilon(noise, contributors, sensitivity=shift, parameters=1) ** 2 / 2
        assert true <= bound * (1 + 1e-9)
        if noise >= 2:
            assert true > 0.98 * bound


@pytest.mark.parametrize(("noise", "contributors"), [(0.0, 10), (0.49, 10), (1.0, 0)])
def test_too_little_noise_promises_nothing(noise: float, contributors: int) -> None:
    assert epsilon(noise, contributors) == math.inf


def test_nothing_promised_is_a_multiplier_of_nothing() -> None:
    assert noise_accounting.effective_multiplier(replace(SETTINGS, noise=0.0), 30) == 0
    assert noise_accounting.effective_multiplier(SETTINGS, 0) == 0


@pytest.mark.parametrize("multiplier", [0.01, 0.5, 1.0, 7.3, 50.0])
@pytest.mark.parametrize("contributors", [1, 3, 27])
def test_the_inverse_gives_enough_and_hardly_more(multiplier: float, contributors: int) -> None:
    noise = noise_accounting.calibrate_local_noise(SETTINGS, multiplier, contributors=contributors)
    at = noise_accounting.effective_multiplier(replace(SETTINGS, noise=noise), contributors)

    assert at >= multiplier
    less = noise_accounting.concentrated_epsilon(
        noise * (1 - 1e-6), contributors, sensitivity=SETTINGS.rounded_norm, parameters=500
    )
    assert 1 / less < multiplier


def test_the_multiplier_is_over_the_rounded_norm() -> None:
    coarse = replace(SETTINGS, granularity=0.1, noise=2000.0, clip_norm=1.0)
    found = noise_accounting.effective_multiplier(coarse, 16)

    assert found == pytest.approx(4 * 2000.0 / coarse.rounded_norm)
    assert found < 4 * 2000.0 / (coarse.clip_norm / coarse.granularity)


def test_liars_and_dropouts_are_not_counted_on() -> None:
    assert noise_accounting.honest_contributors(81, 10) == 71
    with pytest.raises(SettingError, match="nobody"):
        noise_accounting.honest_contributors(5, 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_rubbish_has_no_price(bad: float) -> None:
    with pytest.raises(SettingError):
        epsilon(1.0, 3, sensitivity=bad)
    with pytest.raises(SettingError):
        noise_accounting.calibrate_local_noise(SETTINGS, bad, contributors=3)


# --- the slack --------------------------------------------------------------------------------


def coarse(noise: float, parameters: int) -> SecureAggregationConfig:
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


def chances(
    noise: float, contributors: int, moved: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Of every sum near 0, with and without what one user adds; values side by side are axes."""
    reach = math.ceil(12 * noise)
    single = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * noise**2))
    line = single / single.sum()
    for _ in range(contributors - 1):
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
@pytest.mark.parametrize("contributors", [1, 2, 3])
@pytest.mark.parametrize("moved", [(4,), (1,), (3, 2), (1, 1)])
def test_a_sums_delta_is_a_gaussians_but_for_its_slack(
    noise: float, contributors: int, moved: tuple[int, ...]
) -> None:
    """Summed over the whole lattice, in both directions."""
    slack = noise_accounting.discretisation_slack(coarse(noise, len(moved)), contributors)
    mu = math.hypot(*moved) / (math.sqrt(contributors) * noise)
    here, there = chances(noise, contributors, moved)

    finer = False
    for epsilon in np.linspace(-1.0, 6.0, 141):
        for one, other in ((here, there), (there, here)):
            delta = float((one - math.exp(epsilon) * other).clip(min=0).sum())
            assert delta <= math.exp(slack) * gaussian(epsilon - slack, mu) + 1e-14
            finer = finer or delta > gaussian(epsilon, mu) + 1e-14
    assert finer, "a Gaussian alone would have covered it: the test could not fail"


def test_the_slack_is_small_wherever_sums_are_made() -> None:
    for devices, parameters in ((10, 9), (20, 1_032), (91, 10_000), (1_000, 100_000)):
        settings = select_parameters(
            devices, parameters, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=1.5
        )
        contributors = noise_accounting.honest_contributors(
            settings.quorum, math.ceil(devices / 10)
        )
        assert (
            0 < noise_accounting.discretisation_slack(settings, contributors) < DISCRETISATION_SLACK
        )
    few_bits = select_parameters(
        20, 1_032, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=1.5, bits=16
    )
    assert noise_accounting.discretisation_slack(few_bits, 14) > DISCRETISATION_SLACK
    assert noise_accounting.discretisation_slack(replace(few_bits, noise=0.0), 14) == math.inf
    assert noise_accounting.discretisation_slack(few_bits, 0) == math.inf


def sampled_gaussian(epsilon: float, mu: float, rate: float, *, added: bool) -> float:
    """The delta of a Gaussian that a unit joins by a coin: its presence against its absence."""

    def above(x: float, mean: float) -> float:
        return math.erfc((x - mean) / math.sqrt(2)) / 2

    factor = math.exp(epsilon)
    # Where the likelihood ratio of the mixture to the plain Gaussian passes e^epsilon, or does not.
    ratio = ((factor if added else 1 / factor) - (1 - rate)) / rate
    if ratio <= 0:
        return max(0.0, 1 - factor) if added else 0.0
    x = math.log(ratio) / mu + mu / 2
    mixed = (1 - rate) * above(x, 0.0) + rate * above(x, mu)
    if added:
        return mixed - factor * above(x, 0.0)
    return (1 - above(x, 0.0)) - factor * (1 - mixed)


@pytest.mark.parametrize("rate", [0.02, 0.25, 0.9])
@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("contributors", "moved"), [(1, (4,)), (3, (3, 2)), (2, (1, 1))])
def test_a_sampled_sums_delta_is_a_sampled_gaussians_but_for_its_slack(
    rate: float, noise: float, contributors: int, moved: tuple[int, ...]
) -> None:
    """Summed over the whole lattice, in both directions: Poisson sampling amplifies alike."""
    slack = noise_accounting.discretisation_slack(coarse(noise, len(moved)), contributors)
    mu = math.hypot(*moved) / (math.sqrt(contributors) * noise)
    absent, moved_on = chances(noise, contributors, moved)
    present = (1 - rate) * absent + rate * moved_on

    finer = False
    # Where little is sampled, losses are small.
    for epsilon in (*np.linspace(-1.0, 5.0, 61), *np.linspace(-0.03, 0.03, 61)):
        for one, other, added in ((present, absent, True), (absent, present, False)):
            delta = float((one - math.exp(epsilon) * other).clip(min=0).sum())
            bound = sampled_gaussian(epsilon - slack, mu, rate, added=added)
            assert delta <= math.exp(slack) * bound + 1e-14
            finer = finer or delta > sampled_gaussian(epsilon, mu, rate, added=added) + 1e-14
    assert finer, "a sampled Gaussian alone would have covered it: the test could not fail"


# --- a part of an update ----------------------------------------------------------------------


def test_noise_for_a_part_is_over_what_the_part_moves() -> None:
    settings = select_part_parameters(
        20, 1_032, 0.5, dropout=0.1, corruption=0.1, noise_multiplier=2.5
    )

    honest = noise_accounting.honest_contributors(settings.quorum, 2)
    found = noise_accounting.effective_multiplier(settings, honest)
    assert found == pytest.approx(2.5, rel=1e-6)
    assert found >= 2.5
    std = settings.noise * settings.granularity * math.sqrt(honest)
    assert std == pytest.approx(2.5 * 0.5, rel=1e-3), "rounding costs a thousandth"
    assert std > 2.5 * 0.5
    assert noise_accounting.discretisation_slack(settings, honest) <= DISCRETISATION_SLACK


def test_many_devices_shorten_what_one_may_add_until_the_lattice_is_too_coarse() -> None:
    usual: dict[str, float] = {"dropout": 0.1, "corruption": 0.1, "noise_multiplier": 2.5}
    reaches = [
        select_part_parameters(devices, 1_032, 0.5, **usual).clip_norm / 0.5
        for devices in (20, 400, 2_000)
    ]

    assert reaches[0] == 256
    assert reaches == sorted(reaches, reverse=True)
    assert reaches[-1] < reaches[0]
    with pytest.raises(SettingError, match="sum fewer devices"):
        select_part_parameters(2_000, 200_000, 0.5, **usual)
