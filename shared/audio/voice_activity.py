"""Where a recording holds speech: a packaged voice activity detector, refined by energy.

The detector judges chunks of 32 ms; where speech begins and ends is then refined by energy, so that
a recording with silence or room noise around its speech is cut at the same places as one without.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.signal import Samples
from sottovoce.shared.audio.speech_detector import CHUNK, SpeechDetector
from sottovoce.shared.errors import AudioError

SPEECH_PROBABILITY = 0.3
"""Chunks above it are speech."""

CERTAIN_PROBABILITY = 0.5
MIN_CERTAIN_CHUNKS = 3
"""A recording with fewer chunks above ``CERTAIN_PROBABILITY``, some 0.1 s, holds no speech: the
detector takes the beginning of any tone for some."""

WIDEN_S = 0.1
"""Frames this close to a chunk of speech are pooled with it: soft sounds beside a pause."""

MARGIN_S = 0.2
"""What stays of a recording before and behind its speech."""

_SILENT_PEAK = 1e-4  # -80 dBFS: below the dither and the coding noise of digital silence
# How speech's edges are refined; settled on how little added silence and noise moves them.
_LEVEL_WINDOW = 321  # samples, 20 ms, and an odd number of them
_SEARCH_S = 0.3  # how far before the detector's edge speech may begin
_FLOOR_S = 0.2  # what lies just before the edge tells the background
_DROP_DB = 30.0  # below the recording's loud speech there is none
_ABOVE_FLOOR_DB = 6.0
_LEAST_DROP_DB = 10.0
_GAP_S = 0.1  # silence within one burst of sound, such as the closure of a plosive


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeechActivity:
    """Where a recording holds speech.

    Attributes:
        rate: Sampling rate of the recording, in Hz.
        samples: Number of its samples.
        offset: Sample at 16 kHz at which the first chunk begins; digital silence is left out.
        probabilities: Chance of speech in each chunk of ``CHUNK`` samples at 16 kHz, shape
            (chunks,), float32, in [0, 1].
        start: First sample of the speech; 0 without speech.
        end: Sample behind the last one of the speech; ``samples`` without speech.
    """

    rate: int
    samples: int
    offset: int
    probabilities: Samples
    start: int
    end: int

    @property
    def has_speech(self) -> bool:
        """Whether there is speech at all: ``MIN_CERTAIN_CHUNKS`` above ``CERTAIN_PROBABILITY``.

        Example:
            >>> detect_speech(Signal(np.zeros(16_000), 16_000)).has_speech
            False
        """
        return _is_speech(self.probabilities)

    @property
    def speech_s(self) -> float:
        """Seconds of speech, pauses not counted; 0 without speech."""
        spoken = int((self.probabilities > SPEECH_PROBABILITY).sum()) if self.has_speech else 0
        return spoken * CHUNK / audio.SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        """Seconds of the whole recording."""
        return self.samples / self.rate

    @cached_property
    def spoken_spans(self) -> NDArray[np.float64]:
        """Spans of speech in seconds, widened by ``WIDEN_S`` and joined, shape (spans, 2)."""
        edges = find_runs(self.probabilities > SPEECH_PROBABILITY).astype(np.float64)
        spans = (edges * CHUNK + self.offset) / audio.SAMPLE_RATE
        spans = spans + np.array([-WIDEN_S, WIDEN_S])
        apart = spans[1:, 0] > spans[:-1, 1]
        end = np.ones(min(1, len(spans)), dtype=bool)
        firsts, lasts = np.concatenate([end, apart]), np.concatenate([apart, end])
        return np.stack([spans[firsts, 0], spans[lasts, 1]], axis=1)


class AnalysedSignal(Signal):
    """Signal in which speech is looked for once, however many read it; its samples must not change.

    Example:
        >>> silence = Signal(np.zeros(8_000), 16_000)
        >>> shared = share_detection(silence)
        >>> detect_speech(shared) is detect_speech(shared)
        True
    """

    known_probabilities: Samples | None = None

    @cached_property
    def activity(self) -> SpeechActivity:
        """Where the signal holds speech, found when first asked for."""
        return _find_speech(self, self.known_probabilities)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpeechCut:
    """A recording whose margins are cut, and where it is speech.

    Attributes:
        signal: From ``MARGIN_S`` before the speech to ``MARGIN_S`` behind it, in zeros where the
            recording has less; the sounding part of a recording without speech.
        activity: Of the recording from which it was cut.
        first: Sample of the recording at which the cut begins; below 0 where zeros were added.
    """

    signal: Signal
    activity: SpeechActivity
    first: int

    def mask_frames(self, count: int, hop: int) -> NDArray[np.bool_]:
        """Mark the frames that are speech, to pool over.

        Args:
            count: Frames of the cut signal, the first of them centred on its first sample.
            hop: Samples between their centres.

        Returns:
            Shape (count,), bool; all True where fewer than two frames are speech, so that there
            is always something to pool over.

        Example:
            >>> cut = cut_to_speech(Signal(np.zeros(16_000), 16_000))
            >>> cut.mask_frames(3, hop=160)  # no speech: everything
            array([ True,  True,  True])
        """
        everything = np.ones(count, dtype=bool)
        spans = self.activity.spoken_spans
        if not self.activity.has_speech:
            return everything
        rate = self.signal.rate
        centres = (self.first + hop * np.arange(count, dtype=np.float64)) / rate
        at = np.searchsorted(spans[:, 0], centres, side="right") - 1
        mask: NDArray[np.bool_] = (at >= 0) & (centres < spans[np.maximum(at, 0), 1])
        # The refined edges move less with what lies around them than the detector's chunks.
        mask &= (centres >= self.activity.start / rate) & (centres < self.activity.end / rate)
        return mask if int(mask.sum()) >= 2 else everything


def share_detection(signal: Signal) -> AnalysedSignal:
    """Share one search for speech among all that read a signal.

    Args:
        signal: Any rate, any length.

    Returns:
        The same samples; the search is made when somebody first asks for it.

    Example:
        >>> shared = share_detection(Signal(np.zeros(8_000), 16_000))
        >>> share_detection(shared) is shared
        True
    """
    if isinstance(signal, AnalysedSignal):
        return signal
    return AnalysedSignal(signal.waveform, signal.rate, defects=signal.defects)


def adopt_detection(signal: Signal, probabilities: Samples) -> AnalysedSignal:
    """Take what a :class:`~sottovoce.shared.audio.speech_detector.SpeechDetector` said already.

    Args:
        signal: At 16 kHz, of a whole number of chunks.
        probabilities: Chance of speech in each of its chunks, shape (chunks,).

    Returns:
        The same samples, whose speech is not looked for again.

    Raises:
        AudioError: Another rate, or another number of chunks.

    Example:
        >>> silence = Signal(np.zeros(1_024), 16_000)
        >>> detect_speech(adopt_detection(silence, np.zeros(2, dtype=np.float32))).has_speech
        False
    """
    if signal.rate != audio.SAMPLE_RATE or len(signal.waveform) != CHUNK * len(probabilities):
        raise AudioError(
            f"a signal of {len(signal.waveform)} samples at {signal.rate} Hz with "
            f"{len(probabilities)} probabilities; it must be {audio.SAMPLE_RATE} Hz, and have one "
            f"for every {CHUNK} samples"
        )
    analysed = AnalysedSignal(signal.waveform, signal.rate, defects=signal.defects)
    object.__setattr__(analysed, "known_probabilities", probabilities)
    return analysed


def find_runs(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find runs of marks, shape (chunks,) -> (runs, 2): first chunk, and the one behind the last.

    Example:
        >>> find_runs(np.array([False, True, True, False, True])).tolist()
        [[1, 3], [4, 5]]
    """
    return np.flatnonzero(np.diff(np.pad(marks.astype(np.int8), 1))).reshape(-1, 2)


