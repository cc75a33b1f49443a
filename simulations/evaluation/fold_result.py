"""The result of a fold: scores of its test clips, and the head hashes of its ledgers."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.checksums import decode_record, encode_record, encode_tensors, read_tensors
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
    data = encode_tensors(scores)
    # Facts last: a crash in between leaves a fold without a result, never half a result.
    replace_file(folder / _SCORES, data)
    # With the scores' own hash: those of another fold or run would match their own checksum.
    facts = {**facts, "scores_sha256": hashlib.sha256(data).hexdigest()}
    replace_file(folder / _FACTS, encode_record(facts))


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
        ModelError: The files are damaged or were changed, as their checksums show, or belong to
            other clips.
    """
    try:
        facts = decode_record((folder / _FACTS).read_bytes())
        tensors, _ = read_tensors(folder / _SCORES)
        if facts["scores_sha256"] != hashlib.sha256((folder / _SCORES).read_bytes()).hexdigest():
            raise ValueError(f"{_SCORES} is not the file that was written with {_FACTS}")
        # Sets and coordinates depend on the model; older runs have neither.
        more = [name for name in (*SET_COLUMNS, COORDINATES_COLUMN) if name in tensors]
        scores = {name: tensors[name].numpy() for name in (*SCORE_COLUMNS, *more)}
        # Columns of another run would pair clips with scores of other clips.
        if {len(column) for column in scores.values()} != {len(facts["clips"])}:
            raise ValueError("columns of different lengths")
        wrong = [n for n, column in scores.items() if not np.isfinite(column).all()]
        if wrong:
            raise ValueError(f"{wrong[0]} has a NaN or an infinity")
        facts["curve"] = [(int(number), float(uar)) for number, uar in facts["curve"]]
        facts["ledgers"] = dict(facts["ledgers"])
        if len(set(facts["clips"])) != len(facts["clips"]) or not all(
            isinstance(clip, str) for clip in facts["clips"]
        ):
            raise ValueError("clips are not names, each once")
    except (ModelError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder, str(error)) from error
    return facts, scores


def _damaged(folder: Path, what: str) -> ModelError:
    """The error of a result that cannot be used; it is refused, never repaired."""
    return ModelError(
        f"the scores in {folder} are damaged ({what}); remove "
        "that folder and go on with --resume: this fold is trained again"
    )


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
    if unknown := set(facts["clips"]) - set(by_name):
        raise _damaged(folder, f"{min(unknown)} is no clip of the test users of {fold}")
    tested = [by_name[name] for name in facts["clips"]]
    # The corpus knows the truth: what is stored beside the scores must not say otherwise.
    if scores["labels"].tolist() != [labels.index(clip.emotion) for clip in tested]:
        raise _damaged(folder, "its labels are not those of the corpus")
    shapes = {name: (len(tested), len(labels)) for name in ("before", "after")}
    wrong = [name for name, shape in shapes.items() if scores[name].shape != shape]
    if wrong:
        raise _damaged(folder, f"{wrong[0]} is not of {len(labels)} classes")
    table = _ScoreTable(tested, scores, fold, labels)
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
