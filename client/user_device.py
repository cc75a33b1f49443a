"""One user's device as an app uses it: everything in one object.

It puts together what the packages of ``client`` do each for themselves: the device and its consent,
the recogniser, what is enrolled and learned, and the user's rights over all of it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from torch import Tensor

from sottovoce.client.device import privacy_report
from sottovoce.client.device.consent import DeviceConsent
from sottovoce.client.device.device import Device
from sottovoce.client.device.privacy_report import PrivacyReport
from sottovoce.client.device.vault import FileVault
from sottovoce.client.recognition.continuous import ContinuousRecogniser, Recording, as_signal
from sottovoce.client.recognition.prediction import Prediction
from sottovoce.client.recognition.recogniser import Recogniser
from sottovoce.client.recognition.recording_features import FeatureReader
from sottovoce.client.user_data import (
    creation,
    data_export,
    device_erasure,
    enrolment,
    recordings,
)
from sottovoce.client.user_data.recordings import StoredRecording
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.target import PrivacyTarget


class UserDevice(ContinuousRecogniser):
    """Device of one user, with the model that recognises emotions there.

    Args:
        folder: The device's.
        vault: Its vault, opened.
        model: A run folder, the model in it, or an exported one; None where nothing is recognised.
        min_confidence: Below it nothing is answered; None leaves it to the model.
        coverage: How often a prediction's set shall hold the true emotion, in (0, 1); None takes
            the recogniser's.
        trusted_key: Public key that must have signed the model, 64 hexadecimal digits; "" asks for
            no signature.

    Raises:
        SettingError: There is no device.
        PrivacyError: It is damaged.

    >>> device = UserDevice.create("adas-device", user="ada", use="research: moods")
    >>> device.consent.grant("recognise", "personalise")
    >>> device = UserDevice.open("adas-device", model="runs/demo")
    >>> device.predict("hello.wav").quality
    ()
    >>> name = device.correct("hello.wav", "angry")
    >>> [one.emotion for one in device.list_recordings()]
    ['angry']
    >>> device.forget(name)
    >>> device.privacy().release_count
    0
    >>> device.erase()
    ()
    """

    def __init__(
        self,
        folder: Path,
        vault: FileVault,
        *,
        model: str | Path | None = None,
        min_confidence: float | None = None,
        coverage: float | None = None,
        trusted_key: str = "",
    ) -> None:
        self.folder: Final = folder
        self._vault: Final = vault
        # Whoever only looks, or recognises, must not hold the ledger open for writing.
        self._device: Final = Device.open(folder, read_only=True, vault=vault)
        self._model: Final = model
        self._limits: dict[str, Any] = {} if coverage is None else {"coverage": coverage}
        self._trusted_key: Final = trusted_key
        self._min_confidence: Final = min_confidence
        self._recogniser: Recogniser | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        user: str,
        use: str,
        target: PrivacyTarget | None = None,
        labels: tuple[str, ...] = (),
        passphrase: str | None = None,
    ) -> Self:
        """Make a device, on which nothing is allowed until its user consents.

        Args:
            folder: Made if missing.
            user: A pseudonym.
            use: What it is for, such as ``self-reflection: a diary``; see ``intended_use``.
            target: What it may spend in its life; by default epsilon 8 for one utterance.
            labels: Emotions that recordings can be labelled with; by default those of corpora.
            passphrase: Seals the vault's key on the disk; without one it lies in a file.

        Raises:
            SettingError: A forbidden or unknown use, or another setting that cannot be.
            PrivacyError: There is one already, or the disk refuses.
        """
        made = creation.create_device(
            Path(folder),
            user=user,
            use=use,
            target=target or PrivacyTarget(),
            labels=labels,
            passphrase=passphrase,
        )
        return cls.open(made.folder, passphrase=passphrase)

    @classmethod
    def open(
        cls, folder: str | Path, *, model: str | Path | None = None, passphrase: str | None = None
    ) -> Self:
        """Open a device that was made before.

        Args:
            folder: The device's.
            model: A run folder, or the model in it; None where nothing is recognised.
            passphrase: Needed where the device was made with one.

        Raises:
            SettingError: There is no device.
            PrivacyError: It is damaged, or the passphrase is wrong or missing.
        """
        folder = Path(folder)
        if not Device.exists(folder):
            raise SettingError(
                f"{folder} holds no device; make one with UserDevice.create, or by `sottovoce "
                "device create`"
            )
        return cls(folder, FileVault.open(folder / "vault", passphrase=passphrase), model=model)

    @property
    def consent(self) -> DeviceConsent:
        """Consent of the user, by purpose: to be asked, granted and withdrawn."""
        return self._device.consent

    @property
    def recogniser(self) -> Recogniser:
        """The recogniser of this user; opened when first used.

        Raises:
            SettingError: No model was named.
            ModelError: The model is missing or damaged.
        """
        if self._model is None:
            raise SettingError(
                "no model was named; open the device with UserDevice.open(folder, model=...)"
            )
        if self._recogniser is None:
            self._recogniser = Recogniser.open(
                self._model,
                self.folder,
                min_confidence=self._min_confidence,
                vault=self._vault,
                trusted_key=self._trusted_key,
                **self._limits,
            )
        return self._recogniser

    def predict(
        self, recording: Recording | Tensor | np.ndarray, rate: float | None = None
    ) -> Prediction:
        """Recognise the emotion of one recording; see :meth:`Recogniser.predict`.

        Args:
            recording: A path, a signal, or samples with their ``rate``.
            rate: Sampling rate in Hz of bare samples.

        Raises:
            ConsentError: The user does not consent to recognise.
            AudioError: A recording that cannot be read, or samples without a rate.
        """
        return self.recogniser.predict(as_signal(recording, rate))

    def learn_voice(self, recording: Recording) -> str:
        """Learn the user's voice from a recording; see :meth:`Recogniser.learn_voice`."""
        return self.recogniser.learn_voice(as_signal(recording))

    def correct(self, recording: Recording, emotion: str) -> str:
        """Say what a recording was; see :meth:`Recogniser.label_recording`.

        The head is fitted on it at once; with consent to contribute the next run trains on it.
        """
        return self.recogniser.label_recording(as_signal(recording), emotion)

    def enrol(
        self, recordings_to_enrol: Iterable[tuple[Recording, str]], *, is_neutral: bool = False
    ) -> tuple[str, ...]:
        """Enrol recordings of the user, each with its emotion, "" where nobody knows.

        Args:
            recordings_to_enrol: Recordings and emotions.
            is_neutral: Whether all are known to be neutral speech.

        Returns:
            Their names.

        Raises:
            ConsentError: The user does not consent to personalise.
            AudioError: A recording that cannot be learned from; nothing was enrolled.
            SettingError: An emotion that the device does not know; nothing was enrolled.
        """
        package = self.recogniser.package
        reader = FeatureReader(package.extractor, version=package.feature_version)
        clips = [
            enrolment.Clip(
                features=reader.require_features(as_signal(recording)),
                emotion=emotion or (enrolment.NEUTRAL if is_neutral else ""),
                is_neutral=is_neutral,
            )
            for recording, emotion in recordings_to_enrol
        ]
        names = enrolment.enrol_clips(self._device, self._vault, clips, extractor=package.extractor)
        self._recogniser = None  # opened anew, with the mean and the head of what was enrolled
        return names

    def list_recordings(self) -> tuple[StoredRecording, ...]:
        """List the recordings that the device keeps; see :func:`recordings.list_recordings`."""
        return recordings.list_recordings(self._device)

    def forget(self, name: str) -> None:
        """Forget a recording: enrolled, labelled or learned from.

        Args:
            name: As :meth:`list_recordings` has it.

        Raises:
            SettingError: The device keeps no recording of that name.
            PrivacyError: The vault cannot be read or written.
        """
        if self._model is not None:
            self.recogniser.forget_recording(name)
            return
        kept = [one.name for one in self.list_recordings()]
        recordings.forget_recording(self._device, self._vault, name)
        if name not in kept:
            known = ", ".join(kept) or "none"
            raise SettingError(f"{self.folder} keeps no recording {name!r}; it keeps {known}")

    def privacy(self) -> PrivacyReport:
        """Report what was spent, and what is left; see ``privacy_report``."""
        return privacy_report.build_report(self.folder, vault=self._vault)

    def withdraw(self) -> None:
        """End the enrolment towards every server; see :meth:`Device.withdraw`."""
        self._device.withdraw()

    def export_my_data(self, path: str | Path) -> None:
        """Write everything that the device holds of its user; see ``data_export``."""
        device = Device.open(self.folder, read_only=True, vault=self._vault)  # the ledger of now
        data_export.write_export(device, self._vault, Path(path))

    def erase(self) -> tuple[Path, ...]:
        """Erase the device for good, its key first; see :func:`device_erasure.erase_device`."""
        self._recogniser = None
        return device_erasure.erase_device(self.folder)