def detect_speech(signal: Signal) -> SpeechActivity:
    """Find the speech of a recording, or take what was found in an :class:`AnalysedSignal`.

    Args:
        signal: Any rate, any length; it is judged at 16 kHz.

    Returns:
        The chance of speech in every 32 ms, and where speech begins and ends.

    Raises:
        ModelError: The detector's package is missing, or its file is not the one expected.

    Example:
        >>> found = detect_speech(Signal(np.zeros(8_000), 16_000))
        >>> found.has_speech, found.speech_s, found.duration_s
        (False, 0.0, 0.5)
    """
    return signal.activity if isinstance(signal, AnalysedSignal) else _find_speech(signal)


def _find_speech(signal: Signal, known: Samples | None = None) -> SpeechActivity:
    samples = audio.resample(signal, audio.SAMPLE_RATE).waveform
    # What is known is known of all of it, digital silence included.
    first, last = _sounding_part(samples) if known is None else (0, len(samples))
    sounding = samples[first:last]
    probabilities = _probabilities(sounding) if known is None else known
    count = len(signal.waveform)
    start, end = 0, count
    if _is_speech(probabilities):
        scale = signal.rate / audio.SAMPLE_RATE
        edges = _speech_edges(sounding, probabilities)
        start, end = (min(count, round((first + edge) * scale)) for edge in edges)
    return SpeechActivity(
        rate=signal.rate,
        samples=count,
        offset=first,
        probabilities=probabilities,
        start=start,
        end=end,
    )


