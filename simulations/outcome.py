"""What a fold leaves behind: scores of its test clips, and the heads of its ledgers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.server import checkpoint
from sottovoce.shared.errors import ModelError
from sottovoce.simulations.runfile import Json
from sottovoce.simulations.scored import Scored

SCORES = ("before", "after", "labels", "labelled")
SETS = ("covered", "sizes")
"""Where there are sets; runs of earlier releases kept none."""

COORDINATES = "coordinates"
"""Where clips lie in the basis of the heads, where there is one."""

_FACTS, _NUMBERS = "outcome.json", "outcome.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What a fold leaves behind.

    Attributes:
        everything: Scores of all test clips but neutral enrolment ones, without heads.
        personal: Scores before and after heads, without the labelled enrolment clips; None
            without heads.
        curve: (round, UAR) after each round.
    """

    everything: Scored
    personal: Scored | None
    curve: list[tuple[int, float]]

    @property
    def uar(self) -> float:
        """On the fold's test users, for looking only."""
        return self.curve[-1][1] if self.curve else math.nan


def write(folder: Path, facts: Json, scores: Mapping[str, Tensor]) -> None:
    """Keep a fold's scores; the facts last: an outcome is there once its facts are."""
    checkpoint.replace_file(folder / _NUMBERS, save(dict(scores)))
    checkpoint.replace_file(folder / _FACTS, json.dumps(facts).encode())


def exists(folder: Path) -> bool:
    """Whether a fold has ended."""
    return (folder / _FACTS).is_file()


def read(folder: Path) -> tuple[Json, dict[str, np.ndarray]]:
    """What :func:`write` kept.

    Args:
        folder: The fold's.

    Returns:
        Facts (``clips``, ``curve``, heads of ``ledgers``) and scores by column.

    Raises:
        ModelError: The files are damaged, or belong to other clips.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text())
        tensors = load_file(folder / _NUMBERS)
        more = [name for name in (*SETS, COORDINATES) if name in tensors]
        scores = {name: tensors[name].numpy() for name in (*SCORES, *more)}
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
