"""Experiment on streams and sound that is no speech: docs/results/streaming.md.

    sottovoce reproduce streaming --corpora ../shared/corpora

Time, memory, and how often the packaged model answers. One thread; the clock of the CPU, because
other work may go on beside it.
"""

import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
from sottovoce.client.recognition.speech_stream import StreamResult
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.audio import SAMPLE_RATE, Signal
from sottovoce.shared.errors import SottovoceError
from sottovoce.shared.printable import print_error, print_lines
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.experiments.commands import build_parser

Waveform = NDArray[np.float64]

_PIECE: Final = 320  # samples, 20 ms: what a sound card hands over
_PAUSE_S: Final = 0.5
_SECONDS: Final = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the figures and their page."""
    parser = build_parser("streaming", __doc__)
    parser.add_argument(
        "--corpora", type=Path, default=Path("../shared/corpora"), help="folder of the corpora"
    )
    parser.add_argument("--seconds", type=float, default=3_600.0, help="length of the stream")
    parser.add_argument("--draws", type=int, default=50, help="sounds of each kind")
    arguments = parser.parse_args(argv)
    figures = arguments.out / "streaming.json"
    if arguments.table:
        replace_text(arguments.out / "streaming.md", _page(json.loads(figures.read_text())))
        return 0
    recogniser = OnnxRecogniser.open()
    try:
        speech = _load_speech(arguments.corpora)
    except SottovoceError as error:
        print_error(error)
        return 1
    result = {
        "machine": {"architecture": platform.machine(), "python": platform.python_version()},
        "stream": measure_stream(recogniser, speech, seconds=arguments.seconds),
        "not_speech": {
            name: _count_answers(recogniser, make, draws=arguments.draws)
            for name, make in NOT_SPEECH.items()
        },
    }
    replace_text(figures, json.dumps(result, indent=1) + "\n")
    replace_text(arguments.out / "streaming.md", _page(result))
    print_lines(f"written to {arguments.out / 'streaming.md'}")
    return 0


def measure_stream(
    recogniser: OnnxRecogniser, speech: Sequence[NDArray[np.float32]], *, seconds: float
) -> dict[str, Any]:
    """Measure a stream of utterances with pauses.

    Args:
        recogniser: Whose method ``predict`` hears the windows.
        speech: Utterances at 16 kHz, which are repeated.
        seconds: Length of the stream, at least 10.

    Returns:
        Real-time factor, delays in ms from the end of a window to its result, and the most memory
        of the process in MB after each tenth.
    """
    stream = recogniser.open_stream(SAMPLE_RATE)
    delays: list[float] = []
    memory: list[float] = []
    answered: list[StreamResult] = []
    pushed, step = 0, seconds / 10
    began = time.process_time()
    for piece in _pieces(speech, seconds):
        before = time.process_time()
        found = stream.push(piece)
        if found:
            delays.append(1e3 * (time.process_time() - before))
            answered += [one for one in found if one.emotion is not None][:1]
            del answered[:-1]
        pushed += len(piece)
        if pushed / SAMPLE_RATE >= step * (len(memory) + 1):
            # ru_maxrss never falls: what an hour adds shows as growth.
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    spent = time.process_time() - began
    return {
        "seconds": pushed / SAMPLE_RATE,
        "real_time_factor": spent * SAMPLE_RATE / pushed,
        "results": len(delays),
        "delay_ms": {f"p{q}": float(np.percentile(delays, q)) for q in (50, 90, 99)},
        "memory_mb": memory,
    }


def _load_speech(corpora: Path) -> list[NDArray[np.float32]]:
    """Every twentieth clip of RAVDESS, which the packaged model never saw."""
    clips = open_corpus("ravdess", str(corpora / "ravdess")).clips[::20]
    return [clip.load_signal().waveform for clip in clips]


def _pieces(speech: Sequence[NDArray[np.float32]], seconds: float) -> Iterator[NDArray[np.float32]]:
    """Pieces of a stream as a sound card hands them over."""
    pause = np.zeros(round(_PAUSE_S * SAMPLE_RATE), dtype=np.float32)
    left = round(seconds * SAMPLE_RATE)
    for clip in cycle(speech):
        sound = np.concatenate([clip, pause])
        for first in range(0, len(sound), _PIECE):
            piece = sound[first : min(first + _PIECE, first + left)]
            left -= len(piece)
            yield piece
            if left <= 0:
                return


def _white(rng: np.random.Generator, count: int) -> Waveform:
    return rng.standard_normal(count)


def _coloured(slope: float) -> Callable[[np.random.Generator, int], Waveform]:
    """Noise whose amplitude falls with this power of frequency."""

    def make(rng: np.random.Generator, count: int) -> Waveform:
        spectrum = np.fft.rfft(rng.standard_normal(count))
        return np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** slope, count)

    return make


def _tone(rng: np.random.Generator, count: int) -> Waveform:
    return np.sin(2 * np.pi * rng.uniform(80, 2_000) * np.arange(count) / SAMPLE_RATE)


def _chirp(rng: np.random.Generator, count: int) -> Waveform:
    low, high = np.sort(rng.uniform(80, 3_000, size=2))
    return np.sin(2 * np.pi * np.cumsum(np.linspace(low, high, count)) / SAMPLE_RATE)


def _music(rng: np.random.Generator, count: int) -> Waveform:
    """Chords of plucked strings (Karplus and Strong 1983), some four a second."""
    sound = np.zeros(count)
    for start in range(0, count, SAMPLE_RATE // 4):
        root = rng.choice([110.0, 130.8, 146.8, 164.8, 196.0])
        for ratio in (1.0, 1.26, 1.5):
            sound[start:] += _pluck(rng, round(SAMPLE_RATE / (root * ratio)), count - start)
    return sound


def _pluck(rng: np.random.Generator, period: int, count: int) -> Waveform:
    """One string: a burst of noise that goes round a damped loop."""
    loop = rng.uniform(-1, 1, period)
    rounds = [loop]
    for _ in range(count // period):
        loop = 0.498 * (loop + np.roll(loop, 1))
        rounds.append(loop)
    return np.concatenate(rounds)[:count]


def _clicks(rng: np.random.Generator, count: int) -> Waveform:
    sound = np.zeros(count)
    sound[rng.integers(0, count, size=30)] = rng.uniform(-1, 1, size=30)
    return sound


def _silence(rng: np.random.Generator, count: int) -> Waveform:
    return rng.choice([0.0, 1e-6], size=count)


NOT_SPEECH: Final[Mapping[str, Callable[[np.random.Generator, int], Waveform]]] = {
    "white noise": _white,
    "pink noise": _coloured(0.5),
    "brown noise": _coloured(1.0),
    "tone": _tone,
    "sweep": _chirp,
    "plucked chords": _music,
    "clicks": _clicks,
    "silence": _silence,
}
"""Sounds that hold no speech, made from a generator of random numbers."""


def _count_answers(
    recogniser: OnnxRecogniser,
    make: Callable[[np.random.Generator, int], Waveform],
    *,
    draws: int,
) -> dict[str, int]:
    """How many sounds of a kind are answered with an emotion, at levels from -50 to -6 dBFS."""
    answered = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        sound = make(rng, round(_SECONDS * SAMPLE_RATE))
        peak = max(float(np.abs(sound).max()), 1e-3)
        level = 10 ** (rng.uniform(-50, -6) / 20)
        prediction = recogniser.predict(Signal(level * sound / peak, SAMPLE_RATE))
        answered += prediction.emotion is not None
    return {"sounds": draws, "answered": answered}


def _page(result: Mapping[str, Any]) -> str:
    """The page for people."""
    stream, machine = result["stream"], result["machine"]
    delays, memory = stream["delay_ms"], stream["memory_mb"]
    rows = "".join(
        f"| {name} | {one['sounds']} | {one['answered']} |\n"
        for name, one in result["not_speech"].items()
    )
    return (
        "# Streams, and what is not speech\n\n"
        "`sottovoce reproduce streaming --corpora DIR`, on "
        f"{machine['architecture']}, Python {machine['python']}, one thread, the packaged model: "
        "[how it listens](../guides/streaming.md).\n\n"
        "## Time and memory\n\n"
        f"A stream of {stream['seconds']:.0f} s: clips of RAVDESS with pauses of half a second, in "
        "pieces of 20 ms, windows of 2 s, a result each half second. Times are of the CPU; a delay "
        "is from the end of a window to its result.\n\n"
        "| what | measured |\n|---|---|\n"
        f"| real-time factor | {stream['real_time_factor']:.3f} |\n"
        f"| delay, median | {delays['p50']:.1f} ms |\n"
        f"| delay, 99 % are below | {delays['p99']:.1f} ms |\n"
        "| most memory of the process, PyTorch included: after a tenth, at the end | "
        f"{memory[0]:.0f} MB, {memory[-1]:.0f} MB |\n"
        "\n## Not speech\n\n"
        "Sounds of 3 s at -50 to -6 dBFS from a generator of random numbers, and how many the "
        "packaged model answers with an emotion.\n\n"
        f"| sound | tried | answered |\n|---|---|---|\n{rows}"
    )
