"""The accountant never understates: closed forms, other accountants, order, and edges."""

import math
from dataclasses import replace

import pytest
from builders import make_release, make_sum_release
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.accounting.composition import compose_releases
from sottovoce.shared.privacy.accounting.loss_distributions import (
    DISCRETISATION_INTERVAL,
    account_discretised,
)
from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    PrivacyUnit,
    Release,
    ReleaseKind,
)

DELTA = 1e-5
QUICK = settings(max_examples=15, deadline=None)


OPEN = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)
SEALED = Release(kind=ReleaseKind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run="r", round=1)


def closed_form(mu: float, delta: float) -> float:
    """Epsilon of one Gaussian, from Balle & Wang 2018, theorem 5, written down anew."""

    def excess(epsilon: float) -> float:
        left = norm.cdf(mu / 2 - epsilon / mu)
        right = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(left - right - delta)

    return float(brentq(excess, 0.0, 200.0)) if excess(0.0) > 0 else 0.0


# --- against closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("delta", [1e-7, 1e-5, 1e-2])
def test_one_gaussian_costs_its_closed_form_and_never_less(
    noise: float, delta: float, fast: bool
) -> None:
    exact = closed_form(1 / noise, delta)

    spent = accounting.compute_epsilon([make_release(noise)], delta, fast=fast)

    assert exact - 1e-7 <= spent <= exact * (1.01 if fast else 1.001) + (1e-3 if fast else 2e-4)


@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-3])
@pytest.mark.parametrize("epsilon", [0.00011, 0.01234, 0.34067, 2.71828, 7.99996])
def test_discretising_one_gaussian_adds_less_than_rounding_allows(
    epsilon: float, delta: float
) -> None:
    """Calibration takes the closed form where this much does not matter."""
    noise = 1 / accounting.gaussian_mu(epsilon, delta)

    closed = accounting.compute_epsilon([make_release(noise)], delta)
    spent = compose_releases([make_release(noise)], PrivacyUnit.UTTERANCE)
    discretised = account_discretised(spent, delta, DISCRETISATION_INTERVAL)

    assert closed >= epsilon - 1e-9
    assert epsilon - 1e-9 <= discretised <= closed + accounting.MAX_DISCRETISATION_ERROR / 2


def test_the_closed_form_is_told_from_a_hundredth_less_noise() -> None:
    assert (
        accounting.compute_epsilon([make_release(2.97)], DELTA)
        > closed_form(1 / 3.0, DELTA) * 1.005
    )


@QUICK
@given(st.lists(st.floats(1.5, 40.0), min_size=1, max_size=6))
def test_gaussians_compose_as_one(noises: list[float]) -> None:
    mu = math.sqrt(sum(noise**-2 for noise in noises))

    spent = accounting.compute_epsilon(map(make_release, noises), DELTA, fast=True)

    assert closed_form(mu, DELTA) - 1e-6 <= spent <= closed_form(mu, DELTA) * 1.02 + 1e-3


def test_a_sampled_step_costs_less_than_a_whole_one_and_more_than_its_delta() -> None:
    whole = accounting.compute_epsilon([make_release(1.0)], DELTA)
    sampled = [
        accounting.compute_epsilon([make_release(1.0, rate=q)], DELTA)
        for q in (0.01, 0.1, 0.5, 0.999)
    ]
    assert sampled == sorted(sampled)
    assert sampled[0] > 0
    assert sampled[-1] <= whole
    assert sampled[-1] == pytest.approx(whole, rel=0.01)


def test_renyi_takes_over_where_it_is_hopeless_and_never_understates() -> None:
    for noise in (0.05, 0.02, 1e-3):
        exact = closed_form_large(1 / noise)
        assert exact <= accounting.compute_epsilon([make_release(noise)], DELTA) <= exact * 1.25


def closed_form_large(mu: float) -> float:
    """A lower bound on epsilon for large mu: the privacy loss at its delta-quantile, less a hair.

    Loss is normal with mean mu^2/2 and deviation mu; half of delta lies beyond it even after the
    second term of the closed form is taken off.
    """
    return mu**2 / 2 + mu * float(norm.isf(DELTA * 10))


