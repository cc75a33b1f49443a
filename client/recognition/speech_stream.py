"""Emotions of sound as it is spoken: overlapping windows, smoothed, with a steady label.

A stream keeps one window of sound and one of the detector's answers, whatever its length. The
detector hears every sample once; an encoder runs only where the window holds speech.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.shared import audio, validation
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.signal import Samples, require_rate, scale_samples
from sottovoce.shared.audio.speech_detector import CHUNK, SpeechDetector
from sottovoce.shared.audio.voice_activity import adopt_detection
from sottovoce.shared.errors import AudioError, RecordingFault, SettingError

_CHUNK_S = CHUNK / audio.SAMPLE_RATE
_SILENT = frozenset({Abstention.NO_SPEECH, Abstention.UNUSABLE})


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSettings:
    """How a stream is looked at.

    Attributes:
        window_s: Length of a window in seconds, from 1 to 10, rounded to 32 ms.
        stride_s: How far one window ends behind the other, from 0.1 s to the window's length,
            rounded likewise.
        smoothing: Weight of what was heard before in the probabilities, in [0, 1); 0 takes each
            window by itself.
        switch_margin: How much likelier another emotion must be before it takes the place of the
            one that is shown, in [0, 1).
        max_pending: Most windows that one push works through; older ones are left out and counted.
            0 leaves none out, as is right for a file.

    Raises:
        SettingError: A value out of its range.

    Example:
        >>> StreamSettings(stride_s=3)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: stride_s is 3; it must be at most window_s, 2
    """

    window_s: float = 2.0
    stride_s: float = 0.5
    smoothing: float = 0.6
    switch_margin: float = 0.1
    max_pending: int = 0

    def __post_init__(self) -> None:
        validation.require_range(1, 10, window_s=self.window_s)
        validation.require_range(0.1, 10, stride_s=self.stride_s)
        validation.require_fraction(smoothing=self.smoothing, switch_margin=self.switch_margin)
        validation.require_count(0, 1_000, max_pending=self.max_pending)
        if self.stride_s > self.window_s:
            raise SettingError(
                f"stride_s is {self.stride_s:g}; it must be at most window_s, {self.window_s:g}"
            )


DEFAULT_STREAM = StreamSettings()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StreamResult:
    """Answer of a stream at the end of one window.

    Attributes:
        start_s: Where the window begins, in seconds from the beginning of the stream.
        end_s: Where it ends.
        emotion: The emotion to show, which changes only for one that is clearly likelier; None
            where nobody speaks, or nothing is sure enough.
        probabilities: Smoothed over windows, summing to 1; empty until something was heard.
        prediction: What the window by itself says.
        dropped: How many windows were left out since the last result, because they came faster
            than they were worked through.
        signal: The window at 16 kHz, for whoever corrects the prediction.
    """

    start_s: float
    end_s: float
    emotion: str | None
    probabilities: Mapping[str, float]
    prediction: Prediction
    dropped: int
    signal: Signal

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object for programs, without the sound."""
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "emotion": self.emotion,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "dropped": self.dropped,
            "window": self.prediction.to_dict(),
        }