def cut_to_speech(signal: Signal) -> SpeechCut:
    """Cut what lies around the speech of a recording, all but ``MARGIN_S`` on each side.

    A margin that the recording does not have is made of zeros: an encoder whose positions are
    absolute must find the beginning of speech in the same place, however a corpus was cut.

    Args:
        signal: Any rate, any length.

    Returns:
        The cut. A recording without speech loses only digital silence at its ends.

    Raises:
        ModelError: As :func:`detect_speech`.

    Example:
        >>> tone = np.sin(np.arange(8_000) / 5) / 2  # no speech
        >>> padded = np.pad(tone, 16_000)
        >>> cut_to_speech(Signal(padded, 16_000)).signal.duration_s
        0.4999375
    """
    found = detect_speech(signal)
    margin = round(MARGIN_S * signal.rate)
    if found.has_speech:
        first, last = found.start - margin, found.end + margin
    else:
        first, last = _sounding_part(signal.waveform)
    inside = signal.waveform[max(0, first) : last]
    fill = (max(0, -first), max(0, last - found.samples))
    cut = signal.replace_waveform(np.pad(inside, fill))
    return SpeechCut(signal=cut, activity=found, first=first)


def _probabilities(samples: Samples) -> Samples:
    """Chance of speech in each chunk, (samples,) at 16 kHz -> (chunks,), zeros behind the last."""
    return SpeechDetector().push(np.pad(samples, (0, -len(samples) % CHUNK)))


def _is_speech(probabilities: Samples) -> bool:
    """Whether chunks with these chances hold speech."""
    return int((probabilities > CERTAIN_PROBABILITY).sum()) >= MIN_CERTAIN_CHUNKS


def _sounding_part(samples: Samples) -> tuple[int, int]:
    """From the first to behind the last sample above digital silence; everything if none is."""
    found = np.flatnonzero(np.abs(samples) > _SILENT_PEAK)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(samples))


def _speech_edges(samples: Samples, probabilities: Samples) -> tuple[int, int]:
    """First sample of the speech and the one behind its last."""
    certain = probabilities > CERTAIN_PROBABILITY
    runs = find_runs(certain)
    long = runs[runs[:, 1] - runs[:, 0] >= MIN_CERTAIN_CHUNKS]
    # What is shorter is a click or a breath, unless there is nothing else.
    first, last = (int(edge) * CHUNK for edge in (long if len(long) else runs).flat[[0, -1]])
    padded = np.pad(samples, (0, len(probabilities) * CHUNK - len(samples)))
    levels = _decibels(np.square(padded.reshape(-1, CHUNK), dtype=np.float64).mean(1))
    loud = float(np.quantile(levels[certain], 0.9))
    start = _burst_start(samples, first, loud)
    backwards = samples[::-1]
    end = len(samples) - _burst_start(backwards, max(0, len(samples) - last), loud)
    return start, max(end, start + 1)


def _burst_start(samples: Samples, edge: int, loud: float) -> int:
    """Where the burst of sound begins that the detector's edge lies in, or else the next one."""
    rate = audio.SAMPLE_RATE
    before = max(0, edge - round(_SEARCH_S * rate))
    levels = _sliding_levels(samples[before : edge + round(_SEARCH_S * rate)])
    threshold = loud - _DROP_DB
    floor = levels[max(0, edge - before - round(_FLOOR_S * rate)) : edge - before]
    if len(floor) >= _GAP_S * rate:
        above = float(np.median(floor)) + _ABOVE_FLOOR_DB
        threshold = max(threshold, min(above, loud - _LEAST_DROP_DB))
    sounding = np.flatnonzero(levels > threshold) + before
    if not len(sounding):
        return edge
    gap = _GAP_S * rate
    # Sounds that are further apart than the gap are bursts of their own.
    starts = sounding[np.flatnonzero(np.diff(sounding, prepend=-rate) > gap)]
    ends = sounding[np.flatnonzero(np.diff(sounding, append=len(samples) + rate) > gap)]
    reached = np.flatnonzero(ends >= edge - gap)
    return int(starts[reached[0]]) if len(reached) else edge


def _sliding_levels(samples: Samples) -> NDArray[np.float64]:
    """Level in dB re full scale of the 20 ms around every sample, (samples,) -> same."""
    half = _LEVEL_WINDOW // 2
    sums = np.cumsum(np.pad(np.square(samples, dtype=np.float64), (half + 1, half)))
    return _decibels((sums[_LEVEL_WINDOW:] - sums[:-_LEVEL_WINDOW]) / _LEVEL_WINDOW)


def _decibels(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Powers in dB, -100 or above."""
    decibels: NDArray[np.float64] = 10 * np.log10(np.maximum(powers, 0) + 1e-10)
    return decibels
