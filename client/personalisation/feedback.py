"""The user's feedback: recordings that they labelled, and the head that is fitted on them at once.

What is kept, sealed in the vault, is each recording's features and its emotion. The head is fitted
on all of them, and on the clips that the device was set up with, in milliseconds; so forgetting is
exact: afterwards the head is that of a device that never had the label. Later models are fitted on
them too, as soon as a run enrols the device anew; with the user's consent to contribute they train
its shared model (``federation.training_set``).

Recordings and head are two records. A third says which recordings the head was fitted on: it is
emptied before the recordings change and written after the fit. So a program that was killed in
between shows, and the next one fits again (:meth:`FeedbackStore.refit_if_stale`).

Labels make a head honest only if they are of random moments. Who labels only what was wrong
teaches the device that it is wrong.
"""

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.client.device import stored_clips
from sottovoce.client.device.profile import UNKNOWN_LABEL, LabelledFeatures
from sottovoce.client.device.vault import FileVault, Vault
from sottovoce.client.personalisation import example_store
from sottovoce.client.personalisation.example_store import VaultLearner
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.shared import calibration
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.identity import find_name
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.printable import get_logger
from sottovoce.shared.protocol.training_plan import Plan

LOG = get_logger("sottovoce.client")

_BLOB_NAME: Final = "labelled"
_PROJECTION: Final = "labelled-front"
_FITTED: Final = "head-labels"
"""Which recordings the stored head was fitted on, and for which model: a hash. Empty while they
change, and where the head was discarded; missing where nothing was ever labelled."""

_NO_MODEL_HASH: Final = hashlib.sha256(b"").hexdigest()
"""Hash that no model has."""


class FeedbackStore(VaultLearner):
    """Fits one user's head under one model to their labels; arguments as for ``VaultLearner``."""

    blob_name = _BLOB_NAME

    def add_label(self, features: Tensor, emotion: str, mean: Tensor) -> str:
        """Store the user's label of one recording, and fit the head again.

        Args:
            features: What the model's extractor gave, shape (features,).
            emotion: What it was; a second label of the same recording replaces the first.
            mean: What is subtracted for this user, shape (inputs,).

        Returns:
            The recording's name, for :meth:`forget_recording`.

        Guarantees:
            - Where the head cannot be fitted, recordings and head are as they were.
            - Killed on the way, it leaves the recording or none of it, and :meth:`refit_if_stale`
              fits again.

        Raises:
            SettingError: An emotion that the model does not know, or a model that reads frames.
            ModelError: Features of another width, not finite, or far too large, or a head that
                cannot be fitted on them; nothing was learned.
            ConsentError: The user does not consent to personalise.
            PrivacyError: The vault cannot be read or written.
        """
        self._require_consent()
        label = find_name(emotion, self._package.labels)
        if label is None:
            known = ", ".join(self._package.labels)
            raise SettingError(f"the emotion is {emotion!r}; this model knows {known}")
        if self._package.spec.reads_frames:
            raise SettingError("this model reads frames, of which no labels are kept yet")
        example_store.check_features(features, self._package.projection.mean.shape)
        with self._vault.lock_blob(_BLOB_NAME):
            before, fitted = (
                example_store.read_stores(self._vault, _BLOB_NAME),
                _fitted_on(self._vault),
            )
            # Emptied first: a program killed from here on leaves a mark that the next one fits
            # again.
            self._vault.put(_FITTED, b"")
            name = self._add_example(features, label)
            try:
                self._fit(mean)
            except Exception as error:
                example_store.write_stores(self._vault, _BLOB_NAME, before)
                if not isinstance(error, PrivacyError):  # of a full disk the head may tell
                    _store_fitted_on(self._vault, fitted)
                raise
            return name

    def forget_recording(self, name: str, mean: Tensor) -> None:
        """Forget one recording and its label, and fit the head again.

        Args:
            name: What :meth:`add_label` gave, under whatever model, or that of an enrolled clip;
                others are ignored.
            mean: As in :meth:`add_label`.

        Guarantees:
            - Afterwards the head is what it would be without the recording; where it cannot be
              fitted, or this model reads frames, there is none until the next fit.
            - It may be repeated: killed on the way, a second call finishes the first.

        Raises:
            PrivacyError: The vault cannot be read or written.
        """
        with self._vault.lock_blob(_BLOB_NAME):
            _remove_recording(self._vault, name)
            # A model that reads frames cannot fit the head again, so the old one must go.
            if self._package.spec.reads_frames and _fitted_on(self._vault) == b"":
                discard_head(self._vault)
            self._refit_if_stale(mean)

    def refit_if_stale(self, mean: Tensor) -> bool:
        """Fit the head again if it was fitted on other recordings than those that are kept.

        So it is after a program was killed, after something was forgotten with no model at hand,
        and where a run that enrolled the device before something was labelled brought the head.

        Args:
            mean: As in :meth:`add_label`.

        Returns:
            Whether it was; if not, nothing was written.

        Raises:
            PrivacyError: The vault cannot be read or written.
        """
        if not self._is_stale():
            return False
        with self._vault.lock_blob(_BLOB_NAME):
            self._refit_if_stale(mean)
        return True

    def _refit_if_stale(self, mean: Tensor) -> None:
        """See :meth:`refit_if_stale`; the caller holds the lock of the labels."""
        # Asked again under the lock: another program may have fitted meanwhile.
        if not self._is_stale():
            return
        try:
            self._fit(mean)
        except (ModelError, RuntimeError, ArithmeticError, ValueError) as error:
            # The old head may know what was forgotten.
            LOG.warning("the head cannot be fitted again and is discarded: %s", error)
            discard_head(self._vault)

    def _is_stale(self) -> bool:
        """Whether the head must be fitted again; another model's in good order is left alone."""
        fitted = _fitted_on(self._vault)
        if fitted is None or self._package.spec.reads_frames:
            return False
        return fitted == b"" or (fitted != self._fit_digest() and self._calibrator().is_fitted)

    def _fit(self, mean: Tensor) -> None:
        """Fit the head on everything that was labelled, and store it."""
        package = self._package
        superseded = list_labelled(self._vault)
        parts = [
            stored_clips.load_head_examples(
                self._folder, self._vault, package.labels, superseded=superseded
            )
        ]
        width = package.projection.mean.shape
        parts.append(load_examples(self._vault, package.extractor, package.labels, *width))
        # Clips of another extractor are of no use to this model.
        fitting = [part for part in parts if part.features.shape[1:] == width]
        features = torch.cat([part.features for part in fitting])
        labels = torch.cat([part.labels for part in fitting])
        single = torch.ones(len(labels), dtype=torch.int64)
        logits, coordinates = package.logits_and_coordinates(features, single, mean)
        self._calibrator().fit_head(
            *calibration.select_usable(logits, labels, coordinates), keep_version=True
        )
        self._vault.put(_FITTED, self._fit_digest())

    def _calibrator(self) -> HeadCalibrator:
        """Calibrator that stores this model's head."""
        package = self._package
        return HeadCalibrator(
            self._vault, model_hash=package.model_hash, prior=package.prior, labels=package.labels
        )

    def _fit_digest(self) -> bytes:
        """Hash of the recordings that this model's head is to be fitted on, 32 bytes."""
        store = self._load_store()
        facts = [self._package.model_hash, store.names, store.emotions]
        return hashlib.sha256(json.dumps(facts).encode()).digest()


