"""The recogniser without torch: an exported model on onnxruntime, the user's own part in NumPy.

It decides as :class:`~sottovoce.client.recognition.recogniser.Recogniser` does, by the same code. A
device folder, and what is learned from a user, need that one.
"""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.client.recognition import decision, evidence
from sottovoce.client.recognition.continuous import ContinuousRecogniser
from sottovoce.client.recognition.decision import DecisionRule, Limits
from sottovoce.client.recognition.evidence import Evidence
from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.quality_gate import GatedReader
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.voice_activity import cut_to_speech
from sottovoce.shared.calibration import conformal
from sottovoce.shared.calibration.portable_head import PortableHead
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.exported.exported_model import (
    FRAME_HOP,
    ExportedModel,
    ModelOutput,
    count_frames,
)
from sottovoce.shared.features.version import require_feature_version
from sottovoce.shared.models.default_model import DEFAULT_MODEL
from sottovoce.shared.models.model_folder import find_model


class OnnxRecogniser(ContinuousRecogniser):
    """Recognises emotions with an exported model, for one user or for anybody.

    Args:
        model: The exported model.
        mean: The user's mean of projected features, shape (inputs,); None takes the population's.
        head: The user's head; None takes that of a user without labels.
        own_scores: Nonconformity scores of the user's labelled clips, which move the threshold of
            prediction sets; None has none.
        min_confidence: Below it the recogniser abstains; None takes twice chance, at most 0.5.
        coverage: How often a prediction's set shall hold the true emotion, in (0, 1).

    Raises:
        SettingError: A confidence outside [0, 1], or a coverage outside (0, 1).
        ModelError: A mean or a head that is not for this model, or features of another version.
    """

    def __init__(
        self,
        model: ExportedModel,
        *,
        mean: ArrayLike | None = None,
        head: PortableHead | None = None,
        own_scores: ArrayLike | None = None,
        min_confidence: float | None = None,
        coverage: float = conformal.DEFAULT_COVERAGE,
    ) -> None:
        record = model.record
        require_feature_version(record.feature_version)
        self.model = model
        self._mean = model.centre if mean is None else np.array(mean, dtype=np.float32)
        if self._mean.shape != model.centre.shape or not np.isfinite(self._mean).all():
            raise ModelError(
                f"the user's mean has shape {self._mean.shape}; it must be finite, of shape "
                f"{model.centre.shape}"
            )
        self._head = head or model.head
        bent = self._head.weights is not None
        if len(self._head.bias) != len(record.labels) or (
            bent and self._head.basis_tag != record.basis_tag
        ):
            raise ModelError(
                f"the user's head is for {len(self._head.bias)} emotions in the basis "
                f"{self._head.basis_tag!r}; this model has {len(record.labels)} in "
                f"{record.basis_tag!r}: fit it again for this model"
            )
        self._min_confidence, self._coverage, self._own_scores = (
            min_confidence,
            coverage,
            own_scores,
        )
        self._has_own_mean, self._has_own_head = mean is not None, head is not None
        self._start_mean, self._voice = self._mean, list[NDArray[np.float32]]()
        self._settle()

    def _settle(self) -> None:
        """Decide as is right for what is known of the voice from here on."""
        model, record = self.model, self.model.record
        learned, prior = len(self._voice), record.voice_prior_utterances
        # Doubt fades as the mean of the recordings takes the population's place.
        doubt = 0.0 if self._has_own_mean else prior / (learned + prior)
        self._temperature = record.unknown_voice_temperature**doubt
        limits = Limits.settle(
            len(record.labels),
            min_confidence=self._min_confidence,
            coverage=self._coverage,
            is_doubted=self._temperature > 1,
        )
        self._threshold = None
        if model.scores is not None:
            self._threshold = conformal.find_threshold(
                model.scores, self._own_scores, coverage=limits.coverage
            )
        self._reader = _ExportedReader(model, self._mean)
        self._rule = DecisionRule(
            labels=record.labels,
            model_hash=record.model_hash,
            limits=limits,
            subtracts_user_mean=record.subtracts_user_mean,
            has_own_mean=self._has_own_mean or learned > 0,
            has_own_head=self._has_own_head,
            has_own_scores=self._own_scores is not None,
        )

    @classmethod
    def open(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        min_confidence: float | None = None,
        coverage: float = conformal.DEFAULT_COVERAGE,
        trusted_key: str = "",
    ) -> Self:
        """Open the folder that ``sottovoce export`` wrote, its hashes verified.

        Args:
            model: The exported model; without one, that which comes with the package.
            min_confidence: As in the constructor.
            coverage: Likewise.
            trusted_key: Public key that must have signed the model, 64 hexadecimal digits; "" asks
                for no signature.

        Raises:
            ModelError: The model is missing, damaged, or not signed by the key.
            SettingError: A confidence outside [0, 1], or a coverage outside (0, 1).

        >>> recogniser = OnnxRecogniser.open("exported")
        >>> recogniser.predict("hello.wav").quality
        ()
        """
        loaded = ExportedModel.load(find_model(model), trusted_key=trusted_key)
        return cls(loaded, min_confidence=min_confidence, coverage=coverage)

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions that the model knows, in the order of the classes."""
        return self.model.record.labels

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean that is subtracted for the voice, (inputs,), which an app may store for later."""
        return self._mean.copy()

    def predict(self, signal: Signal | str | Path) -> Prediction:
        """Recognise the emotion of one recording.

        Args:
            signal: Any length, any rate; a path is read first.

        Returns:
            An emotion, or an abstention; as :meth:`Recogniser.predict
            <sottovoce.client.recognition.recogniser.Recogniser.predict>`.

        Raises:
            AudioError: The file is missing, or holds no sound that can be read; or samples without
                their sampling rate.
        """
        return decision.predict_signal(
            decision.require_signal(signal), self._reader, self._weigh, self._rule
        )

    def learn_voice(self, signal: Signal | str | Path) -> int:
        """Get used to a voice and its microphone by one recording, whatever its emotion.

        The mean of the recordings takes the place of the population's, or of the user's that was
        given, which weighs ``voice_prior_utterances`` utterances. It is held in memory alone. A
        device folder, which keeps it and estimates it better where most speech is neutral, needs
        ``Recogniser``.

        Args:
            signal: The user speaking, and nobody else; a path is read first.

        Returns:
            How many recordings the mean rests on now.

        Raises:
            AudioError: A file that cannot be read, or a recording that the quality gate refuses.
            SettingError: The model subtracts no user's mean.
        """
        if not self.model.record.subtracts_user_mean:
            raise SettingError("this model subtracts no user's mean: there is nothing to learn")
        output = self._reader.require_features(decision.require_signal(signal))
        self._voice.append(output.projected)
        average, prior = np.mean(self._voice, axis=0), self.model.record.voice_prior_utterances
        share = len(self._voice) / (len(self._voice) + prior)
        self._mean = (share * average + (1 - share) * self._start_mean).astype(np.float32)
        self._settle()
        return len(self._voice)

    def _weigh(self, output: ModelOutput) -> Evidence:
        """What the model says of one recording, tempered where it is unlike what it knows."""
        return evidence.weigh_probabilities(
            self._head.compute_probabilities(output.logits, output.coordinates),
            self.model.measure_unfamiliarity(output.projected, self._mean),
            threshold=self._threshold,
            temperature=self._temperature,
        )


class _ExportedReader(GatedReader[ModelOutput]):
    """Runs the graph on what passes the quality gate."""

    name = "the exported model"

    def __init__(self, model: ExportedModel, mean: NDArray[np.float32]) -> None:
        self._model, self._mean = model, mean

    def compute(self, signal: Signal) -> ModelOutput:
        """Cut a recording at 16 kHz to its speech, and run the graph on it."""
        cut = cut_to_speech(signal)
        samples = cut.signal.waveform
        spoken = cut.mask_frames(count_frames(len(samples)), FRAME_HOP)
        return self._model.run(samples, spoken, self._mean)

    def is_finite(self, features: ModelOutput) -> bool:
        """Whether the features hold neither NaN nor infinity."""
        return bool(np.isfinite(features.features).all())
