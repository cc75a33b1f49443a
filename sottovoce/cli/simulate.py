"""The command ``sottovoce simulate``: one run from a scenario."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.cli.options import (
    Commands,
    add_command,
    add_data_options,
    add_evaluation_options,
    add_privacy_options,
    add_run_options,
    parse_public_corpus,
    print_json,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import print_lines

if TYPE_CHECKING:
    from sottovoce.simulations.scenario.population import PopulationSettings
    from sottovoce.simulations.scenario.scenario import Scenario

_SETTINGS = (
    "corpus",
    "data",
    "protocol",
    "label_map",
    "follow_links",
    "unit",
    "epsilon",
    "delta",
    "user_delta",
    "secure",
    "tuning_runs",
    "rounds",
    "engine",
    "workers",
    "encoder",
    "enrolment",
    "labelled_clips_per_user",
    "seed",
)
"""Settings of a scenario whose option sets them as it stands."""


def add_simulate_command(commands: Commands) -> None:
    """Add the command ``simulate``."""
    parser = add_command(
        commands,
        "simulate",
        run_simulate_command,
        "Run a federated simulation and write its report.",
        "sottovoce simulate --corpus ravdess --data ravdess --public cremad=cremad --epsilon 8",
    )
    parser.add_argument(
        "scenario", nargs="?", help="a .toml file, or the name of a scenario such as demo"
    )
    add = add_data_options(parser).add_argument
    add("--users", type=int, metavar="N", help="with synthetic: a population of so many users")
    add("--cohort", type=int, metavar="N", help="how many of them a round samples, on average")
    add = add_privacy_options(parser).add_argument
    add("--unit", help="what is protected: utterance (default), user, both or none")
    add("--epsilon", type=float, help="privacy budget of every device (default 8)")
    add(
        "--tuning-runs",
        type=int,
        metavar="N",
        help="runs that settings were chosen by; all are charged for",
    )
    add = parser.add_argument_group("training").add_argument
    add("--model", help="linear, mlp, cnn-attention, tcn or bilstm-attention")
    add("--encoder", metavar="NAME", help="feature extractor (default: the model's usual one)")
    add("--rounds", type=int, metavar="N", help="rounds of training (default, or 0: the recipe's)")
    add("--seed", type=int, metavar="N", help="decides every draw (default 0)")
    add = add_evaluation_options(parser).add_argument
    add(
        "--enrolment",
        metavar="KIND",
        help="what a test user's normaliser knows: none, neutral:K, all (default)",
    )
    add(
        "--baselines",
        metavar="NAME,NAME",
        help="compare with: central,local_only,federated_no_privacy",
    )
    add = add_run_options(parser).add_argument
    add("--workers", type=int, metavar="N", help="processes that run clients (default 1)")
    add("--out", type=Path, metavar="RUN", help="the run folder (default: runs/CORPUS-SEED)")
    add("--resume", action="store_true", help="go on with an interrupted run")
    add("--quiet", action="store_true", help="print the summary only")
    add("--json", action="store_true", help="print run.json instead of the summary")


def run_simulate_command(arguments: argparse.Namespace) -> int:
    """Build the scenario, run it, print its summary."""
    from sottovoce.cli.progress_bar import ProgressConsole
    from sottovoce.cli.summary import recognise_samples, summarise_run
    from sottovoce.simulations.corpora.catalogue import SYNTHETIC
    from sottovoce.simulations.runs import simulation

    scenario = build_scenario(arguments)
    name = Path(arguments.scenario).stem if arguments.scenario else scenario.data.corpus
    out = arguments.out or Path("runs") / f"{name}-{scenario.run.seed}"
    with ProgressConsole(quiet=arguments.quiet or arguments.json) as console:
        run = simulation.simulate(
            scenario,
            out,
            resume=arguments.resume,
            address=arguments.address,
            on_message=console.print_message,
            on_progress=console.update_progress,
            on_status=console.show_status,
        )
    if arguments.json:
        print_json(run)
        return 0
    print_lines(*summarise_run(run, out))
    if scenario.data.corpus == SYNTHETIC and scenario.population is None:
        print_lines(*recognise_samples(out))
    return 0


def build_scenario(arguments: argparse.Namespace) -> "Scenario":
    """The scenario that file and options together mean.

    Raises:
        SettingError: There is no such scenario, or a setting makes no sense.
    """
    from sottovoce.simulations.scenario.loading import load_scenario, vary_scenario

    settings = _settings_of(arguments)
    if arguments.scenario is None and "corpus" not in settings:
        raise SettingError("say what to simulate: a scenario such as demo, or --corpus NAME")
    base = load_scenario(arguments.scenario) if arguments.scenario else None
    if arguments.users is not None or arguments.cohort is not None:
        known = base.population if base else None
        settings["population"] = _build_population(arguments, known)
    return vary_scenario(base, settings, model=arguments.model)


def _settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of a scenario that the options name."""
    values = {name: getattr(arguments, name) for name in _SETTINGS}
    settings = {name: value for name, value in values.items() if value is not None}
    if arguments.public is not None:
        settings["public"] = tuple(parse_public_corpus(text) for text in arguments.public)
    if arguments.baselines is not None:
        settings["baselines"] = tuple(name for name in arguments.baselines.split(",") if name)
    return settings


def _build_population(
    arguments: argparse.Namespace, known: "PopulationSettings | None"
) -> "PopulationSettings | None":
    """The population that the options mean, from the scenario's own if it has one."""
    from sottovoce.simulations.scenario.population import PopulationSettings

    names = ("users", "cohort")
    values = {name: getattr(arguments, name) for name in names}
    settings = {name: value for name, value in values.items() if value is not None}
    if known is not None:
        return replace(known, **settings)
    # One of them alone would leave the sampling rate, and so the noise, to a guess.
    if settings and set(settings) != set(names):
        raise SettingError("a population needs both --users and --cohort")
    return PopulationSettings(**settings) if settings else None
