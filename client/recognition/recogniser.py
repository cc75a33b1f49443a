"""The recogniser on a device: a signal in, a prediction out, and nothing leaves.

signal -> quality gate -> features -> projection -> less the user's mean -> shared model -> the
user's head -> probabilities. A recording that the gate refuses gets no answer; a model that is not
sure enough says so. Without a device, or with one that knows nothing of this model, the
population's centre and prior stand in for the user.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import example_store, feedback, speaker_adapter
from sottovoce.client.personalisation.feedback import FeedbackStore
from sottovoce.client.personalisation.speaker_adapter import SpeakerAdapter
from sottovoce.client.recognition import decision, evidence
from sottovoce.client.recognition.continuous import ContinuousRecogniser
from sottovoce.client.recognition.decision import DecisionRule
from sottovoce.client.recognition.evidence import Evidence
from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.recording_features import FeatureReader
from sottovoce.client.recognition.user_personalisation import (
    Personalisation,
    default_personalisation,
    load_personalisation,
)
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import SettingError
from sottovoce.shared.exported.package_reader import open_package
from sottovoce.shared.models.examples import MAX_FRAMES, stack_utterances
from sottovoce.shared.models.model_package import ModelPackage


class Recogniser(ContinuousRecogniser):
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
        coverage: float = decision.DEFAULT_COVERAGE,
        device: Path | None = None,
        vault: FileVault | None = None,
    ) -> None:
        self.package = package
        self.personalisation = personalisation or default_personalisation(package)
        self._min_confidence, self._coverage = min_confidence, coverage
        self._use_personalisation()
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
        coverage: float = decision.DEFAULT_COVERAGE,
        trusted_key: str = "",
        vault: FileVault | None = None,
    ) -> Self:
        """Open a model folder and, if there is one, the user's device folder.

        Args:
            model: A run folder, the ``model/`` in it, or an exported model.
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
        package = open_package(model, trusted_key=trusted_key)
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
        return self.predict_with_features(signal)[0]

    def predict_with_features(
        self, signal: Signal | str | Path
    ) -> tuple[Prediction, Tensor | None]:
        """Recognise one recording, and return what a label of the recording will need.

        An app that asks its user later what a recording was need not keep the sound until then.

        Args:
            signal: As for :meth:`predict`, with its errors.

        Returns:
            The prediction, and features for :meth:`label_features`; None where there are none: the
            gate refused the recording, or it is so long that it was looked at in windows.
        """
        signal = decision.require_signal(signal)
        self.personalisation.require_consent()
        seen: list[Tensor] = []

        def weigh(features: Tensor) -> Evidence:
            seen.append(features)
            return self._weigh(features)

        prediction = decision.predict_signal(signal, self._reader, weigh, self._rule)
        is_whole = bool(seen) and signal.duration_s <= evidence.LONG_S
        return prediction, seen[0] if is_whole else None

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
        self._folder()  # asked first: features take a while
        return self.label_features(self._reader.require_features(signal), emotion)

    def label_features(self, features: Tensor, emotion: str) -> str:
        """Store the user's label of a recording whose features are at hand.

        Args:
            features: From :meth:`predict_with_features`.
            emotion: One of the model's labels.

        Returns:
            The recording's name, as :meth:`label_recording` gives it, with its errors.
        """
        own = FeedbackStore(self._folder(), self.package, vault=self._vault)
        name = own.add_label(features, emotion, self.personalisation.mean)
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
        self._use_personalisation()

    def _use_personalisation(self) -> None:
        """Decide as is right for this user from here on."""
        package, own = self.package, self.personalisation
        limits = decision.Limits.settle(
            len(package.labels),
            min_confidence=self._min_confidence,
            coverage=self._coverage,
            is_doubted=not own.has_own_mean and package.unknown_voice_temperature > 1,
        )
        self._threshold = own.find_threshold(package, limits.coverage)
        self._rule = DecisionRule(
            labels=package.labels,
            model_hash=package.model_hash,
            limits=limits,
            subtracts_user_mean=package.subtracts_user_mean,
            has_own_mean=own.has_own_mean,
            has_own_head=own.has_own_head,
            has_own_scores=own.nonconformity_scores is not None,
        )

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
            self.personalisation.calibrate_logits(logits, coordinates)[0].double(), 0
        )

    def _weigh(self, features: Tensor) -> Evidence:
        """What the model says of one recording, tempered where it is unlike what it knows."""
        return evidence.weigh_probabilities(
            self.predict_probabilities(features).numpy(),
            self.package.measure_unfamiliarity(*_as_batch(features), self.personalisation.mean),
            threshold=self._threshold,
            temperature=1.0
            if self.personalisation.has_own_mean
            else self.package.unknown_voice_temperature,
        )


def _as_batch(features: Tensor) -> tuple[Tensor, Tensor]:
    """One recording's features as a batch, and its real frames."""
    one = stack_utterances([features], [0], max_frames=MAX_FRAMES)
    return one.features, one.frames
