"""The recogniser on a device: a signal in, a prediction out, and nothing leaves.

signal -> quality gate -> features -> projection -> less the user's mean -> shared model -> the
user's head -> probabilities. A recording that the gate refuses gets no answer; a model that is not
sure enough says so. Without a device, or with one that knows nothing of this model, the
population's centre and prior stand in for the user.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import example_store, feedback, speaker_adapter
from sottovoce.client.personalisation.feedback import FeedbackStore
from sottovoce.client.personalisation.speaker_adapter import SpeakerAdapter
from sottovoce.client.recognition import evidence
from sottovoce.client.recognition.evidence import Evidence
from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.client.recognition.recording_features import FeatureReader, RecordingFeatures
from sottovoce.client.recognition.user_personalisation import (
    Personalisation,
    default_personalisation,
    load_personalisation,
)
from sottovoce.shared import audio, calibration, validation
from sottovoce.shared.audio import Signal
from sottovoce.shared.calibration import conformal
from sottovoce.shared.errors import AudioError, SettingError
from sottovoce.shared.models.examples import MAX_FRAMES, stack_utterances
from sottovoce.shared.models.model_package import ModelPackage

_TWICE_CHANCE = 2.0
_EVEN_ODDS = 0.5


class Recogniser:
    """Recognises emotions for one user, or for anybody.

    Args:
        package: The model.
        personalisation: The user's; None stands for anybody.
        min_confidence: Below it the recogniser abstains; None takes twice chance, at most 0.5. An
            app that bears a risk r of a wrong answer takes 1 - r: it holds as far as confidences
            are calibrated.
        coverage: How often a prediction's set shall hold the true emotion, in (0, 1).
        device: The user's device folder, which keeps what is learned; None learns nothing.
        vault: The device's, opened; None opens it, which a passphrase forbids.

    Raises:
        SettingError: A confidence outside [0, 1], or a coverage outside (0, 1).
        ModelError: Weights that are not the model's, or an extractor that this release has not.
    """

    def __init__(
        self,
        package: ModelPackage,
        personalisation: Personalisation | None = None,
        *,
        min_confidence: float | None = None,
        coverage: float = conformal.DEFAULT_COVERAGE,
        device: Path | None = None,
        vault: FileVault | None = None,
    ) -> None:
        if min_confidence is None:
            # With two emotions twice chance would be certainty, hence the limit of one half.
            min_confidence = min(_TWICE_CHANCE / len(package.labels), _EVEN_ODDS)
        validation.require_non_negative(min_confidence=min_confidence)
        if min_confidence > 1:
            raise SettingError(f"min_confidence is {min_confidence}; it must be at most 1")
        self.package = package
        self.personalisation = personalisation or default_personalisation(package)
        validation.require_between(0, 1, coverage=coverage)
        self._min_confidence = min_confidence
        self._coverage = coverage
        self._threshold = self.personalisation.find_threshold(package, coverage)
        self._reader = FeatureReader(package.extractor, version=package.feature_version)
        self._network = package.build_network()
        self._device = device
        self._vault = vault

    @classmethod
    def open(
        cls,
        model: str | Path,
        device: str | Path | None = None,
        *,
        min_confidence: float | None = None,
        coverage: float = conformal.DEFAULT_COVERAGE,
        trusted_key: str = "",
        vault: FileVault | None = None,
    ) -> Self:
        """Open a model folder and, if there is one, the user's device folder.

        Args:
            model: A run folder, or the ``model/`` in it.
            device: A folder that ``Device.create`` made. Only its vault is read, and written to
                where the head must be fitted again (:meth:`FeedbackStore.refit_if_stale`); its
                ledger is not touched, because nothing leaves.
            min_confidence: As in the constructor.
            coverage: Likewise.
            trusted_key: Public key that must have signed the model, 64 hexadecimal digits; "" asks
                for no signature.
            vault: As in the constructor.

        Raises:
            ModelError: The model is missing, damaged, or not signed by the key.
            FeatureError: It reads an encoder that this machine's owner has not installed.
            SettingError: There is no such device.
            PrivacyError: Vault or profile are damaged, or the vault's key is not its owner's alone.

        >>> recogniser = Recogniser.open("runs/demo")
        >>> recogniser.predict("hello.wav").quality
        ()
        """
        package = ModelPackage.load(find_model(model), trusted_key=trusted_key)
        limits: dict[str, Any] = {"min_confidence": min_confidence, "coverage": coverage}
        if device is None:
            return cls(package, **limits)
        device = Path(device)
        vault = example_store.open_vault(device, vault)
        personalisation = load_personalisation(package, device, vault=vault)
        if FeedbackStore(device, package, vault=vault).refit_if_stale(personalisation.mean):
            # Fitted again: the head that was loaded before is out of date.
            personalisation = load_personalisation(package, device, vault=vault)
        return cls(package, personalisation, device=device, vault=vault, **limits)

    def predict(self, signal: Signal | str | Path) -> Prediction:
        """Recognise the emotion of one recording.

        Args:
            signal: Any length, any rate; a path is read first.

        Returns:
            An emotion, or an abstention: silence, too short, no speech, samples or features that
            are no numbers, sound unlike what the model knows, or a confidence below the limit. A
            recording of more than 10 s is looked at in at most 20 windows of speech, spread over
            it; of five and more, four in five must agree on an emotion.

        Raises:
            ConsentError: The device's user does not consent to recognise.
            AudioError: The file is missing, or holds no sound that can be read; or samples without
                their sampling rate.
            ModelError: The extractor's features are not what the model reads.
        """
        if isinstance(signal, (str, Path)):
            signal = audio.load_signal(signal)
        if not isinstance(signal, Signal):
            raise AudioError(
                f"predict got a {type(signal).__name__}, which says no sampling rate; give it "
                "Signal(samples, rate) or a path"
            )
        self.personalisation.require_consent()
        if signal.duration_s > evidence.LONG_S:
            return self._predict_long(signal)
        recording = self._reader.read_features(signal)
        if recording.features is None:
            return self._abstain(recording)
        return self._decide(self._weigh(recording.features), recording)

    def _predict_long(self, signal: Signal) -> Prediction:
        """Recognise the emotion of a recording of up to hours, by windows of its speech."""
        measured = self._reader.check_quality(signal)
        words = ("long", *measured.quality)
        if measured.reason:
            return self._abstain(replace(measured, quality=words))
        refused, found = measured, []
        for window in evidence.iter_windows(signal):
            recording = self._reader.read_features(window)
            if recording.features is None:
                refused = recording
            else:
                found.append(self._weigh(recording.features))
            if len(found) == evidence.MAX_WINDOWS:
                break
        if not found:
            return self._abstain(
                replace(refused, quality=tuple(dict.fromkeys((*words, *refused.quality))))
            )
        step = measured.next_step or "cut it into utterances, and ask for each"
        return self._decide(
            evidence.mix_evidence(found), replace(measured, quality=words, next_step=step)
        )

    def learn_voice(self, signal: Signal) -> str:
        """Learn the user's voice from one recording, whatever its emotion; nothing leaves.

        What is kept is its features, sealed in the device's vault, not its sound. Predictions
        from here on take it into account.

        Args:
            signal: The user speaking, and nobody else.

        Returns:
            The recording's name, for :meth:`forget_recording`.

        Raises:
            SettingError: There is no device, or a model that subtracts no user's mean.
            AudioError: A recording that the quality gate refuses: nothing is learned from silence.
            ModelError: Features that are not what the model reads.
            PrivacyError: The vault cannot be read or written.
        """
        own = SpeakerAdapter(self._folder(), self.package, vault=self._vault)
        name = own.add(self._reader.require_features(signal))
        self._refresh()
        return name

    def label_recording(self, signal: Signal, emotion: str) -> str:
        """Store the user's label of a recording; the head is fitted on it at once.

        Label random moments, right answers as well as wrong ones: a head that gets wrong ones alone
        learns that the model is wrong. What is kept is the recording's features, sealed
        in the device's vault; nothing leaves but the head, sealed, when a run next asks for it.

        Args:
            signal: The user speaking, and nobody else.
            emotion: One of the model's labels.

        Returns:
            The recording's name, for :meth:`forget_recording`.

        Raises:
            SettingError: There is no device, an emotion that the model does not know, or a model
                that reads frames.
            AudioError: A recording that the quality gate refuses: nothing is learned from silence.
            ModelError: Features that are not what the model reads, or a head that cannot be fitted
                on them.
            PrivacyError: The vault cannot be read or written.
        """
        own = FeedbackStore(self._folder(), self.package, vault=self._vault)
        name = own.add_label(
            self._reader.require_features(signal), emotion, self.personalisation.mean
        )
        self._refresh()
        return name

    def forget_recording(self, name: str) -> None:
        """Forget a recording, its label too: afterwards nothing of it is left.

        It may be of another model; the head is fitted again for this one. It may be repeated:
        killed on the way, a second call finishes the first, even where it then finds no recording.

        Raises:
            SettingError: There is no device, or it keeps no recording of that name.
            PrivacyError: The vault cannot be read or written.
        """
        folder, vault = self._folder(), self._vault
        labelled = feedback.list_recordings(folder, vault=vault)
        enrolled = feedback.list_enrolled(folder, vault=vault)
        learned = speaker_adapter.list_utterances(folder, vault=vault)
        if name in learned:
            speaker_adapter.forget_utterance(folder, name, vault=vault)
            self._refresh()
        # Even where nothing is found: an earlier call may have been killed half-way.
        FeedbackStore(folder, self.package, vault=vault).forget_recording(
            name, self.personalisation.mean
        )
        self._refresh()
        if name not in (*learned, *labelled, *enrolled):
            known = ", ".join(dict.fromkeys((*learned, *labelled, *enrolled))) or "none"
            raise SettingError(f"{folder} keeps no recording {name!r}; it keeps {known}")

    def _folder(self) -> Path:
        """Device folder that stores what is learned."""
        if self._device is None:
            raise SettingError("there is no device to keep what is learned; open one with device=")
        return self._device

    def _refresh(self) -> None:
        """Load again what the device knows of its user."""
        self.personalisation = load_personalisation(self.package, self._folder(), vault=self._vault)
        self._threshold = self.personalisation.find_threshold(self.package, self._coverage)

    def predict_probabilities(self, features: Tensor) -> Tensor:
        """Predict each emotion's probability, (classes,), float64, from a recording's features.

        Args:
            features: Shape (features,) or (frames, features), as the model's extractor gives them.

        Raises:
            ModelError: Features of another width.
        """
        logits, coordinates = self.package.logits_and_coordinates(
            *_as_batch(features), self.personalisation.mean, network=self._network
        )
        return torch.softmax(
            calibration.calibrate_logits(self.personalisation.head, logits, coordinates)[
                0
            ].double(),
            0,
        )

    def _weigh(self, features: Tensor) -> Evidence:
        """What the model says of one recording, tempered where it is unlike what it knows."""
        return evidence.weigh_probabilities(
            self.predict_probabilities(features),
            self.package.measure_unfamiliarity(*_as_batch(features), self.personalisation.mean),
            threshold=self._threshold,
        )

    def _decide(self, found: Evidence, recording: RecordingFeatures) -> Prediction:
        """Decide on an answer, or abstain where the model is not sure enough."""
        best = int(found.probabilities.argmax())
        confidence = float(found.probabilities[best])
        if not confidence >= 0:  # NaN: weights or a head that no check could foresee
            return self._abstain(
                replace(
                    recording,
                    reason="the model gave no numbers",
                    abstention=Abstention.BROKEN_MODEL,
                    next_step="get the model again",
                )
            )
        labels = self.package.labels
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
            counted = zip(self.package.labels, found.votes.tolist(), strict=True)
            votes = sorted((item for item in counted if item[1]), key=lambda item: -item[1])
            parts = ", ".join(f"{emotion} in {count}" for emotion, count in votes)
            return Abstention.MIXED, f"it holds {Abstention.MIXED}: {parts} parts of it"
        if confidence < self._min_confidence:
            return Abstention.UNSURE, (
                f"confidence {confidence:.0%} is below {self._min_confidence:.0%}"
            )
        return None

    def _abstain(self, recording: RecordingFeatures) -> Prediction:
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
        recording: RecordingFeatures,
    ) -> Prediction:
        """Make a prediction of this model for this user."""
        return Prediction(
            emotion=emotion,
            probabilities=probabilities,
            confidence=confidence,
            prediction_set=emotions,
            coverage=self._coverage if emotions else None,
            abstained=emotion is None,
            reason=recording.reason,
            abstention=recording.abstention if emotion is None else None,
            quality=recording.quality,
            next_step=recording.next_step,
            model_hash=self.package.model_hash,
            uses_own_normaliser=self.personalisation.has_own_mean,
            uses_own_head=self.personalisation.has_own_head,
            uses_own_threshold=bool(emotions)
            and self.personalisation.nonconformity_scores is not None,
        )

    def _advise(self, abstention: Abstention) -> str:
        """Advise what makes a model surer of clear recordings."""
        if abstention is Abstention.UNFAMILIAR and self.personalisation.has_own_mean:
            return "ask the speaker: this model was not trained on such sound"
        if self.package.subtracts_user_mean and not self.personalisation.has_own_mean:
            return "enrol this user's voice with a few clips"
        if not self.personalisation.has_own_head:
            return "label a few clips, so that the device can fit this user's head"
        return "ask the speaker, or record a longer utterance"


def find_model(folder: str | Path) -> Path:
    """Find the model folder in a run folder; a folder that is none is returned as it is.

    Args:
        folder: A run folder, or a model folder.
    """
    folder = Path(folder)
    return folder / "model" if (folder / "model" / "model.json").is_file() else folder


def _as_batch(features: Tensor) -> tuple[Tensor, Tensor]:
    """One recording's features as a batch, and its real frames."""
    one = stack_utterances([features], [0], max_frames=MAX_FRAMES)
    return one.features, one.frames
