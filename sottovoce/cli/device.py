"""The commands of a user's own device: ``predict``, and those of the group ``device``."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.cli.devices.group import add_device_group
from sottovoce.cli.model import add_trusted_key, read_trusted_key
from sottovoce.cli.options import (
    Commands,
    add_command,
    parse_fraction,
)
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.identity import find_name
from sottovoce.shared.printable import print_error, print_json_text, print_lines
from sottovoce.shared.validation import suggest_name

if TYPE_CHECKING:
    from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
    from sottovoce.client.recognition.prediction import Prediction
    from sottovoce.client.recognition.recogniser import Recogniser
    from sottovoce.shared.audio import Signal


def add_device_commands(commands: Commands) -> None:
    """Add ``predict`` and ``device``."""
    _add_predict(commands)
    add_device_group(commands)


def _add_predict(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        run_predict_command,
        "Recognise the emotion in recordings.",
        "sottovoce predict hello.wav --model runs/demo",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="RUN",
        help="a run folder, the model in it, or an exported model (default: the model that comes "
        "with the package)",
    )
    add_trusted_key(parser)
    add = parser.add_argument_group("personalisation").add_argument
    add(
        "--same-voice",
        action="store_true",
        help="all files are of one voice: an exported model gets used to it by them first",
    )
    add(
        "--device",
        type=Path,
        metavar="DIR",
        help="the user's device folder: normaliser and head",
    )
    add(
        "--learn",
        action="store_true",
        help="learn the user's voice from each file afterwards; stays on the device",
    )
    add(
        "--label",
        metavar="EMOTION",
        help="what each file was: the user's head is fitted on it afterwards; stays on the device",
    )
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
    add("--json", action="store_true", help="print JSON, one line a file")


def run_predict_command(arguments: argparse.Namespace) -> int:
    """Predict each file; a bad file fails the command, after the others were done."""
    from sottovoce.shared.exported.exported_model import is_exported
    from sottovoce.shared.models.default_model import DEFAULT_MODEL
    from sottovoce.shared.models.model_folder import find_model

    if (arguments.learn or arguments.label) and arguments.device is None:
        option = "--learn" if arguments.learn else "--label"
        raise SettingError(f"{option} has no device to keep what is learned; add --device")
    arguments.model = arguments.model or DEFAULT_MODEL
    if is_exported(find_model(arguments.model)):
        recogniser = _open_exported(arguments)
        if arguments.same_voice:
            _learn_voice(recogniser, arguments.files)
        return _predict_files(arguments, recogniser.predict)
    if arguments.same_voice:
        raise SettingError(
            f"--same-voice is for exported models, and {arguments.model} is none; let a device "
            "keep what is learned of the voice: --device DIR --learn"
        )
    learner = _open_recogniser(arguments)
    labels = learner.package.labels
    if arguments.label and find_name(arguments.label, labels) is None:
        raise SettingError(
            f"--label is {arguments.label!r}{suggest_name(arguments.label, labels)}; this model "
            f"knows {', '.join(labels)}: nothing was learned"
        )

    def learn(signal: "Signal") -> Iterator[tuple[str, str]]:
        if arguments.learn:
            yield "learned", learner.learn_voice(signal)
        if arguments.label:
            yield "labelled", learner.label_recording(signal, arguments.label)

    return _predict_files(arguments, learner.predict, learn)


def _learn_voice(recogniser: "OnnxRecogniser", files: Iterable[Path]) -> None:
    """Get used to the voice of some files; those that cannot be used are named by the answers."""
    for path in files:
        with suppress(SottovoceError):
            recogniser.learn_voice(path)


def _open_recogniser(arguments: argparse.Namespace) -> "Recogniser":
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


def _open_exported(arguments: argparse.Namespace) -> "OnnxRecogniser":
    """Open an exported model; nothing on the way loads torch."""
    from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser

    if arguments.device is not None:
        raise SettingError(
            f"--device is {arguments.device}, and {arguments.model} is an exported model, which "
            "reads no device: predict with the model that it was exported from"
        )
    return OnnxRecogniser.open(
        arguments.model,
        min_confidence=_min_confidence(arguments),
        coverage=arguments.coverage,
        trusted_key=read_trusted_key(arguments),
    )


def _min_confidence(arguments: argparse.Namespace) -> float | None:
    return None if arguments.risk is None else 1 - arguments.risk


def _predict_files(
    arguments: argparse.Namespace,
    predict: "Callable[[Signal], Prediction]",
    learn: "Callable[[Signal], Iterable[tuple[str, str]]]" = lambda _: (),
) -> int:
    """Predict each file and print what was found; returns the exit status."""
    import json

    from sottovoce.shared.audio import load_signal

    failed = 0
    for path in arguments.files:
        prediction = None
        learned: dict[str, str] = {}
        try:
            signal = load_signal(path)
            prediction = predict(signal)
            learned.update(learn(signal))  # what was learned before an error stays
        except SottovoceError as error:
            failed += 1
            print_error(error)
        if prediction is None:
            continue
        if arguments.json:
            record = {"file": str(path)} | prediction.to_dict() | learned
            print_json_text(json.dumps(record, ensure_ascii=False))
        else:
            more = (f"{how} as {name}" for how, name in learned.items())
            print_lines("; ".join([f"{path}: {prediction}", *more]))
    return 1 if failed else 0
