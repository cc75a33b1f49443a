"""How unequally accuracy is spread over speakers, and what privacy changes about that."""

from collections.abc import Sequence

import numpy as np

from sottovoce.shared import seeding
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.bootstrap import ConfidenceInterval, draw_cohorts
from sottovoce.simulations.evaluation.bootstrap_side import BootstrapSide
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray

DEFAULT_DRAWS = 2_000


def measure_spread(
    speakers: Sequence[str],
    labels: CountArray,
    probabilities: FloatArray,
    *,
    less: FloatArray | None = None,
    seed: int = 0,
) -> dict[str, ConfidenceInterval]:
    """Measure the spread of UAR over speakers, with percentile bootstrap intervals at 95 %.

    Args:
        speakers: Speaker of each clip.
        labels: True class of each clip, shape (utterances,), int64.
        probabilities: Predictions, shape (utterances, classes).
        less: Other predictions of the same clips. If given, figures are changes from these, over
            the same speakers in every draw.
        seed: Of the draws.

    Returns:
        ``p10``, the UAR that 9 in 10 speakers reach, and ``gini``, the Gini coefficient of
        speakers' UARs (0: all alike). The worst speaker's UAR is not among them: a sample of
        speakers says nothing about how bad the worst of others is.

    Example:
        >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.2, 0.8]])
        >>> measure_spread(["a", "a", "b", "b"], np.array([0, 1, 0, 1]), sure)["gini"].estimate
        0.0
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(speakers))}
    users = np.array([names[name] for name in speakers], dtype=np.int64)
    sides = [BootstrapSide(one, labels, users) for one in (probabilities, less) if one is not None]
    generator = np.random.default_rng(seeding.derive_seed(seed, "fairness", "speakers"))
    # The first draw holds everybody once: its value is the estimate.
    drawn = draw_cohorts(len(names), DEFAULT_DRAWS, generator)
    cohorts = np.vstack([np.ones((1, len(names)), dtype=np.int64), drawn])
    columns = {
        "p10": [side.measure_user_percentile(cohorts, 10) for side in sides],
        "gini": [_measure_gini(side, cohorts) for side in sides],
    }
    return {name: _interval(values) for name, values in columns.items()}


def _measure_gini(side: BootstrapSide, cohorts: CountArray) -> FloatArray:
    """Gini coefficient of each cohort's users."""
    uars = side.user_uars
    return np.array([metrics.gini_coefficient(np.repeat(uars, one)) for one in cohorts])


def _interval(columns: Sequence[FloatArray]) -> ConfidenceInterval:
    """Estimate and interval of the first column, less the second where there is one."""
    values = columns[0] - columns[1] if len(columns) > 1 else columns[0]
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return ConfidenceInterval(estimate=float(values[0]), low=float(low), high=float(high))
