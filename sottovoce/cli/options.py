"""Options and output that commands share."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from sottovoce.shared.errors import SettingError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where commands are added."""

PUBLIC_CORPUS = "NAME=DIR"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add one command with its help and an example; ``run`` returns the exit status."""
    parser = _add_parser(commands, name, text, example)
    parser.set_defaults(run=run)
    return parser


def add_command_group(commands: Commands, name: str, text: str, example: str) -> Commands:
    """Add a command that has commands of its own; returns where those are added."""
    parser = _add_parser(commands, name, text, example)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def _add_parser(commands: Commands, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    return parser


def add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a scenario that one run and a sweep name alike."""
    add = parser.add_argument
    add("--corpus", help="whose users: ravdess, cremad, emodb, savee, tess, folder, synthetic")
    add("--data", help="the corpus's folder; for synthetic: speakers=24,clips=30,seed=7")
    add("--protocol", help="which speakers test which model (default: the corpus's usual one)")
    add("--public", action="append", metavar=PUBLIC_CORPUS, help="a corpus declared public")
    add(
        "--utterance-delta",
        dest="delta",
        type=float,
        metavar="DELTA",
        help="delta of the promise to an utterance (default 1e-5)",
    )
    add(
        "--user-delta",
        type=float,
        metavar="DELTA",
        help="delta of the promise to a user (default 1e-3)",
    )
    add(
        "--secure-aggregation",
        dest="secure",
        action="store_true",
        default=None,
        help="with unit user: sums over users by secure aggregation",
    )
    add(
        "--labelled-clips",
        dest="labelled_clips_per_user",
        type=int,
        metavar="N",
        help="labelled clips for each test user's head (default 5)",
    )
    add("--engine", help="local (default) or ray")
    add("--address", help="with --engine ray: a Ray cluster to run on, auto or HOST:PORT")


def parse_public_corpus(text: str) -> tuple[str, str]:
    """Read ``NAME=DIR``; ``synthetic`` needs no folder.

    Raises:
        SettingError: It names no corpus or no folder.
    """
    name, sign, data = text.partition("=")
    if not name or not (sign or name == "synthetic"):
        raise SettingError(
            f"--public is {text!r}; it must be {PUBLIC_CORPUS}, such as cremad=../cremad"
        )
    return name, data


def parse_fraction(word: str) -> float:
    """Read a number from 0 to 1, as argparse's ``type=``."""
    try:
        fraction = float(word)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"{word} is no fraction; it must be from 0 to 1")
    return fraction


def print_json(value: object) -> None:
    """Print JSON for a program."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))
