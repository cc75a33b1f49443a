"""The user's normaliser on the device, learned from speech that nobody labelled.

What is kept, sealed in the vault, is one row of features for each utterance that was learned from:
not sums, because what a row says depends on the model, and because sums could not be undone to
the last bit. The mean is computed anew from the rows that are kept, in milliseconds. So forgetting
is exact: afterwards the mean is that of a device that never had the utterance. (What a full store
dropped to make room for it does not come back.)

Nothing here leaves the device, and nothing is booked: the mean is used for prediction only.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.client.device import stored_clips
from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import example_store
from sottovoce.client.personalisation.example_store import VaultLearner
from sottovoce.shared.errors import SettingError
from sottovoce.shared.speaker import neutral_direction, unlabelled_adaptation

_BLOB_NAME: Final = "heard"


class SpeakerAdapter(VaultLearner):
    """Learns one user's mean under one model, from their speech; arguments as ``VaultLearner``."""

    blob_name = _BLOB_NAME

    def add(self, features: Tensor) -> str:
        """Learn from one utterance of the user, whatever its emotion.

        Args:
            features: What the model's extractor gave, shape (features,).

        Returns:
            Its name, for :meth:`forget_utterance`: a hash of the features, so that an utterance
            that comes twice counts once.

        Raises:
            SettingError: The model subtracts no user's mean, or reads frames.
            ModelError: Features of another width, not finite, or far too large; nothing was
                learned.
            ConsentError: The user does not consent to personalise.
            PrivacyError: The vault cannot be read or written; what was kept before is kept still.
        """
        self._require_consent()
        self._check(features)
        with self._vault.lock_blob(_BLOB_NAME):
            return self._add_example(features)

    def forget_utterance(self, name: str) -> None:
        """Forget one utterance; see :func:`forget_utterance`."""
        forget_utterance(self._folder, name, vault=self._vault)

    def speaker_mean(self) -> Tensor | None:
        """Estimate what to subtract for this user, shape (inputs,), float32.

        From everything that was learned; where that is nothing, as the last run enrolled the user,
        or from the clips enrolled since; None where no clip enrolled anybody, or the mean belongs
        to another projection. Then it is the population's centre, which every model has its own of.

        Raises:
            PrivacyError: What is kept is damaged.
        """
        if not self._package.subtracts_user_mean:
            return None
        features = self._load_store().features
        if not len(features) and self._vault.has_blob("normaliser"):
            return self._enrolled_mean()
        if not len(features) and not self._has_enrolled_clips():
            return None
        return self._adapted_mean(self._rows(features))

    def _adapted_mean(self, rows: Tensor) -> Tensor:
        """Adapt the user's mean to enrolment and what was learned since, shape (inputs,)."""
        enrolled, is_neutral = self._enrolled()
        # Enrolment of unknown emotion is treated like all other unlabelled speech.
        known, loose = (enrolled, rows) if is_neutral else (rows[:0], torch.cat([enrolled, rows]))
        package = self._package
        posterior = unlabelled_adaptation.initial_posterior(
            known, package.speaker_statistics, package.neutral_direction
        )
        mean = unlabelled_adaptation.adapt_mean(
            loose,
            self._neutral_probability(loose, posterior.mean),
            posterior,
            package.speaker_statistics,
            uniform_share=unlabelled_adaptation.uniform_neutral_share(package.labels),
            direction=package.neutral_direction,
        )
        return package.centre + mean

    def _has_enrolled_clips(self) -> bool:
        """Whether clips are enrolled that are known to be of this model's extractor."""
        clips = stored_clips.load_clips(self._vault)
        is_own = clips.extractor == self._package.extractor
        return is_own and bool(clips.for_enrolment.any())

    def _enrolled_mean(self) -> Tensor | None:
        """Read the user's mean as a run left it, if it was learned behind this projection."""
        stored = self._vault.get_tensors("normaliser")
        projection_hash = bytes(stored["front"].tolist()) if "front" in stored else b""
        mean, centre = stored["mean"], self._package.centre
        # A mean of another width, or of numbers that no speech has, belongs to another model.
        fits = mean.shape == centre.shape and bool(example_store.usable_rows(mean))
        if not fits or projection_hash.hex() != self._package.projection.content_hash():
            return None
        return mean if len(self._enrolled()[0]) else None

    def _rows(self, features: Tensor) -> Tensor:
        """Project features and subtract the centre; broken and huge ones are left out."""
        rows = self._package.projection.project_features(features) - self._package.centre
        # Both checks: a row may overflow only after the projection.
        return rows[example_store.usable_rows(features) & example_store.usable_rows(rows)]

    def _enrolled(self) -> tuple[Tensor, bool]:
        """Load the rows that enrolled the user, and whether they are known to be neutral."""
        features, is_neutral = stored_clips.load_enrolment_features(self._folder, self._vault)
        if features.shape[1:] != self._package.projection.mean.shape:  # of another extractor
            features = features.new_zeros(0, self._package.projection.mean.shape[0])
        return self._rows(features), is_neutral

    def _neutral_probability(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Probability by the shared model that each utterance is neutral, shape (utterances,)."""
        single = torch.ones(len(rows), dtype=torch.int64)
        inputs = self._package.projection.normalise_rows(rows, mean, single)
        with torch.no_grad():
            probabilities = torch.softmax(self._package.build_network()(inputs, single), 1)
        return probabilities[:, neutral_direction.neutral_mask(self._package.labels)].sum(1)

    def _check(self, features: Tensor) -> None:
        """Refuse what nothing can be learned from."""
        if not self._package.subtracts_user_mean:
            raise SettingError("this model subtracts no user's mean: there is nothing to learn")
        if self._package.spec.pooling != "none":
            raise SettingError("this model reads frames, from which no mean is learned yet")
        example_store.check_features(features, self._package.projection.mean.shape)


def list_utterances(folder: Path, *, vault: FileVault | None = None) -> tuple[str, ...]:
    """List the utterances that a device learned from; arguments as :func:`forget_utterance`."""
    return example_store.list_names(
        example_store.read_stores(example_store.open_vault(folder, vault), _BLOB_NAME)
    )


def forget_utterance(folder: Path, name: str, *, vault: FileVault | None = None) -> None:
    """Forget one utterance: delete its features and everything learned from the features.

    Args:
        folder: The user's device folder.
        name: What :meth:`SpeakerAdapter.add` gave, whatever the model.
        vault: The device's, opened; None opens it.

    Guarantees:
        - Afterwards the user's mean is, to the last bit, what it would be without the utterance.

    Raises:
        SettingError: There is no device, or it keeps no utterance of that name.
        PrivacyError: The vault cannot be read or written; the utterance is kept still.
    """
    vault = example_store.open_vault(folder, vault)
    with vault.lock_blob(_BLOB_NAME):
        stores = example_store.read_stores(vault, _BLOB_NAME)
        if name not in example_store.list_names(stores):
            known = ", ".join(example_store.list_names(stores)) or "none"
            raise SettingError(f"{folder} keeps no utterance {name!r}; it keeps {known}")
        example_store.write_stores(
            vault, _BLOB_NAME, [part.without_example(name) for part in stores]
        )
