"""Confidence intervals of calibration errors, and errors per user.

Errors before and after heads are paired, see
:mod:`~sottovoce.simulations.evaluation.bootstrap_side`.
"""

from collections.abc import Callable, Mapping

import numpy as np

from sottovoce.shared import seeding
from sottovoce.shared.calibration.conformal import DEFAULT_COVERAGE
from sottovoce.simulations.evaluation import bootstrap, metrics
from sottovoce.simulations.evaluation.bootstrap_side import BootstrapSide
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.predictions import Predictions, natural_sort_key
from sottovoce.simulations.results.schema import (
    CalibrationErrors,
    Intervals,
    PredictionSets,
    SpeakerCalibration,
)

BOOTSTRAP_DRAWS = 1_000
_WORST_FRACTION = 10
_INTERVAL_QUANTILES = (0.025, 0.975)


def bootstrap_intervals(scored: Predictions, *, seed: int) -> dict[str, Intervals]:
    """Compute 95 % intervals of ``before``, ``after`` and their ``difference`` by measure.

    Args:
        scored: Test utterances, before and after heads.
        seed: The run's; cohorts are drawn from it.

    Returns:
        For each measure three pairs ``[low, high]``; of the difference after - before, one that
        lies below 0 says that heads help.
    """
    users, whose = np.unique(scored.speakers, return_inverse=True)
    cohorts = _cohorts(len(users), seed)
    sides = [BootstrapSide(rows, scored.labels, whose) for rows in (scored.before, scored.after)]
    found: dict[str, Intervals] = {}
    # Both sides see the same cohorts: the difference is paired, and its interval is narrower.
    for name, measure in _MEASURES.items():
        before, after = (measure(side, cohorts) for side in sides)
        found[name] = {
            "before": _interval_bounds(before),
            "after": _interval_bounds(after),
            "difference": _interval_bounds(after - before),
        }
    return found


def metrics_by_speaker(scored: Predictions) -> dict[str, SpeakerCalibration]:
    """Compute each user's own errors, before and after heads; ECE bins hold few clips each."""
    return {
        name: {
            "n": len(rows),
            "before": _errors(scored.before[rows], scored.labels[rows]),
            "after": _errors(scored.after[rows], scored.labels[rows]),
        }
        for name, rows in _rows_by_speaker(scored).items()
    }


def _errors(probabilities: FloatArray, labels: CountArray) -> CalibrationErrors:
    return {
        "ece": metrics.ece(probabilities, labels),
        "nll": metrics.negative_log_likelihood(probabilities, labels),
        "brier": metrics.brier_score(probabilities, labels),
        "aurc": metrics.risk_coverage_curve(probabilities, labels).aurc,
    }


def evaluate_prediction_sets(scored: Predictions, *, seed: int) -> PredictionSets | None:
    """Measure the coverage of prediction sets over users; None where there are no sets.

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
        # A ratio of sums, not a mean of shares: users with more clips weigh more, as in "covered".
        "interval": _interval_bounds((cohorts @ hits) / (cohorts @ clips)),
        "size": float(sizes.mean()),
        "worst_tenth": float(np.mean(least)),
        "gender": {name: float(covered[genders == name].mean()) for name in sorted({*genders})},
        "per_speaker": {
            str(name): {"covered": shares[name], "size": float(sizes[own].mean())}
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
    generator = seeding.numpy_rng(seed, "record", "calibration intervals")
    return bootstrap.draw_cohorts(users, BOOTSTRAP_DRAWS, generator)


# A purpose of its own: other draws of the run do not move when intervals are added.


def _interval_bounds(drawn: FloatArray) -> list[float]:
    """Both ends of the 95 % interval."""
    low, high = np.quantile(drawn, _INTERVAL_QUANTILES)
    return [float(low), float(high)]


_MEASURES: Mapping[str, Callable[[BootstrapSide, CountArray], FloatArray]] = {
    "ece": BootstrapSide.measure_ece,
    "classwise_ece": BootstrapSide.measure_classwise_ece,
    "nll": BootstrapSide.measure_nll,
    "brier": BootstrapSide.measure_brier,
    "aurc": BootstrapSide.measure_aurc,
}
