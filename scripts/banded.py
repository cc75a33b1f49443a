"""What it costs that users take turns, and what noise that hangs together is worth then.

    python scripts/banded.py --corpora ../shared/corpora --runs runs/banded

Writes docs/results/banded.md and banded.json. A run that is there already is not run again; one
that was interrupted goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.simulations import promise, reading

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
head_clips = 0
seed = {seed}

[[public]]
name = "ravdess"
data = "{corpora}/ravdess"

[recipe.user]
spacing = {spacing}
bands = {bands}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How users take part; the rest is the user recipe."""

    title: str
    spacing: int
    bands: int
    rounds: int

    def name(self, epsilon: float, seed: int) -> str:
        """Folder of one run."""
        turns = f"spacing{self.spacing}-bands{self.bands}-rounds{self.rounds}"
        return f"{turns}-eps{epsilon:g}-{seed}"

    def config(self, epsilon: float, seed: int, corpora: str) -> str:
        """The scenario of one run."""
        return CONFIG.format(
            corpora=corpora,
            epsilon=epsilon,
            seed=seed,
            rounds=self.rounds,
            spacing=self.spacing,
            bands=self.bands,
        )


EVERYBODY = Way(title="everybody in every round", spacing=1, bands=1, rounds=10)
"""The user recipe as it is; its runs are those of ``scripts/results.py``."""

