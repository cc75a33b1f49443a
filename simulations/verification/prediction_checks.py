"""Accuracy of a run, computed again from the predictions that it kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sottovoce.shared.errors import MessageError, SottovoceError
from sottovoce.simulations.evaluation.fairness.run_section import measure_fairness
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.results import prediction_table, run_record
from sottovoce.simulations.results.schema import Table, read_run, to_plain_json
from sottovoce.simulations.verification.ledger_checks import is_close

_MAX_SHOWN = 5
"""Number of figures that differ which are named one by one."""


def count_predictions(run_folder: Path) -> int | None:
    """Count the predictions that accuracy is computed again from; None where none were kept."""
    try:
        facts = read_run(run_folder).get("predictions")
    except SottovoceError:  # named where the run's files are compared
        return None
    return facts["rows"] if facts else None


def prediction_mismatches(run_folder: Path) -> Iterator[str]:
    """Compute accuracy and calibration again, and name what ``run.json`` says otherwise.

    Figures of earlier rounds, prediction sets and groups of speakers are not computed: what they
    rest on is not in the table.

    Args:
        run_folder: The run; one of an earlier release kept no predictions, and is not checked.
    """
    try:
        run: Table = read_run(run_folder)
    except SottovoceError:  # named where the run's files are compared
        return
    facts = run.get("predictions")
    if not facts:
        if (run_folder / prediction_table.CSV_FILE).exists():
            yield f"{prediction_table.CSV_FILE} is there, and run.json does not name its SHA-256"
        return
    try:
        everything, personal = prediction_table.read_predictions(run_folder, facts)
    except MessageError as error:
        yield f"accuracy cannot be computed again: {error}"
        return
    if list(everything.emotions) != run["corpus"]["emotions"]:
        yield "run.json names other emotions than its table of predictions: one was changed"
        return
    wrong = [
        f"run.json says {path} {there}, its predictions come to {wanted}"
        for path, there, wanted in _compare("", run, _recompute(run, everything, personal))
    ]
    yield from wrong[:_MAX_SHOWN]
    if wrong[_MAX_SHOWN:]:
        yield f"{len(wrong) - _MAX_SHOWN} more figures like the last"


def _recompute(run: Table, everything: Predictions, personal: Predictions | None) -> dict[str, Any]:
    """What the predictions decide of ``run.json``, as it holds that."""
    scored, seed = personal or everything, run["seed"]
    accuracy = run_record.accuracy_section(everything, seed=seed)
    found = {
        "accuracy": {name: value for name, value in accuracy.items() if name != "by_round"},
        "calibration": {
            **run_record.calibration_section(scored, seed=seed),
            "uar": run_record.uar_before_after(scored),
        },
        "fairness": {"speaker": measure_fairness(everything)["speaker"]},
    }
    plain: dict[str, Any] = to_plain_json(found)
    return plain


def _compare(where: str, there: object, wanted: object) -> Iterator[tuple[str, object, object]]:
    """Every value that is not as wanted, with its path."""
    if not isinstance(wanted, dict):
        if not is_close(there, wanted):
            yield where, there, wanted
        return
    held = there if isinstance(there, dict) else {}
    for name, value in wanted.items():
        yield from _compare(f"{where}.{name}".lstrip("."), held.get(name), value)
    # A speaker too many would be nobody's prediction. A section may hold what no table decides.
    if wanted and isinstance(next(iter(wanted.values())), dict) and where.endswith("per_speaker"):
        yield from ((f"{where}.{name}", held[name], None) for name in sorted({*held} - {*wanted}))
