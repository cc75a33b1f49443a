"""Figures on users' own labels: before and after, paired over users."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sottovoce.shared import seeding
from sottovoce.simulations.evaluation import bootstrap, metrics
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.personalisation import ScoredDraw
from sottovoce.simulations.results.schema import Json

_WORST_PERCENTILE = 10
_LABEL_REDRAWS = 10
"""How often labels are drawn anew for what calibrated predictions would show."""


def paired_metrics(scored_draws: Sequence[ScoredDraw], *, seed: int) -> Json:
    """Accuracy and calibration before and after heads, and their differences.

    Args:
        scored_draws: All draws of all users.
        seed: Of the bootstrap.

    Returns:
        By measure ``[before, after, difference, low, high]``: the last two are the 95 % interval of
        the difference over draws of users; for ``worst``, one user, there is none.
    """
    before, after = _BootstrapSide(scored_draws, "before"), _BootstrapSide(scored_draws, "after")
    draws = seeding.numpy_rng(seed, "heads", "bootstrap")
    users = len(before.users)
    cohorts = draws.multinomial(users, np.full(users, 1 / users), size=bootstrap.DEFAULT_DRAWS)
    found = {
        name: _paired_difference(cohorts, measure(before), measure(after))
        for name, measure in _MEASURES.items()
    }
    worst = [float(side.rates.min()) for side in (before, after)]
    return found | {"worst": [*worst, worst[1] - worst[0]]}


def expected_calibrated_ece(draws: Sequence[ScoredDraw], *, seed: int) -> float:
    """The ECE that the same predictions would show if they were calibrated.

    Labels are drawn from the probabilities themselves, for one draw of each user: so few clips show
    a gap between confidence and accuracy even where there is none.

    Args:
        draws: All draws of all users.
        seed: Of the labels.
    """
    one_each = list({one.speaker.name: one for one in reversed(draws)}.values())
    random = seeding.numpy_rng(seed, "heads", "calibrated")
    everybody, errors = np.ones((1, len(one_each)), dtype=np.int64), []
    for _ in range(_LABEL_REDRAWS):
        side = _BootstrapSide([_redraw_labels(one, random) for one in one_each], "after")
        errors.append(float(_ece(side)(everybody)[0]))
    return float(np.mean(errors))


def _redraw_labels(draw: ScoredDraw, random: np.random.Generator) -> ScoredDraw:
    """The same clips, with labels drawn from their predicted probabilities."""
    cumulative = draw.after.cumsum(1)
    classes = (random.random((len(cumulative), 1)) * cumulative[:, -1:] > cumulative).sum(1)
    return replace(draw, labels=classes.clip(0, cumulative.shape[1] - 1))


def format_cell(name: str, values: Sequence[float]) -> str:
    """One measure of :func:`paired_metrics` for a page: before, after, interval; bold if worse."""
    shown = f"{values[0]:.3f} → {values[1]:.3f}"
    if len(values) == 3:
        return shown
    low, high = values[3:]
    worse = high < 0 if name in ("uar", "p10") else low > 0
    interval = f"[{low:+.3f}, {high:+.3f}]"
    return f"{shown} {'**' + interval + '**' if worse else interval}"


class _BootstrapSide:
    """Sums per user under one column of probabilities."""

    def __init__(self, draws: Sequence[ScoredDraw], column: str) -> None:
        self.users = sorted({one.speaker.name for one in draws})
        index = {user: number for number, user in enumerate(self.users)}
        rows = np.concatenate([getattr(one, column) for one in draws])
        labels = np.concatenate([one.labels for one in draws])
        self.whose = np.concatenate([[index[o.speaker.name]] * len(o.labels) for o in draws])
        self.clips = np.bincount(self.whose)
        classes = rows.shape[1]
        guess = rows.argmax(1)
        self.confusions: CountArray = np.stack(
            [
                metrics.confusion_matrix(
                    labels[self.whose == user], guess[self.whose == user], classes
                )
                for user in range(len(self.users))
            ]
        )
        self.rates = np.array([metrics.uar(matrix) for matrix in self.confusions])
        true = np.maximum(rows[np.arange(len(rows)), labels], metrics.PROBABILITY_FLOOR)
        self.nll = np.bincount(self.whose, weights=-np.log(true))
        wrong = np.square(rows - np.eye(classes)[labels]).sum(1)
        self.brier = np.bincount(self.whose, weights=wrong)
        self.gaps = self._gaps(rows.max(1), (guess == labels).astype(float))

    def _gaps(self, confidence: FloatArray, right: FloatArray) -> FloatArray:
        """Confidence less accuracy, summed by user and bin of equal mass, shape (users, bins)."""
        ordered = np.sort(confidence)
        edges = ordered[np.arange(1, metrics.DEFAULT_BINS) * len(ordered) // metrics.DEFAULT_BINS]
        bins = np.searchsorted(edges, confidence, side="right")
        gaps = np.zeros((len(self.users), metrics.DEFAULT_BINS))
        np.add.at(gaps, (self.whose, bins), confidence - right)
        return gaps


_Measure = Callable[[CountArray], FloatArray]


def _uar(side: _BootstrapSide) -> _Measure:
    return lambda cohorts: np.array(
        [metrics.uar(matrix) for matrix in np.tensordot(cohorts, side.confusions, 1)]
    )


def _ece(side: _BootstrapSide) -> _Measure:
    return lambda cohorts: np.abs(cohorts @ side.gaps).sum(1) / (cohorts @ side.clips)


def _nll(side: _BootstrapSide) -> _Measure:
    return lambda cohorts: (cohorts @ side.nll) / (cohorts @ side.clips)


def _brier(side: _BootstrapSide) -> _Measure:
    return lambda cohorts: (cohorts @ side.brier) / (cohorts @ side.clips)


def _p10(side: _BootstrapSide) -> _Measure:
    return lambda cohorts: np.array(
        [np.percentile(np.repeat(side.rates, cohort), _WORST_PERCENTILE) for cohort in cohorts]
    )


_MEASURES: dict[str, Callable[[_BootstrapSide], _Measure]] = {
    "uar": _uar,
    "ece": _ece,
    "nll": _nll,
    "brier": _brier,
    "p10": _p10,
}


def _paired_difference(cohorts: CountArray, before: _Measure, after: _Measure) -> list[float]:
    """Both values, their difference, and its interval."""
    everybody = np.ones((1, cohorts.shape[1]), dtype=np.int64)
    values = [float(side(everybody)[0]) for side in (before, after)]
    low, high = np.quantile(after(cohorts) - before(cohorts), [0.025, 0.975])
    return [*values, values[1] - values[0], float(low), float(high)]


def coverage_by_threshold(draws: Sequence[ScoredDraw]) -> dict[str, Json]:
    """How often sets hold the truth, by whose scores they come from.

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
