"""Bounds never pass the truth but for their error rate, and come close to it where they can."""

import math

import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.simulations.audit import epsilon_bounds
from sottovoce.simulations.audit.epsilon_bounds import ErrorRates

DELTA = 1e-5


def scores(mu: float, trials: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a mechanism that is exactly mu-GDP."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, trials), rng.normal(mu, 1, trials)


@pytest.mark.parametrize(("hits", "trials", "known"), [(0, 100, 0.02951), (5, 100, 0.10225)])
def test_rates_are_bounded_as_clopper_and_pearson_did(hits: int, trials: int, known: float) -> None:
    assert epsilon_bounds.clopper_pearson_upper(hits, trials, 0.05) == pytest.approx(
        known, abs=1e-4
    )
    assert epsilon_bounds.clopper_pearson_upper(trials, trials, 0.05) == 1.0


def test_nobody_shows_more_than_the_number_of_trials_allows() -> None:
    rates = ErrorRates(
        false_positive=epsilon_bounds.clopper_pearson_upper(0, 1000, 0.025), false_negative=0.004
    )

    assert math.log(1000 / 4) < epsilon_bounds.epsilon_from_rates(rates, 0.0) < math.log(1000 / 3)
    assert (
        epsilon_bounds.epsilon_from_rates(ErrorRates(false_positive=0.5, false_negative=0.5), 0.0)
        == 0.0
    )
    assert (
        epsilon_bounds.epsilon_from_rates(ErrorRates(false_positive=1.0, false_negative=1.0), DELTA)
        == 0.0
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_a_gaussian_costs_what_the_accountant_says(epsilon: float) -> None:
    mu = accounting.gaussian_mu(epsilon, DELTA)

    assert epsilon_bounds.gaussian_epsilon(mu, DELTA) == pytest.approx(epsilon, rel=1e-4)


def test_bounds_of_many_runs_are_below_the_truth_and_near_it() -> None:
    truth = epsilon_bounds.gaussian_epsilon(1.666, DELTA)

    found = epsilon_bounds.bound_from_trials(
        scores(1.666, 1000), scores(1.666, 20_000, 1), delta=DELTA, confidence=0.95
    )

    assert found.epsilon <= truth
    assert found.epsilon >= 3.0
    assert truth * 0.9 <= found.epsilon_gaussian <= truth
    assert found.epsilon <= found.ceiling


def test_bounds_hold_as_often_as_they_say() -> None:
    wrong = [
        epsilon_bounds.bound_from_trials(
            scores(0.5, 30, seed), scores(0.5, 60, 1000 + seed), delta=DELTA, confidence=0.8
        ).mu
        > 0.5
        for seed in range(100)
    ]

    assert np.mean(wrong) <= 0.2


def test_blind_scores_show_nothing() -> None:
    found = epsilon_bounds.bound_from_trials(
        scores(0, 200), scores(0, 400, 1), delta=DELTA, confidence=0.95
    )

    assert found.epsilon == 0.0
    assert found.epsilon_gaussian < 0.5


def test_scores_without_noise_reach_the_ceiling() -> None:
    still = np.zeros(500), np.ones(500)

    found = epsilon_bounds.bound_from_trials(still, still, delta=DELTA, confidence=0.95)

    assert found.epsilon == found.ceiling


def test_randomised_response_is_the_hypothesis_of_one_run() -> None:
    # All of r guesses right refutes epsilon where (e^eps / (1 + e^eps))^r < alpha.
    found = epsilon_bounds.bound_from_one_run(100, 100, 100, delta=0.0, alpha=0.05)

    assert found == pytest.approx(math.log(0.05 ** (1 / 100) / (1 - 0.05 ** (1 / 100))), abs=1e-6)


def test_delta_and_wrong_guesses_cost_one_run_its_bound() -> None:
    sure = epsilon_bounds.bound_from_one_run(500, 100, 95, delta=0.0, alpha=0.05)

    assert 0 < epsilon_bounds.bound_from_one_run(500, 100, 90, delta=0.0, alpha=0.05) < sure
    assert 0 < epsilon_bounds.bound_from_one_run(500, 100, 95, delta=1e-4, alpha=0.05) < sure
    assert epsilon_bounds.bound_from_one_run(500, 100, 50, delta=0.0, alpha=0.05) == 0.0
    assert epsilon_bounds.p_value(10, 10, 0, 1.0, DELTA) == 1.0


@pytest.mark.parametrize(("canaries", "guesses", "correct"), [(10, 11, 5), (10, 5, 6), (5, 5, -1)])
def test_impossible_guesses_are_refused(canaries: int, guesses: int, correct: int) -> None:
    with pytest.raises(SettingError, match="each must be at most the next"):
        epsilon_bounds.p_value(canaries, guesses, correct, 1.0, DELTA)


def test_one_run_of_randomised_response_is_bounded_as_often_as_it_says() -> None:
    truth, wrong = 1.0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        inside = rng.random(400) < 0.5
        answers = inside ^ (rng.random(400) > 1 / (1 + math.exp(-truth)))
        best, _, _ = epsilon_bounds.best_one_run_bound(
            answers - 0.5 + 1e-3 * rng.random(400), inside, [50, 400], delta=0.0, confidence=0.8
        )
        wrong += best > truth

    assert wrong <= 8
