"""The result of a fold: scores of its test clips, and the head hashes of its ledgers."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import ModelError
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.results.schema import Json

SCORE_COLUMNS = ("before", "after", "labels", "labelled")
SET_COLUMNS = ("covered", "sizes")
"""Where there are sets; runs of earlier releases have none."""

COORDINATES_COLUMN = "coordinates"
"""Coordinates of clips in the basis of the heads, where there is one."""

_FACTS, _SCORES = "outcome.json", "outcome.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoldResult:
    """The result of a fold.

    Attributes:
        predictions: Scores of all test clips but neutral enrolment ones, without heads.
        personalised: Scores before and after heads, without the labelled enrolment clips; None
            without heads.
        learning_curve: (round, UAR) after each round.
    """

    predictions: Predictions
    personalised: Predictions | None
    learning_curve: list[tuple[int, float]]

    @property
    def final_uar(self) -> float:
        """UAR on the fold's test users, for display only."""
        return self.learning_curve[-1][1] if self.learning_curve else math.nan


def write_result(folder: Path, facts: Json, scores: Mapping[str, Tensor]) -> None:
    """Write a fold's scores and facts; the fold counts as finished once the facts exist."""
    # Facts last: a crash in between leaves a fold without a result, never half a result.
    replace_file(folder / _SCORES, save(dict(scores)))
    replace_file(folder / _FACTS, json.dumps(facts).encode())


def has_result(folder: Path) -> bool:
    """Tell whether a fold's result has been written."""
    return (folder / _FACTS).is_file()


def read_result(folder: Path) -> tuple[Json, dict[str, np.ndarray]]:
    """Read the facts and scores that :func:`write_result` wrote.

    Args:
        folder: The fold's.

    Returns:
        Facts (``clips``, ``curve``, heads of ``ledgers``) and scores by column.

    Raises:
        ModelError: The files are damaged, or belong to other clips.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text())
        tensors = load_file(folder / _SCORES)
        # Sets and coordinates depend on the model; older runs have neither.
        more = [name for name in (*SET_COLUMNS, COORDINATES_COLUMN) if name in tensors]
        scores = {name: tensors[name].numpy() for name in (*SCORE_COLUMNS, *more)}
        # Columns of another run would pair clips with scores of other clips.
        if {len(column) for column in scores.values()} != {len(facts["clips"])}:
            raise ValueError("columns of different lengths")
        facts["curve"] = [(int(number), float(uar)) for number, uar in facts["curve"]]
        facts["ledgers"] = dict(facts["ledgers"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"the scores in {folder} are damaged ({error}); remove "
            "that folder and go on with --resume: this fold is trained again"
        ) from error
    return facts, scores


def load_result(
    folder: Path, *, fold: str, labels: tuple[str, ...], clips: Iterable[Clip], has_heads: bool
) -> FoldResult:
    """Load a fold's result as tables of predictions; errors as for :func:`read_result`.

    Args:
        folder: The fold's.
        fold: Its name.
        labels: Emotions in the order of the classes.
        clips: All clips of its test users, in any order.
        has_heads: Whether test users labelled clips, which are not scored after heads.
    """
    facts, scores = read_result(folder)
    by_name = {clip.clip_id: clip for clip in clips}
    table = _ScoreTable([by_name[name] for name in facts["clips"]], scores, fold, labels)
    rows = np.arange(len(facts["clips"]))
    return FoldResult(
        predictions=table.select(rows, after="before"),
        # Clips that a head was fitted on are not scored behind it: that would be testing on
        # training data.
        personalised=table.select(rows[~scores["labelled"]], after="after") if has_heads else None,
        learning_curve=facts["curve"],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _ScoreTable:
    clips: Sequence[Clip]
    scores: Mapping[str, np.ndarray]
    fold: str
    labels: tuple[str, ...]

    def select(self, rows: np.ndarray, *, after: str) -> Predictions:
        """Predictions of some rows; ``after`` names the column behind heads."""
        chosen = [self.clips[row] for row in rows]
        return Predictions(
            emotions=self.labels,
            clips=[clip.clip_id for clip in chosen],
            speakers=[clip.speaker for clip in chosen],
            folds=[self.fold] * len(chosen),
            labels=self.scores["labels"][rows],
            before=self.scores["before"][rows],
            after=self.scores[after][rows],
            genders=[clip.gender or "" for clip in chosen],
            ages=[clip.age for clip in chosen],
            languages=[clip.language or "" for clip in chosen],
            **{name: self.scores[name][rows] for name in SET_COLUMNS if name in self.scores},
        )
