"""Predictions of a run's test clips as a table, from which its accuracy can be computed again.

``predictions.csv`` has a line for each clip and fold that tested it: a pseudonym of the clip, the
fold, the speaker, the true emotion, and each emotion's probability by the shared model and, where
the user's head was not fitted on that clip, behind the head. ``predictions.parquet`` is the same
table, written where pyarrow is installed.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import MessageError, SottovoceError
from sottovoce.simulations.evaluation.fold_result import FoldResult
from sottovoce.simulations.evaluation.predictions import Predictions, concatenate_predictions
from sottovoce.simulations.results.schema import PredictionFacts

CSV_FILE: Final = "predictions.csv"
PARQUET_FILE: Final = "predictions.parquet"

_FACTS: Final = ("clip", "fold", "speaker", "emotion")
_SHARED, _PERSONAL = "shared:", "personal:"
_PSEUDONYM_DIGITS: Final = 16


def make_pseudonym(run: str, clip: str) -> str:
    """Make the pseudonym of a clip in one run: 16 hexadecimal digits.

    Args:
        run: Name of the run.
        clip: Name of the clip in its corpus.

    Example:
        >>> make_pseudonym("run", "a.wav") == make_pseudonym("other run", "a.wav")
        False
    """
    return hashlib.sha256(f"{run}\0{clip}".encode()).hexdigest()[:_PSEUDONYM_DIGITS]


def encode_predictions(results: Sequence[FoldResult], *, run: str) -> bytes:
    """Encode the predictions of a run's folds as CSV, UTF-8.

    Args:
        results: Of all folds, in their order.
        run: Name of the run, in the clips' pseudonyms: the same clip has others in other runs.

    Guarantees:
        - Each probability is written in as many digits as give the same float64 back.
        - Neither a clip's name nor its place in a corpus is there. Whoever holds the corpus can
          make the same pseudonyms: they keep a table short and joinable, and are no secret.
    """
    everything = concatenate_predictions([one.predictions for one in results])
    personal = [one.personalised for one in results if one.personalised is not None]
    behind_heads = {
        (fold, clip): row
        for part in personal
        for fold, clip, row in zip(part.folds, part.clips, part.after.tolist(), strict=True)
    }
    emotions = list(everything.emotions)
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    columns = [f"{_PERSONAL}{name}" for name in emotions] if personal else []
    lines.writerow([*_FACTS, *(f"{_SHARED}{name}" for name in emotions), *columns])
    for index, clip in enumerate(everything.clips):
        fold = everything.folds[index]
        # A clip that the head was fitted on is not scored behind it.
        own = behind_heads.get((fold, clip), [""] * len(columns))
        lines.writerow(
            [
                make_pseudonym(run, clip),
                fold,
                everything.speakers[index],
                emotions[int(everything.labels[index])],
                *everything.before[index].tolist(),
                *own,
            ]
        )
    return text.getvalue().encode()


def describe_predictions(table: bytes) -> PredictionFacts:
    """Describe a table for ``run.json``: file, SHA-256 and number of lines."""
    rows = table.count(b"\n") - 1
    return {"file": CSV_FILE, "sha256": hashlib.sha256(table).hexdigest(), "rows": rows}


def write_predictions(out: Path, table: bytes) -> None:
    """Write the table as CSV, and as Parquet where pyarrow is installed.

    Args:
        out: The run folder.
        table: What :func:`encode_predictions` gave.
    """
    replace_file(out / CSV_FILE, table)
    if find_spec("pyarrow") is None:
        # One of an earlier run in this folder would be another's.
        (out / PARQUET_FILE).unlink(missing_ok=True)
        return
    from pyarrow import BufferOutputStream, csv, parquet

    # The names' columns stay text, whatever they look like.
    kept = csv.ConvertOptions(
        column_types=dict.fromkeys(_FACTS, "string"), strings_can_be_null=False
    )
    stream = BufferOutputStream()
    parquet.write_table(csv.read_csv(io.BytesIO(table), convert_options=kept), stream)
    replace_file(out / PARQUET_FILE, stream.getvalue().to_pybytes())


def read_predictions(
    folder: Path, facts: Mapping[str, Any]
) -> tuple[Predictions, Predictions | None]:
    """Read the table that a run kept.

    Args:
        folder: The run folder.
        facts: Section ``predictions`` of its ``run.json``.

    Returns:
        All predictions of the shared model, and those before and behind heads; None without heads.

    Raises:
        MessageError: The table is missing, is not the one whose hash the run recorded, or holds
            what are no predictions.
    """
    path = folder / CSV_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MessageError(f"{path} cannot be read: {error.strerror or error}") from error
    if describe_predictions(data) != dict(facts):
        raise MessageError(
            f"{path} is not the table that run.json names by its SHA-256: one was changed"
        )
    try:
        header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
        return _parse(header, rows)
    # Whoever wrote the file wrote its hash, too: it may hold anything.
    except (ValueError, LookupError, csv.Error, SottovoceError) as error:
        raise MessageError(f"{path} holds no predictions: {error}") from error


def _parse(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Predictions, Predictions | None]:
    """Parse the lines of a table; see :func:`read_predictions`."""
    emotions = [name.removeprefix(_SHARED) for name in header if name.startswith(_SHARED)]
    first, count = len(_FACTS), len(emotions)
    columns = [f"{_SHARED}{name}" for name in emotions]
    personal = [f"{_PERSONAL}{name}" for name in emotions]
    if list(header) not in ([*_FACTS, *columns], [*_FACTS, *columns, *personal]):
        raise ValueError("its columns are not those of a table of predictions")
    if any(len(row) != len(header) for row in rows):
        raise ValueError("its lines are of different lengths")

    def select(chosen: Sequence[Sequence[str]], *, after: int) -> Predictions:
        """Of some lines; what stands from column ``after`` on is what counts."""
        clips, folds, speakers, names = zip(*(row[:first] for row in chosen), strict=True)
        before, counts = (
            np.array([row[start : start + count] for row in chosen], dtype=np.float64)
            for start in (first, after)
        )
        return Predictions(
            emotions=emotions,
            clips=clips,
            speakers=speakers,
            folds=folds,
            labels=np.array([emotions.index(name) for name in names], dtype=np.int64),
            before=before,
            after=counts,
        )

    everything = select(rows, after=first)
    behind = [row for row in rows if row[-1]] if len(header) > first + count else []
    return everything, select(behind, after=first + count) if behind else None
