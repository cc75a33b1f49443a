"""From a signal to an answer, or to an abstention: the same whatever runs the model.

A recording that the gate refuses gets no answer; a model that is not sure enough, or that never
heard such sound, says so. Long recordings are looked at in windows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from sottovoce.client.recognition import evidence
from sottovoce.client.recognition.evidence import Evidence
from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.client.recognition.quality_gate import GatedReader, RecordingFeatures
from sottovoce.shared import audio, validation
from sottovoce.shared.audio import Signal
from sottovoce.shared.calibration import conformal
from sottovoce.shared.errors import AudioError, SettingError

Features = TypeVar("Features")

DEFAULT_COVERAGE = conformal.DEFAULT_COVERAGE
"""How often sets hold the true emotion unless another coverage is asked for."""

_TWICE_CHANCE = 2.0
_EVEN_ODDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How sure an answer must be.

    Attributes:
        min_confidence: Below it nothing is answered, in [0, 1].
        coverage: How often a prediction's set shall hold the true emotion, in (0, 1).

    Raises:
        SettingError: A value out of its range.
    """

    min_confidence: float
    coverage: float

    def __post_init__(self) -> None:
        validation.require_non_negative(min_confidence=self.min_confidence)
        if self.min_confidence > 1:
            raise SettingError(f"min_confidence is {self.min_confidence}; it must be at most 1")
        validation.require_between(0, 1, coverage=self.coverage)

    @classmethod
    def settle(
        cls,
        classes: int,
        *,
        min_confidence: float | None,
        coverage: float,
        is_doubted: bool = False,
    ) -> Self:
        """Settle the limits of a model.

        Args:
            classes: How many emotions it knows.
            min_confidence: None takes twice chance, at most one half.
            coverage: As the attribute.
            is_doubted: Whether it hears a voice that it does not know, and says how much less sure
                it is then: without ``min_confidence`` the limit is one half.

        Example:
            >>> Limits.settle(8, min_confidence=None, coverage=0.9).min_confidence
            0.25
        """
        if min_confidence is None:
            # With two emotions twice chance would be certainty, hence the limit of one half.
            min_confidence = _EVEN_ODDS if is_doubted else min(_TWICE_CHANCE / classes, _EVEN_ODDS)
        return cls(min_confidence=min_confidence, coverage=coverage)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRule:
    """Decides on answers of one model for one user.

    Attributes:
        labels: Emotions in the order of the classes.
        model_hash: Which model speaks, 64 hexadecimal digits.
        limits: How sure an answer must be.
        subtracts_user_mean: Whether the model expects the user's mean.
        has_own_mean: Whether this user's mean is subtracted.
        has_own_head: Whether this user's head is applied.
        has_own_scores: Whether this user's labelled clips moved the threshold of sets.
    """

    labels: tuple[str, ...]
    model_hash: str
    limits: Limits
    subtracts_user_mean: bool
    has_own_mean: bool
    has_own_head: bool
    has_own_scores: bool

    def decide(self, found: Evidence, recording: RecordingFeatures[Features]) -> Prediction:
        """Decide on an answer, or abstain where the model is not sure enough."""
        best = int(found.probabilities.argmax())
        confidence = float(found.probabilities[best])
        if not confidence >= 0:  # NaN: weights or a head that no check could foresee
            return self.abstain(
                replace(
                    recording,
                    reason="the model gave no numbers",
                    abstention=Abstention.BROKEN_MODEL,
                    next_step="get the model again",
                )
            )
        labels = self.labels
        doubt = self._doubt(found, confidence)
        return self._prediction(
            emotion=None if doubt else labels[best],
            probabilities=dict(zip(labels, found.probabilities.tolist(), strict=True)),
            confidence=confidence,
            emotions=tuple(labels[index] for index in found.members),
            recording=replace(
                recording,
                reason=doubt[1] if doubt else "",
                abstention=doubt[0] if doubt else recording.abstention,
                next_step=recording.next_step or (self._advise(doubt[0]) if doubt else ""),
            ),
        )

    def _doubt(self, found: Evidence, confidence: float) -> tuple[Abstention, str] | None:
        """Why the evidence names no emotion, as a kind and in words; None where it names one."""
        if found.unfamiliarity > 1:
            return Abstention.UNFAMILIAR, (
                f"the recording is {Abstention.UNFAMILIAR} ({found.unfamiliarity:.1f} times as far "
                "from it as public speech)"
            )
        if found.is_mixed:
            counted = zip(self.labels, found.votes.tolist(), strict=True)
            votes = sorted((item for item in counted if item[1]), key=lambda item: -item[1])
            parts = ", ".join(f"{emotion} in {count}" for emotion, count in votes)
            return Abstention.MIXED, f"it holds {Abstention.MIXED}: {parts} parts of it"
        if confidence < self.limits.min_confidence:
            return Abstention.UNSURE, (
                f"confidence {confidence:.0%} is below {self.limits.min_confidence:.0%}"
            )
        return None

    def abstain(self, recording: RecordingFeatures[Features]) -> Prediction:
        """Abstain without any guess."""
        return self._prediction(
            emotion=None, probabilities={}, confidence=0.0, emotions=(), recording=recording
        )

    def _prediction(
        self,
        *,
        emotion: str | None,
        probabilities: dict[str, float],
        confidence: float,
        emotions: tuple[str, ...],
        recording: RecordingFeatures[Features],
    ) -> Prediction:
        """Make a prediction of this model for this user."""
        return Prediction(
            emotion=emotion,
            probabilities=probabilities,
            confidence=confidence,
            prediction_set=emotions,
            coverage=self.limits.coverage if emotions else None,
            abstained=emotion is None,
            reason=recording.reason,
            abstention=recording.abstention if emotion is None else None,
            quality=recording.quality,
            next_step=recording.next_step,
            model_hash=self.model_hash,
            uses_own_normaliser=self.has_own_mean,
            uses_own_head=self.has_own_head,
            uses_own_threshold=bool(emotions) and self.has_own_scores,
        )

    def _advise(self, abstention: Abstention) -> str:
        """Advise what makes a model surer of clear recordings."""
        if abstention is Abstention.UNFAMILIAR and self.has_own_mean:
            return "ask the speaker: this model was not trained on such sound"
        if self.subtracts_user_mean and not self.has_own_mean:
            return "enrol this user's voice with a few clips"
        if not self.has_own_head:
            return "label a few clips, so that the device can fit this user's head"
        return "ask the speaker, or record a longer utterance"


