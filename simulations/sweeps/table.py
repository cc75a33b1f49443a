"""From the runs of a sweep to sweep.json: each run, and mean and standard deviation over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sottovoce.server.planning.noise_calibration import device_budgets
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.simulations.results.schema import (
    SCHEMA_VERSION,
    Json,
    SweepRecord,
    Table,
    to_plain_json,
    validate_sweep,
)
from sottovoce.simulations.sweeps.grid import SEED, Sweep, SweepRun

MEASURES: Final = {
    "uar": ("accuracy", "uar"),
    "wa": ("accuracy", "wa"),
    "macro_f1": ("accuracy", "macro_f1"),
    "worst_speaker": ("fairness", "speaker", "worst"),
    "p10_speaker": ("fairness", "speaker", "p10"),
    "ece_before": ("calibration", "before", "ece"),
    "ece_after": ("calibration", "after", "ece"),
    "nll_before": ("calibration", "before", "nll"),
    "nll_after": ("calibration", "after", "nll"),
    "epsilon_spent_utterance": ("privacy", "utterance", "epsilon_max"),
    "epsilon_spent_user": ("privacy", "user", "epsilon"),
    "wall_s": ("timing", "wall_s"),
}
"""Figures of a run, and where run.json has them; null where it has none."""


def summarise_runs(
    sweep: Sweep, runs: Sequence[tuple[SweepRun, Table]], *, wall_s: float, computed: int
) -> SweepRecord:
    """Summarise finished runs as the content of sweep.json.

    Args:
        sweep: What was swept over.
        runs: Every point with its run.json.
        wall_s: How long it took this time.
        computed: How many runs were computed this time; the others were there.

    Raises:
        MessageError: A figure of a run that breaks the schema.
    """
    first = runs[0][1]
    lines = [_line(point, run) for point, run in runs]
    content = {
        "schema": SCHEMA_VERSION,
        "base": dict(sweep.base),
        "axes": {axis.setting: list(axis.values) for axis in sweep.axes},
        "corpus": first["corpus"],
        "protocol": first["protocol"]["name"],
        "chance": 1 / len(first["corpus"]["emotions"]),
        "runs": lines,
        "points": _points(lines),
        "timing": {"wall_s": wall_s, "runs": len(runs), "computed": computed},
    }
    return validate_sweep(to_plain_json(content))


def _line(point: SweepRun, run: Table) -> Json:
    """One run."""
    return {
        "name": point.name,
        "folder": f"runs/{point.name}",
        "settings": dict(point.settings),
        "unit": point.scenario.privacy.unit,
        "rounds": run["rounds"],
        "model": run["model"]["kind"],
        "epsilon": _promised_epsilon(point.scenario.privacy),
        "noise_multiplier": run["privacy"].get("noise_multiplier"),
        **{name: _find(run, path) for name, path in MEASURES.items()},
    }


def _promised_epsilon(target: PrivacyTarget) -> float | None:
    """Epsilon of each promised unit; None where nothing is promised."""
    budgets = device_budgets(target)
    return budgets[0].epsilon if budgets else None


def _find(run: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """A figure within tables; None where a table lacks it."""
    value: Any = run
    for name in path:
        value = (value or {}).get(name)
    return None if value is None else float(value)


def _points(lines: Sequence[Json]) -> list[Json]:
    """Runs that differ in their seed alone, as one."""
    groups: dict[str, list[Json]] = {}
    for line in lines:
        rest = {name: value for name, value in line["settings"].items() if name != SEED}
        groups.setdefault(repr(rest), []).append(line)
    return [_point(group) for group in groups.values()]


def _point(group: Sequence[Json]) -> Json:
    """Mean and standard deviation of some runs."""
    first = group[0]
    shared = ("unit", "rounds", "model", "epsilon", "noise_multiplier")
    return {
        "settings": {name: value for name, value in first["settings"].items() if name != SEED},
        **{name: first[name] for name in shared},
        "seeds": len(group),
        **{name: _statistics([line[name] for line in group]) for name in MEASURES},
    }


def _statistics(values: Sequence[float | None]) -> Json | None:
    """Mean, standard deviation (of a sample; null for a single one) and range."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {
        "mean": statistics.fmean(known),
        "sd": deviation,
        "min": min(known),
        "max": max(known),
    }
