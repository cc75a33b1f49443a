"""Entry point of ``sottovoce``: parses the words, runs the command, and turns errors into a status.

Exit status 0 on success, 2 on a usage error, 1 on a failure whose last line says what was wrong and
the way out, 130 on Ctrl-C.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sottovoce import __version__
from sottovoce.cli import (
    corpora,
    encoder,
    evaluation,
    export,
    model,
    recognition,
    simulate,
    sweep,
    verify,
)
from sottovoce.cli.devices import group
from sottovoce.cli.options import CommandParser, add_completion_option
from sottovoce.extras import explain_missing_library
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.printable import print_error, print_lines
from sottovoce.shared.storage_errors import explain_error

_START = """\
Sottovoce: federated, differentially private speech emotion recognition.

Start here:
  sottovoce simulate demo --out runs/demo         train a private model on embedded voices
  sottovoce corpora sample hello.wav              write an example recording
  sottovoce predict hello.wav --model runs/demo   recognise its emotion

sottovoce --help lists all commands; sottovoce COMMAND --help explains one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    arguments, left = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    if left:
        _refuse_words(arguments.parser, left)
    if arguments.parser is parser and not hasattr(arguments, "run"):
        print_lines(*_START.splitlines())
        return 2
    if not hasattr(arguments, "run"):
        arguments.parser.print_help()
        return 2
    try:
        status: int = arguments.run(arguments)
    except SettingError as error:
        print_error(error)
        return 2
    except SottovoceError as error:
        print_error(error)
        return 1
    except OSError as error:
        print_error(_explain_os_error(error))
        return 1
    except ModuleNotFoundError as error:
        if not (way_out := explain_missing_library(error)):
            raise
        print_error(way_out)
        return 1
    except KeyboardInterrupt:
        print_lines("", file=sys.stderr)  # the terminal has just echoed ^C
        print_error(f"stopped{_resume_hint(arguments, argv)}")
        return 130
    return status


def build_parser() -> CommandParser:
    """The parser with all commands."""
    parser = CommandParser(
        prog="sottovoce",
        description="Federated, differentially private speech emotion recognition.",
        epilog="example:\n  sottovoce simulate demo --out runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"sottovoce {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (
        simulate.add_simulate_command,
        sweep.add_sweep_command,
        corpora.add_corpora_command,
        verify.add_run_commands,
        recognition.add_recognition_commands,
        group.add_device_group,
        model.add_model_commands,
        export.add_export_command,
        encoder.add_encoder_commands,
        evaluation.add_evaluation_commands,
    ):
        add(commands)
    add_completion_option(parser)
    return parser


def _refuse_words(parser: CommandParser, words: Sequence[str]) -> NoReturn:
    """End with a usage error over words that no command took."""
    option = next((word for word in words if word.startswith("-")), None)
    if option:
        parser.refuse_option(option.partition("=")[0])
    parser.error(f"{' '.join(words)}: more words than this command takes")


def _resume_hint(arguments: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """How to go on with what was interrupted, where that can be."""
    if not hasattr(arguments, "resume"):
        return ""
    words = [shlex.quote(word) for word in (sys.argv[1:] if argv is None else argv)]
    again = " ".join(word for word in words if word != "--resume")
    return f"; what was finished is kept, go on with: sottovoce {again} --resume"


def _explain_os_error(error: OSError) -> str:
    """What the system would not do, where, and the way out."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{explain_error(error, Path(error.filename or '.'))}"
