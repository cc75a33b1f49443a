"""The commands that make pages of results: ``sottovoce reproduce`` and ``sottovoce ablate``."""

import argparse
from importlib import import_module
from pathlib import Path

from sottovoce.cli.options import Commands, add_command
from sottovoce.shared.errors import SettingError

EXPERIMENTS = (
    "accuracy",
    "audit",
    "correlated-noise",
    "cross-corpus",
    "default-model",
    "fairness",
    "heads",
    "losses",
    "padding",
    "personalisation",
    "population",
    "secure-utterance",
    "streaming",
    "sweep",
    "web",
)
"""Names of the experiments, one for each page of results."""

_ROOMS = {
    "cross-corpus": "generalisation.",
    "default-model": "generalisation.",
    "padding": "generalisation.",
    "web": "recognition.",
}
"""Experiments in a subpackage of ``simulations.experiments``, and which."""

SUBJECTS = ("losses", "curriculum", "optimiser", "warm-start", "fusion")
"""What can be ablated, as ``simulations.experiments.ablation`` has it."""


def add_reproduce_command(commands: Commands) -> None:
    """Add the command ``reproduce``."""
    parser = add_command(
        commands,
        "reproduce",
        run_reproduce_command,
        "Make a page of docs/results again: what is missing is run, what is there is kept.",
        "sottovoce reproduce accuracy --corpora ../shared/corpora --runs runs/results",
    )
    parser.add_argument("name", choices=EXPERIMENTS, help="which page")
    parser.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="options of the experiment; NAME --help shows them",
    )


def module_name(experiment: str) -> str:
    """The module whose ``main`` runs an experiment."""
    room = _ROOMS.get(experiment, "")
    return f"sottovoce.simulations.experiments.{room}{experiment.replace('-', '_')}"


def run_reproduce_command(arguments: argparse.Namespace) -> int:
    """Hand the options to the experiment; returns its exit status."""
    status: int = import_module(module_name(arguments.name)).main(arguments.options)
    return status


def add_ablate_command(commands: Commands) -> None:
    """Add the command ``ablate``."""
    parser = add_command(
        commands,
        "ablate",
        run_ablate_command,
        "Change one part of training at a time, and compare with the usual recipe, speaker by "
        "speaker; what is there already is kept.",
        "sottovoce ablate losses --corpora ../shared/corpora --seeds 0,1,2",
    )
    parser.add_argument("subject", choices=SUBJECTS, help="what is changed")
    add = parser.add_argument
    add("--corpora", type=Path, default=Path("../shared/corpora"), help="folder of the corpora")
    add("--runs", type=Path, default=Path("runs/ablation"), help="run folders")
    add("--out", type=Path, default=Path("docs/results"), help="the page's folder")
    add("--protocols", metavar="NAME,NAME", default="emodb7-loso,cremad4-5fold")
    add("--units", metavar="U,U", default="utterance,none", help="utterance, none")
    add("--seeds", metavar="N,N", default="0,1,2", help="seeds of every variant")
    add("--table", action="store_true", help="write the page alone, run nothing")


def run_ablate_command(arguments: argparse.Namespace) -> int:
    """Make the runs that are missing, and the page."""
    from sottovoce.simulations.experiments.ablation import AblationSettings, run_ablation

    settings = AblationSettings(
        subject=arguments.subject,
        corpora=arguments.corpora,
        runs=arguments.runs,
        out=arguments.out,
        protocols=tuple(arguments.protocols.split(",")),
        units=tuple(arguments.units.split(",")),
        seeds=_read_seeds(arguments.seeds),
    )
    return 1 if run_ablation(settings, table_only=arguments.table) else 0


def _read_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 20 for part in parts):
        raise SettingError(f"seeds is {text!r:.60}; it must be whole numbers, as 0,1,2")
    return tuple(int(part) for part in parts)