def list_recordings(folder: Path, *, vault: FileVault | None = None) -> tuple[str, ...]:
    """List the recordings that a device's user labelled, of all extractors.

    Args:
        folder: The user's device folder.
        vault: The device's, opened; None opens it.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault cannot be read.
    """
    return example_store.list_names(
        example_store.read_stores(example_store.open_vault(folder, vault), _BLOB_NAME)
    )


def list_enrolled(folder: Path, *, vault: FileVault | None = None) -> tuple[str, ...]:
    """List the recordings that were enrolled; arguments as for :func:`list_recordings`."""
    clips = stored_clips.load_clips(example_store.open_vault(folder, vault))
    return stored_clips.name_examples(clips.examples)


def forget_recording(folder: Path, name: str, *, vault: FileVault | None = None) -> bool:
    """Forget one recording and its label where no model is at hand to fit the head again.

    Args:
        folder: The user's device folder.
        name: What :meth:`FeedbackStore.add_label` gave; others are ignored.
        vault: The device's, opened; None opens it.

    Returns:
        Whether the head was discarded: the population's stands in until a model fits it again.

    Guarantees:
        - Afterwards the head is not fitted on the recording.
        - It may be repeated: killed on the way, a second call finishes the first.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault cannot be read or written.
    """
    vault = example_store.open_vault(folder, vault)
    with vault.lock_blob(_BLOB_NAME):
        _remove_recording(vault, name)
        if _fitted_on(vault) != b"":
            return False
        discard_head(vault)
        return True


def discard_head(vault: FileVault) -> None:
    """Replace the stored head by one of no model; :meth:`FeedbackStore.refit_if_stale` fits again.

    It is not deleted: its version must be known still, or the server's copy, which knows what was
    forgotten, would be taken for a newer head. The caller holds the lock of the labels.
    """
    _store_fitted_on(vault, b"")
    if vault.has_blob("head"):
        nobody = HeadCalibrator(
            vault, model_hash=_NO_MODEL_HASH, prior=HeadPrior(mean=calibration.identity_head(2))
        )
        # keep_version: a forgotten recording must not show in the version, which leaves in the
        # clear.
        nobody.fit_head(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), keep_version=True)


def list_labelled(vault: Vault) -> frozenset[str]:
    """List the names of all recordings that the user labelled, of all extractors."""
    return frozenset(example_store.list_names(example_store.read_stores(vault, _BLOB_NAME)))


