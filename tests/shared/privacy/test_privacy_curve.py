"""The privacy curve agrees with formulas that share no code with it, on the safe side."""

import math

import numpy as np
import pytest
from builders import make_release, make_sum_release
from scipy import integrate, optimize, stats

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.guarantees.privacy_curve import (
    FALSE_ALARMS,
    compute_privacy_curve,
    gaussian_tradeoff,
    tradeoff_from_deltas,
)
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

DELTA = 1e-5


def _secure_sums(noise: float, sums: int, *, near_gaussian: bool = True) -> Release:
    """Sums of discrete noise that hide a user."""
    user = SumMechanism(
        noise_multiplier=noise,
        clip_norm=1.0,
        noised_by=NoiseSource.DISTRIBUTED,
        discrete=True,
        near_gaussian=near_gaussian,
        sums=sums,
    )
    return Release(
        kind=ReleaseKind.GRADIENT, mechanism=Mechanism.GAUSSIAN, run="r", round=1, user=user
    )


def _exact_epsilon(mu: float, delta: float) -> float:
    """Epsilon of one Gaussian by Balle and Wang 2018, equation 6, with SciPy's normal."""

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(mu / 2 - epsilon / mu)
        second = math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu))
        return float(first - second - delta)

    return float(optimize.brentq(excess, 0.0, mu * mu + 10 * mu))


@pytest.mark.parametrize("changes", [1, 2, 5, 10])
def test_k_changes_move_gaussians_k_times_as_far(changes: int) -> None:
    releases = [make_release(2.0, steps=4), make_release(3.0)]
    mu = math.sqrt(4 / 2.0**2 + 1 / 3.0**2)

    assert accounting.compute_mu(releases) == pytest.approx(mu, rel=1e-9)
    group = accounting.compute_group_epsilon(releases, DELTA, changes=changes)

    exact = _exact_epsilon(changes * mu, DELTA)
    assert exact <= group <= exact * (1 + 1e-6)


def test_a_large_group_is_charged_at_least_its_true_epsilon() -> None:
    # Delta at epsilon is at most the normal tail alone: the exact epsilon lies a little below.
    mu = 60 * 1.666
    tail = mu * mu / 2 + mu * float(stats.norm.isf(DELTA))

    group = accounting.compute_group_epsilon([make_release(1 / 1.666)], DELTA, changes=60)

    assert 0.99 * tail <= group <= 1.05 * tail


def _mixture_delta(noise: float, chances: list[float], epsilon: float) -> float:
    """Delta of one sampled step for a group, by integrating both densities over the line."""

    def with_group(x: float) -> float:
        return sum(
            chance * float(stats.norm.pdf(x, loc=count, scale=noise))
            for count, chance in enumerate(chances)
        )

    def excess(first: bool, x: float) -> float:
        pair = (with_group(x), float(stats.norm.pdf(x, scale=noise)))
        one, other = pair if first else pair[::-1]
        return max(0.0, one - math.exp(epsilon) * other)

    ends = (-10 * noise, len(chances) + 10 * noise)
    return max(
        integrate.quad(lambda x, first=first: excess(first, x), *ends, limit=400)[0]
        for first in (True, False)
    )


@pytest.mark.parametrize("changes", [1, 2, 4])
def test_a_group_of_sampled_units_is_a_mixture_of_gaussians(changes: int) -> None:
    noise, rate, delta = 1.5, 0.2, 1e-4
    chances = [float(stats.binom.pmf(n, changes, rate)) for n in range(changes + 1)]

    group = accounting.compute_group_epsilon(
        [make_release(noise, rate=rate)], delta, changes=changes
    )

    assert _mixture_delta(noise, chances, group) <= delta * (1 + 1e-3), "never too little"
    assert _mixture_delta(noise, chances, group * 0.98) > delta, "and hardly too much"
    assert group < accounting.compute_group_epsilon([make_release(noise)], delta, changes=changes)


def test_a_large_group_of_hardly_sampled_units_is_bounded_without_its_mixture() -> None:
    faint = make_release(1e9, rate=1e-6)

    group = accounting.compute_group_epsilon([faint], DELTA, changes=10**6)

    assert (
        0 <= group <= accounting.compute_group_epsilon([make_release(1e9)], DELTA, changes=10**6)
    ), "as if nothing were sampled"


def test_a_group_too_wide_for_a_distribution_counts_as_unsampled() -> None:
    sampled = accounting.compute_group_epsilon(
        [make_release(1.0, rate=0.1, steps=50), make_release(5.0)], DELTA, changes=60
    )
    whole = accounting.compute_group_epsilon(
        [make_release(1.0, steps=50), make_release(5.0)], DELTA, changes=60
    )

    assert sampled == whole


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5, 0.9])
def test_the_trade_off_of_a_gaussian_is_that_of_the_likelihood_ratio_test(alpha: float) -> None:
    exact = stats.norm.cdf(stats.norm.ppf(1 - alpha) - 1.7)

    assert gaussian_tradeoff(1.7, alpha) == pytest.approx(exact, rel=1e-9)


