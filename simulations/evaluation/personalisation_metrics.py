"""Effect of users' own labels: metrics before and after heads, paired over users."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sottovoce.shared import seeding
from sottovoce.simulations.evaluation import bootstrap
from sottovoce.simulations.evaluation.bootstrap_side import BootstrapSide
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.personalisation import ScoredDraw
from sottovoce.simulations.results.schema import Json

_WORST_PERCENTILE = 10
_LABEL_REDRAWS = 10
"""Number of times that labels are redrawn to estimate the ECE of calibrated predictions."""


def paired_metrics(scored_draws: Sequence[ScoredDraw], *, seed: int) -> Json:
    """Compare accuracy and calibration before and after heads.

    Args:
        scored_draws: All draws of all users.
        seed: Of the bootstrap.

    Returns:
        By measure ``[before, after, difference, low, high]``: the last two are the 95 % interval of
        the difference over draws of users; for ``worst``, one user, there is none.
    """
    sides = [_make_side(scored_draws, column) for column in ("before", "after")]
    generator = seeding.numpy_rng(seed, "heads", "bootstrap")
    cohorts = bootstrap.draw_cohorts(sides[0].user_count, bootstrap.DEFAULT_DRAWS, generator)
    found = {
        name: _paired_difference(measure, sides, cohorts) for name, measure in _MEASURES.items()
    }
    worst = [float(side.user_uars.min()) for side in sides]
    return found | {"worst": [*worst, worst[1] - worst[0]]}


def expected_calibrated_ece(draws: Sequence[ScoredDraw], *, seed: int) -> float:
    """Estimate the ECE that the same predictions would show if they were calibrated.

    Labels are drawn from the probabilities themselves, for one draw of each user. A small sample
    shows a gap between confidence and accuracy even where there is none.

    Args:
        draws: All draws of all users.
        seed: Of the labels.
    """
    # Reversed, so that the dictionary ends with the first draw of each user.
    one_each = list({one.speaker.name: one for one in reversed(draws)}.values())
    random = seeding.numpy_rng(seed, "heads", "calibrated")
    everybody, errors = np.ones((1, len(one_each)), dtype=np.int64), []
    for _ in range(_LABEL_REDRAWS):
        side = _make_side([_redraw_labels(one, random) for one in one_each], "after")
        errors.append(float(side.measure_ece(everybody)[0]))
    return float(np.mean(errors))


def _redraw_labels(draw: ScoredDraw, random: np.random.Generator) -> ScoredDraw:
    """The same clips, with labels drawn from their predicted probabilities."""
    cumulative = draw.after.cumsum(1)
    # Inverse transform sampling; scaled by the last sum, which rounding leaves just off 1.
    classes = (random.random((len(cumulative), 1)) * cumulative[:, -1:] > cumulative).sum(1)
    return replace(draw, labels=classes.clip(0, cumulative.shape[1] - 1))


def format_cell(name: str, values: Sequence[float]) -> str:
    """Format one measure of :func:`paired_metrics`: before, after, interval; bold if worse.

    Example:
        >>> format_cell("ece", [0.2, 0.1, -0.1, -0.15, -0.05])
        '0.200 → 0.100 [-0.150, -0.050]'
    """
    shown = f"{values[0]:.3f} → {values[1]:.3f}"
    if len(values) == 3:
        return shown
    low, high = values[3:]
    # Accuracy should rise, errors should fall: "worse" is the other side of zero.
    worse = high < 0 if name in ("uar", "p10") else low > 0
    interval = f"[{low:+.3f}, {high:+.3f}]"
    return f"{shown} {'**' + interval + '**' if worse else interval}"


_MEASURES: Mapping[str, Callable[[BootstrapSide, CountArray], FloatArray]] = {
    "uar": BootstrapSide.measure_uar,
    "ece": BootstrapSide.measure_ece,
    "nll": BootstrapSide.measure_nll,
    "brier": BootstrapSide.measure_brier,
    "p10": lambda side, cohorts: side.measure_user_percentile(cohorts, _WORST_PERCENTILE),
}


def _make_side(draws: Sequence[ScoredDraw], column: str) -> BootstrapSide:
    """One column of all draws' probabilities; a user's draws are pooled."""
    index = {user: n for n, user in enumerate(sorted({one.speaker.name for one in draws}))}
    return BootstrapSide(
        np.concatenate([getattr(one, column) for one in draws]),
        np.concatenate([one.labels for one in draws]),
        np.concatenate([[index[one.speaker.name]] * len(one.labels) for one in draws]),
    )


def _paired_difference(
    measure: Callable[[BootstrapSide, CountArray], FloatArray],
    sides: Sequence[BootstrapSide],
    cohorts: CountArray,
) -> list[float]:
    """Both values, their difference, and its interval."""
    everybody = np.ones((1, cohorts.shape[1]), dtype=np.int64)
    values = [float(measure(side, everybody)[0]) for side in sides]
    before, after = (measure(side, cohorts) for side in sides)
    low, high = np.quantile(after - before, [0.025, 0.975])
    return [*values, values[1] - values[0], float(low), float(high)]


def coverage_by_threshold(draws: Sequence[ScoredDraw]) -> dict[str, Json]:
    """Measure how often sets hold the truth, by the scores that set their threshold.

    Args:
        draws: All draws of all users.

    Returns:
        By threshold: ``covered`` (share of clips), ``alone`` (share whose truth the threshold lets
        in, were sets allowed to be empty), ``size`` (mean), ``gender`` (share by gender) and
        ``worst_tenth`` (mean share of the tenth of users, at least one, who are covered least;
        chosen by these very clips, so below the truth).
    """
    return {name: _threshold_coverage(draws, name) for name in draws[0].covered}


def _threshold_coverage(draws: Sequence[ScoredDraw], name: str) -> Json:
    """One threshold's figures."""
    by_user: dict[str, list[np.ndarray]] = {}
    by_gender: dict[str, list[np.ndarray]] = {}
    for one in draws:
        by_user.setdefault(one.speaker.name, []).append(one.covered[name])
        by_gender.setdefault(one.speaker.gender or "unknown", []).append(one.covered[name])
    shares = sorted(float(np.concatenate(found).mean()) for found in by_user.values())
    return {
        "covered": float(np.concatenate([one.covered[name] for one in draws]).mean()),
        "alone": float(np.concatenate([one.within_threshold[name] for one in draws]).mean()),
        "size": float(np.concatenate([one.sizes[name] for one in draws]).mean()),
        "gender": {key: float(np.concatenate(by_gender[key]).mean()) for key in sorted(by_gender)},
        "worst_tenth": float(np.mean(shares[: max(1, round(len(shares) / _WORST_PERCENTILE))])),
    }
