"""Experiment with a million users, a thousand a round: docs/results/population.md.

    sottovoce reproduce population --run runs/population

A run that is there already is not made again; one that was interrupted goes on.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sottovoce.shared.atomic_files import replace_text
from sottovoce.simulations.experiments.commands import build_parser, run_command

Json = Mapping[str, Any]
COMMAND = ("sottovoce", "simulate", "population")
_AFTER = 3
"""Round from whose end on memory growth is counted: earlier rounds fill caches."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the run if it is missing, then write the page."""
    parser = build_parser("population", __doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/population"), help="the run folder")
    arguments = parser.parse_args(argv)
    path = arguments.out / "population.json"
    if arguments.table:
        replace_text(arguments.out / "population.md", format_page(json.loads(path.read_text())))
        return 0
    if not (arguments.run / "run.json").exists():
        status = run_command([*COMMAND, "--out", str(arguments.run), "--resume"])
        if status:
            return status
    found = summarise_run(json.loads((arguments.run / "run.json").read_text()))
    replace_text(path, json.dumps(found, indent=1) + "\n")
    replace_text(arguments.out / "population.md", format_page(found))
    return 0


def summarise_run(run: Json) -> dict[str, Any]:
    """Summarise run.json in the figures of the page."""
    population, timing = run["population"], run["timing"]
    rounds = population["rounds"]
    memory = [row["rss_mb"] for row in rounds if row["round"] >= _AFTER]
    steps = [after - before for before, after in itertools.pairwise(memory)]
    return {
        "command": " ".join(COMMAND),
        "registered": population["registered"],
        "cohort": population["cohort"],
        "asked": population["asked"],
        "rounds": rounds,
        "used_per_round": mean(row["used"] for row in rounds[1:]),
        # The first row is the founding of the population, not a round.
        "worked_per_round": mean(_worked(row) for row in rounds[1:]),
        "peak_rss_mb": timing["peak_rss_mb"],
        "growth_mb_per_round": mean(steps),
        "most_growth_mb": max(steps),
        "training_s": timing["training_s"],
        "wall_s": timing["wall_s"],
        "cpu_s": timing.get("cpu_s"),
        "epsilon": run["privacy"]["epsilon"],
        "spent": run["privacy"]["user"]["epsilon"],
        "delta": run["privacy"]["delta"],
        "noise_multiplier": run["privacy"]["noise_multiplier"],
        "uar_by_round": [point["uar"] for point in run["accuracy"]["by_round"]],
    }


def _worked(row: Json) -> int:
    """Devices that did the work of a round, their reply used or not."""
    return int(row["used"] + row["dropped"] + row["late"])


def format_page(found: Json) -> str:
    """Format the page from the summary of a run."""
    return "\n".join([*_heading(found), *_claims(found), *_rounds(found)]) + "\n"


def _heading(found: Json) -> Iterator[str]:
    """What was run."""
    yield "# A million users"
    yield ""
    yield f"`{found['command']}`, read by `sottovoce reproduce population`. The run is described in"
    yield "[populations](../guides/populations.md); its users' voices are drawn in feature space,"
    yield "so its accuracy says that learning works, not how well it recognises anybody."
    yield ""


def _claims(found: Json) -> Iterator[str]:
    """The figures that were asked for."""
    curve = found["uar_by_round"]
    took = f"{len(curve)} rounds in {found['training_s']:.0f} s"
    if found["cpu_s"] is not None:
        took += f", {found['cpu_s']:.0f} s of processor time"
    many = f"{found['registered']:,} registered, {found['cohort']:,} drawn a round"
    busy = f"{found['worked_per_round']:.0f} worked, {found['used_per_round']:.0f} in time"
    grew = (found["growth_mb_per_round"], found["most_growth_mb"])
    promise = f"epsilon {found['spent']:.3f} of {found['epsilon']:g} at delta {found['delta']:g}"
    rows = [
        (
            "1,000,000 synthetic users registered, 1,000 a round, 20 rounds: finishes",
            f"{many}; {busy}; {took}",
        ),
        ("resident memory under 2 GB", f"{found['peak_rss_mb']:.0f} MiB at most"),
        (
            "growth per round under 1 MB after the third",
            f"{grew[0]:.3f} MiB on average, {grew[1]:.3f} MiB at most",
        ),
        ("the promise to a user", f"{promise}, noise multiplier {found['noise_multiplier']:.3f}"),
        ("UAR on held-out users", f"{curve[0]:.3f} after round 1, {curve[-1]:.3f} at the end"),
    ]
    yield "| asked | measured |"
    yield "|---|---|"
    yield from (f"| {asked} | {measured} |" for asked, measured in rows)
    yield ""
    yield "Memory is that of server and devices together, in one process, scoring included. Times"
    yield "are of a machine of two cores that had other work as well."
    yield ""


def _rounds(found: Json) -> Iterator[str]:
    """Every round's cohort."""
    names = ("sampled", "newcomers", "unavailable", "dropped", "late", "refused", "used")
    yield f"| round | {' | '.join(names)} | MiB | seconds |"
    yield "|---" * (len(names) + 3) + "|"
    for row in found["rounds"]:
        cells = [str(row[name]) for name in names]
        cells += [f"{row['rss_mb']:.2f}", f"{row['seconds']:.0f}"]
        yield f"| {row['round'] or 'founding'} | {' | '.join(cells)} |"