def require_signal(signal: object) -> Signal:
    """Read a path as a recording, and pass a signal on.

    Raises:
        AudioError: The file is missing, or holds no sound that can be read; or samples without
            their sampling rate.
    """
    if isinstance(signal, (str, Path)):
        return audio.load_signal(signal)
    if not isinstance(signal, Signal):
        raise AudioError(
            f"predict got a {type(signal).__name__}, which says no sampling rate; give it "
            "Signal(samples, rate) or a path"
        )
    return signal


def predict_signal(
    signal: Signal,
    reader: GatedReader[Features],
    weigh: Callable[[Features], Evidence],
    rule: DecisionRule,
) -> Prediction:
    """Recognise the emotion of one recording, of milliseconds or of hours.

    Args:
        signal: Any length, any rate.
        reader: Computes features of what passes the quality gate.
        weigh: Computes what the model says of features.
        rule: Decides.
    """
    if signal.duration_s > evidence.LONG_S:
        return _predict_long(signal, reader, weigh, rule)
    recording = reader.read_features(signal)
    if recording.features is None:
        return rule.abstain(recording)
    return rule.decide(weigh(recording.features), recording)


def _predict_long(
    signal: Signal,
    reader: GatedReader[Features],
    weigh: Callable[[Features], Evidence],
    rule: DecisionRule,
) -> Prediction:
    """Recognise the emotion of a recording of up to hours, by windows of its speech."""
    measured = reader.check_quality(signal)
    words = ("long", *measured.quality)
    if measured.reason:
        return rule.abstain(replace(measured, quality=words))
    refused, found = measured, []
    for window in evidence.iter_windows(signal):
        recording = reader.read_features(window)
        if recording.features is None:
            refused = recording
        else:
            found.append(weigh(recording.features))
        if len(found) == evidence.MAX_WINDOWS:
            break
    if not found:
        return rule.abstain(
            replace(refused, quality=tuple(dict.fromkeys((*words, *refused.quality))))
        )
    step = measured.next_step or "cut it into utterances, and ask for each"
    return rule.decide(
        evidence.mix_evidence(found), replace(measured, quality=words, next_step=step)
    )