def test_all_deltas_together_give_the_trade_off_back_from_below() -> None:
    epsilons = [n / 100 for n in range(1_200)]
    deltas = accounting.compute_deltas([make_release(1 / 1.7)], epsilons)

    for alpha in FALSE_ALARMS:
        exact, found = gaussian_tradeoff(1.7, alpha), tradeoff_from_deltas(epsilons, deltas, alpha)
        assert exact - 1e-3 <= found <= exact + 1e-12


def test_no_test_on_sampled_steps_beats_the_curve() -> None:
    noise, rate, steps = 1.0, 0.3, 3
    curve = compute_privacy_curve(
        [make_release(noise, rate=rate, steps=steps)], DELTA, group_sizes=(2,)
    )
    assert curve is not None
    assert curve.mu is None
    draws = np.random.default_rng(3)
    trials = 200_000
    absent = draws.normal(0, noise, (trials, steps))
    present = draws.normal(0, noise, (trials, steps)) + (draws.random((trials, steps)) < rate)

    def score(x: np.ndarray) -> np.ndarray:
        # The log likelihood ratio: no test is better (Neyman and Pearson).
        return np.log1p(rate * (np.exp((x - 0.5) / noise**2) - 1)).sum(1)

    for alpha, beta in zip(curve.alphas, curve.betas, strict=True):
        if 0.01 <= alpha <= 0.95:
            threshold = np.quantile(score(absent), 1 - alpha)
            overlooked = float((score(present) <= threshold).mean())
            assert overlooked >= beta - 0.005
            # One direction is tight up to the symmetry of the curve; a bound of 0 would pass above.
            assert overlooked <= beta + 0.08


def test_discrete_noise_costs_its_slack_beside_the_gaussian() -> None:
    curve = compute_privacy_curve([_secure_sums(2.0, 16)], 1e-3, unit=PrivacyUnit.USER)

    assert curve is not None
    assert curve.mu == pytest.approx(2.0)
    for alpha, beta in zip(curve.alphas, curve.betas, strict=True):
        assert beta <= gaussian_tradeoff(2.0, alpha), "never above the Gaussian's"
        assert beta >= gaussian_tradeoff(2.0, alpha) - 0.005
    for changes in (1, 2):
        group = accounting.compute_group_epsilon(
            [_secure_sums(2.0, 16)], 1e-3, changes=changes, unit=PrivacyUnit.USER
        )
        slack = 16e-4 * changes
        bound = _exact_epsilon(2.0 * changes, 1e-3 * math.exp(-slack)) + slack
        assert group == pytest.approx(bound, abs=1e-5)


def test_coarse_discrete_noise_has_groups_and_no_curve() -> None:
    curve = compute_privacy_curve(
        [_secure_sums(4.0, 4, near_gaussian=False)], 1e-3, unit=PrivacyUnit.USER
    )

    assert curve is not None
    assert curve.mu is None
    assert curve.betas == ()
    assert "no exact curve" in curve.basis
    assert [epsilon for _, epsilon in curve.groups] == sorted(e for _, e in curve.groups)


def test_the_curve_is_the_promise_at_its_delta_and_falls_with_delta() -> None:
    releases = [make_release(1.0)]
    curve = compute_privacy_curve(releases, DELTA)

    assert curve is not None
    assert curve.epsilon == accounting.compute_epsilon(releases, DELTA)
    epsilons = [epsilon for _, epsilon in curve.other_deltas]
    assert epsilons == sorted(epsilons)
    user = PrivacyUnit.USER
    of_users = compute_privacy_curve([make_sum_release(1.0)], DELTA, unit=user)
    assert of_users is not None
    for delta, epsilon in of_users.other_deltas:
        spent = accounting.compute_epsilon([make_sum_release(1.0)], delta, unit=user)
        assert epsilon == spent < math.inf
    assert list(curve.betas) == sorted(curve.betas, reverse=True)


def test_what_is_unprotected_has_no_curve_and_infinite_groups() -> None:
    bare = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)

    assert compute_privacy_curve([bare], DELTA) is None
    assert math.isinf(accounting.compute_group_epsilon([bare], DELTA, changes=2))
    assert accounting.compute_mu([bare]) == math.inf
    assert accounting.compute_deltas([bare], [1.0]) == [1.0]
    assert accounting.compute_deltas([], [1.0]) == [0.0]


@pytest.mark.parametrize("changes", [0, 10**400, math.nan])
def test_a_group_of_nobody_is_refused(changes: int) -> None:
    with pytest.raises(SettingError, match="changes"):
        accounting.compute_group_epsilon([make_release(1.0)], DELTA, changes=changes)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, math.nan])
def test_a_group_s_delta_is_a_chance(delta: float) -> None:
    with pytest.raises(SettingError, match="delta"):
        accounting.compute_group_epsilon([make_release(1.0)], delta, changes=2)
