"""Private selection is priced as dp-accounting prices it, and refused where it cannot be."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from builders import make_release, make_sum_release
from dp_accounting import dp_event, rdp
from scipy.special import ndtr
from scipy.stats import binom, poisson

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.accounting import RandomStopping, compute_selection_epsilon
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    PrivacyUnit,
    Release,
    ReleaseKind,
)

DELTA = 1e-5
SHAPES = (0.0, 0.5, 1.0, math.inf)
ORDERS = [1 + x / 20 for x in range(1, 200)] + [*range(11, 64), 80, 96, 128, 256, 512, 1024]


def by_dp_accounting(event: dp_event.DpEvent, stopping: RandomStopping) -> float:
    """Epsilon of the best of a random number of runs, straight from the library."""
    accountant = rdp.RdpAccountant(ORDERS)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(event, stopping.mean_runs, stopping.shape))
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [1.0, 10.0, 50.0])
def test_it_costs_what_dp_accounting_says(mean: float, shape: float) -> None:
    stopping = RandomStopping(mean_runs=mean, shape=shape)
    noises = [3.0, 2.0, 4.0]
    one = dp_event.GaussianDpEvent(sum(noise**-2 for noise in noises) ** -0.5)

    spent = compute_selection_epsilon(map(make_release, noises), DELTA, stopping)

    assert spent == pytest.approx(by_dp_accounting(one, stopping), rel=1e-6)


def test_sampled_steps_are_priced_with_their_amplification() -> None:
    stopping = RandomStopping(mean_runs=10)
    step = dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(1.5))
    event = dp_event.SelfComposedDpEvent(step, 20)

    spent = compute_selection_epsilon([make_release(1.5, rate=0.1, steps=20)], DELTA, stopping)

    assert spent == pytest.approx(by_dp_accounting(event, stopping), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_below_n_fold_composition_and_above_one_run(shape: float) -> None:
    run = [make_release(1 / accounting.gaussian_mu(8.0, DELTA))]

    for runs in (5, 10):
        spent = compute_selection_epsilon(run, DELTA, RandomStopping(mean_runs=runs, shape=shape))
        assert 8.0 < spent < 0.6 * accounting.compute_epsilon(run * runs, DELTA)


def test_the_best_of_a_random_number_never_passes_it() -> None:
    """The worst case, computed exactly: each run is one Gaussian, the score its answer."""
    stopping, mu = RandomStopping(mean_runs=5), 1.0
    epsilon = compute_selection_epsilon([make_release(1 / mu)], DELTA, stopping)
    # The best of a geometric number of runs has the distribution function
    # F -> stop F / (1 - (1 - stop) F); the likelihood ratio rises, so a threshold is the best test.
    stop = 1 / stopping.mean_runs

    def best(cdf: float) -> float:
        return stop * cdf / (1 - (1 - stop) * cdf)

    worst = 0.0
    for number in range(-600, 800):
        threshold = number / 100
        without, with_unit = ndtr(threshold), ndtr(threshold - mu)
        above = (1 - best(with_unit)) - math.exp(epsilon) * (1 - best(without))
        below = best(without) - math.exp(epsilon) * best(with_unit)
        worst = max(worst, above, below)
    assert worst <= DELTA


def test_banded_rounds_are_one_gaussian_and_priced_as_such() -> None:
    bands = BandedNoise(coefficients=(1.0, 0.5), min_separation=2)
    release = make_sum_release(2.0)
    assert release.user is not None
    run = [
        replace(release, round=number, user=replace(release.user, bands=bands))
        for number in (1, 3, 4)
    ]
    mu = accounting.compute_mu(run, unit=PrivacyUnit.USER)
    assert mu == pytest.approx(math.sqrt(0.25 + 1.0)), "two of them are too near"
    stopping = RandomStopping(mean_runs=4)

    spent = compute_selection_epsilon(run, DELTA, stopping, unit=PrivacyUnit.USER)

    one = dp_event.GaussianDpEvent(1 / mu)
    assert spent == pytest.approx(by_dp_accounting(one, stopping), rel=1e-6)


def test_discrete_sums_cost_their_slack_at_every_order() -> None:
    stopping = RandomStopping(mean_runs=10)

    def cost(*, near_gaussian: bool) -> float:
        release = make_sum_release(2.0, discrete=near_gaussian, near_gaussian=near_gaussian)
        return compute_selection_epsilon([release] * 30, DELTA, stopping, unit=PrivacyUnit.USER)

    assert cost(near_gaussian=True) > cost(near_gaussian=False) + 30 * DISCRETISATION_SLACK


def test_what_cannot_be_priced_is_refused_or_infinite() -> None:
    stopping = RandomStopping(mean_runs=10)
    unprotected = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)

    assert compute_selection_epsilon([], DELTA, stopping) == 0.0
    assert compute_selection_epsilon([unprotected], DELTA, stopping) == math.inf
    with pytest.raises(SettingError, match=r"order 4 .*needs all orders"):
        compute_selection_epsilon(
            [make_release(2.0)], DELTA, stopping, rule=accounting.RenyiFilter(4.0)
        )
    for delta in (math.nan, 0.0, 1.0, 1.5):
        with pytest.raises(SettingError, match="delta"):
            compute_selection_epsilon([make_release(2.0)], delta, stopping)


@pytest.mark.parametrize(
    ("mean", "shape"), [(0.5, 1.0), (math.nan, 1.0), (10, -1.0), (10, math.nan), (1e9, 1.0)]
)
def test_a_distribution_that_is_none_is_refused(mean: float, shape: float) -> None:
    with pytest.raises(SettingError, match=r"mean_runs|shape"):
        RandomStopping(mean_runs=mean, shape=shape)


def test_distributions_are_named_as_in_the_paper() -> None:
    names = [RandomStopping(mean_runs=4, shape=shape).name for shape in (0, 1, 2.5, math.inf)]

    assert names == [
        "logarithmic",
        "geometric",
        "truncated negative binomial of shape 2.5",
        "Poisson",
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_are_drawn_from_the_distribution_that_is_priced(shape: float) -> None:
    stopping, draws = RandomStopping(mean_runs=4, shape=shape), 4_000
    rng = random.Random(7)

    counts = Counter(stopping.draw_runs(rng) for _ in range(draws))

    mean = sum(number * count for number, count in counts.items()) / draws
    assert mean == pytest.approx(4, rel=0.1)
    assert (min(counts) == 0) == (shape == math.inf)
    # Chance of each small number, by the formulas of the paper's definition 1.
    for number, chance in _first_chances(shape).items():
        low, high = binom.interval(1 - 1e-6, draws, chance)
        assert low <= counts[number] <= high, number


def _first_chances(shape: float) -> dict[int, float]:
    """Chances of one to three runs at a mean of four, written down anew."""
    if shape == math.inf:
        return {number: float(poisson.pmf(number, 4)) for number in (1, 2, 3)}
    if shape == 1:
        return {number: 0.25 * 0.75 ** (number - 1) for number in (1, 2, 3)}
    stop = _stop_at_mean_four(shape)
    if shape == 0:
        return {n: (1 - stop) ** n / n / -math.log(stop) for n in (1, 2, 3)}
    whole = stop**-shape - 1
    rising = {1: shape, 2: shape * (shape + 1) / 2, 3: shape * (shape + 1) * (shape + 2) / 6}
    return {n: (1 - stop) ** n * one / whole for n, one in rising.items()}


def _stop_at_mean_four(shape: float) -> float:
    """Gamma by trying many."""

    def mean(stop: float) -> float:
        if shape == 0:
            return (1 / stop - 1) / -math.log(stop)
        return shape * (1 / stop - 1) / (1 - stop**shape)

    return min((n / 1e5 for n in range(1, 10**5)), key=lambda stop: abs(mean(stop) - 4))


def test_more_noise_fewer_runs_and_a_larger_delta_cost_less() -> None:
    stopping = RandomStopping(mean_runs=10)
    usual = compute_selection_epsilon([make_release(2.0)], DELTA, stopping)

    assert compute_selection_epsilon([make_release(2.2)], DELTA, stopping) < usual
    assert compute_selection_epsilon([make_release(2.0)], 1e-4, stopping) < usual
    fewer = replace(stopping, mean_runs=5)
    assert compute_selection_epsilon([make_release(2.0)], DELTA, fewer) < usual
