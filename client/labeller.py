"""The user's word: recordings that they labelled, and the head that is fitted on them at once.

What is kept, sealed in the vault, is each recording's features and its emotion. The head is fitted
on all of them, and on the clips that the device was set up with, in milliseconds; so forgetting is
exact: afterwards the head is the one of a device that was never told. Later models are fitted on
them too, as soon as a run enrols the device anew.

Labels make a head honest only if they are of random moments. Who labels only what was wrong
teaches the device that it is wrong.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.client import device as devices
from sottovoce.client import recordings
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.recordings import Learner
from sottovoce.client.vault import Vault
from sottovoce.shared import heads
from sottovoce.shared.errors import SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front, finish
from sottovoce.shared.plan import Plan

_PLACE: Final = "labelled"
_FRONT: Final = "labelled-front"


class Labeller(Learner):
    """Fits one user's head under one model to what they say; arguments as for ``Learner``."""

    place = _PLACE

    def label(self, features: Tensor, emotion: str, mean: Tensor) -> str:
        """Take the user's word for one recording, and fit the head again.

        Args:
            features: What the model's extractor gave, shape (features,).
            emotion: What it was; a second word for the same recording takes the place of the first.
            mean: What is taken off for this user, shape (inputs,).

        Returns:
            The recording's name, for :meth:`forget`.

        Raises:
            SettingError: An emotion that the model does not know, or a model that reads frames.
            ModelError: Features of another width, or that are not finite; nothing was learned.
            PrivacyError: The vault cannot be read or written.
        """
        if emotion not in self._bundle.labels:
            known = ", ".join(self._bundle.labels)
            raise SettingError(f"the emotion is {emotion!r}; this model knows {known}")
        if self._bundle.spec.reads_frames:
            raise SettingError("this model reads frames, of which no labels are kept yet")
        recordings.check(features, self._bundle.front.mean.shape)
        name = self._keep(features, emotion)
        self._fit(mean)
        return name

    def forget(self, name: str, mean: Tensor) -> None:
        """Forget one recording and its label, and fit the head again.

        Args:
            name: What :meth:`label` gave; others are let pass.
            mean: As in :meth:`label`.

        Guarantees:
            - Afterwards the head is what it would be without the recording.
        """
        kept = self._kept()
        if name in kept.names:
            kept.without(name).write(self._vault, _PLACE)
            self._fit(mean)

    def _fit(self, mean: Tensor) -> None:
        """Fit the head on everything that was labelled, and keep it."""
        bundle = self._bundle
        parts = [devices.labelled(self._folder, self._vault, bundle.labels)]
        width = bundle.front.mean.shape
        parts.append(kept(self._vault, bundle.extractor, bundle.labels, *width))
        fitting = [part for part in parts if part.features.shape[1:] == width]
        features = torch.cat([part.features for part in fitting])
        labels = torch.cat([part.labels for part in fitting])
        single = torch.ones(len(labels), dtype=torch.int64)
        logits, coordinates = bundle.heard(features, single, mean)
        Calibrator(
            self._vault, model_hash=bundle.model_hash, prior=bundle.prior, labels=bundle.labels
        ).fit(*heads.usable(logits, labels, coordinates), quietly=True)


def labelled(folder: Path) -> tuple[str, ...]:
    """Names of the recordings that a device's user labelled, the oldest first.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault cannot be read.
    """
    return recordings.read(recordings.vault_of(folder), _PLACE).names


def kept(vault: Vault, extractor: str, labels: tuple[str, ...], width: int) -> Examples:
    """What a vault's user labelled, for a model with these labels and this extractor.

    Args:
        vault: The device's.
        extractor: The model's.
        labels: The model's emotions, in the order of its classes; recordings of others are left
            out.
        width: How many features it reads.
    """
    found = recordings.read(vault, _PLACE).of(extractor, width)
    known = [place for place, emotion in enumerate(found.emotions) if emotion in labels]
    numbers = [labels.index(found.emotions[place]) for place in known]
    return Examples(
        features=found.rows[known],
        frames=torch.ones(len(known), dtype=torch.int64),
        labels=torch.tensor(numbers, dtype=torch.int64),
    )


def keep_front(vault: Vault, front: Front) -> None:
    """Keep what a run puts before its model, where there are labelled recordings to read by it.

    They themselves are kept once, so that forgetting one leaves nothing of it.
    """
    length = torch.tensor(front.length, dtype=torch.float64)
    vault.put_tensors(_FRONT, {"mean": front.mean, "matrix": front.matrix, "length": length})


def ready(vault: Vault, plan: Plan, mean: Tensor) -> Examples:
    """What a vault's user labelled until now, as the model of a run reads it.

    Args:
        vault: The device's.
        plan: The run's; where nothing was labelled when the device enrolled, nothing comes.
        mean: What is taken off for this user, shape (inputs,).
    """
    kept_front = vault.get_tensors(_FRONT) if vault.has(_FRONT) else None
    if kept_front is None:
        return _nothing(plan)
    front = Front(
        mean=kept_front["mean"],
        matrix=kept_front["matrix"],
        length=float(kept_front["length"]),
    )
    if front.digest() != plan.front or plan.model.reads_frames:
        return _nothing(plan)
    found = kept(vault, plan.extractor, plan.labels, len(front.mean))
    rows = finish(front.project(found.features), mean, found.frames, length=front.length)
    return Examples(features=rows, frames=found.frames, labels=found.labels)


def _nothing(plan: Plan) -> Examples:
    """No recordings."""
    none = torch.zeros(0, dtype=torch.int64)
    return Examples(features=torch.zeros(0, plan.model.inputs), frames=none, labels=none)