# --- order, repetition, monotony --------------------------------------------------------------

RELEASES = st.builds(
    make_release,
    st.sampled_from([1.5, 3.0, 10.0]),
    rate=st.sampled_from([1.0, 0.25]),
    steps=st.integers(1, 3),
)


@QUICK
@given(st.lists(RELEASES, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_order_does_not_show(releases: list[Release], random: "object") -> None:
    mixed = list(releases)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    spent = accounting.compute_epsilon(releases, DELTA, fast=True)
    assert accounting.compute_epsilon(mixed, DELTA, fast=True) == spent


@QUICK
@given(st.lists(RELEASES, max_size=3), RELEASES)
def test_a_further_release_never_lowers_it(releases: list[Release], further: Release) -> None:
    before = accounting.compute_epsilon(releases, DELTA, fast=True)
    assert accounting.compute_epsilon([*releases, further], DELTA, fast=True) > before


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_steps_are_repeated_releases(rate: float) -> None:
    together = accounting.compute_epsilon([make_release(2.0, rate=rate, steps=6)], DELTA)
    alone = accounting.compute_epsilon([make_release(2.0, rate=rate)] * 6, DELTA)
    assert together == alone


def test_less_noise_less_delta_and_more_sampling_cost_more() -> None:
    usual = make_release(2.0, rate=0.2, steps=5)

    def cost(release: Release, delta: float = DELTA) -> float:
        return accounting.compute_epsilon([release], delta)

    assert cost(replace(usual, noise_multiplier=1.9)) > cost(usual)
    assert cost(replace(usual, sample_rate=0.25)) > cost(usual)
    assert cost(replace(usual, steps=6)) > cost(usual)
    assert cost(usual, DELTA / 10) > cost(usual)


# --- edges ------------------------------------------------------------------------------------


def test_nothing_and_ciphertext_cost_nothing() -> None:
    assert accounting.compute_epsilon([], DELTA) == 0.0
    assert accounting.compute_epsilon([SEALED, SEALED], DELTA) == 0.0
    alone = accounting.compute_epsilon([make_release(2.0)], DELTA)
    assert accounting.compute_epsilon([SEALED, make_release(2.0)], DELTA) == alone


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_unprotected_release_makes_it_infinite(place: int) -> None:
    releases = [make_release(50.0), SEALED]
    releases.insert(place, OPEN)
    assert accounting.compute_epsilon(releases, DELTA) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(SettingError, match="delta"):
        accounting.compute_epsilon([make_release(1.0)], delta)


@pytest.mark.parametrize("budget", [0.1, 1.0, 8.0])
def test_the_mu_of_a_budget_spends_it(budget: float) -> None:
    assert closed_form(accounting.gaussian_mu(budget, DELTA), DELTA) == pytest.approx(budget, 1e-6)


# --- the two units ----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.7, 2.0, 9.0])
def test_a_user_costs_what_the_noise_on_the_sum_says(noise: float) -> None:
    priced = accounting.compute_epsilon([make_sum_release(noise)] * 4, DELTA, unit=PrivacyUnit.USER)

    assert (
        closed_form(2 / noise, DELTA)
        <= priced
        == pytest.approx(closed_form(2 / noise, DELTA), rel=1e-3)
    )


@pytest.mark.parametrize("noise", [0.7, 2.0, 9.0])
def test_an_utterance_in_a_secure_sum_costs_what_replacing_the_user_costs(noise: float) -> None:
    priced = accounting.compute_epsilon(
        [make_sum_release(noise, discrete=True, near_gaussian=True)], DELTA
    )

    assert priced == pytest.approx(closed_form(2 / noise, DELTA), rel=1e-3)
    assert priced > accounting.compute_epsilon(
        [make_sum_release(noise)], DELTA, unit=PrivacyUnit.USER
    )


@pytest.mark.parametrize("noise", [2.0, 1e9])
def test_what_a_server_says_it_will_add_hides_no_utterance_from_it(noise: float) -> None:
    assert accounting.compute_epsilon([make_sum_release(noise)], DELTA) == math.inf


def test_sampling_users_amplifies_for_users() -> None:
    always, sometimes = make_sum_release(2.0), make_sum_release(2.0, rate=0.1)

    assert accounting.compute_epsilon(
        [sometimes], DELTA, unit=PrivacyUnit.USER
    ) < accounting.compute_epsilon([always], DELTA, unit=PrivacyUnit.USER)


def test_what_hides_utterances_alone_costs_a_user_everything() -> None:
    assert accounting.compute_epsilon([make_release(1e6)], DELTA, unit=PrivacyUnit.USER) == math.inf
    assert (
        accounting.compute_epsilon(
            [make_sum_release(1e6), make_release(1e6)], DELTA, unit=PrivacyUnit.USER
        )
        == math.inf
    )


def test_a_release_may_hide_both_each_by_its_own_noise() -> None:
    both = replace(make_sum_release(3.0), noise_multiplier=5.0, sensitivity=1.0)

    assert accounting.compute_epsilon([both], DELTA) == accounting.compute_epsilon(
        [make_release(5.0)], DELTA
    )
    assert accounting.compute_epsilon(
        [both], DELTA, unit=PrivacyUnit.USER
    ) == accounting.compute_epsilon([make_sum_release(3.0)], DELTA, unit=PrivacyUnit.USER)


@pytest.mark.parametrize("steps", [1, 16])
def test_discrete_noise_is_priced_by_its_renyi_divergence(steps: int) -> None:
    exact = accounting.compute_epsilon(
        [make_sum_release(2.0)] * steps, DELTA, unit=PrivacyUnit.USER
    )
    renyi = accounting.compute_epsilon(
        [make_sum_release(2.0, discrete=True)] * steps, DELTA, unit=PrivacyUnit.USER
    )

    assert exact < renyi < exact * 1.2, "an upper bound, and no absurd one"


@pytest.mark.parametrize("unit", PrivacyUnit)
@pytest.mark.parametrize("steps", [1, 16])
def test_fine_discrete_noise_costs_a_gaussian_and_its_grains(unit: PrivacyUnit, steps: int) -> None:
    noise = {PrivacyUnit.USER: 2.0, PrivacyUnit.UTTERANCE: 1.0}[
        unit
    ]  # another update: twice as far
    exact = accounting.compute_epsilon(
        [make_sum_release(noise)] * steps, DELTA, unit=PrivacyUnit.USER
    )
    fine = accounting.compute_epsilon(
        [make_sum_release(2.0, discrete=True, near_gaussian=True)] * steps, DELTA, unit=unit
    )
    renyi = accounting.compute_epsilon(
        [make_sum_release(2.0, discrete=True)] * steps, DELTA, unit=unit
    )

    assert exact + steps * DISCRETISATION_SLACK < fine < exact + 2 * steps * DISCRETISATION_SLACK
    assert fine < renyi


def test_noise_that_is_not_known_to_be_fine_spoils_the_curve_of_all() -> None:
    fine, coarse = (
        make_sum_release(2.0, discrete=True, near_gaussian=True),
        make_sum_release(2.0, discrete=True),
    )

    mixed = accounting.compute_epsilon([fine, coarse], DELTA, unit=PrivacyUnit.USER)
    assert mixed >= accounting.compute_epsilon([coarse, coarse], DELTA, unit=PrivacyUnit.USER)


def test_many_kinds_composed_step_by_step_bound_what_they_cost_in_any_order() -> None:
    releases = [
        Release(
            kind=ReleaseKind.GRADIENT,
            mechanism=Mechanism.GAUSSIAN,
            run="r",
            round=number,
            noise_multiplier=2.0 + number / 10,
            sample_rate=0.05,
            steps=number,
            sensitivity=1.0,
        )
        for number in range(1, 12)
    ]
    for asked in (releases, releases[::-1], [*releases, releases[3]]):
        for count in (9, len(asked)):
            exact = accounting.compute_epsilon(asked[:count], 1e-5)
            bound = accounting.bound_epsilon(asked[:count], 1e-5)
            fast = accounting.compute_epsilon(asked[:count], 1e-5, fast=True)
            assert exact <= bound <= exact + 2 * accounting.STEP_BY_STEP_ERROR
            assert exact - accounting.MAX_DISCRETISATION_ERROR <= fast
