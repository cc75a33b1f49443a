"""Calibration figures per user and their intervals, against counting by hand."""

from typing import Any

import numpy as np
import pytest

from sottovoce.shared import seeding
from sottovoce.simulations.evaluation import calibration, metrics
from sottovoce.simulations.evaluation.bootstrap_side import BootstrapSide, sum_gaps
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.predictions import Predictions

EMOTIONS = ("anger", "joy", "neutral")
PLAIN = {
    "ece": metrics.ece,
    "classwise_ece": metrics.classwise_ece,
    "nll": metrics.negative_log_likelihood,
    "brier": metrics.brier_score,
    "aurc": lambda chances, labels: metrics.risk_coverage_curve(chances, labels).aurc,
}


def table(people: int = 30, each: int = 20, *, seed: int = 0, **changes: Any) -> Predictions:
    """Users whose shared model is too sure, more of some than of others; heads are honest."""
    rng = np.random.default_rng(seed)
    size = people * each
    chances = rng.dirichlet([0.6] * 3, size=size)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    sharp = chances**3 / (chances**3).sum(axis=1, keepdims=True)
    columns: dict[str, Any] = {
        "emotions": EMOTIONS,
        "clips": [f"c{row}" for row in range(size)],
        "speakers": [f"s{row // each}" for row in range(size)],
        "folds": ["fold1"] * size,
        "labels": labels,
        "before": sharp,
        "after": chances,
        "genders": [("female", "male", "")[row // each % 3] for row in range(size)],
        "covered": rng.random(size) < np.repeat(np.linspace(0.7, 1.0, people), each),
        "sizes": 1 + rng.integers(3, size=size),
    }
    return Predictions(**(columns | changes))


def drawn_by_hand(scored: Predictions, cohort: CountArray, side: str, name: str) -> float:
    """A measure of a cohort in which every drawn user's clips are there as often as the user."""
    users = sorted(set(scored.speakers))
    rows = np.concatenate(
        [
            np.flatnonzero(np.asarray(scored.speakers) == user)
            for user, times in zip(users, cohort, strict=True)
            for _ in range(times)
        ]
    )
    return float(PLAIN[name](getattr(scored, side)[rows], scored.labels[rows]))


@pytest.mark.parametrize("name", ["nll", "brier", "aurc"])
def test_a_cohorts_figure_is_that_of_its_users_clips(name: str) -> None:
    scored = table(people=6)
    _, whose = np.unique(scored.speakers, return_inverse=True)
    side = BootstrapSide(scored.before, scored.labels, whose)
    cohorts = np.random.default_rng(1).multinomial(6, [1 / 6] * 6, size=5)

    found = getattr(side, f"measure_{name}")(cohorts)

    by_hand = [drawn_by_hand(scored, cohort, "before", name) for cohort in cohorts]
    # Clips that are there twice tie with themselves; their order moves an area by little.
    assert found.tolist() == pytest.approx(by_hand, abs=0.01 if name == "aurc" else 1e-9)


@pytest.mark.parametrize("name", PLAIN)
def test_everybody_once_is_the_plain_measure(name: str) -> None:
    scored = table()
    _, whose = np.unique(scored.speakers, return_inverse=True)
    side = BootstrapSide(scored.before, scored.labels, whose)
    once = np.ones((1, 30), dtype=np.int64)

    found = getattr(side, f"measure_{name}")(once)[0]

    assert found == pytest.approx(PLAIN[name](scored.before, scored.labels))


def test_intervals_hold_the_figures_and_see_what_heads_do() -> None:
    scored = table()
    found = calibration.bootstrap_intervals(scored, seed=0)

    for name, measure in PLAIN.items():
        for side in ("before", "after"):
            low, high = found[name][side]
            assert low < high
            if "ece" not in name:  # drawing users adds to an error of calibration
                assert low < measure(getattr(scored, side), scored.labels) < high
    for name in ("ece", "classwise_ece", "nll", "brier"):
        assert found[name]["difference"][1] < 0, f"heads lower {name}"
    same = calibration.bootstrap_intervals(table(after=scored.before), seed=0)
    assert all(pair["difference"] == [0.0, 0.0] for pair in same.values())
    assert calibration.bootstrap_intervals(scored, seed=0) == found
    assert calibration.bootstrap_intervals(scored, seed=1) != found


def test_an_interval_covers_about_as_often_as_it_says() -> None:
    truth = metrics.negative_log_likelihood(*_pooled(range(100, 140)))
    inside = 0
    for seed in range(40):
        low, high = calibration.bootstrap_intervals(table(people=15, seed=seed), seed=0)["nll"][
            "before"
        ]
        inside += low <= truth <= high

    assert 31 <= inside <= 40


def _pooled(draws: range) -> tuple[FloatArray, CountArray]:
    """Many users' clips."""
    tables = [table(seed=seed) for seed in draws]
    rows = np.concatenate([one.before for one in tables])
    return rows, np.concatenate([one.labels for one in tables])


def test_each_user_has_own_figures() -> None:
    scored = table(people=3)
    found = calibration.metrics_by_speaker(scored)

    assert list(found) == ["s0", "s1", "s2"]
    own = slice(20, 40)
    assert found["s1"]["n"] == 20
    assert found["s1"]["before"]["nll"] == metrics.negative_log_likelihood(
        scored.before[own], scored.labels[own]
    )
    assert found["s1"]["after"]["ece"] == metrics.ece(scored.after[own], scored.labels[own])


def test_sets_tell_who_is_covered_least() -> None:
    scored = table()
    found = calibration.evaluate_prediction_sets(scored, seed=0)

    assert found is not None
    assert scored.covered is not None
    shares = [one["covered"] for one in found["per_speaker"].values()]
    assert found["covered"] == pytest.approx(scored.covered.mean())
    assert found["worst_tenth"] == pytest.approx(np.mean(sorted(shares)[:3]))
    assert found["interval"][0] < found["covered"] < found["interval"][1]
    assert set(found["gender"]) == {"female", "male", "unknown"}
    assert calibration.evaluate_prediction_sets(table(covered=None, sizes=None), seed=0) is None


def test_gaps_of_a_cohort_lie_in_the_bins_of_everybody() -> None:
    rng = seeding.numpy_rng(0, "gaps")
    confidence = rng.random(60)
    whose = np.repeat([0, 1, 2], 20)
    found = sum_gaps(confidence, np.ones(60), whose)

    assert found.shape == (3, metrics.DEFAULT_BINS)
    assert found.sum() == pytest.approx((confidence - 1).sum())
    assert np.count_nonzero(found.sum(axis=0)) == metrics.DEFAULT_BINS