TURNS = (
    Way(title="turns, noise that hangs together", spacing=4, bands=4, rounds=16),
    Way(title="turns, independent noise", spacing=4, bands=1, rounds=16),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", default="../shared/corpora", help="folder of the corpora")
    parser.add_argument("--runs", type=Path, default=Path("runs/banded"), help="run folders")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", default="", help="run only those whose name contains this")
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    arguments = parser.parse_args(argv)
    failed = 0
    for way, epsilon, seed in () if arguments.table else _all():
        if arguments.only in way.name(epsilon, seed):
            failed += _run(way, epsilon, seed, arguments)
    _write(arguments)
    return 1 if failed else 0


def _all() -> Iterator[tuple[Way, float, int]]:
    """Every run, one seed of all ways before the next."""
    for seed in SEEDS:
        for epsilon in EPSILONS:
            for way in TURNS:
                yield way, epsilon, seed


def _run(way: Way, epsilon: float, seed: int, arguments: argparse.Namespace) -> int:
    """One run and its recount, unless it is there."""
    out = arguments.runs / way.name(epsilon, seed)
    if (out / "run.json").is_file():
        return 0
    arguments.runs.mkdir(parents=True, exist_ok=True)
    scenario = out.with_suffix(".toml")
    scenario.write_text(way.config(epsilon, seed, arguments.corpora))
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    words = ["simulate", str(scenario), "--out", str(out), "--quiet", *resume]
    print("sottovoce", *words, flush=True)
    for command in (words, ["budget", str(out)]):
        done = subprocess.run([sys.executable, "-m", "sottovoce.cli", *command], check=False)
        if done.returncode:
            return 1
    return 0


def _write(arguments: argparse.Namespace) -> None:
    """The JSON and the page; lines whose runs are not there stay as they were."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "banded.json"
    lines = json.loads(path.read_text()) if path.exists() else []
    kept = {(line["way"], line["epsilon"]): line for line in lines}
    for epsilon in EPSILONS:
        for way in (EVERYBODY, *TURNS):
            seeds, uars = _told(way, epsilon, arguments)
            if seeds:
                kept[way.title, epsilon] = _described(way, epsilon, seeds, uars)
    lines = [kept[name] for name in _order() if name in kept]
    path.write_text(json.dumps(lines, indent=1) + "\n")
    (arguments.out / "banded.md").write_text(_page(lines))


def _order() -> list[tuple[str, float]]:
    """Names of the table's lines from the first to the last."""
    return [(way.title, epsilon) for epsilon in EPSILONS for way in (EVERYBODY, *TURNS)]


def _told(way: Way, epsilon: float, arguments: argparse.Namespace) -> tuple[list[int], list[float]]:
    """Seeds and UAR of the runs that are there."""
    if way is EVERYBODY:
        return _known(epsilon, arguments.out)
    told = {
        seed: json.loads(path.read_text())["accuracy"]["uar"]
        for seed in SEEDS
        if (path := arguments.runs / way.name(epsilon, seed) / "run.json").is_file()
    }
    return list(told), list(told.values())


def _known(epsilon: float, results: Path) -> tuple[list[int], list[float]]:
    """Seeds and UAR of the runs in which everybody takes part, from the table of accuracy."""
    wanted = {"protocol": "cremad4-5fold", "unit": "user", "enrolment": "all", "secure": False}
    for line in json.loads((results / "accuracy.json").read_text()):
        if line["epsilon"] == epsilon and wanted.items() <= line.items():
            return line["seeds"], line["uar_per_seed"]
    return [], []


def _described(way: Way, epsilon: float, seeds: list[int], uars: list[float]) -> dict[str, Any]:
    """One line of the table."""
    scenario = reading.read(way.config(epsilon, 0, "corpora"), source=way.title)
    plan = promise.open_plan(scenario, run="", labels=("one", "other"), inputs=1)
    user = promise.noised(plan, scenario).user
    return {
        "way": way.title,
        "spacing": way.spacing,
        "bands": way.bands,
        "rounds": way.rounds,
        "rounds_of_a_user": -(-way.rounds // way.spacing),
        "epsilon": epsilon,
        "delta": scenario.user_delta,
        "noise_multiplier": user.update.noise_multiplier if user else None,
        "seeds": seeds,
        "uar": statistics.fmean(uars) if uars else None,
        "uar_sd": statistics.stdev(uars) if len(uars) > 1 else None,
        "uar_per_seed": uars,
    }


def _page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    head = (
        "# Users who take turns\n\n"
        "CREMA-D with 4 classes (`cremad4-5fold`), unit `user`, delta 1e-3, enrolment `all`: what "
        "it costs that a user\ntrains in every fourth round only, and what noise that hangs "
        "together over rounds is worth then. UAR is\npooled over folds, on speakers that training "
        "never saw; mean and standard deviation over seeds. All\nlines spend the same budget; "
        "`sottovoce budget` agrees with every run. The line without turns is that of "
        "[accuracy](accuracy.md).\n\n"
        "| epsilon | users | spacing | bands | rounds | of one user | noise of one round | seeds | "
        f"UAR |\n|{'---|' * 9}\n"
    )
    rows = []
    for line in lines:
        spread = f" ± {line['uar_sd']:.3f}" if line["uar_sd"] is not None else ""
        rows.append(
            f"| {line['epsilon']:g} | {line['way']} | {line['spacing']} | {line['bands']} | "
            f"{line['rounds']} | {line['rounds_of_a_user']} | {line['noise_multiplier']:.2f} | "
            f"{len(line['seeds'])} | {line['uar']:.3f}{spread} |\n"
        )
    return f"{head}{''.join(rows)}\n{_read(lines)}{_commands()}"


def _read(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the table says, in numbers."""
    told = []
    for epsilon in EPSILONS:
        found = {line["way"]: line["uar"] for line in lines if line["epsilon"] == epsilon}
        if len(found) == 1 + len(TURNS):
            whole, hanging, alone = (found[way.title] for way in (EVERYBODY, *TURNS))
            told.append(
                f"- At ε = {epsilon:g}, noise that hangs together is worth {hanging - alone:+.3f} "
                f"of UAR to users who take turns; turns cost {whole - hanging:.3f} against "
                "everybody in every round.\n"
            )
    return "".join(told)


def _commands() -> str:
    """How to make it again."""
    config = TURNS[0].config(EPSILONS[0], SEEDS[0], "../shared/corpora")
    return (
        '\n"Noise of one round" is the multiplier that one of a user\'s rounds is hidden by: the '
        "fewer a user takes\npart in, the less each needs. But a sum over a quarter of the users "
        "is a quarter as large, and with few\nusers that outweighs it. Turns are for "
        "populations that do not fit into one round, or whose devices\nshould work less. Rounds "
        "and noise left in weights were chosen on training folds alone\n"
        "([how](../recipes.md#how-they-were-chosen)).\n\n## Commands\n\n"
        "`python scripts/banded.py` makes all of it, from scenarios like this one (its second "
        f"line, seed 0):\n\n```toml\n{config}```\n\n"
        "```\nsottovoce simulate turns.toml --out runs/turns\nsottovoce budget runs/turns\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
