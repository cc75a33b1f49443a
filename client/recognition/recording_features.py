"""Features of a recording by an extractor in torch, behind the quality gate."""

from torch import Tensor

from sottovoce.client.recognition.quality_gate import GatedReader
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.features import registry
from sottovoce.shared.features.version import FEATURE_VERSION, require_feature_version


class FeatureReader(GatedReader[Tensor]):
    """Computes the features that a model reads, of recordings that pass the quality gate.

    Args:
        extractor: The extractor's name, as the model's package has it.
        version: Version of the features that the model reads, likewise.

    Raises:
        ModelError: This release has no such extractor, or computes its features otherwise.
        FeatureError: Its weights were not installed by this machine's owner.
    """

    def __init__(self, extractor: str, *, version: int = FEATURE_VERSION) -> None:
        # An extractor of one's own is its owner's to keep the same.
        if not registry.is_registered(extractor):
            require_feature_version(version)
        try:
            self._extractor = registry.create_extractor(extractor)
            registry.require_installed_encoders(extractor)
        except SettingError as error:
            raise ModelError(
                f"the model reads features that this release cannot compute ({error}); install the "
                "release that trained it, or copy the model folder again"
            ) from error
        self.name = self._extractor.name

    def compute(self, signal: Signal) -> Tensor:
        """Compute features, shape (features,) or (frames, features)."""
        return self._extractor(signal)

    def is_finite(self, features: Tensor) -> bool:
        """Whether features hold neither NaN nor infinity."""
        return bool(features.isfinite().all())