class SpeechStream:
    """One stream of sound, pushed piece by piece; its memory does not grow.

    Args:
        predict: Recognises one window, such as the method ``predict`` of a recogniser.
        rate: Sampling rate of the stream in Hz.
        settings: Windows, smoothing, and how many of them may wait.

    Raises:
        AudioError: A rate that is none.
        ModelError: The voice activity detector is missing.

    Example:
        >>> from sottovoce import OnnxRecogniser
        >>> stream = SpeechStream(OnnxRecogniser.open().predict, 16_000)
        >>> [one.end_s for one in stream.push(np.zeros(20_000, dtype=np.float32))]
        [0.512, 1.024]
    """

    def __init__(
        self,
        predict: Callable[[Signal], Prediction],
        rate: float,
        settings: StreamSettings = DEFAULT_STREAM,
    ) -> None:
        whole = require_rate(rate)
        self._predict, self._settings = predict, settings
        # A resampler that remembers: pieces join without a seam.
        self._resampler = (
            None
            if whole == audio.SAMPLE_RATE
            else soxr.ResampleStream(whole, audio.SAMPLE_RATE, 1, dtype="float32")
        )
        self._detector = SpeechDetector()
        self._window = max(1, round(settings.window_s / _CHUNK_S))
        self._stride = max(1, round(settings.stride_s / _CHUNK_S))
        self._samples: Samples = np.zeros(0, dtype=np.float32)
        self._chances: Samples = np.zeros(0, dtype=np.float32)
        self._done = 0  # chunks before what is held
        self._next_end = self._stride
        self._smoother = _Smoother(settings)

    def push(self, samples: NDArray[Any]) -> list[StreamResult]:
        """Add sound, and return what it settles.

        Args:
            samples: What follows what was pushed before, mono, any number; float with full scale 1,
                or int16.

        Returns:
            One result for each stride that is complete, in order; often none.

        Raises:
            AudioError: Samples of another kind or shape, NaN, infinity, or far beyond full scale:
                nothing of them was taken.
        """
        return self._advance(self._convert(_as_mono(samples), last=False))

    def close(self) -> list[StreamResult]:
        """End the stream; what is left of it is looked at once more.

        Returns:
            The last result, or none where the stream ended with a stride.
        """
        found = self._advance(self._convert(np.zeros(0, dtype=np.float32), last=True))
        ahead = self._next_end - self._stride
        missing = -len(self._samples) % CHUNK
        if self._done * CHUNK + len(self._samples) > ahead * CHUNK:
            # The rest is filled up to a whole chunk: the detector knows nothing smaller.
            self._next_end = self._done + (len(self._samples) + missing) // CHUNK
            found += self._advance(np.zeros(missing, dtype=np.float32))
        return found

    def _convert(self, samples: Samples, *, last: bool) -> Samples:
        """Samples at 16 kHz, some of them held back by the resampler until more come."""
        if self._resampler is None:
            return samples
        converted: Samples = self._resampler.resample_chunk(samples, last=last)
        return converted

    def _advance(self, samples: Samples) -> list[StreamResult]:
        """Take samples at 16 kHz, and look at the windows that they complete."""
        self._samples = np.concatenate([self._samples, samples])
        self._chances = np.concatenate([self._chances, self._detector.push(samples)])
        reached = self._done + len(self._chances)
        due = range(self._next_end, reached + 1, self._stride)
        most = self._settings.max_pending
        # The oldest go first: a listener wants to know what is said now.
        dropped = max(0, len(due) - most) if most else 0
        found = []
        for end in due[dropped:]:
            found.append(self._look(end, dropped))
            dropped = 0
        self._next_end += self._stride * len(due)
        gone = max(0, self._next_end - self._window - self._done)
        gone = min(gone, len(self._chances))
        # Copies, so that what was heard can be let go.
        self._samples = self._samples[gone * CHUNK :].copy()
        self._chances = self._chances[gone:].copy()
        self._done += gone
        return found

    def _look(self, end: int, dropped: int) -> StreamResult:
        """Recognise the window that ends at a chunk."""
        first = max(self._done, end - self._window)
        low, high = first - self._done, end - self._done
        window = Signal(self._samples[low * CHUNK : high * CHUNK].copy(), audio.SAMPLE_RATE)
        prediction = self._predict(adopt_detection(window, self._chances[low:high]))
        return StreamResult(
            start_s=first * CHUNK / audio.SAMPLE_RATE,
            end_s=end * CHUNK / audio.SAMPLE_RATE,
            emotion=self._smoother.update(prediction),
            probabilities=self._smoother.probabilities,
            prediction=prediction,
            dropped=dropped,
            signal=window,
        )


class _Smoother:
    """Averages probabilities over windows, and keeps the shown emotion steady."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._average: dict[str, float] = {}
        self._shown: str | None = None

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Smoothed chances of the emotions; empty until something was heard."""
        return dict(self._average)

    def update(self, prediction: Prediction) -> str | None:
        """Take a window's prediction; returns the emotion to show from here on."""
        if prediction.abstention in _SILENT or not prediction.probabilities:
            # Behind a pause another mood may come: nothing is carried over it.
            self._average, self._shown = {}, None
            return None
        kept = self._settings.smoothing if self._average else 0.0
        self._average = {
            name: kept * self._average.get(name, 0.0) + (1 - kept) * chance
            for name, chance in prediction.probabilities.items()
        }
        self._shown = self._choose(prediction)
        return self._shown

    def _choose(self, prediction: Prediction) -> str | None:
        """The emotion to show: one that was answered, and that stands out over time."""
        best = max(self._average, key=lambda name: self._average[name])
        ahead = self._average[best] - self._average.get(self._shown or best, 0.0)
        if self._shown is not None and ahead < self._settings.switch_margin:
            return None if prediction.abstention is Abstention.UNFAMILIAR else self._shown
        return best if prediction.emotion == best else None


def _as_mono(samples: NDArray[Any]) -> Samples:
    """Samples of one channel as float32, checked."""
    pushed = np.asarray(samples)
    if pushed.ndim != 1 or pushed.dtype not in (np.float32, np.float64, np.int16):
        raise AudioError(
            f"samples are {pushed.dtype} of shape {pushed.shape}; they must be float32 or int16, "
            "of shape (samples,): mix channels first",
            kind=RecordingFault.NOT_AUDIO,
        )
    if pushed.dtype == np.int16:
        return scale_samples(pushed, "the sound")
    peak = float(np.abs(pushed).max(initial=0.0))
    if not peak <= audio.MAX_AMPLITUDE:
        raise AudioError(
            f"samples reach {peak:g}; they must be finite, and at most {audio.MAX_AMPLITUDE:g}: "
            "full scale is 1",
            kind=RecordingFault.NOT_FINITE,
        )
    return pushed.astype(np.float32)
