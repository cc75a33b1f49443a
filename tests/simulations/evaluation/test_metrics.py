"""Contracts of the metrics: known values, invariances, and that bad input fails."""

import doctest
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation import metrics

CLASSES = 4


def rows(size: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are calibrated by construction, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(CLASSES, 0.6), size=size)
    truth = (probabilities.cumsum(axis=1) > rng.random((size, 1))).argmax(axis=1)
    return probabilities, truth


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(metrics).failed == 0


def test_recall_ignores_absent_classes_and_unbalance() -> None:
    matrix = metrics.confusion_matrix([0] * 90 + [1] * 10, [0] * 90 + [0] * 5 + [1] * 5, 3)

    assert metrics.class_recalls(matrix)[:2].tolist() == [1.0, 0.5]
    assert math.isnan(metrics.class_recalls(matrix)[2])
    assert metrics.uar(matrix) == pytest.approx(0.75)
    assert metrics.weighted_accuracy(matrix) == pytest.approx(0.95)


def test_macro_f1_of_a_known_matrix() -> None:
    # class 0: precision 8/9, recall 8/10; class 1: precision 1/3, recall 1/2
    expected = (2 * 8 / (10 + 9) + 2 * 1 / (2 + 3)) / 2

    assert metrics.macro_f1([[8, 2], [1, 1]]) == pytest.approx(expected)


def test_confusions_add_up() -> None:
    truth, guess = np.random.default_rng(0).integers(0, CLASSES, (2, 100))
    parts = [metrics.confusion_matrix(truth[i::3], guess[i::3], CLASSES) for i in range(3)]

    assert np.array_equal(sum(parts), metrics.confusion_matrix(truth, guess, CLASSES))


def test_nothing_counted_has_no_rate() -> None:
    empty = metrics.confusion_matrix([], [], 2)

    assert math.isnan(metrics.uar(empty))
    assert math.isnan(metrics.weighted_accuracy(empty))
    assert math.isnan(metrics.macro_f1(empty))


def test_torch_and_numpy_agree() -> None:
    probabilities, truth = rows()

    assert metrics.ece(torch.tensor(probabilities), torch.tensor(truth)) == pytest.approx(
        metrics.ece(probabilities, truth)
    )


def test_nll_has_a_floor() -> None:
    assert metrics.negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-math.log(1e-12))
    assert metrics.negative_log_likelihood([[0.25, 0.75]], [1]) == pytest.approx(-math.log(0.75))


def test_brier_runs_from_0_to_2() -> None:
    assert metrics.brier_score([[1.0, 0.0]], [0]) == 0
    assert metrics.brier_score([[1.0, 0.0]], [1]) == 2


def test_ece_sees_overconfidence_and_passes_the_calibrated() -> None:
    probabilities, truth = rows(20_000)
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)

    assert metrics.ece(probabilities, truth) < 0.02
    assert metrics.ece(sharp, truth) > 0.1
    assert metrics.classwise_ece(sharp, truth) > 3 * metrics.classwise_ece(probabilities, truth)


def test_bins_hold_equal_mass_and_everything() -> None:
    probabilities, truth = rows(1_003)
    bins = metrics.reliability_bins(probabilities, truth)

    assert bins.count.sum() == 1_003
    assert len(bins.count) == metrics.DEFAULT_BINS
    assert np.ptp(bins.count) <= 1
    assert bins.confidence.sum() == pytest.approx(probabilities.max(axis=1).sum())


def test_each_class_has_bins_of_its_own() -> None:
    probabilities, truth = rows(1_003)
    each = metrics.classwise_reliability_bins(probabilities, truth)

    assert len(each) == probabilities.shape[1]
    for index, bins in enumerate(each):
        assert bins.count.sum() == 1_003
        assert bins.correct.sum() == (truth == index).sum()
        assert bins.confidence.sum() == pytest.approx(probabilities[:, index].sum())
    errors = [bins.calibration_error for bins in each]
    assert metrics.classwise_ece(probabilities, truth) == pytest.approx(np.mean(errors))


@pytest.mark.parametrize(
    "measure", [metrics.ece, metrics.classwise_ece, metrics.negative_log_likelihood]
)
def test_order_of_rows_changes_nothing(measure: Callable[..., float]) -> None:
    probabilities, truth = rows()
    probabilities = np.round(probabilities * 5 + 0.01)  # many ties
    probabilities = (probabilities + 1) / (probabilities + 1).sum(axis=1, keepdims=True)
    order = np.random.default_rng(1).permutation(len(truth))

    assert measure(probabilities[order], truth[order]) == pytest.approx(
        measure(probabilities, truth)
    )


