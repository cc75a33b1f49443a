"""Parser, options and output that commands share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import clean_text, print_json_text, print_lines
from sottovoce.shared.validation import suggest_name

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"
"""Where commands are added."""

PUBLIC_CORPUS = "NAME=DIR"
SHELLS = ("bash", "zsh", "fish")


class CommandParser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and suggests what a near miss meant."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (argparse's own)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # An abbreviation would mean something else once another option begins like it.
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """See argparse; an unknown option is refused first, before what it leaves missing."""
        if args is not None and not self._hands_on_options():
            self._refuse_unknown_options(args)
        return super().parse_known_args(args, namespace)

    def _hands_on_options(self) -> bool:
        """Whether options may belong to a command of this one, or to what it runs."""
        return any(
            action.nargs in (argparse.PARSER, argparse.REMAINDER) for action in self._actions
        )

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        for word in words:
            option = word.partition("=")[0]
            if word == "--":
                return
            if word.startswith("--") and option not in self._option_string_actions:
                self.refuse_option(option)

    def error(self, message: str) -> NoReturn:
        """See argparse; the words of a mistake are cleaned like all that is printed."""
        super().error(clean_text(message))

    def refuse_option(self, option: str) -> NoReturn:
        """End with a usage error that names an unknown option, and the one that was meant."""
        known = [word for word in self._option_string_actions if word.startswith("--")]
        self.error(f"unknown option {option}{suggest_name(option, known)}; --help lists all")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """See argparse; suggests the choice that was meant."""
        if action.choices is not None and value not in action.choices:
            what = "unknown command" if action.nargs == argparse.PARSER else "unknown choice"
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                None if action.nargs == argparse.PARSER else action,
                f"{what} {value!r}{suggest_name(str(value), known)}; choose from "
                f"{', '.join(known)}",
            )


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> CommandParser:
    """Add one command with its help and an example; ``run`` returns the exit status."""
    parser = _add_parser(commands, name, text, example)
    parser.set_defaults(run=run)
    return parser


def add_command_group(commands: Commands, name: str, text: str, example: str) -> Commands:
    """Add a command that has commands of its own; returns where those are added."""
    parser = _add_parser(commands, name, text, example)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def _add_parser(commands: Commands, name: str, text: str, example: str) -> CommandParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example:\n  {example}")
    parser.set_defaults(parser=parser)
    return parser


def add_completion_option(parser: CommandParser) -> None:
    """Add ``--print-completion``, which prints a script that completes words in a shell."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        help="print a script for your shell that completes commands and options; "
        'for bash: eval "$(sottovoce --print-completion bash)"',
    )


class _PrintCompletion(argparse.Action):
    """Prints the completion script and ends; loads its library only then."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002  (argparse's own)
        values: object,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        import shtab

        _complete_paths(parser, shtab.FILE)
        print_lines(*shtab.complete(parser, str(values)).splitlines())
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser, kind: object) -> None:
    """Let words that are paths be completed by files, in every command."""
    for action in parser._actions:
        if action.type is Path or action.dest == "data":
            setattr(action, "complete", kind)  # noqa: B010  (an attribute that shtab reads)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, kind)


def add_data_options(parser: CommandParser) -> "argparse._ArgumentGroup":
    """Add the options that say whose recordings are used; returns their group."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "--corpus",
        metavar="NAME",
        help="whose users: ravdess, cremad, emodb, savee, tess, folder, synthetic",
    )
    add("--data", metavar="DIR", help="its folder; for synthetic: speakers=24,clips=30,seed=7")
    add("--public", action="append", metavar=PUBLIC_CORPUS, help="a corpus declared public")
    add_reading_options(group)
    return group


def add_reading_options(parser: "CommandParser | argparse._ArgumentGroup") -> None:
    """Add the options that say how corpora are read."""
    parser.add_argument(
        "--label-map",
        metavar="FILE",
        help="labels to keep, merge, drop or rename: a table label,emotion, or iemocap4 "
        "(default: labels.csv in the corpus's folder)",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        default=None,
        help="let a manifest's paths lead out of its folder through links",
    )


def add_privacy_options(parser: CommandParser) -> "argparse._ArgumentGroup":
    """Add the options that say what is promised; returns their group."""
    group = parser.add_argument_group("privacy")
    add = group.add_argument
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
        action=argparse.BooleanOptionalAction,
        default=None,
        help="sums over users by secure aggregation: each device adds a share of the noise, and "
        "the server sees no single device's part (--no-...: not, where a scenario has it)",
    )
    return group


def add_evaluation_options(parser: CommandParser) -> "argparse._ArgumentGroup":
    """Add the options that say how a model is tested; returns their group."""
    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add(
        "--protocol",
        metavar="NAME",
        help="which speakers test which model: 5fold, loso, by:session ... (default: the "
        "corpus's usual one)",
    )
    add(
        "--labelled-clips",
        dest="labelled_clips_per_user",
        type=int,
        metavar="N",
        help="labelled clips for each test user's head (default 5)",
    )
    return group


def add_run_options(parser: CommandParser) -> "argparse._ArgumentGroup":
    """Add the options that say where and how something is run; returns their group."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--engine", metavar="NAME", help="local (default) or ray")
    add(
        "--address",
        metavar="ADDRESS",
        help="with --engine ray: a Ray cluster to run on, auto or HOST:PORT",
    )
    return group


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

    print_json_text(json.dumps(value, indent=1, ensure_ascii=False))
