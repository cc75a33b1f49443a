"""Sound as it is spoken: what is recognised in each window, and what a correction of it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from torch import Tensor

from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.speech_stream import SpeechStream, StreamResult, StreamSettings
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.signal import Samples, scale_samples

SETTINGS: Final = StreamSettings(max_pending=4)
"""The usual windows; of those that wait, the newest: a listener wants to know what is said now."""


class Recognised(NamedTuple):
    """Answer to a recording, with what a correction of the answer needs.

    Attributes:
        prediction: What was recognised.
        features: Of the recording, which a label is stored with; None where there are none.
    """

    prediction: Prediction
    features: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveResult:
    """Result of one window of a stream.

    Attributes:
        stream: What the stream says at the end of the window.
        recognised: What the window says by itself.
    """

    stream: StreamResult
    recognised: Recognised


class LiveStream:
    """One stream of sound, pushed piece by piece.

    Args:
        recognise: Recognises one window.
        rate: Sampling rate of the stream in Hz.
    """

    def __init__(self, recognise: Callable[[Signal], Recognised], *, rate: float) -> None:
        self._recognise: Final = recognise
        self._windows: list[Recognised] = []
        self._stream: Final = SpeechStream(self._predict, rate, SETTINGS)

    def push(self, samples: Samples) -> list[LiveResult]:
        """Add samples at the rate of the stream, shape (samples,), and return what they settle."""
        return self._join(self._stream.push(samples))

    def close(self) -> list[LiveResult]:
        """End the stream, and return results of what is left."""
        return self._join(self._stream.close())

    def _predict(self, window: Signal) -> Prediction:
        self._windows.append(self._recognise(window))
        return self._windows[-1].prediction

    def _join(self, results: list[StreamResult]) -> list[LiveResult]:
        # The stream asks once a result, in order.
        windows, self._windows = self._windows, []
        return [
            LiveResult(stream=result, recognised=window)
            for result, window in zip(results, windows, strict=True)
        ]


def decode_frame(data: bytes, sample_format: str) -> Samples:
    r"""Decode a message of a stream.

    Args:
        data: Samples, little-endian, mono.
        sample_format: ``float32`` at full scale 1, or ``int16``.

    Returns:
        Shape (samples,), float32; numbers that are not finite become 0.

    Raises:
        ValueError: A number of bytes that is no whole number of samples.

    Example:
        >>> decode_frame(b"\x00\x40\x00\xc0", "int16").tolist()
        [0.5, -0.5]
    """
    if sample_format == "int16":
        return scale_samples(np.frombuffer(data, dtype="<i2"), "the frame")
    samples = np.frombuffer(data, dtype="<f4").astype(np.float32)
    # A microphone gives neither; a program that does must not stop the stream.
    finite = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.clip(finite, -1.0, 1.0).astype(np.float32)
