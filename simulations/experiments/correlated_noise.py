"""Experiment on separated rounds and correlated noise: docs/results/banded.md.

    sottovoce reproduce correlated-noise --corpora ../shared/corpora --runs runs/banded

A run that is there already is not run again; one that was interrupted goes on.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.data import run_plan
from sottovoce.simulations.experiments.commands import build_parser, run_command
from sottovoce.simulations.scenario import loading

SEEDS = (0, 1)
EPSILONS = (8.0, 4.0)
CONFIG = """\
corpus = "cremad"
data = "{corpora}/cremad"
protocol = "cremad4-5fold"
unit = "user"
epsilon = {epsilon}
user_delta = 1e-3
enrolment = "all"
rounds = {rounds}
labelled_clips_per_user = 0
seed = {seed}

[[public]]
name = "ravdess"
data = "{corpora}/ravdess"

[recipe.user]
min_separation = {min_separation}
bands = {bands}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParticipationScheme:
    """Participation of users in rounds, and correlation of noise; the rest is the user recipe."""

    title: str
    min_separation: int
    bands: int
    rounds: int

    def run_name(self, epsilon: float, seed: int) -> str:
        """Name the folder of one run.

        Example:
            >>> EVERY_ROUND.run_name(8.0, 0)
            'separation1-bands1-rounds10-eps8-0'
        """
        rounds = f"separation{self.min_separation}-bands{self.bands}-rounds{self.rounds}"
        return f"{rounds}-eps{epsilon:g}-{seed}"

    def format_config(self, epsilon: float, seed: int, corpora: str) -> str:
        """Format the scenario of one run as TOML."""
        return CONFIG.format(
            corpora=corpora,
            epsilon=epsilon,
            seed=seed,
            rounds=self.rounds,
            min_separation=self.min_separation,
            bands=self.bands,
        )


EVERY_ROUND = ParticipationScheme(title="every round", min_separation=1, bands=1, rounds=10)
"""The user recipe as it is; its runs are those of ``sottovoce reproduce accuracy``."""

