"""Table of predictions on test utterances, from which all metrics are computed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray

UNKNOWN = "unknown"
Sets = NDArray[np.bool_]
AGE_BANDS = ("under 18", "18-29", "30-44", "45-59", "60 and over", UNKNOWN)
_AGE_LIMITS = (18, 30, 45, 60)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """Predictions on test utterances, one row each.

    Attributes:
        emotions: Names of the classes, in the order of the columns.
        clips: Name of each clip; none is scored twice in a fold.
        speakers: Speaker of each clip.
        folds: Name of the fold that tested the clip.
        labels: True class, shape (utterances,), int64.
        before: Probabilities of the shared model, shape (utterances, classes).
        after: Probabilities after the user's calibration head, same shape.
        genders: Gender of each clip's speaker; "" where unknown. Empty: all unknown.
        ages: Age in years; None where unknown. Empty: all unknown.
        languages: Language of each clip; "" where unknown. Empty: all unknown.
        covered: Whether the prediction's set holds the truth, shape (utterances,), bool; None where
            there are no sets.
        sizes: How many emotions the set holds, shape (utterances,), int64; likewise.

    Torch tensors on the CPU may stand for the arrays; they are turned into NumPy's.

    Raises:
        SettingError: Columns that do not fit each other, a NaN, or a clip scored twice.
    """

    emotions: Sequence[str]
    clips: Sequence[str]
    speakers: Sequence[str]
    folds: Sequence[str]
    labels: CountArray
    before: FloatArray
    after: FloatArray
    genders: Sequence[str] = ()
    ages: Sequence[float | None] = ()
    languages: Sequence[str] = ()
    covered: Sets | None = None
    sizes: CountArray | None = None

    def __post_init__(self) -> None:
        rows = len(self.clips)
        for name in ("speakers", "folds", "labels", "before", "after"):
            if len(getattr(self, name)) != rows or not rows:
                raise SettingError(f"{name} has {len(getattr(self, name))} rows for {rows} clips")
        for name in ("genders", "ages", "languages"):
            if len(getattr(self, name)) not in (0, rows):
                raise SettingError(f"{name} has {len(getattr(self, name))} rows for {rows} clips")
        self._check_sets()
        if len(set(zip(self.folds, self.clips, strict=True))) != rows:
            raise SettingError("a clip is scored twice in one fold; score every clip once")
        for probabilities in (self.before, self.after):
            metrics.negative_log_likelihood(
                probabilities, self.labels
            )  # refuses NaN, wrong sums and wrong labels
            if tuple(probabilities.shape) != (rows, len(self.emotions)):
                raise SettingError(f"probabilities need {len(self.emotions)} columns, one a class")
        for name, kind in (("labels", np.int64), ("before", np.float64), ("after", np.float64)):
            # Frozen: this is the way to store the converted arrays.
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))

    def _check_sets(self) -> None:
        """Refuse sets of other clips."""
        for name, kind in (("covered", np.bool_), ("sizes", np.int64)):
            column = getattr(self, name)
            if column is None:
                continue
            if len(column) != len(self.clips):
                raise SettingError(f"{name} has {len(column)} rows for {len(self.clips)} clips")
            object.__setattr__(self, name, np.asarray(column, dtype=kind))

    def confusion_by_group(self, names: Sequence[str]) -> dict[str, CountArray]:
        """Compute one confusion matrix (after heads) for each name, in natural order.

        Args:
            names: The fold, speaker or group of each clip.
        """
        guess, rows = self.after.argmax(axis=1), np.asarray(names)
        return {
            name: metrics.confusion_matrix(
                self.labels[rows == name], guess[rows == name], self._classes
            )
            for name in sorted(set(names), key=natural_sort_key)
        }

    def confusion_without_heads(self) -> CountArray:
        """Compute the confusion matrix of the shared model alone."""
        return metrics.confusion_matrix(self.labels, self.before.argmax(axis=1), self._classes)

    @property
    def _classes(self) -> int:
        """How many emotions there are."""
        return len(self.emotions)


def concatenate_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the folds of one protocol; unknown columns stay unknown."""
    if not parts or any(list(part.emotions) != list(parts[0].emotions) for part in parts):
        raise SettingError("the parts of a run need the same emotions, and at least one part")

    def column(name: str, absent: object = "") -> list[Any]:
        # A part without metadata gets a column of unknowns, so that rows stay aligned.
        columns = [list(getattr(part, name)) or [absent] * len(part.clips) for part in parts]
        return [cell for cells in columns for cell in cells]

    return Predictions(
        emotions=parts[0].emotions,
        clips=column("clips"),
        speakers=column("speakers"),
        folds=column("folds"),
        labels=np.concatenate([part.labels for part in parts]),
        before=np.concatenate([part.before for part in parts]),
        after=np.concatenate([part.after for part in parts]),
        genders=column("genders"),
        ages=column("ages", None),
        languages=column("languages"),
        covered=_concatenate([part.covered for part in parts]),
        sizes=_concatenate([part.sizes for part in parts]),
    )


def _concatenate(columns: Sequence[Any]) -> Any:  # noqa: ANN401  (one column's type in, the same out)
    """Columns one behind the other; none where one is missing."""
    return None if any(one is None for one in columns) else np.concatenate(columns)


def age_band(age: float | None) -> str:
    """Find the band of an age in years; "unknown" for None and NaN.

    Example:
        >>> age_band(29), age_band(30), age_band(None)
        ('18-29', '30-44', 'unknown')
    """
    # "not >=" and not "<": NaN fails both, and belongs here.
    if age is None or not age >= 0:
        return UNKNOWN
    return AGE_BANDS[sum(age >= limit for limit in _AGE_LIMITS)]


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """Make a sort key under which fold-2 comes before fold-10.

    Example:
        >>> sorted(["fold-10", "fold-2"], key=natural_sort_key)
        ['fold-2', 'fold-10']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    # Numbers sort before words, and the two are never compared with each other.
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts]
