"""Bounds never pass the truth but for their error rate, and come close to it where they can."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.simulations.audit.bounds import many_runs, one_run, summed_scores
from sottovoce.simulations.audit.bounds.gaussian import gaussian_epsilon
from sottovoce.simulations.audit.bounds.many_runs import ErrorRates
from sottovoce.simulations.audit.bounds.one_run import Guesses
from sottovoce.simulations.audit.one_run import bound_epsilon

DELTA = 1e-5
AUTHORS_NOISE = 3.571


def scores(mu: float, trials: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a mechanism that is exactly mu-GDP."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, trials), rng.normal(mu, 1, trials)


@pytest.mark.parametrize(("hits", "trials", "known"), [(0, 100, 0.02951), (5, 100, 0.10225)])
def test_rates_are_bounded_as_clopper_and_pearson_did(hits: int, trials: int, known: float) -> None:
    assert many_runs.clopper_pearson_upper(hits, trials, 0.05) == pytest.approx(known, abs=1e-4)
    assert many_runs.clopper_pearson_upper(trials, trials, 0.05) == 1.0


def test_nobody_shows_more_than_the_number_of_trials_allows() -> None:
    rates = ErrorRates(
        false_positive=many_runs.clopper_pearson_upper(0, 1000, 0.025), false_negative=0.004
    )

    assert math.log(1000 / 4) < many_runs.epsilon_from_rates(rates, 0.0) < math.log(1000 / 3)
    assert (
        many_runs.epsilon_from_rates(ErrorRates(false_positive=0.5, false_negative=0.5), 0.0) == 0.0
    )
    assert (
        many_runs.epsilon_from_rates(ErrorRates(false_positive=1.0, false_negative=1.0), DELTA)
        == 0.0
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_a_gaussian_costs_what_the_accountant_says(epsilon: float) -> None:
    mu = accounting.gaussian_mu(epsilon, DELTA)

    assert gaussian_epsilon(mu, DELTA) == pytest.approx(epsilon, rel=1e-4)


def test_bounds_of_many_runs_are_below_the_truth_and_near_it() -> None:
    truth = gaussian_epsilon(1.666, DELTA)

    found = many_runs.bound_from_trials(
        scores(1.666, 1000), scores(1.666, 20_000, 1), delta=DELTA, confidence=0.95
    )

    assert found.epsilon <= truth
    assert found.epsilon >= 3.0
    assert truth * 0.9 <= found.epsilon_gaussian <= truth
    assert found.epsilon <= found.ceiling


def test_bounds_hold_as_often_as_they_say() -> None:
    wrong = [
        many_runs.bound_from_trials(
            scores(0.5, 30, seed), scores(0.5, 60, 1000 + seed), delta=DELTA, confidence=0.8
        ).mu
        > 0.5
        for seed in range(100)
    ]

    assert np.mean(wrong) <= 0.2


def test_blind_scores_show_nothing() -> None:
    found = many_runs.bound_from_trials(
        scores(0, 200), scores(0, 400, 1), delta=DELTA, confidence=0.95
    )

    assert found.epsilon == 0.0
    assert found.epsilon_gaussian < 0.5


def test_scores_without_noise_reach_the_ceiling() -> None:
    still = np.zeros(500), np.ones(500)

    found = many_runs.bound_from_trials(still, still, delta=DELTA, confidence=0.95)

    assert found.epsilon == found.ceiling


def test_randomised_response_is_the_hypothesis_of_one_run() -> None:
    # All of r guesses right refutes epsilon where (e^eps / (1 + e^eps))^r < alpha.
    everything = Guesses(canaries=100, guesses=100, correct=100)
    known = math.log(0.05 ** (1 / 100) / (1 - 0.05 ** (1 / 100)))

    for bound in (one_run.bound_by_epsilon_delta, one_run.bound_by_trade_off):
        assert bound(everything, delta=0.0, alpha=0.05) == pytest.approx(known, abs=0.03), bound


@pytest.mark.parametrize("bound", [one_run.bound_by_epsilon_delta, one_run.bound_by_trade_off])
def test_delta_and_wrong_guesses_cost_one_run_its_bound(bound: Any) -> None:
    def find(correct: int, delta: float) -> float:
        guesses = Guesses(canaries=500, guesses=100, correct=correct)
        return float(bound(guesses, delta=delta, alpha=0.05))

    sure = find(95, 0.0)

    assert 0 < find(90, 0.0) < sure
    assert 0 < find(95, 1e-4) < sure
    assert find(50, 0.0) == 0.0
    assert find(0, DELTA) == 0.0


def test_few_sure_guesses_lose_less_to_delta_by_their_trade_off() -> None:
    guesses = Guesses(canaries=20_000, guesses=300, correct=297)

    plain = one_run.bound_by_epsilon_delta(guesses, delta=DELTA, alpha=0.01)

    assert one_run.bound_by_trade_off(guesses, delta=DELTA, alpha=0.01) > plain + 1


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (5, 5, -1), (0, 0, 0)])
def test_impossible_guesses_are_refused(counts: tuple[int, int, int]) -> None:
    canaries, guesses, correct = counts

    with pytest.raises(SettingError, match="each must be at most the next"):
        Guesses(canaries=canaries, guesses=guesses, correct=correct)


def most_likely(guesses: Guesses, least_wrong: one_run.LeastWrong) -> float:
    """The largest chance of so many right guesses, by a linear program over all distributions.

    The trade-off function is replaced by the largest of its tangents, which allow as much at least.
    """
    m, n = guesses.canaries, guesses.guesses
    counts = np.arange(n + 1)
    points = np.geomspace(1e-6, 0.999 * n / m, 300)
    slopes = [(least_wrong(x * (1 + 1e-6)) - least_wrong(x)) / (x * 1e-6) for x in points]
    rows = [
        slope * (counts / m) * (counts >= t) - ((n - counts) / m) * (counts >= t - 1)
        for t in range(1, n + 1)
        for slope in slopes
    ]
    limits = n * [slope * x - least_wrong(x) for x, slope in zip(points, slopes, strict=True)]
    found = linprog(
        -(counts >= guesses.correct).astype(float),
        A_ub=np.array(rows),
        b_ub=np.array(limits),
        A_eq=np.ones((1, n + 1)),
        b_eq=[1.0],
    )
    return float(-found.fun)


@pytest.mark.parametrize(
    "least_wrong", [one_run.gaussian_wrong(1.0), one_run.epsilon_delta_wrong(1.0, 0.0)]
)
@pytest.mark.parametrize(("canaries", "correct"), [(12, 11), (15, 12)])
def test_the_trade_off_is_refuted_where_a_linear_program_says(
    least_wrong: one_run.LeastWrong, canaries: int, correct: int
) -> None:
    guesses = Guesses(canaries=canaries, guesses=12, correct=correct)

    chance = most_likely(guesses, least_wrong)

    assert 0.01 < chance < 0.9
    assert not one_run.refutes(guesses, least_wrong, alpha=0.97 * chance)
    assert one_run.refutes(guesses, least_wrong, alpha=1.03 * chance)


def test_the_bound_agrees_with_the_authors_program() -> None:
    """Their noise for 1,500 guesses, 1,000 right, of 2,000 canaries, by steps of .01."""
    guesses = Guesses(canaries=2000, guesses=1500, correct=1000)

    noise = 1 / one_run.bound_mu(guesses, alpha=0.05)

    assert AUTHORS_NOISE - 0.01 <= noise <= AUTHORS_NOISE


def score_gaussian(mu: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a mechanism that is exactly mu-GDP for each canary, and which are in."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    return rng.normal(0, 1, canaries) + mu * (included - 0.5), included


def test_bounds_of_one_run_hold_as_often_as_they_say() -> None:
    mu, alpha = 0.8, 0.2
    truth = gaussian_epsilon(mu, DELTA)
    found = []
    for seed in range(100):
        scores, included = score_gaussian(mu, 300, seed)
        (guesses,) = one_run.count_guesses(scores, included, [60])
        by_scores = summed_scores.bound_from_scores(
            scores, included, delta=DELTA, confidence=1 - alpha
        )
        found.append(
            (
                one_run.bound_by_epsilon_delta(guesses, delta=DELTA, alpha=alpha) / truth,
                one_run.bound_by_trade_off(guesses, delta=DELTA, alpha=alpha) / truth,
                one_run.bound_mu(guesses, alpha=alpha) / mu,
                by_scores.mu / mu,
            )
        )

    assert (np.mean(np.array(found) > 1, axis=0) <= alpha).all()
    assert max(one[3] for one in found) > 0.9, "a blind bound would hold too"


def test_many_canaries_come_near_the_truth() -> None:
    mu = 1.666
    truth = gaussian_epsilon(mu, DELTA)

    found = bound_epsilon(*score_gaussian(mu, 50_000, 0), devices=1, delta=DELTA, confidence=0.95)

    assert 0.95 * truth < found.by_scores.epsilon_gaussian < truth
    assert 0.45 * truth < found.by_trade_off.epsilon < truth
    assert 0.55 * truth < found.epsilon_by_trade_off < truth
    assert found.by_epsilon_delta.epsilon < found.by_trade_off.epsilon


def test_scores_without_noise_reach_the_ceiling_of_one_run() -> None:
    included = np.arange(4000) % 3 == 0
    scores = np.where(included, 0.5, -0.5)

    found = bound_epsilon(scores, included, devices=1, delta=DELTA, confidence=0.95)

    for bound in (found.by_epsilon_delta, found.by_trade_off):
        assert bound.epsilon == bound.ceiling > 5
    assert found.by_scores.epsilon_gaussian > 100


def test_too_few_scores_show_nothing() -> None:
    inside = np.array([True, True, False])

    assert (
        summed_scores.bound_from_scores(
            np.array([1.0, 2.0, -1.0]), inside, delta=DELTA, confidence=0.95
        ).mu
        == 0.0
    )