SPACED_SCHEMES = (
    ParticipationScheme(
        title="every fourth round, correlated noise", min_separation=4, bands=4, rounds=16
    ),
    ParticipationScheme(
        title="every fourth round, independent noise", min_separation=4, bands=1, rounds=16
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs, then write the table."""
    parser = build_parser("correlated-noise", __doc__)
    parser.add_argument("--corpora", default="../shared/corpora", help="folder of the corpora")
    parser.add_argument("--runs", type=Path, default=Path("runs/banded"), help="run folders")
    parser.add_argument("--only", default="", help="run only those whose name contains this")
    arguments = parser.parse_args(argv)
    failed = 0
    for scheme, epsilon, seed in () if arguments.table else _all():
        if arguments.only in scheme.run_name(epsilon, seed):
            failed += _run(scheme, epsilon, seed, arguments)
    _write(arguments)
    return 1 if failed else 0


def _all() -> Iterator[tuple[ParticipationScheme, float, int]]:
    """Every run, one seed of all schemes before the next."""
    for seed in SEEDS:
        for epsilon in EPSILONS:
            for scheme in SPACED_SCHEMES:
                yield scheme, epsilon, seed


def _run(
    scheme: ParticipationScheme, epsilon: float, seed: int, arguments: argparse.Namespace
) -> int:
    """One run and its verification, unless it is there."""
    out = arguments.runs / scheme.run_name(epsilon, seed)
    # A run is there once its record is: that is written last.
    if (out / "run.json").is_file():
        return 0
    arguments.runs.mkdir(parents=True, exist_ok=True)
    scenario = out.with_suffix(".toml")
    replace_text(scenario, scheme.format_config(epsilon, seed, arguments.corpora))
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    words = ["sottovoce", "simulate", str(scenario), "--out", str(out), "--quiet", *resume]
    print_lines(" ".join(words))
    # Verified at once, so that a run that disagrees with its ledgers counts as failed.
    for command in (words, ["sottovoce", "verify", str(out)]):
        if run_command(command):
            return 1
    return 0


def _write(arguments: argparse.Namespace) -> None:
    """The JSON and the page; lines whose runs are not there stay as they were."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "banded.json"
    lines = json.loads(path.read_text()) if path.exists() else []
    # By scheme and epsilon, so that lines whose run folders were removed keep their figures.
    known = {(line["scheme"], line["epsilon"]): line for line in lines}
    for epsilon in EPSILONS:
        for scheme in (EVERY_ROUND, *SPACED_SCHEMES):
            seeds, uars = _measured_uars(scheme, epsilon, arguments)
            if seeds:
                known[scheme.title, epsilon] = _result_line(scheme, epsilon, seeds, uars)
    lines = [known[name] for name in _order() if name in known]
    replace_text(path, json.dumps(lines, indent=1) + "\n")
    replace_text(arguments.out / "banded.md", _page(lines))


def _order() -> list[tuple[str, float]]:
    """Names of the table's lines from the first to the last."""
    schemes = (EVERY_ROUND, *SPACED_SCHEMES)
    return [(scheme.title, epsilon) for epsilon in EPSILONS for scheme in schemes]


def _measured_uars(
    scheme: ParticipationScheme, epsilon: float, arguments: argparse.Namespace
) -> tuple[list[int], list[float]]:
    """Seeds and UAR of the runs that are there."""
    if scheme is EVERY_ROUND:
        return _every_round_uars(epsilon, arguments.out)
    uars = {
        seed: json.loads(path.read_text())["accuracy"]["uar"]
        for seed in SEEDS
        if (path := arguments.runs / scheme.run_name(epsilon, seed) / "run.json").is_file()
    }
    return list(uars), list(uars.values())


def _every_round_uars(epsilon: float, results: Path) -> tuple[list[int], list[float]]:
    """Seeds and UAR of the runs in which everybody takes part, from the table of accuracy."""
    wanted = {"protocol": "cremad4-5fold", "unit": "user", "enrolment": "all", "secure": False}
    for line in json.loads((results / "accuracy.json").read_text()):
        if line["epsilon"] == epsilon and wanted.items() <= line.items():
            return line["seeds"], line["uar_per_seed"]
    return [], []


def _result_line(
    scheme: ParticipationScheme, epsilon: float, seeds: list[int], uars: list[float]
) -> dict[str, Any]:
    """One line of the table."""
    scenario = loading.parse_scenario(
        scheme.format_config(epsilon, 0, "corpora"), source=scheme.title
    )
    plan = run_plan.plan_without_noise(
        scenario.plan_settings, run="", labels=("one", "other"), inputs=1
    )
    user = noise_calibration.add_noise(plan, scenario.privacy, scenario.recipe.bounds).user
    return {
        "scheme": scheme.title,
        "min_separation": scheme.min_separation,
        "bands": scheme.bands,
        "rounds": scheme.rounds,
        # Division that rounds up: users of the first group take part once more.
        "rounds_of_a_user": -(-scheme.rounds // scheme.min_separation),
        "epsilon": epsilon,
        "delta": scenario.privacy.user_delta,
        "noise_multiplier": user.update.noise_multiplier if user else None,
        "seeds": seeds,
        "uar": statistics.fmean(uars) if uars else None,
        "uar_sd": statistics.stdev(uars) if len(uars) > 1 else None,
        "uar_per_seed": uars,
    }


def _page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    head = (
        "# Separated rounds and correlated noise\n\n"
        "CREMA-D with 4 classes (`cremad4-5fold`), unit `user`, delta 1e-3, enrolment `all`. A "
        "user trains in every\nround or in every fourth one (`min_separation`), with noise that is "
        "independent or correlated across\nrounds (`bands`). UAR is pooled over folds, on "
        "speakers that training never saw; mean and standard\ndeviation over seeds. All lines "
        "spend the same budget; `sottovoce verify` agrees with every run. The\nlines *every "
        "round* are those of [accuracy](accuracy.md), with features over speech alone; the others "
        "are of features\nthat read pauses and margins, too (version 1), so that a difference "
        "between the two is only roughly known.\n\n"
        "| epsilon | users train in | min_separation | bands | rounds | of one user | noise of one "
        f"round | seeds | UAR |\n|{'---|' * 9}\n"
    )
    rows = []
    for line in lines:
        deviation = f" ± {line['uar_sd']:.3f}" if line["uar_sd"] is not None else ""
        rows.append(
            f"| {line['epsilon']:g} | {line['scheme']} | {line['min_separation']} | "
            f"{line['bands']} | {line['rounds']} | {line['rounds_of_a_user']} | "
            f"{line['noise_multiplier']:.2f} | {len(line['seeds'])} | "
            f"{line['uar']:.3f}{deviation} |\n"
        )
    return f"{head}{''.join(rows)}\n{_findings(lines)}{_commands()}"


def _findings(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the table says, in numbers."""
    findings = []
    for epsilon in EPSILONS:
        found = {line["scheme"]: line["uar"] for line in lines if line["epsilon"] == epsilon}
        if len(found) == 1 + len(SPACED_SCHEMES):
            every_round, correlated, independent = (
                found[scheme.title] for scheme in (EVERY_ROUND, *SPACED_SCHEMES)
            )
            findings.append(
                f"- At ε = {epsilon:g}, correlated noise changes UAR by "
                f"{correlated - independent:+.3f} against independent noise, and every fourth "
                f"round by {correlated - every_round:+.3f} against every round.\n"
            )
    return "".join(findings)


def _commands() -> str:
    """How to make it again."""
    config = SPACED_SCHEMES[0].format_config(EPSILONS[0], SEEDS[0], "../shared/corpora")
    return (
        '\n"Noise of one round" is the multiplier that one of a user\'s rounds is hidden by: the '
        "fewer a user takes\npart in, the less each needs. But a sum over a quarter of the users "
        "is a quarter as large, and with few\nusers that outweighs it. Separated rounds "
        "are for populations that do not fit into one round, or\nwhose devices should work less. "
        "Rounds and noise left in weights were chosen on training folds alone\n"
        "([how](../research/choosing.md)).\n\n## Commands\n\n"
        "`sottovoce reproduce correlated-noise` makes all of it, from scenarios like this one (its "
        f"second line, seed 0):\n\n```toml\n{config}```\n\n"
        "```\nsottovoce simulate separated.toml --out runs/separated\n"
        "sottovoce verify runs/separated\n```\n"
    )
