"""The command ``sottovoce reproduce``: make a page of results again."""

import argparse
from importlib import import_module

from sottovoce.cli.options import Commands, add_command

EXPERIMENTS = (
    "accuracy",
    "audit",
    "correlated-noise",
    "default-model",
    "heads",
    "losses",
    "padding",
    "personalisation",
    "population",
    "secure-utterance",
    "sweep",
)
"""Names of the experiments, one for each page of results."""


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
    return f"sottovoce.simulations.experiments.{experiment.replace('-', '_')}"


def run_reproduce_command(arguments: argparse.Namespace) -> int:
    """Hand the options to the experiment; returns its exit status."""
    status: int = import_module(module_name(arguments.name)).main(arguments.options)
    return status
