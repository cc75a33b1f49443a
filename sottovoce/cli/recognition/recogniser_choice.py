"""Which recogniser a command uses, by its options: an exported model, or one with torch."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.cli.model import add_trusted_key, read_trusted_key
from sottovoce.cli.options import parse_fraction

if TYPE_CHECKING:
    from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
    from sottovoce.client.recognition.recogniser import Recogniser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and of its signature."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="RUN",
        help="a run folder, the model in it, or an exported model (default: the model that comes "
        "with the package)",
    )
    add_trusted_key(parser)


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add how sure an answer must be."""
    add = parser.add_argument_group("answers").add_argument
    add(
        "--risk",
        type=parse_fraction,
        help="abstain where the chance of a wrong answer is above this",
    )
    add(
        "--coverage",
        type=parse_fraction,
        default=0.9,
        help="how often the set holds the truth (0.9)",
    )


def reads_exported(arguments: argparse.Namespace) -> bool:
    """Whether the chosen model runs without torch; the packaged one is taken where none is named.

    With a device the user's own mean and head count, which are kept for torch.
    """
    from sottovoce.shared.exported.exported_model import is_exported
    from sottovoce.shared.models.default_model import DEFAULT_MODEL
    from sottovoce.shared.models.model_folder import find_model

    arguments.model = arguments.model or DEFAULT_MODEL
    return is_exported(find_model(arguments.model)) and arguments.device is None


def open_recogniser(arguments: argparse.Namespace) -> "OnnxRecogniser | Recogniser":
    """Open the recogniser for the chosen model and device."""
    return open_exported(arguments) if reads_exported(arguments) else open_personal(arguments)


def open_personal(arguments: argparse.Namespace) -> "Recogniser":
    """Open a model with torch, and the user's device where one is named."""
    from sottovoce.client.device.vault import open_from_environment
    from sottovoce.client.recognition.recogniser import Recogniser

    return Recogniser.open(
        arguments.model,
        arguments.device,
        min_confidence=_min_confidence(arguments),
        coverage=arguments.coverage,
        trusted_key=read_trusted_key(arguments),
        vault=open_from_environment(arguments.device / "vault") if arguments.device else None,
    )


def open_exported(arguments: argparse.Namespace) -> "OnnxRecogniser":
    """Open an exported model; nothing on the way loads torch."""
    from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser

    return OnnxRecogniser.open(
        arguments.model,
        min_confidence=_min_confidence(arguments),
        coverage=arguments.coverage,
        trusted_key=read_trusted_key(arguments),
    )


def _min_confidence(arguments: argparse.Namespace) -> float | None:
    return None if arguments.risk is None else 1 - arguments.risk
