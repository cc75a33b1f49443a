"""The recogniser without torch: an exported model on onnxruntime, the user's own part in NumPy.

It decides as :class:`~sottovoce.client.recognition.recogniser.Recogniser` does, by the same code. A
device folder, and what is learned from a user, need that one.
"""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.client.recognition import decision, evidence
from sottovoce.client.recognition.decision import DecisionRule, Limits
from sottovoce.client.recognition.evidence import Evidence
from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.quality_gate import GatedReader
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.voice_activity import cut_to_speech
from sottovoce.shared.calibration import conformal
from sottovoce.shared.calibration.portable_head import PortableHead
from sottovoce.shared.errors import ModelError
from sottovoce.shared.exported.exported_model import (
    FRAME_HOP,
    ExportedModel,
    ModelOutput,
    count_frames,
)
from sottovoce.shared.features.version import require_feature_version
from sottovoce.shared.models.model_folder import find_model


class OnnxRecogniser:
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
        limits = Limits.settle(len(record.labels), min_confidence=min_confidence, coverage=coverage)
        self._threshold = None
        if model.scores is not None:
            self._threshold = conformal.find_threshold(model.scores, own_scores, coverage=coverage)
        self._reader = _ExportedReader(model, self._mean)
        self._rule = DecisionRule(
            labels=record.labels,
            model_hash=record.model_hash,
            limits=limits,
            subtracts_user_mean=record.subtracts_user_mean,
            has_own_mean=mean is not None,
            has_own_head=head is not None,
            has_own_scores=own_scores is not None,
        )

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        min_confidence: float | None = None,
        coverage: float = conformal.DEFAULT_COVERAGE,
        trusted_key: str = "",
    ) -> Self:
        """Open the folder that ``sottovoce export`` wrote, its hashes verified.

        Args:
            model: The exported model.
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

    def _weigh(self, output: ModelOutput) -> Evidence:
        """What the model says of one recording, tempered where it is unlike what it knows."""
        return evidence.weigh_probabilities(
            self._head.compute_probabilities(output.logits, output.coordinates),
            self.model.measure_unfamiliarity(output.projected, self._mean),
            threshold=self._threshold,
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
