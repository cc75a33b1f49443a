"""The quality gate: what prediction and learning both begin with, whatever computes the features.

signal -> finite samples? -> quality gate -> 16 kHz -> speech? -> features -> finite? A recording
that is refused on the way has no features, but a reason and an advice in words.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from sottovoce.client.recognition.prediction import Abstention
from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, quality
from sottovoce.shared.audio.quality import QualityFlag, QualityReport
from sottovoce.shared.audio.speech_detector import raise_to_audible
from sottovoce.shared.audio.voice_activity import detect_speech, share_detection
from sottovoce.shared.errors import AudioError, RecordingFault

Features = TypeVar("Features")

_ADVICE = {
    QualityFlag.SILENT: "check that the microphone is on and speak again",
    QualityFlag.TOO_SHORT: f"record at least {quality.MIN_DURATION_S:g} s of speech",
    QualityFlag.CLIPPED: "hold the microphone further away, or lower its gain",
    QualityFlag.NOISY: "record where it is quieter",
    QualityFlag.QUIET: "speak closer to the microphone",
    QualityFlag.CUT_SHORT: "the file ends before its headers say: copy or record it again",
    QualityFlag.CHANNELS_CANCEL: "check the polarity of the microphones' plugs",
}
"""Advice against each flaw, the worst flaw first."""

MAX_LEARNED_S = 60.0
"""Longest recording that something is learned from, in seconds: more is not one utterance."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordingFeatures(Generic[Features]):
    """The features of one recording, or the reason why there are none.

    Attributes:
        features: What the reader computes; None where the recording was refused.
        reason: Why it was refused, in words; "" where it was not.
        abstention: What kind of reason that is.
        quality: What is wrong with the recording, in words such as ``noisy``; of a usable one too.
        next_step: What to do about it; "" where there is nothing to do.
    """

    features: Features | None
    reason: str = ""
    abstention: Abstention = Abstention.UNUSABLE
    quality: tuple[str, ...] = ()
    next_step: str = ""


class GatedReader(ABC, Generic[Features]):
    """Computes features of recordings that pass the quality gate.

    Attributes:
        name: What computes the features, for messages.
    """

    name: str

    @abstractmethod
    def compute(self, signal: Signal) -> Features:
        """Compute the features of a recording at 16 kHz that holds speech."""

    @abstractmethod
    def is_finite(self, features: Features) -> bool:
        """Whether features hold neither NaN nor infinity."""

    def read_features(self, signal: Signal) -> RecordingFeatures[Features]:
        """Compute the features of a recording, or say why it has none.

        Args:
            signal: Any length, any rate.
        """
        checked = self.check_quality(signal)
        if checked.reason:
            return checked
        # After the gate: it measures the recording as it came, at its own rate.
        resampled = share_detection(audio.resample(signal, audio.SAMPLE_RATE))
        if not _has_speech(resampled):
            # A model of emotions in speech is as sure of a tone or a fan as it is of a voice.
            return RecordingFeatures(
                features=None,
                reason="no speech was found in the recording",
                abstention=Abstention.NO_SPEECH,
                quality=(*checked.quality, "no speech"),
                next_step="speak while it records, nearer to the microphone",
            )
        features = self.compute(resampled)
        if not self.is_finite(features):
            reason = f"{self.name} gave values that are not finite"
            return replace(checked, reason=reason, next_step="record again")
        return replace(checked, features=features)

    def check_quality(self, signal: Signal) -> RecordingFeatures[Features]:
        """Check a recording's quality, without computing features.

        Args:
            signal: Any length, any rate.

        Returns:
            Without features; with a reason where the recording cannot be used.
        """
        # Before the gate: against a NaN every comparison of levels is false.
        if not bool(np.isfinite(signal.waveform).all()):
            return RecordingFeatures(
                features=None,
                reason="the recording holds NaN or infinite samples",
                quality=("broken",),
                next_step="export the recording again as 16-bit PCM",
            )
        measured = quality.measure_quality(signal)
        flags, advice = _flag_names(measured), _advice_for(measured)
        if not measured.is_usable:
            reason = f"the recording is {measured.flag_summary}"
            return RecordingFeatures(features=None, reason=reason, quality=flags, next_step=advice)
        return RecordingFeatures(features=None, quality=flags, next_step=advice)

    def require_features(self, signal: Signal) -> Features:
        """Compute the features of a recording that something shall be learned from.

        Features that are not finite come back as they are: what stores them refuses them.

        Args:
            signal: Any length, any rate.

        Raises:
            AudioError: The quality gate refuses the recording, or finds no speech in it: nothing is
                learned from silence.
        """
        if not bool(np.isfinite(signal.waveform).all()):
            raise AudioError(
                "the recording holds NaN or infinite samples; nothing was learned",
                kind=RecordingFault.NOT_FINITE,
            )
        if signal.duration_s > MAX_LEARNED_S:
            raise AudioError(
                f"the recording lasts {signal.duration_s:.0f} s, {MAX_LEARNED_S:g} may be: cut it "
                "into utterances; nothing was learned from it",
                kind=RecordingFault.TOO_LONG,
            )
        measured = quality.measure_quality(signal)
        if measured.fault:
            raise AudioError(
                f"the recording is {measured.flag_summary}; nothing was learned from it",
                kind=measured.fault,
            )
        resampled = share_detection(audio.resample(signal, audio.SAMPLE_RATE))
        if not _has_speech(resampled):
            raise AudioError(
                "no speech was found in the recording; nothing was learned from it",
                kind=RecordingFault.NO_SPEECH,
            )
        return self.compute(resampled)


def _has_speech(signal: Signal) -> bool:
    """Whether there is speech in a recording of 16 kHz, however quiet."""
    # First as it is: the extractor asks the same, and the answer is shared.
    if detect_speech(signal).has_speech:
        return True
    louder = raise_to_audible(signal.waveform)
    return (
        louder is not signal.waveform and detect_speech(signal.replace_waveform(louder)).has_speech
    )


def _flag_names(measured: QualityReport) -> tuple[str, ...]:
    """Name the flags in plain words."""
    return tuple(
        str(flag.name).lower().replace("_", " ") for flag in QualityFlag if flag in measured.flags
    )


def _advice_for(measured: QualityReport) -> str:
    """Advise against the worst flaw; "" where there is none."""
    return next((step for flag, step in _ADVICE.items() if flag in measured.flags), "")
