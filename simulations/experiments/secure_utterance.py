"""Experiment on utterances in secure sums: docs/results/secure.md.

    sottovoce reproduce secure-utterance --corpora ../shared/corpora --runs runs/results

A run that is there already is not run again; one that was interrupted goes on. Lines without runs
stay as they were.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.printable import print_lines
from sottovoce.shared.privacy.guarantees.adversaries import Adversary
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.experiments.accuracy import ResultLine
from sottovoce.simulations.experiments.commands import build_parser, run_command

PROTOCOLS: Final = ("ravdess8-6fold", "cremad4-5fold")
EPSILONS: Final = (8.0, 4.0, 2.0, 1.0, 0.5)
SEEDS: Final = (0, 1, 2)
_FACTS: Final = ("protocol", "secure", "epsilon")
"""What tells one line of the table from another."""


def list_result_lines() -> Iterator[ResultLine]:
    """Iterate over all lines: each budget in secure sums, then by the local promise."""
    for protocol in PROTOCOLS:
        for epsilon in EPSILONS:
            for secure in (True, False):
                yield ResultLine(
                    protocol=protocol,
                    unit="utterance",
                    enrolment="all",
                    seeds=SEEDS,
                    epsilon=epsilon,
                    secure=secure,
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs, then write the table."""
    parser = build_parser("secure-utterance", __doc__)
    parser.add_argument("--corpora", default="../shared/corpora", help="folder of the corpora")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="run folders")
    parser.add_argument("--only", default="", help="run only those whose name contains this")
    arguments = parser.parse_args(argv)
    failed = 0
    for line in () if arguments.table else list_result_lines():
        for seed in line.seeds:
            if arguments.only in line.run_name(seed):
                failed += _run(line, seed, arguments)
    _write(arguments)
    return 1 if failed else 0


def _run(line: ResultLine, seed: int, arguments: argparse.Namespace) -> int:
    """One run and its verification, unless it is there."""
    out = arguments.runs / line.run_name(seed)
    if (out / "run.json").is_file():
        return 0
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    words = [*line.build_command(seed, arguments.corpora), "--out", str(out), "--quiet", *resume]
    print_lines(" ".join(words))
    # Verified at once, so that a run that disagrees with its ledgers counts as failed.
    return int(any(run_command(each) for each in (words, ["sottovoce", "verify", str(out)])))


def _write(arguments: argparse.Namespace) -> None:
    """The JSON and the page; lines whose runs are not there stay as they were."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "secure.json"
    written = json.loads(path.read_text()) if path.exists() else []
    known = {tuple(line[name] for name in _FACTS): line for line in written}
    lines = []
    for one in list_result_lines():
        kept = known.get((one.protocol, one.secure, one.epsilon))
        found = _line(one, arguments.runs)
        # Of runs that were made on different machines, those of more seeds count.
        if found and (kept is None or len(found["seeds"]) >= len(kept["seeds"])):
            kept = found
        lines += [kept] if kept else []
    replace_text(path, json.dumps(lines, indent=1) + "\n")
    replace_text(arguments.out / "secure.md", _page(lines))


def _line(one: ResultLine, runs: Path) -> dict[str, Any] | None:
    """One line of the table, from the runs that are there."""
    found = {
        seed: json.loads(path.read_text())
        for seed in one.seeds
        if (path := runs / one.run_name(seed) / "run.json").is_file()
    }
    if not found:
        return None
    uars = [run["accuracy"]["uar"] for run in found.values()]
    first = next(iter(found.values()))
    return {
        "protocol": one.protocol,
        "secure": one.secure,
        "epsilon": one.epsilon,
        "delta": first["privacy"]["delta"],
        "noise_multiplier": first["privacy"]["noise_multiplier"],
        "spent": max(run["privacy"]["utterance"]["epsilon_max"] for run in found.values()),
        "seeds": list(found),
        "uar": statistics.fmean(uars),
        "uar_sd": statistics.stdev(uars) if len(uars) > 1 else None,
        "uar_per_seed": uars,
        "command": " ".join(one.build_command(next(iter(found)), "../shared/corpora")),
    }


def _page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    head = (
        "# One utterance, by secure sums\n\n"
        "Made by `sottovoce reproduce secure-utterance`. Epsilon is for one utterance added or "
        "removed, at delta\n1e-5, over a device's whole part in the run; `sottovoce verify` agrees "
        "with every run. *In sums*:\n`--secure-aggregation`, each device adds a share of the "
        "noise. *Local*: each device adds all of it. UAR is\npooled over folds, on speakers that "
        "training never saw, without any label of theirs; mean and standard\ndeviation over "
        "seeds.\n\n"
        "| protocol | epsilon | in sums | seeds | local | seeds |\n|---|---|---|---|---|---|\n"
    )
    by_facts = {tuple(line[name] for name in _FACTS): line for line in lines}
    rows = []
    for protocol in PROTOCOLS:
        for epsilon in EPSILONS:
            pair = [by_facts.get((protocol, secure, epsilon)) for secure in (True, False)]
            if any(pair):
                cells = " | ".join(_cells(one) for one in pair)
                rows.append(f"| {protocol} | {epsilon:g} | {cells} |\n")
    commands = "".join(f"{line['command']}\n" for line in lines)
    return f"{head}{''.join(rows)}\n{_adversaries()}\n## Commands\n\n```\n{commands}```\n"


def _cells(line: Mapping[str, Any] | None) -> str:
    """UAR and number of seeds."""
    if line is None:
        return "– | –"
    deviation = f" ± {line['uar_sd']:.3f}" if line["uar_sd"] is not None else ""
    return f"{line['uar']:.3f}{deviation} | {len(line['seeds'])}"


def _adversaries() -> str:
    """Whom each of the two promises holds against."""
    chosen = (Adversary.CURIOUS_SERVER, Adversary.LYING_SERVER, Adversary.COALITION)
    rows = []
    for name, secure in (("in sums", True), ("local", False)):
        rows += [
            f"| {name} | {one.adversary} | {one.holds} | {one.assumption} |\n"
            for one in scheme_for("utterance", secure=secure).adversaries()
            if one.adversary in chosen
        ]
    return (
        "## Whom it holds against\n\n"
        "It is another promise than the local one. The plan of these runs counts on nine in ten "
        "devices to stay to\nthe end of a sum, and takes one in ten to side with the server. All "
        "adversaries:\n[table](../concepts/adversaries.md).\n\n"
        f"| promise | adversary | what holds | assuming |\n|---|---|---|---|\n{''.join(rows)}"
    )
