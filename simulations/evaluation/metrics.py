"""Accuracy, calibration and fairness as pure functions of predictions.

What adds up across utterances, users or folds is a sum: a confusion matrix, the counts of a
reliability bin. Ratios such as recall are taken last, from sums, and never averaged on the way.

Arguments may be NumPy arrays, torch tensors on the CPU or plain sequences; results are float64 or
int64. A NaN, an infinity or a wrong shape in an argument raises ``SettingError``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

NumberArray = ArrayLike | Tensor
FloatArray = NDArray[np.float64]
CountArray = NDArray[np.int64]

DEFAULT_BINS = 15
PROBABILITY_FLOOR = 1e-12
_ROW_SUM = 1e-3  # float32 softmax over a dozen classes stays far inside


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReliabilityBins:
    """Sums per bin of confidence, from the least to the most confident; empty bins are left out.

    Attributes:
        count: Utterances in each bin, shape (bins,), int64.
        confidence: Sum of their confidences, shape (bins,), float64.
        correct: How many of them were right, shape (bins,), float64.
    """

    count: CountArray
    confidence: FloatArray
    correct: FloatArray

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean over utterances of |confidence - accuracy| by bin.

        Example:
            >>> bins = reliability_bins([[0.9, 0.1], [0.9, 0.1]], [0, 1])
            >>> round(bins.calibration_error, 6)
            0.4
        """
        return float(np.abs(self.confidence - self.correct).sum() / self.count.sum())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RiskCoverageCurve:
    """Accuracy by the share of utterances answered, the most confident first.

    Attributes:
        coverage: Share of utterances answered, rising, shape (utterances,), ends at 1.
        accuracy: Accuracy on those answered (the most confident ones), shape (utterances,).
    """

    coverage: FloatArray
    accuracy: FloatArray

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve: mean of 1 - accuracy over coverages; 0 is best.

        Example:
            >>> risk_coverage_curve([[0.9, 0.1], [0.6, 0.4]], [0, 1]).aurc
            0.25
        """
        return float(np.mean(1 - self.accuracy))

    def accuracy_at(self, coverage: float) -> float:
        """Read the accuracy when at least this share of utterances, in (0, 1], is answered.

        Example:
            >>> risk_coverage_curve([[0.9, 0.1], [0.6, 0.4]], [0, 1]).accuracy_at(0.5)
            1.0
        """
        validation.require_rate(coverage=coverage)
        # 1/3 + 1/3 + 1/3 may be just below 1: the slack keeps rounding from skipping a point.
        return float(self.accuracy[np.searchsorted(self.coverage, coverage - 1e-12)])


def confusion_matrix(truth: NumberArray, predicted: NumberArray, classes: int) -> CountArray:
    """Count every pair of true and predicted class.

    Args:
        truth: True class of each utterance, shape (utterances,), whole numbers from 0.
        predicted: Predicted class of each utterance, same shape.
        classes: How many classes there are.

    Returns:
        Shape (classes, classes), int64; rows are the truth, columns the prediction. Matrices of
        several folds or users may be added.

    Raises:
        SettingError: Shapes that differ, or a class outside 0 .. classes - 1.

    Example:
        >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
        [[1, 1], [0, 1]]
    """
    rows, columns = _classes("truth", truth, classes), _classes("predicted", predicted, classes)
    if rows.shape != columns.shape:
        raise SettingError(f"truth has {rows.size} classes, predicted {columns.size}; need as many")
    # Each pair as one number, row by row: one bincount instead of a loop over classes.
    flat = np.bincount(rows * classes + columns, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def class_recalls(matrix: NumberArray) -> FloatArray:
    """Compute the recall of each class, shape (classes,), float64; NaN if it never occurs.

    Example:
        >>> class_recalls([[3, 1], [0, 2]]).tolist()
        [0.75, 1.0]
    """
    counts = _matrix(matrix)
    total = counts.sum(axis=1)
    # NaN, not 0: a class that nobody spoke must not count as a class that was missed.
    share = np.full(len(counts), np.nan)
    np.divide(np.diag(counts), total, out=share, where=total > 0)
    return share


def uar(matrix: NumberArray) -> float:
    """Unweighted average recall over the classes that occur; NaN when nothing was counted.

    The measure of the field (Schuller et al., The INTERSPEECH 2009 Emotion Challenge): chance is
    1 / classes however unbalanced the classes are.

    Example:
        >>> uar([[8, 2], [1, 1]])
        0.65
    """
    share = class_recalls(matrix)
    return float(np.mean(share[np.isfinite(share)])) if np.isfinite(share).any() else float("nan")


def weighted_accuracy(matrix: NumberArray) -> float:
    """Compute the share of utterances that are right; NaN when nothing was counted.

    Example:
        >>> weighted_accuracy([[8, 2], [1, 1]])
        0.75
    """
    counts = _matrix(matrix)
    total = counts.sum()
    return float(np.trace(counts) / total) if total > 0 else float("nan")


def macro_f1(matrix: NumberArray) -> float:
    """Compute the mean F1 over the classes that occur; NaN when nothing was counted.

    A class that is predicted but never occurs lowers the precision of nobody else, and is left
    out as in :func:`uar`.

    Example:
        >>> macro_f1([[2, 0], [0, 2]])
        1.0
    """
    counts = _matrix(matrix)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    occurs = true > 0
    if not occurs.any():
        return float("nan")
    return float(np.mean(2 * np.diag(counts)[occurs] / (true + predicted)[occurs]))


def negative_log_likelihood(
    probabilities: NumberArray, truth: NumberArray, *, floor: float = PROBABILITY_FLOOR
) -> float:
    """Compute the mean negative log-likelihood in nats.

    Args:
        probabilities: Shape (utterances, classes), rows sum to 1.
        truth: True class of each utterance, shape (utterances,).
        floor: Probabilities below this count as this, so that one certain mistake costs
            ``-log(floor)`` (27.6 nats at 1e-12) and not infinity; above 0.

    Example:
        >>> round(negative_log_likelihood([[0.5, 0.5]], [0]), 4)
        0.6931
    """
    validation.require_between(0, 1, floor=floor)
    rows = _probabilities(probabilities)
    picked = rows[np.arange(len(rows)), _truth(rows, truth)]
    return float(-np.log(np.maximum(picked, floor)).mean())


def brier_score(probabilities: NumberArray, truth: NumberArray) -> float:
    """Compute Brier's original score: squared error summed over classes, in [0, 2].

    Mean over utterances. Brier, Verification of forecasts expressed in terms of probability (1950).

    Example:
        >>> brier_score([[1.0, 0.0], [0.0, 1.0]], [0, 0])
        1.0
    """
    rows = _probabilities(probabilities)
    target = np.eye(rows.shape[1])[_truth(rows, truth)]
    return float(np.square(rows - target).sum(axis=1).mean())


def reliability_bins(
    probabilities: NumberArray, truth: NumberArray, *, bins: int = DEFAULT_BINS
) -> ReliabilityBins:
    """Compare confidence (the largest probability) with accuracy, in bins of equal mass.

    Bins hold equally many utterances, as in Nguyen & O'Connor (2015) and the adaptive error of
    Nixon et al. (2019): bins of equal width leave most bins nearly empty. Utterances of equal
    confidence share a bin, so the order of the rows changes nothing.

    Args:
        probabilities: Shape (utterances, classes), rows sum to 1.
        truth: True class of each utterance, shape (utterances,).
        bins: Most bins; fewer where confidences tie or utterances are few.

    Example:
        >>> reliability_bins([[0.9, 0.1], [0.6, 0.4]], [0, 0], bins=2).count.tolist()
        [1, 1]
    """
    rows = _probabilities(probabilities)
    right = rows.argmax(axis=1) == _truth(rows, truth)
    return _binned(rows.max(axis=1), right.astype(np.float64), bins)


def classwise_reliability_bins(
    probabilities: NumberArray, truth: NumberArray, *, bins: int = DEFAULT_BINS
) -> list[ReliabilityBins]:
    """Compare each class's probability with how often it was the true class; bins as above.

    This is the calibration that an app sees that acts on one emotion's probability. Arguments as in
    :func:`reliability_bins`.

    Returns:
        One for each class, in order.

    Example:
        >>> bins = classwise_reliability_bins([[0.9, 0.1], [0.6, 0.4]], [0, 1])
        >>> [round(one.calibration_error, 2) for one in bins]
        [0.35, 0.35]
    """
    rows = _probabilities(probabilities)
    target = np.eye(rows.shape[1])[_truth(rows, truth)]
    return [_binned(rows[:, k], target[:, k], bins) for k in range(rows.shape[1])]


def ece(probabilities: NumberArray, truth: NumberArray, *, bins: int = DEFAULT_BINS) -> float:
    """Expected calibration error of the top class, in bins of equal mass, in [0, 1].

    Example:
        >>> round(ece([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 6)  # sure of 0.9, right half the time
        0.4
    """
    return reliability_bins(probabilities, truth, bins=bins).calibration_error


def classwise_ece(
    probabilities: NumberArray, truth: NumberArray, *, bins: int = DEFAULT_BINS
) -> float:
    """Calibration error of every class's probability, mean over classes, bins of equal mass.

    Nixon et al., Measuring Calibration in Deep Learning (2019); Kull et al. (2019).

    Example:
        >>> classwise_ece([[1.0, 0.0], [0.0, 1.0]], [0, 1])
        0.0
    """
    return float(
        np.mean(
            [
                one.calibration_error
                for one in classwise_reliability_bins(probabilities, truth, bins=bins)
            ]
        )
    )


def risk_coverage_curve(probabilities: NumberArray, truth: NumberArray) -> RiskCoverageCurve:
    """Compute coverage against selective accuracy, the most confident utterances first.

    El-Yaniv & Wiener (2010); Geifman & El-Yaniv (2017). Utterances of equal confidence count
    with their mean accuracy, so the order of the rows changes nothing.

    Example:
        >>> risk_coverage_curve([[0.9, 0.1], [0.6, 0.4]], [0, 1]).accuracy.tolist()
        [1.0, 0.5]
    """
    rows = _probabilities(probabilities)
    right = (rows.argmax(axis=1) == _truth(rows, truth)).astype(np.float64)
    _, tie, count = np.unique(-rows.max(axis=1), return_inverse=True, return_counts=True)
    # Ties get their mean accuracy, so that the curve does not depend on the order of rows.
    expected = np.bincount(tie, weights=right) / count
    answered = np.arange(1, len(rows) + 1)
    gained = np.cumsum(np.repeat(expected, count))
    return RiskCoverageCurve(coverage=answered / len(rows), accuracy=gained / answered)


def gini_coefficient(values: NumberArray) -> float:
    """Compute the Gini coefficient: 0 when all values are equal, near 1 when one has all.

    Values must be 0 or above.

    Example:
        >>> gini_coefficient([1, 1, 1]), gini_coefficient([0, 0, 3])
        (0.0, 0.6666666666666666)
    """
    ordered = np.sort(_finite("values", values))
    if ordered[0] < 0:
        raise SettingError(f"values hold {ordered[0]}; a Gini coefficient needs 0 or above")
    # All zero: equal, and the quotient below would be 0 / 0.
    if ordered.sum() == 0:
        return 0.0
    size = len(ordered)
    # Sorted form of the mean absolute difference: sum_i (2i - n - 1) x_i / (n sum x).
    weights = 2 * np.arange(1, size + 1) - size - 1
    return max(0.0, float((weights * ordered).sum() / (size * ordered.sum())))


def percentile(values: NumberArray, percent: float) -> float:
    """Find the value below which ``percent`` (0 to 100) of ``values`` lie, interpolated linearly.

    Example:
        >>> percentile([1, 2, 3], 50)
        2.0
    """
    if not 0 <= percent <= 100:
        raise SettingError(f"percent is {percent}; it must be a percentage from 0 to 100")
    return float(np.percentile(_finite("values", values), percent))


def best_worst_gap(values: NumberArray) -> float:
    """Compute the distance between the best and the worst group.

    Example:
        >>> best_worst_gap([0.5, 0.75, 1.0])
        0.5
    """
    return float(np.ptp(_finite("values", values)))


def assign_bins(confidence: FloatArray, bins: int) -> CountArray:
    """Assign each value to a bin of equal mass, from 0, shape (utterances,); ties share a bin.

    Example:
        >>> assign_bins(np.array([0.2, 0.9, 0.5, 0.7]), 2).tolist()
        [0, 1, 0, 1]
    """
    validation.require_at_least(1, bins=bins)
    ordered = np.sort(confidence)
    edges = ordered[np.arange(1, bins) * len(ordered) // bins]
    # side="right" puts all equal values on the same side of an edge, so ties stay together.
    return np.searchsorted(edges, confidence, side="right").astype(np.int64)


def _binned(confidence: FloatArray, correct: FloatArray, bins: int) -> ReliabilityBins:
    """Sums in bins of equal mass; ties share a bin."""
    where = assign_bins(confidence, bins)
    count = np.bincount(where, minlength=bins)
    filled = count > 0
    return ReliabilityBins(
        count=count[filled].astype(np.int64),
        confidence=np.bincount(where, weights=confidence, minlength=bins)[filled].astype(
            np.float64
        ),
        correct=np.bincount(where, weights=correct, minlength=bins)[filled].astype(np.float64),
    )


def _finite(name: str, values: NumberArray) -> FloatArray:
    """A non-empty vector of finite numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise SettingError(f"{name} of shape {array.shape} must be a vector of finite numbers, >0")
    return array


def _classes(name: str, values: NumberArray, classes: int) -> CountArray:
    """Class indices, checked; floats are refused unless they are whole."""
    # An empty sequence is allowed here: a confusion matrix of nothing is all zeros.
    array = _finite(name, values) if np.size(np.asarray(values)) else np.zeros(0)
    if array.size and not ((array >= 0) & (array < classes) & (array == np.floor(array))).all():
        raise SettingError(f"{name} holds a class outside 0 .. {classes - 1}")
    return array.astype(np.int64)


def _matrix(values: NumberArray) -> CountArray:
    """A square matrix of counts, checked."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise SettingError(f"a confusion matrix has shape (classes, classes), not {array.shape}")
    return require_counts(array)


def require_counts(array: FloatArray) -> CountArray:
    """Check whole numbers from 0, as int64; NaN and infinity raise ``SettingError``.

    Example:
        >>> require_counts(np.array([[1.0, 2.0]])).tolist()
        [[1, 2]]
    """
    # Compared as floats: a cast of NaN or infinity to int64 would be some number without a warning.
    if not (np.isfinite(array) & (array >= 0) & (array == np.floor(array))).all():
        raise SettingError("a confusion matrix holds whole numbers, 0 or above, and nothing else")
    return array.astype(np.int64)


def _probabilities(values: NumberArray) -> FloatArray:
    """Rows that are distributions; NaN fails."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise SettingError(f"probabilities have shape (utterances, classes), >0, not {rows.shape}")
    # Written so that NaN fails: every comparison with NaN is false.
    if not ((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= _ROW_SUM).all()):
        raise SettingError("probabilities must be 0 or above and sum to 1 in each row, without NaN")
    return rows


def _truth(rows: FloatArray, truth: NumberArray) -> CountArray:
    """One class a row, checked."""
    classes = _classes("truth", truth, rows.shape[1])
    if len(classes) != len(rows):
        raise SettingError(f"{len(classes)} true classes for {len(rows)} rows; need one each")
    return classes
