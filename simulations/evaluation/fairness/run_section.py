"""Fairness: how accuracy differs between groups of speakers, and between speakers."""

from collections.abc import Sequence

from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.metrics import CountArray
from sottovoce.simulations.evaluation.predictions import AGE_BANDS, UNKNOWN, Predictions, age_band
from sottovoce.simulations.results.schema import Fairness, Groups, Rate


def measure_fairness(scored: Predictions) -> Fairness:
    """Compute UAR by group, its gap between known groups, and its spread over speakers.

    Args:
        scored: Predictions of all folds.

    Returns:
        For ``gender``, ``age`` and ``language`` the ``groups`` and the ``gap`` between the best
        and the worst known one (None where fewer than two are known); for ``speaker`` the worst
        UAR, whose it is, the 10th percentile, the median and the Gini coefficient.
    """
    speakers = {
        name: metrics.uar(m) for name, m in scored.confusion_by_group(scored.speakers).items()
    }
    rates = list(speakers.values())
    # The first of equals in natural order, so a tie gives the same speaker every time.
    worst = min(speakers, key=lambda name: speakers[name])
    return {
        "gender": _groups(scored, scored.genders),
        "age": _groups(scored, [age_band(age) for age in scored.ages], order=AGE_BANDS),
        "language": _groups(scored, scored.languages),
        "speaker": {
            "worst": speakers[worst],
            "worst_speaker": worst,
            "p10": metrics.percentile(rates, 10),
            "median": metrics.percentile(rates, 50),
            "gini": metrics.gini_coefficient(rates),
        },
    }


def measure_group(matrix: CountArray) -> Rate:
    """Compute UAR and number of utterances of one speaker or group.

    Example:
        >>> import numpy as np
        >>> measure_group(np.array([[3, 1], [0, 4]]))
        {'uar': 0.875, 'n': 8}
    """
    return {"uar": metrics.uar(matrix), "n": int(matrix.sum())}


def _groups(scored: Predictions, names: Sequence[str], *, order: Sequence[str] = ()) -> Groups:
    """UAR by group; the gap is between known groups, null where there are fewer than two."""
    # A corpus without metadata has an empty column: all its clips are of an unknown group.
    names = [name or UNKNOWN for name in names] or [UNKNOWN] * len(scored.clips)
    speakers: dict[str, set[str]] = {}
    for name, speaker in zip(names, scored.speakers, strict=True):
        speakers.setdefault(name, set()).add(speaker)
    found = scored.confusion_by_group(names)
    listed = [name for name in order if name in found] or list(found)
    groups: dict[str, Rate] = {
        name: {**measure_group(found[name]), "speakers": len(speakers[name])} for name in listed
    }
    # "unknown" is not a group of people: a gap to it would say nothing about fairness.
    known = [metrics.uar(found[name]) for name in groups if name != UNKNOWN]
    return {"groups": groups, "gap": metrics.best_worst_gap(known) if len(known) > 1 else None}
