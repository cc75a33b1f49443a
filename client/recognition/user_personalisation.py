"""What makes a prediction a user's own: mean, head and scores, as a device's vault holds them."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sottovoce.client.device.consent import DeviceConsent, Purpose, load_consent
from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import example_store
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.client.personalisation.speaker_adapter import SpeakerAdapter
from sottovoce.shared import calibration
from sottovoce.shared.calibration import CalibrationHead, conformal
from sottovoce.shared.calibration.head import is_same_head
from sottovoce.shared.models.model_package import ModelPackage


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Personalisation:
    """Mean, head and scores that make a prediction a user's own.

    Attributes:
        mean: Subtracted from projected features, shape (inputs,), float32.
        head: Applied to the logits.
        has_own_mean: Whether the mean is this user's; if not, it is the population's.
        has_own_head: Whether the head is this user's and this model's; if not, it is the prior's
            mean.
        nonconformity_scores: Of the user's labelled clips, shape (clips,), float64; None has none.
            They move the threshold of prediction sets.
        consent: The user's; None where there is no device, and so nobody to ask.
    """

    mean: Tensor
    head: CalibrationHead
    has_own_mean: bool
    has_own_head: bool
    nonconformity_scores: Tensor | None = None
    consent: DeviceConsent | None = None

    def require_consent(self) -> None:
        """Refuse to recognise a user who does not consent to be recognised.

        Raises:
            ConsentError: The user has never consented, or consents no more.
            PrivacyError: The record of consent is damaged or gone.
        """
        if self.consent is not None:
            self.consent.require(Purpose.RECOGNISE)

    def calibrate_logits(self, logits: Tensor, coordinates: Tensor | None) -> Tensor:
        """Apply the head, shape (utterances, classes) -> same.

        Args:
            logits: Of the shared model.
            coordinates: In the basis of the model's heads, shape (utterances, basis); None where
                the head has no weights.
        """
        return calibration.calibrate_logits(self.head, logits, coordinates)

    def find_threshold(self, package: ModelPackage, coverage: float) -> float | None:
        """Find the largest nonconformity score in a prediction set of this user.

        Args:
            package: The model, with the scores of the people it was calibrated on.
            coverage: How often a set shall hold the true emotion, in (0, 1).

        Returns:
            The threshold; None where nobody's scores are known.
        """
        if package.prior.scores is None:
            return None
        return conformal.find_threshold(
            package.prior.scores, self.nonconformity_scores, coverage=coverage
        )


def default_personalisation(package: ModelPackage) -> Personalisation:
    """Population's centre and the prior's mean head, for a user of whom nothing is known."""
    return Personalisation(
        mean=package.centre, head=package.prior.mean, has_own_mean=False, has_own_head=False
    )


def load_personalisation(
    package: ModelPackage, device: Path, *, vault: FileVault | None = None
) -> Personalisation:
    """Load what a device's vault knows of its user under this model.

    A mean learned behind another projection, and a head fitted for another model, would be wrong
    here: centre and prior stand in for them.

    Args:
        package: The model.
        device: The user's device folder.
        vault: The device's, opened; None opens it, which a passphrase forbids.

    Raises:
        SettingError: There is no device in the folder.
        PrivacyError: The vault, or what it holds, is damaged.
    """
    vault = example_store.open_vault(device, vault)
    mean = SpeakerAdapter(device, package, vault=vault).speaker_mean()
    calibrator = HeadCalibrator(vault, model_hash=package.model_hash, prior=package.prior)
    head, scores = calibrator.current_head(), calibrator.nonconformity_scores()
    return Personalisation(
        mean=package.centre if mean is None else mean,
        head=head,
        has_own_mean=mean is not None,
        has_own_head=not is_same_head(head, package.prior.mean),
        nonconformity_scores=scores if len(scores) else None,
        consent=load_consent(device, vault),
    )
