"""The command ``listen``: emotions of sound as it is spoken."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, Final, cast

from sottovoce.cli.options import Commands, add_command, parse_fraction
from sottovoce.cli.recognition.recogniser_choice import (
    add_answer_options,
    add_model_options,
    open_recogniser,
)
from sottovoce.shared.errors import AudioError, SettingError
from sottovoce.shared.printable import print_json_text, print_lines

if TYPE_CHECKING:
    from io import BufferedReader

    import numpy as np
    from numpy.typing import NDArray

    from sottovoce.client.recognition.speech_stream import StreamResult

MICROPHONE, STANDARD_INPUT = "microphone", "-"
_PIECE_BYTES: Final = 3_200  # a tenth of a second at 16 kHz
_LIVE_WINDOWS: Final = 4
"""Windows that a microphone may be ahead: what is older is left out, and counted."""


def add_listen_command(commands: Commands) -> None:
    """Add the command ``listen``."""
    parser = add_command(
        commands,
        "listen",
        run_listen_command,
        "Recognise emotions in sound as it comes: a file, a pipe or the microphone.",
        "sottovoce listen talk.wav --json",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a file; - for samples from standard input, 16-bit little-endian mono; or microphone",
    )
    add_model_options(parser)
    parser.add_argument(
        "--device", type=Path, metavar="DIR", help="the user's device folder: normaliser and head"
    )
    add_answer_options(parser)
    add = parser.add_argument_group("stream").add_argument
    add("--rate", type=int, default=16_000, help="sampling rate of samples from - (16000)")
    add("--window", type=float, default=2.0, metavar="S", help="seconds that are judged (2)")
    add("--stride", type=float, default=0.5, metavar="S", help="seconds between results (0.5)")
    add(
        "--smoothing",
        type=parse_fraction,
        default=0.6,
        help="weight of what was heard before (0.6)",
    )
    add("--json", action="store_true", help="print JSON, one line a result")


def run_listen_command(arguments: argparse.Namespace) -> int:
    """Print what is heard, until the sound ends."""
    from sottovoce.client.recognition.speech_stream import StreamSettings

    settings = StreamSettings(
        window_s=arguments.window,
        stride_s=arguments.stride,
        smoothing=arguments.smoothing,
        max_pending=_LIVE_WINDOWS if arguments.source == MICROPHONE else 0,
    )
    recogniser = open_recogniser(arguments)
    rate, pieces = _open_source(arguments)
    shown: object = object()  # nothing that could be shown
    for result in recogniser.stream(pieces, rate, settings):
        if arguments.json:
            print_json_text(json.dumps(result.to_dict(), ensure_ascii=False))
        elif result.emotion != shown or result.dropped:
            shown = result.emotion
            print_lines(_describe(result))
    return 0


def _describe(result: "StreamResult") -> str:
    """One line for people."""
    left_out = f" ({result.dropped} windows left out)" if result.dropped else ""
    if result.emotion is None:
        said = result.prediction.reason or "not sure enough"
        return f"{result.end_s:8.1f} s  no answer: {said}{left_out}"
    chance = result.probabilities[result.emotion]
    return f"{result.end_s:8.1f} s  {result.emotion} {chance:.0%}{left_out}"


def _open_source(arguments: argparse.Namespace) -> "tuple[int, Iterator[NDArray[Any]]]":
    """Sampling rate and pieces of the sound."""
    from sottovoce.shared.audio import read_pieces
    from sottovoce.shared.audio.signal import require_rate

    if arguments.source == MICROPHONE:
        return _open_microphone()
    if arguments.source == STANDARD_INPUT:
        return require_rate(arguments.rate), _read_standard_input()
    return read_pieces(arguments.source)


def _read_standard_input() -> "Iterator[NDArray[np.int16]]":
    """Pieces of 16-bit samples."""
    import numpy as np

    if sys.stdin.isatty():
        raise SettingError(
            "standard input is a terminal; pipe samples into it: "
            "ffmpeg -i talk.m4a -f s16le -ac 1 -ar 16000 - | sottovoce listen -"
        )
    stream, left = cast("BufferedReader", sys.stdin.buffer), b""
    first = True
    # read1: what is there already, so that a live source is not held up by a full buffer.
    while data := stream.read1(_PIECE_BYTES):
        if first and (left + data).startswith((b"RIFF", b"OggS", b"fLaC", b"ID3")):
            raise AudioError(
                "standard input is an audio file; give its path, or pipe bare samples: "
                "ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -"
            )
        first = False
        data = left + data
        whole = len(data) // 2 * 2
        left = data[whole:]
        yield np.frombuffer(data[:whole], dtype="<i2")


def _open_microphone() -> "tuple[int, Iterator[NDArray[np.int16]]]":
    """Sampling rate and pieces of the usual microphone, through PortAudio."""
    try:
        import sounddevice
    except OSError as error:
        # The package is there, and the library of the system that it speaks to is not.
        raise SettingError(
            f"the microphone needs PortAudio ({error}); install it, such as by "
            "apt install libportaudio2"
        ) from error
    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
    except (sounddevice.PortAudioError, ValueError) as error:
        raise SettingError(
            f"no microphone was found ({error}); plug one in, or give a file"
        ) from error
    return rate, _read_microphone(rate)


def _read_microphone(rate: int) -> "Iterator[NDArray[np.int16]]":
    """What the microphone has recorded since the last piece."""
    import numpy as np
    import sounddevice

    # PortAudio's thread only puts pieces in: it must never wait for a model.
    heard: Queue[NDArray[np.int16]] = Queue()

    def put(data: "NDArray[np.int16]", *_: object) -> None:
        heard.put(data[:, 0].copy())

    with sounddevice.InputStream(samplerate=rate, channels=1, dtype="int16", callback=put):
        while True:
            pieces = [heard.get()]
            while not heard.empty():
                pieces.append(heard.get())
            yield np.concatenate(pieces)
