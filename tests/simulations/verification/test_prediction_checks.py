"""An edited figure of accuracy is found: the predictions that it came from are kept."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.simulations.results.prediction_table import CSV_FILE
from sottovoce.simulations.verification.recompute import verify_run

Json = dict[str, Any]


def _edit(run: Path, change: Callable[[Json], object]) -> list[str]:
    """What ``verify`` says of a changed run.json."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return list(verify_run(run).inconsistencies)


def test_an_honest_run_says_what_its_accuracy_was_computed_from(run: Path) -> None:
    found = verify_run(run)
    rows = len((run / CSV_FILE).read_bytes().splitlines()) - 1

    assert found.is_consistent
    assert found.prediction_count == found.to_dict()["predictions"] == rows > 0
    assert f"accuracy and calibration: from {rows} predictions" in found.report_lines()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["accuracy"].update(uar=0.99), "accuracy.uar 0.99, its predictions come to"),
        (lambda r: r["accuracy"]["uar_interval"].__setitem__(0, 0.98), "accuracy.uar_interval"),
        (lambda r: r["accuracy"]["confusion"][0].__setitem__(0, 99), "accuracy.confusion"),
        (lambda r: r["accuracy"]["per_fold"][0].update(uar=0.97), "accuracy.per_fold"),
        (lambda r: next(iter(r["accuracy"]["per_speaker"].values())).update(uar=0.96), ".uar 0.96"),
        (lambda r: r["calibration"]["after"].update(ece=0.001), "calibration.after.ece 0.001"),
        (lambda r: r["calibration"]["uar"].update(after=0.95), "calibration.uar.after 0.95"),
        (lambda r: r["calibration"]["abstention"].update(aurc=0.9), "calibration.abstention.aurc"),
        (lambda r: r["fairness"]["speaker"].update(worst=0.94), "fairness.speaker.worst 0.94"),
        (lambda r: r["corpus"]["emotions"].reverse(), "other emotions than its table"),
        (lambda r: r["predictions"].update(rows=1), "by its SHA-256"),
        (lambda r: r["predictions"].update(sha256="0" * 64), "by its SHA-256"),
        (lambda r: r.pop("predictions"), "run.json does not name its SHA-256"),
    ],
)
def test_an_edited_figure_is_found(run: Path, change: Callable[[Json], object], words: str) -> None:
    faults = _edit(run, change)

    assert any(words in fault for fault in faults), faults


def test_an_edited_prediction_is_found_whatever_hash_is_written_beside_it(run: Path) -> None:
    header, *lines = [line.split(",") for line in (run / CSV_FILE).read_text().splitlines()]
    shared = [index for index, name in enumerate(header) if name.startswith("shared:")]
    (edited, *_) = (line for line in lines if line[-1])
    right = header.index(f"shared:{edited[3]}")
    for index in shared:
        edited[index] = "0.0"
    edited[next(index for index in shared if index != right)] = "1.0"
    data = "".join(f"{','.join(line)}\n" for line in (header, *lines)).encode()
    (run / CSV_FILE).write_bytes(data)
    assert any("one was changed" in fault for fault in verify_run(run).inconsistencies)

    digest = hashlib.sha256(data).hexdigest()
    faults = _edit(run, lambda r: r["predictions"].update(sha256=digest))

    assert any("its predictions come to" in fault for fault in faults)


def test_of_a_run_that_kept_no_predictions_it_is_said(run: Path) -> None:
    (run / CSV_FILE).unlink()

    assert _edit(run, lambda r: r.pop("predictions")) == []
    assert "accuracy was not computed again" in verify_run(run).report_lines()[-2]
