"""Continuous sound for every recogniser: long recordings and streams, by one method ``predict``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.client.recognition import decision, segmentation
from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.segmentation import DEFAULT_SEGMENTS, SegmentSettings
from sottovoce.client.recognition.speech_stream import (
    DEFAULT_STREAM,
    SpeechStream,
    StreamResult,
    StreamSettings,
)
from sottovoce.client.recognition.timeline import Timeline
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor


Recording = Signal | str | Path
"""Samples with their rate, or the path of a file."""


def as_signal(recording: "Recording | Tensor | np.ndarray", rate: float | None = None) -> Signal:
    """Make a signal of a path, or of samples with their rate.

    Args:
        recording: A signal, a path, or samples as :class:`~sottovoce.shared.audio.Signal` takes
            them.
        rate: Sampling rate in Hz of bare samples.

    Raises:
        SettingError: Samples without a rate.
        AudioError: A file that cannot be read, or samples that are none.

    Example:
        >>> as_signal(np.zeros(8_000), 16_000).duration_s
        0.5
    """
    if isinstance(recording, (Signal, str, Path)):
        return decision.require_signal(recording)
    if rate is None:
        raise SettingError(
            "samples came without their sampling rate; give predict(samples, rate) or a path"
        )
    return Signal(recording, rate)


class ContinuousRecogniser(ABC):
    """Recogniser of utterances that listens to more than one."""

    @abstractmethod
    def predict(self, signal: Signal, /) -> Prediction:
        """Recognise the emotion of one utterance."""

    def segments(
        self,
        signal: Signal | str | Path,
        settings: SegmentSettings = DEFAULT_SEGMENTS,
        *,
        on_progress: Callable[[float, float], None] | None = None,
    ) -> Timeline:
        """Cut a long recording into utterances by its pauses, and recognise each.

        Args:
            signal: Any rate, up to an hour; a path is read first.
            settings: How it is cut.
            on_progress: Called behind each utterance with the seconds that are done, and all.

        Returns:
            The timeline; without utterances where nobody speaks.

        Raises:
            AudioError: The file is missing, or holds no sound that can be read.
            ModelError: The voice activity detector is missing.
        """
        return segmentation.recognise_utterances(
            decision.require_signal(signal), self.predict, settings, on_progress=on_progress
        )

    def stream(
        self,
        chunks: Iterable[NDArray[Any]],
        rate: float,
        settings: StreamSettings = DEFAULT_STREAM,
    ) -> Iterator[StreamResult]:
        """Recognise sound while it arrives, to the end of the stream.

        Args:
            chunks: Consecutive pieces, mono, of any lengths: float with full scale 1, or int16.
            rate: Their sampling rate in Hz.
            settings: Windows, smoothing, and how many of them may wait.

        Yields:
            One result a stride.

        Raises:
            AudioError: A rate or samples that are none.
        """
        stream = self.open_stream(rate, settings)
        for chunk in chunks:
            yield from stream.push(chunk)
        yield from stream.close()

    def open_stream(self, rate: float, settings: StreamSettings = DEFAULT_STREAM) -> SpeechStream:
        """Open a stream for an app whose sound arrives piece by piece.

        Args:
            rate: Its sampling rate in Hz.
            settings: Windows, smoothing, and how many of them may wait.

        Raises:
            AudioError: A rate that is none.
        """
        return SpeechStream(self.predict, rate, settings)
