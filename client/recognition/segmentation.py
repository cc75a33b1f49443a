"""From a long recording to its utterances, each with what was recognised in it.

Utterances are what lies between pauses: what a model of emotions was trained on. A voice activity
detector finds them, with hysteresis, as the scripts of Silero VAD and pyannote.audio do.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.timeline import Timeline, Utterance
from sottovoce.shared import audio, validation
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.signal import Samples
from sottovoce.shared.audio.speech_detector import CHUNK, SpeechDetector, raise_to_audible
from sottovoce.shared.audio.voice_activity import (
    CERTAIN_PROBABILITY,
    MIN_CERTAIN_CHUNKS,
    SPEECH_PROBABILITY,
    find_runs,
)
from sottovoce.shared.errors import SettingError

_CHUNK_S = CHUNK / audio.SAMPLE_RATE
_SPLIT_FROM = 0.5  # a long utterance is split in the later half of what is allowed


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentSettings:
    """How a recording is cut into utterances.

    Attributes:
        min_speech_s: Less speech between two pauses is no utterance, in seconds, above 0.
        min_pause_s: Shorter pauses stay within an utterance, in seconds, 0 or above.
        max_utterance_s: Longer utterances are split where speech is weakest, in seconds, at least
            one second.
        margin_s: What is kept before and behind the speech, in seconds, 0 or above; never of the
            neighbours.

    Raises:
        SettingError: A value out of its range.

    Example:
        >>> SegmentSettings(max_utterance_s=0.2)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: max_utterance_s is 0.2; it must be at least 1
    """

    min_speech_s: float = 0.3
    min_pause_s: float = 0.5
    max_utterance_s: float = 8.0
    margin_s: float = 0.2

    def __post_init__(self) -> None:
        validation.require_positive(
            min_speech_s=self.min_speech_s, max_utterance_s=self.max_utterance_s
        )
        validation.require_non_negative(min_pause_s=self.min_pause_s, margin_s=self.margin_s)
        if self.max_utterance_s < 1:
            raise SettingError(
                f"max_utterance_s is {self.max_utterance_s:g}; it must be at least 1"
            )


DEFAULT_SEGMENTS = SegmentSettings()


def find_utterances(
    signal: Signal, settings: SegmentSettings = DEFAULT_SEGMENTS
) -> tuple[tuple[float, float], ...]:
    """Find the utterances of a recording.

    Args:
        signal: Any rate, any length.
        settings: How it is cut.

    Returns:
        Beginning and end of each in seconds, in order; they do not overlap.

    Raises:
        ModelError: The voice activity detector is missing.

    Example:
        >>> find_utterances(Signal(np.zeros(16_000), 16_000))
        ()
    """
    samples = audio.resample(signal, audio.SAMPLE_RATE).waveform
    # One gain for the whole: pauses are judged as loud beside the speech as they were recorded.
    louder = raise_to_audible(samples)
    probabilities = SpeechDetector().push(np.pad(louder, (0, -len(samples) % CHUNK)))
    spans = _find_spans(probabilities, settings)
    return _add_margins(spans, settings.margin_s, signal.duration_s)


def recognise_utterances(
    signal: Signal,
    predict: Callable[[Signal], Prediction],
    settings: SegmentSettings = DEFAULT_SEGMENTS,
    *,
    on_progress: Callable[[float, float], None] | None = None,
) -> Timeline:
    """Recognise every utterance of a recording.

    Args:
        signal: Any rate, any length.
        predict: Recognises one utterance, such as the method ``predict`` of a recogniser.
        settings: How the recording is cut.
        on_progress: Called behind each utterance with the seconds that are done, and all of them.

    Returns:
        The timeline; without utterances where nobody speaks.

    Raises:
        ModelError: The voice activity detector is missing.
    """
    found = []
    for start_s, end_s in find_utterances(signal, settings):
        prediction = predict(signal.cut(start_s, end_s - start_s))
        found.append(Utterance(start_s=start_s, end_s=end_s, prediction=prediction))
        if on_progress is not None:
            on_progress(end_s, signal.duration_s)
    return Timeline(duration_s=signal.duration_s, utterances=tuple(found))


def _find_spans(probabilities: Samples, settings: SegmentSettings) -> list[tuple[int, int]]:
    """First chunk of each utterance, and the one behind its last."""
    spans: list[tuple[int, int]] = []
    pause = math.ceil(settings.min_pause_s / _CHUNK_S)
    for first, last in find_runs(probabilities > SPEECH_PROBABILITY).tolist():
        # A tone's beginning passes the lower threshold, seldom the higher one.
        if (probabilities[first:last] > CERTAIN_PROBABILITY).sum() < MIN_CERTAIN_CHUNKS:
            continue
        if spans and first - spans[-1][1] < pause:
            spans[-1] = (spans[-1][0], last)
        else:
            spans.append((first, last))
    least = settings.min_speech_s / _CHUNK_S
    most = max(2, int(settings.max_utterance_s / _CHUNK_S))
    return [
        part
        for first, last in spans
        if (probabilities[first:last] > SPEECH_PROBABILITY).sum() >= least
        for part in _split(probabilities, first, last, most)
    ]


def _split(probabilities: Samples, first: int, last: int, most: int) -> Iterator[tuple[int, int]]:
    """Split an utterance into parts of at most so many chunks, where speech is least likely."""
    while last - first > most:
        begin = first + max(1, int(_SPLIT_FROM * most))
        # Three chunks together: a single one may be the closure of a plosive.
        window = np.convolve(probabilities[begin - 1 : first + most + 1], np.ones(3), "valid")
        at = begin + int(window.argmin())
        yield first, at
        first = at
    yield first, last


def _add_margins(
    spans: list[tuple[int, int]], margin_s: float, duration_s: float
) -> tuple[tuple[float, float], ...]:
    """Spans of chunks in seconds, widened by the margin as far as their neighbours allow."""
    edges = [(first * _CHUNK_S, min(duration_s, last * _CHUNK_S)) for first, last in spans]
    # Half of each pause at most: what a neighbour says is not this utterance's.
    middles = [(a[1] + b[0]) / 2 for a, b in pairwise(edges)]
    bounds = [0.0, *middles, duration_s]
    return tuple(
        (max(start - margin_s, low), min(end + margin_s, high))
        for (start, end), low, high in zip(edges, bounds, bounds[1:], strict=False)
    )
