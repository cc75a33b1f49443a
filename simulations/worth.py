"""Figures on users' own labels: before and after, paired over users."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sottovoce.shared import bootstrap, metrics, seeds
from sottovoce.shared.metrics import Counts, Floats
from sottovoce.simulations.personal import Judged
from sottovoce.simulations.runfile import Json

_TENTH = 10
_REDRAWS = 10
"""How often labels are drawn anew for what calibrated predictions would show."""


def figures(judged: Sequence[Judged], *, seed: int) -> Json:
    """Accuracy and calibration before and after heads, and their differences.

    Args:
        judged: All draws of all users.
        seed: Of the bootstrap.

    Returns:
        By measure ``[before, after, difference, low, high]``: the last two are the 95 % interval of
        the difference over draws of users; for ``worst``, one user, there is none.
    """
    before, after = _Side(judged, "before"), _Side(judged, "after")
    draws = seeds.numpy_rng(seed, "heads", "bootstrap")
    users = len(before.users)
    cohorts = draws.multinomial(users, np.full(users, 1 / users), size=bootstrap.DRAWS)
    found = {
        name: _compared(cohorts, measure(before), measure(after))
        for name, measure in _MEASURES.items()
    }
    worst = [float(side.rates.min()) for side in (before, after)]
    return found | {"worst": [*worst, worst[1] - worst[0]]}


def calibrated_ece(judged: Sequence[Judged], *, seed: int) -> float:
    """The ECE that the same predictions would show if they were calibrated.

    Labels are drawn from the probabilities themselves, for one draw of each user: so few clips show
    a gap between confidence and accuracy even where there is none.

    Args:
        judged: All draws of all users.
        seed: Of the labels.
    """
    one_each = list({one.person.speaker: one for one in reversed(judged)}.values())
    random = seeds.numpy_rng(seed, "heads", "calibrated")
    everybody, shown = np.ones((1, len(one_each)), dtype=np.int64), []
    for _ in range(_REDRAWS):
        side = _Side([_redrawn(one, random) for one in one_each], "after")
        shown.append(float(_ece(side)(everybody)[0]))
    return float(np.mean(shown))


def _redrawn(judged: Judged, random: np.random.Generator) -> Judged:
    """The same clips, with labels drawn from what is said of them."""
    chances = judged.after.cumsum(1)
    places = (random.random((len(chances), 1)) * chances[:, -1:] > chances).sum(1)
    return replace(judged, labels=places.clip(0, chances.shape[1] - 1))


def cell(name: str, values: Sequence[float]) -> str:
    """One measure of :func:`figures` for a page: before, after, and the interval, bold if worse."""
    shown = f"{values[0]:.3f} → {values[1]:.3f}"
    if len(values) == 3:
        return shown
    low, high = values[3:]
    worse = high < 0 if name in ("uar", "p10") else low > 0
    interval = f"[{low:+.3f}, {high:+.3f}]"
    return f"{shown} {'**' + interval + '**' if worse else interval}"


class _Side:
    """Sums per user under one column of probabilities."""

    def __init__(self, judged: Sequence[Judged], column: str) -> None:
        self.users = sorted({one.person.speaker for one in judged})
        place = {user: number for number, user in enumerate(self.users)}
        rows = np.concatenate([getattr(one, column) for one in judged])
        labels = np.concatenate([one.labels for one in judged])
        self.whose = np.concatenate([[place[o.person.speaker]] * len(o.labels) for o in judged])
        self.clips = np.bincount(self.whose)
        classes = rows.shape[1]
        guess = rows.argmax(1)
        self.confusions: Counts = np.stack(
            [
                metrics.confusion(labels[self.whose == user], guess[self.whose == user], classes)
                for user in range(len(self.users))
            ]
        )
        self.rates = np.array([metrics.uar(matrix) for matrix in self.confusions])
        true = np.maximum(rows[np.arange(len(rows)), labels], metrics.FLOOR)
        self.nll = np.bincount(self.whose, weights=-np.log(true))
        wrong = np.square(rows - np.eye(classes)[labels]).sum(1)
        self.brier = np.bincount(self.whose, weights=wrong)
        self.gaps = self._gaps(rows.max(1), (guess == labels).astype(float))

    def _gaps(self, confidence: Floats, right: Floats) -> Floats:
        """Confidence less accuracy, summed by user and bin of equal mass, shape (users, bins)."""
        ordered = np.sort(confidence)
        edges = ordered[np.arange(1, metrics.BINS) * len(ordered) // metrics.BINS]
        bins = np.searchsorted(edges, confidence, side="right")
        gaps = np.zeros((len(self.users), metrics.BINS))
        np.add.at(gaps, (self.whose, bins), confidence - right)
        return gaps


_Measure = Callable[[Counts], Floats]


def _uar(side: _Side) -> _Measure:
    return lambda cohorts: np.array(
        [metrics.uar(matrix) for matrix in np.tensordot(cohorts, side.confusions, 1)]
    )


def _ece(side: _Side) -> _Measure:
    return lambda cohorts: np.abs(cohorts @ side.gaps).sum(1) / (cohorts @ side.clips)


def _nll(side: _Side) -> _Measure:
    return lambda cohorts: (cohorts @ side.nll) / (cohorts @ side.clips)


def _brier(side: _Side) -> _Measure:
    return lambda cohorts: (cohorts @ side.brier) / (cohorts @ side.clips)


def _p10(side: _Side) -> _Measure:
    return lambda cohorts: np.array(
        [np.percentile(np.repeat(side.rates, cohort), _TENTH) for cohort in cohorts]
    )


_MEASURES: dict[str, Callable[[_Side], _Measure]] = {
    "uar": _uar,
    "ece": _ece,
    "nll": _nll,
    "brier": _brier,
    "p10": _p10,
}


def _compared(cohorts: Counts, before: _Measure, after: _Measure) -> list[float]:
    """Both values, their difference, and its interval."""
    everybody = np.ones((1, cohorts.shape[1]), dtype=np.int64)
    values = [float(side(everybody)[0]) for side in (before, after)]
    low, high = np.quantile(after(cohorts) - before(cohorts), [0.025, 0.975])
    return [*values, values[1] - values[0], float(low), float(high)]


def coverage(judged: Sequence[Judged]) -> dict[str, Json]:
    """How often sets hold the truth, by whose scores they come from.

    Args:
        judged: All draws of all users.

    Returns:
        By threshold: ``covered`` (share of clips), ``alone`` (share whose truth the threshold lets
        in, were sets allowed to be empty), ``size`` (mean), ``gender`` (share by gender) and
        ``worst_tenth`` (mean share of the tenth of users, at least one, who are covered least;
        chosen by these very clips, so below the truth).
    """
    return {name: _covered(judged, name) for name in judged[0].covered}


def _covered(judged: Sequence[Judged], name: str) -> Json:
    """One threshold's figures."""
    by_user: dict[str, list[np.ndarray]] = {}
    by_gender: dict[str, list[np.ndarray]] = {}
    for one in judged:
        by_user.setdefault(one.person.speaker, []).append(one.covered[name])
        by_gender.setdefault(one.person.gender or "unknown", []).append(one.covered[name])
    shares = sorted(float(np.concatenate(found).mean()) for found in by_user.values())
    return {
        "covered": float(np.concatenate([one.covered[name] for one in judged]).mean()),
        "alone": float(np.concatenate([one.within[name] for one in judged]).mean()),
        "size": float(np.concatenate([one.sizes[name] for one in judged]).mean()),
        "gender": {key: float(np.concatenate(by_gender[key]).mean()) for key in sorted(by_gender)},
        "worst_tenth": float(np.mean(shares[: max(1, round(len(shares) / _TENTH))])),
    }
