"""How sure calibration figures are: per user, and with intervals over new draws of users.

Users are drawn, not utterances, as in :mod:`~sottovoce.simulations.evaluation.bootstrap`; before
and after heads are paired. Bins of confidence are set once, on everybody: drawing users moves what
lies in them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sottovoce.shared import seeding
from sottovoce.shared.calibration.conformal import DEFAULT_COVERAGE
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.predictions import Predictions, natural_sort_key
from sottovoce.simulations.results.schema import Json

BOOTSTRAP_DRAWS = 1_000
_WORST_FRACTION = 10
_INTERVAL_QUANTILES = (0.025, 0.975)


def bootstrap_intervals(scored: Predictions, *, seed: int) -> Json:
    """By measure the 95 % intervals of ``before``, ``after`` and their ``difference``.

    Args:
        scored: Test utterances, before and after heads.
        seed: The run's; cohorts are drawn from it.

    Returns:
        For each measure three pairs ``[low, high]``; of the difference after - before, one that
        lies below 0 says that heads help.
    """
    users, whose = np.unique(scored.speakers, return_inverse=True)
    cohorts = _cohorts(len(users), seed)
    sides = [_BootstrapSide(rows, scored.labels, whose) for rows in (scored.before, scored.after)]
    found: Json = {}
    for name, measure in _MEASURES.items():
        before, after = (measure(side, cohorts) for side in sides)
        found[name] = {
            "before": _interval_bounds(before),
            "after": _interval_bounds(after),
            "difference": _interval_bounds(after - before),
        }
    return found


def metrics_by_speaker(scored: Predictions) -> Json:
    """Each user's own figures, before and after heads; the bins of an ECE are few clips each."""
    found: Json = {}
    for name, rows in _rows_by_speaker(scored).items():
        found[name] = {"n": len(rows)}
        for side in ("before", "after"):
            probabilities, labels = getattr(scored, side)[rows], scored.labels[rows]
            found[name][side] = {
                "ece": metrics.ece(probabilities, labels),
                "nll": metrics.negative_log_likelihood(probabilities, labels),
                "brier": metrics.brier_score(probabilities, labels),
                "aurc": metrics.risk_coverage_curve(probabilities, labels).aurc,
            }
    return found


def evaluate_prediction_sets(scored: Predictions, *, seed: int) -> Json | None:
    """How often prediction sets hold the truth, over users; None where there are no sets.

    Args:
        scored: Test utterances with their sets.
        seed: The run's.

    Returns:
        ``wanted`` (the coverage asked for), ``covered`` (share of utterances) with its ``interval``
        over users, ``size`` (mean emotions in a set), ``worst_tenth`` (mean share of the tenth of
        users, at least one, who are covered least: picked by these very clips, so below the truth),
        ``gender`` (share by gender, of utterances) and ``per_speaker``.
    """
    covered, sizes = scored.covered, scored.sizes
    if covered is None or sizes is None:
        return None
    rows = _rows_by_speaker(scored)
    hits = np.array([covered[own].sum() for own in rows.values()])
    clips = np.array([len(own) for own in rows.values()])
    cohorts = _cohorts(len(rows), seed)
    shares = {name: float(covered[own].mean()) for name, own in rows.items()}
    least = sorted(shares.values())[: max(1, round(len(shares) / _WORST_FRACTION))]
    genders = np.asarray([name or "unknown" for name in scored.genders])
    return {
        "wanted": DEFAULT_COVERAGE,
        "covered": float(covered.mean()),
        "interval": _interval_bounds((cohorts @ hits) / (cohorts @ clips)),
        "size": float(sizes.mean()),
        "worst_tenth": float(np.mean(least)),
        "gender": {name: float(covered[genders == name].mean()) for name in sorted({*genders})},
        "per_speaker": {
            name: {"covered": shares[name], "size": float(sizes[own].mean())}
            for name, own in rows.items()
        },
    }


