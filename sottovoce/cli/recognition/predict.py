"""The command ``predict``: the emotion in recordings, or in each utterance of long ones."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.cli.options import Commands, add_command
from sottovoce.cli.recognition.recogniser_choice import (
    add_answer_options,
    add_model_options,
    open_exported,
    open_personal,
    reads_exported,
)
from sottovoce.client.recognition.timeline import TIMELINE_FORMATS
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.identity import find_name
from sottovoce.shared.printable import (
    clean_text,
    print_error,
    print_json_text,
    print_lines,
    print_table_text,
)
from sottovoce.shared.validation import suggest_name

if TYPE_CHECKING:
    from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
    from sottovoce.client.recognition.prediction import Prediction
    from sottovoce.client.recognition.recogniser import Recogniser
    from sottovoce.client.recognition.timeline import Timeline
    from sottovoce.shared.audio import Signal


def add_predict_command(commands: Commands) -> None:
    """Add the command ``predict``."""
    parser = add_command(
        commands,
        "predict",
        run_predict_command,
        "Recognise the emotion in recordings.",
        "sottovoce predict hello.wav --model runs/demo",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_model_options(parser)
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
    add_answer_options(parser)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON, one line a file")
    add(
        "--segments",
        action="store_true",
        help="cut each file into utterances by its pauses, and recognise each",
    )
    add(
        "--format",
        choices=tuple(TIMELINE_FORMATS),
        metavar="NAME",
        help="of --segments: json, csv, audacity (a label track), textgrid (Praat)",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="with --segments: write the timeline of the one file there",
    )


def run_predict_command(arguments: argparse.Namespace) -> int:
    """Predict each file; a bad file fails the command, after the others were done."""
    _check_segments(arguments)
    if (arguments.learn or arguments.label) and arguments.device is None:
        option = "--learn" if arguments.learn else "--label"
        raise SettingError(f"{option} has no device to keep what is learned; add --device")
    if reads_exported(arguments):
        recogniser = open_exported(arguments)
        if arguments.same_voice:
            _learn_voice(recogniser, arguments.files)
        if arguments.segments:
            return _predict_segments(arguments, recogniser)
        return _predict_files(arguments, recogniser.predict)
    if arguments.same_voice:
        raise SettingError(
            "--same-voice is for exported models without a device; let a device keep what is "
            "learned of the voice: --device DIR --learn"
        )
    learner = open_personal(arguments)
    if arguments.segments:
        return _predict_segments(arguments, learner)
    return _predict_and_learn(arguments, learner)


def _predict_and_learn(arguments: argparse.Namespace, learner: "Recogniser") -> int:
    """Predict each file, and learn from it what was asked for."""
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


def _check_segments(arguments: argparse.Namespace) -> None:
    """Refuse options that ask for two things at once, before anything is read."""
    if not arguments.segments:
        given = "--format" if arguments.format else "--out" if arguments.out else ""
        if given:
            raise SettingError(f"{given} is for timelines; add --segments")
        return
    if arguments.learn or arguments.label:
        option = "--learn" if arguments.learn else "--label"
        raise SettingError(f"{option} is for single utterances; leave out --segments")
    if arguments.json and arguments.format not in (None, "json"):
        raise SettingError(f"--json and --format {arguments.format} are two formats; choose one")
    if arguments.out is not None and len(arguments.files) > 1:
        raise SettingError(
            f"--out is one file, and {len(arguments.files)} recordings were given; "
            "ask for each by itself"
        )


def _predict_segments(
    arguments: argparse.Namespace, recogniser: "OnnxRecogniser | Recogniser"
) -> int:
    """Recognise the utterances of each file; returns the exit status."""
    from sottovoce.shared.atomic_files import replace_text

    file_format = arguments.format or ("json" if arguments.json or arguments.out else None)
    failed = 0
    for path in arguments.files:
        try:
            timeline = recogniser.segments(path, on_progress=_progress_of(path.name))
        except SottovoceError as error:
            failed += 1
            print_error(error)
            continue
        if arguments.out is not None:
            replace_text(arguments.out, timeline.render(file_format or "json"))
            print_lines(f"{path}: {len(timeline.utterances)} utterances, {arguments.out}")
        elif file_format is not None:
            show = print_json_text if file_format == "json" else print_table_text
            show(timeline.render(file_format).removesuffix("\n"))
        else:
            _print_timeline(path, timeline)
    return 1 if failed else 0


def _progress_of(name: str) -> "Callable[[float, float], None] | None":
    """Show on a terminal how many seconds of a recording are done; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(done_s: float, all_s: float) -> None:
        # The line is written over: an hour has hundreds of utterances.
        ended = "\n" if done_s >= all_s else "\r"
        text = f"{clean_text(name)}: {done_s:.0f} of {all_s:.0f} s"
        sys.stderr.write(text + ended)
        sys.stderr.flush()

    return show


def _print_timeline(path: Path, timeline: "Timeline") -> None:
    if not timeline.utterances:
        print_lines(f"{path}: no speech was found in {timeline.duration_s:.1f} s")
    for one in timeline.utterances:
        print_lines(f"{path} {one.start_s:.1f}-{one.end_s:.1f} s: {one.prediction}")


def _learn_voice(recogniser: "OnnxRecogniser", files: Iterable[Path]) -> None:
    """Get used to the voice of some files; those that cannot be used are named by the answers."""
    for path in files:
        with suppress(SottovoceError):
            recogniser.learn_voice(path)


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