def test_abstention_of_a_known_case() -> None:
    # right at .9 and .8, wrong at .7 and .6
    curve = metrics.risk_coverage_curve(
        [[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.6, 0.4]], [0, 1, 0, 1]
    )

    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.accuracy.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert curve.accuracy_at(0.5) == 1


def test_confidence_without_information_gains_nothing() -> None:
    curve = metrics.risk_coverage_curve(np.full((10, 2), 0.5), [0, 1] * 5)

    assert curve.accuracy.tolist() == pytest.approx([0.5] * 10)


def test_gini_of_known_cases() -> None:
    assert metrics.gini_coefficient([3, 3, 3]) == 0
    assert metrics.gini_coefficient([0, 0, 0]) == 0
    assert metrics.gini_coefficient([0, 0, 0, 1]) == pytest.approx(0.75)
    values = np.random.default_rng(0).random(50)
    pairs = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert metrics.gini_coefficient(values) == pytest.approx(pairs)


def test_percentile_and_gap() -> None:
    assert metrics.percentile([1, 2, 3], 50) == 2
    assert metrics.best_worst_gap([0.5, 0.7, 0.6]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.confusion_matrix([0, 1], [0], 2),
        lambda: metrics.confusion_matrix([0, 2], [0, 1], 2),
        lambda: metrics.confusion_matrix([0.5], [0], 2),
        lambda: metrics.confusion_matrix([math.nan], [0], 2),
        lambda: metrics.uar([[1, math.nan], [0, 1]]),
        lambda: metrics.uar([[1, -1], [0, 1]]),
        lambda: metrics.uar([[0.5, 0.5], [0, 1]]),
        lambda: metrics.uar([[1, 2, 3]]),
        lambda: metrics.negative_log_likelihood([[math.nan, 1.0]], [0]),
        lambda: metrics.negative_log_likelihood([[0.5, 0.6]], [0]),
        lambda: metrics.negative_log_likelihood([[-0.5, 1.5]], [0]),
        lambda: metrics.negative_log_likelihood([[0.5, 0.5]], [0], floor=math.nan),
        lambda: metrics.ece([[0.5, 0.5]], [0, 1]),
        lambda: metrics.ece([[0.5, 0.5]], [0], bins=0),
        lambda: metrics.ece(np.zeros((0, 2)), []),
        lambda: metrics.gini_coefficient([1, math.nan]),
        lambda: metrics.gini_coefficient([-1, 1]),
        lambda: metrics.gini_coefficient([]),
        lambda: metrics.percentile([1], math.nan),
        lambda: metrics.best_worst_gap([math.inf]),
        lambda: metrics.risk_coverage_curve([[1.0, 0.0]], [0]).accuracy_at(math.nan),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(SettingError):
        call()


def _by_hand(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """A calibration error in plain loops: no ties, so that ranks alone decide."""
    order = sorted(range(len(confidence)), key=lambda index: confidence[index])
    starts = [0, *(number * len(order) // bins for number in range(1, bins)), len(order)]
    total = 0.0
    for first, last in itertools.pairwise(starts):
        inside = order[first:last]
        total += abs(sum(confidence[index] - right[index] for index in inside))
    return total / len(order)


@pytest.mark.parametrize(("size", "bins"), [(1_003, 15), (200, 15), (37, 5)])
def test_calibration_errors_are_those_of_an_independent_count(size: int, bins: int) -> None:
    probabilities, truth = rows(size)
    top = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == truth).astype(float)
    classes = probabilities.shape[1]
    each = [
        _by_hand(probabilities[:, index], (truth == index).astype(float), bins)
        for index in range(classes)
    ]

    assert metrics.ece(probabilities, truth, bins=bins) == pytest.approx(_by_hand(top, right, bins))
    found = metrics.classwise_ece(probabilities, truth, bins=bins)
    assert found == pytest.approx(sum(each) / classes)


def test_the_area_under_risk_and_coverage_is_that_of_an_independent_count() -> None:
    probabilities, truth = rows(300)
    order = sorted(range(300), key=lambda index: -probabilities[index].max())
    wrong, total = 0, 0.0
    for answered, index in enumerate(order, start=1):
        wrong += int(probabilities[index].argmax() != truth[index])
        total += wrong / answered

    assert metrics.risk_coverage_curve(probabilities, truth).aurc == pytest.approx(total / 300)
