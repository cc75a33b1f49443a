"""The table of a run's predictions says all that accuracy follows from, and no clip's name."""

import csv
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from sottovoce.shared.errors import MessageError
from sottovoce.simulations.evaluation.fold_result import FoldResult
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.results import prediction_table

EMOTIONS = ("anger, cold", "joy", 'the "neutral"')
CLIPS = 7


def fold(name: str, *, heads: bool = True) -> FoldResult:
    """A fold of two speakers; heads were fitted on the first clip."""
    rng = np.random.default_rng(len(name))
    before, after = rng.dirichlet(np.ones(3), size=(2, CLIPS))

    def rows(start: int, behind: np.ndarray) -> Predictions:
        return Predictions(
            emotions=EMOTIONS,
            clips=[f"users/clip-{index}.wav" for index in range(start, CLIPS)],
            speakers=[f"s{index % 2}" for index in range(start, CLIPS)],
            folds=[name] * (CLIPS - start),
            labels=np.arange(start, CLIPS) % 3,
            before=before[start:],
            after=behind[start:],
        )

    personal = rows(1, after) if heads else None
    return FoldResult(predictions=rows(0, before), personalised=personal, learning_curve=[])


def kept(folder: Path, *folds: FoldResult) -> tuple[Predictions, Predictions | None]:
    """What is read back of a run's table."""
    table = prediction_table.encode_predictions(folds, run="r")
    prediction_table.write_predictions(folder, table)
    return prediction_table.read_predictions(folder, prediction_table.describe_predictions(table))


@pytest.mark.parametrize("heads", [True, False])
def test_predictions_come_back_to_the_bit(tmp_path: Path, heads: bool) -> None:
    folds = [fold("fold-1", heads=heads), fold("fold-02", heads=heads)]

    everything, personal = kept(tmp_path, *folds)

    wanted = [np.concatenate([one.predictions.before for one in folds]), everything.before]
    assert np.array_equal(*wanted)
    assert np.array_equal(everything.after, everything.before)
    assert everything.folds == ("fold-1",) * CLIPS + ("fold-02",) * CLIPS
    assert everything.labels.tolist() == [*(np.arange(CLIPS) % 3)] * 2
    assert (personal is not None) == heads
    if personal is not None:
        parts = [one.personalised for one in folds if one.personalised]
        assert np.array_equal(personal.after, np.concatenate([part.after for part in parts]))
        assert list(personal.speakers) == [name for part in parts for name in part.speakers]


def test_clips_have_pseudonyms_that_differ_from_run_to_run() -> None:
    one, other = (prediction_table.encode_predictions([fold("f")], run=run) for run in ("r", "q"))

    assert b"clip-" not in one
    lines = [list(csv.reader(io.StringIO(table.decode()))) for table in (one, other)]
    names = [[line[0] for line in table[1:]] for table in lines]
    assert len({*names[0], *names[1]}) == 2 * CLIPS
    assert [line[1:] for line in lines[0]] == [line[1:] for line in lines[1]]


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    kept(tmp_path, fold("007"))

    found = parquet.read_table(tmp_path / prediction_table.PARQUET_FILE).to_pydict()

    with (tmp_path / prediction_table.CSV_FILE).open(newline="") as file:
        header, *lines = csv.reader(file)
    assert list(found) == header
    assert found["fold"] == ["007"] * CLIPS, "a name stays a text"
    for name, column in zip(
        header[4:], zip(*(line[4:] for line in lines), strict=True), strict=True
    ):
        assert found[name] == [float(cell) if cell else None for cell in column]


def test_without_pyarrow_there_is_csv_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, fold("f"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    kept(tmp_path, fold("another"))

    assert [path.name for path in tmp_path.iterdir()] == [prediction_table.CSV_FILE]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b",joy,0.", b",bored,0.", "holds no predictions"),
        (b"shared:", b"alone:", "columns"),
        (b"fold-1,s1", b"fold-1", "different lengths"),
        (b",joy,0.", b",joy,nan", "holds no predictions"),
        (b",joy,0.", b",joy,9", "holds no predictions"),
        (b",joy,0.", b",joy,\xff", "holds no predictions"),
        (b",joy,0.", b",joy," + b"0" * 140_000, "holds no predictions"),
        (b"fold-1", b"", "scored twice"),
    ],
)
def test_a_table_that_holds_something_else_is_refused(
    tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    table = prediction_table.encode_predictions([fold("fold-1"), fold("fold-2")], run="r")
    if words == "scored twice":
        new, old = b"fold-1", b"fold-2"
    changed = table.replace(old, new)
    assert changed != table
    path = tmp_path / prediction_table.CSV_FILE
    path.write_bytes(changed)

    with pytest.raises(MessageError, match="by its SHA-256"):
        prediction_table.read_predictions(tmp_path, prediction_table.describe_predictions(table))
    facts = prediction_table.describe_predictions(changed)
    assert facts["sha256"] == hashlib.sha256(changed).hexdigest()
    with pytest.raises(MessageError, match=words):
        prediction_table.read_predictions(tmp_path, facts)


def test_a_table_that_is_gone_is_missed(tmp_path: Path) -> None:
    facts = prediction_table.describe_predictions(b"clip\n")
    with pytest.raises(MessageError, match="cannot be read"):
        prediction_table.read_predictions(tmp_path, facts)