def load_examples(vault: Vault, extractor: str, labels: tuple[str, ...], width: int) -> Examples:
    """Load what a vault's user labelled, for a model with these labels and this extractor.

    Args:
        vault: The device's.
        extractor: The model's.
        labels: The model's emotions, in the order of its classes; recordings of others are left
            out, and those whose numbers are far too large.
        width: How many features it reads.
    """
    found = example_store.select_store(
        example_store.read_stores(vault, _BLOB_NAME), extractor, width
    )
    good = example_store.usable_rows(found.features).tolist()
    known = [
        index for index, emotion in enumerate(found.emotions) if emotion in labels and good[index]
    ]
    numbers = [labels.index(found.emotions[index]) for index in known]
    return Examples(
        features=found.features[known],
        frames=torch.ones(len(known), dtype=torch.int64),
        labels=torch.tensor(numbers, dtype=torch.int64),
    )


def lock_labels(vault: Vault) -> AbstractContextManager[None]:
    """Hold a vault's labels and head, so that no other program changes them meanwhile."""
    return vault.lock_blob(_BLOB_NAME)


def store_projection(vault: Vault, projection: PublicProjection) -> None:
    """Store a run's projection, where there are labelled recordings that its model is to read.

    They themselves are stored once, so that forgetting one leaves nothing of it.
    """
    row_norm = torch.tensor(projection.row_norm, dtype=torch.float64)
    vault.put_tensors(
        _PROJECTION, {"mean": projection.mean, "matrix": projection.matrix, "length": row_norm}
    )


def prepare_examples(vault: Vault, plan: Plan, mean: Tensor) -> Examples:
    """Prepare a vault's labelled examples as inputs of a run's model.

    Args:
        vault: Vault of the device.
        plan: Plan of the run; without labels at enrolment the result is empty.
        mean: Mean that is subtracted for this user, shape (inputs,).
    """
    tensors = vault.get_tensors(_PROJECTION) if vault.has_blob(_PROJECTION) else None
    if tensors is None:
        return _no_examples(plan)
    projection = PublicProjection(
        mean=tensors["mean"],
        matrix=tensors["matrix"],
        row_norm=float(tensors["length"]),
    )
    # The stored projection is an earlier run's: its rows would mean something else.
    if projection.content_hash() != plan.projection_hash or plan.model.reads_frames:
        return _no_examples(plan)
    found = load_examples(vault, plan.extractor, plan.labels, len(projection.mean))
    rows = projection.prepare_inputs(found.features, mean, found.frames)
    return Examples(features=rows, frames=found.frames, labels=found.labels)


def _no_examples(plan: Plan) -> Examples:
    """Examples of no recordings."""
    none = torch.zeros(0, dtype=torch.int64)
    return Examples(features=torch.zeros(0, plan.model.inputs), frames=none, labels=none)


def _remove_recording(vault: FileVault, name: str) -> None:
    """Remove one recording, if it is there, and say first that the head is not fitted on the rest.

    The other way round, a program killed in between would leave a head that knows it, unnoticed.
    """
    parts = example_store.read_stores(vault, _BLOB_NAME)
    is_labelled = name in example_store.list_names(parts)
    if is_labelled or name in stored_clips.name_examples(stored_clips.load_clips(vault).examples):
        _store_fitted_on(vault, b"")
    # As it was enrolled, and in the run under way, before the label: what a repeated call looks for
    # goes last.
    stored_clips.forget_clip(vault, name)
    if is_labelled:
        example_store.write_stores(
            vault, _BLOB_NAME, [part.without_example(name) for part in parts]
        )


def enrol_labelled(vault: FileVault, clips: LabelledFeatures) -> tuple[str, ...]:
    """Enrol clips, and have the head fitted again when a recogniser is next opened.

    The newest label counts: that of a clip replaces the one that the recording had before.

    Args:
        vault: The device's.
        clips: Features, labels in the order of the profile's, and uses.

    Returns:
        The clips' names.

    Raises:
        SettingError: The device's clips are of another extractor.
        PrivacyError: The vault cannot be read or written.
    """
    with vault.lock_blob(_BLOB_NAME):
        # First: a program killed from here on leaves a mark that the next one fits again.
        _store_fitted_on(vault, b"")
        names = stored_clips.add_clips(vault, clips)
        parts = example_store.read_stores(vault, _BLOB_NAME)
        for name, label in zip(names, clips.examples.labels.tolist(), strict=True):
            if label != UNKNOWN_LABEL and name in example_store.list_names(parts):
                parts = tuple(part.without_example(name) for part in parts)
        example_store.write_stores(vault, _BLOB_NAME, parts)
    return names


def _fitted_on(vault: Vault) -> bytes | None:
    """Read ``_FITTED``, where there is one."""
    return vault.get(_FITTED) if vault.has_blob(_FITTED) else None


def _store_fitted_on(vault: FileVault, fitted: bytes | None) -> None:
    """Write ``_FITTED``, or delete it."""
    if fitted is None:
        vault.delete(_FITTED)
    else:
        vault.put(_FITTED, fitted)