def _rows_by_speaker(scored: Predictions) -> dict[str, CountArray]:
    """The rows of each speaker, in natural order of their names."""
    names = np.asarray(scored.speakers)
    ordered = sorted(set(scored.speakers), key=natural_sort_key)
    return {name: np.flatnonzero(names == name) for name in ordered}


def _cohorts(users: int, seed: int) -> CountArray:
    """How often each user is drawn, shape (draws, users)."""
    draws = seeding.numpy_rng(seed, "record", "calibration intervals")
    return draws.multinomial(users, np.full(users, 1 / users), size=BOOTSTRAP_DRAWS)


def _interval_bounds(drawn: FloatArray) -> list[float]:
    """Both ends of the 95 % interval."""
    low, high = np.quantile(drawn, _INTERVAL_QUANTILES)
    return [float(low), float(high)]


class _BootstrapSide:
    """Sums per user under one column of probabilities."""

    def __init__(self, rows: FloatArray, labels: CountArray, whose: CountArray) -> None:
        size, classes = rows.shape
        target = np.eye(classes)[labels]
        right = (rows.argmax(axis=1) == labels).astype(np.float64)
        self.clips = np.bincount(whose)
        true = np.maximum(rows[np.arange(size), labels], metrics.PROBABILITY_FLOOR)
        self.nll: FloatArray = np.bincount(whose, weights=-np.log(true)).astype(np.float64)
        squares = np.square(rows - target).sum(axis=1)
        self.brier: FloatArray = np.bincount(whose, weights=squares).astype(np.float64)
        self.top = [_gaps(rows.max(axis=1), right, whose)]
        self.each = [_gaps(rows[:, k], target[:, k], whose) for k in range(classes)]
        self._rank(rows.max(axis=1), right, whose)

    def _rank(self, confidence: FloatArray, right: FloatArray, whose: CountArray) -> None:
        """The most confident utterances first; equally confident ones share their accuracy."""
        order = np.lexsort((whose, -confidence))
        _, tie, count = np.unique(-confidence, return_inverse=True, return_counts=True)
        wrong = 1 - (np.bincount(tie, weights=right) / count)[tie]
        self.ranked, self.wrong = whose[order], wrong[order]

    def aurc(self, cohorts: CountArray) -> FloatArray:
        """Area under the risk-coverage curve of each cohort, shape (draws,)."""
        found = []
        for cohort in cohorts:
            times = cohort[self.ranked].astype(np.float64)
            answered = np.cumsum(times)
            risk = np.cumsum(times * self.wrong) / np.maximum(answered, 1)
            found.append(float(times @ risk) / float(answered[-1]))
        return np.array(found)

    def calibration_error(self, gaps: Sequence[FloatArray], cohorts: CountArray) -> FloatArray:
        """Mean calibration error over tables of gaps, shape (draws,)."""
        parts = [np.abs(cohorts @ one).sum(axis=1) for one in gaps]
        mean: FloatArray = np.mean(parts, axis=0)
        return mean / (cohorts @ self.clips)

    def mean(self, sums: FloatArray, cohorts: CountArray) -> FloatArray:
        """Mean over each cohort's utterances, shape (draws,)."""
        return (cohorts @ sums) / (cohorts @ self.clips)


def _gaps(confidence: FloatArray, correct: FloatArray, whose: CountArray) -> FloatArray:
    """Confidence less accuracy, summed by user and bin, shape (users, bins)."""
    found = np.zeros((int(whose.max()) + 1, metrics.DEFAULT_BINS))
    np.add.at(
        found, (whose, metrics.assign_bins(confidence, metrics.DEFAULT_BINS)), confidence - correct
    )
    return found


_MEASURES: dict[str, Callable[[_BootstrapSide, CountArray], FloatArray]] = {
    "ece": lambda side, cohorts: side.calibration_error(side.top, cohorts),
    "classwise_ece": lambda side, cohorts: side.calibration_error(side.each, cohorts),
    "nll": lambda side, cohorts: side.mean(side.nll, cohorts),
    "brier": lambda side, cohorts: side.mean(side.brier, cohorts),
    "aurc": lambda side, cohorts: side.aurc(cohorts),
}
