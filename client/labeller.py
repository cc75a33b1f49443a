"""The user's word: recordings that they labelled, and the head that is fitted on them at once.

What is kept, sealed in the vault, is each recording's features and its emotion. The head is fitted
on all of them, and on the clips that the device was set up with, in milliseconds; so forgetting is
exact: afterwards the head is the one of a device that was never told. Later models are fitted on
them too, as soon as a run enrols the device anew.

Recordings and head are two records. A third says which recordings the head was fitted on: it is
emptied before the recordings change and written after the fit. So a program that was killed in
between shows, and the next one fits again (:meth:`Labeller.heal`).

Labels make a head honest only if they are of random moments. Who labels only what was wrong
teaches the device that it is wrong.
"""

import hashlib
import json
import logging
from contextlib import AbstractContextManager
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
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front, finish
from sottovoce.shared.heads import HeadPrior
from sottovoce.shared.plan import Plan

LOG = logging.getLogger("sottovoce.client")

_PLACE: Final = "labelled"
_FRONT: Final = "labelled-front"
_FITTED: Final = "head-labels"
"""Which recordings the kept head was fitted on, and for which model: a hash. Empty while they
change, and where the head was let go; missing where nothing was ever labelled."""

_NOBODYS: Final = hashlib.sha256(b"").hexdigest()
"""A model that there is not."""


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

        Guarantees:
            - Where the head cannot be fitted, recordings and head are as they were.
            - Killed on the way, it leaves the recording or none of it, and :meth:`heal` fits again.

        Raises:
            SettingError: An emotion that the model does not know, or a model that reads frames.
            ModelError: Features of another width, not finite, or far too large, or a head that
                cannot be fitted on them; nothing was learned.
            PrivacyError: The vault cannot be read or written.
        """
        if emotion not in self._bundle.labels:
            known = ", ".join(self._bundle.labels)
            raise SettingError(f"the emotion is {emotion!r}; this model knows {known}")
        if self._bundle.spec.reads_frames:
            raise SettingError("this model reads frames, of which no labels are kept yet")
        recordings.check(features, self._bundle.front.mean.shape)
        with self._vault.alone(_PLACE):
            before, fitted = recordings.read(self._vault, _PLACE), _fitted_on(self._vault)
            self._vault.put(_FITTED, b"")
            name = self._keep(features, emotion)
            try:
                self._fit(mean)
            except Exception as error:
                recordings.write(self._vault, _PLACE, before)
                if not isinstance(error, PrivacyError):  # of a full disk the head may tell
                    _say(self._vault, fitted)
                raise
            return name

    def forget(self, name: str, mean: Tensor) -> None:
        """Forget one recording and its label, and fit the head again.

        Args:
            name: What :meth:`label` gave, under whatever model; others are let pass.
            mean: As in :meth:`label`.

        Guarantees:
            - Afterwards the head is what it would be without the recording; where it cannot be
              fitted, or this model reads frames, there is none until the next fit.
            - It may be repeated: killed on the way, a second call finishes the first.

        Raises:
            PrivacyError: The vault cannot be read or written.
        """
        with self._vault.alone(_PLACE):
            _take_out(self._vault, name)
            if self._bundle.spec.reads_frames and _fitted_on(self._vault) == b"":
                let_go(self._vault)
            self._heal(mean)

    def heal(self, mean: Tensor) -> bool:
        """Fit the head again if it was fitted on other recordings than those that are kept.

        So it is after a program was killed, after something was forgotten with no model at hand,
        and where a run that enrolled the device before something was labelled brought the head.

        Args:
            mean: As in :meth:`label`.

        Returns:
            Whether it was; if not, nothing was written.

        Raises:
            PrivacyError: The vault cannot be read or written.
        """
        if not self._behind():
            return False
        with self._vault.alone(_PLACE):
            self._heal(mean)
        return True

    def _heal(self, mean: Tensor) -> None:
        """See :meth:`heal`; the caller holds the labels alone."""
        if not self._behind():
            return
        try:
            self._fit(mean)
        except (ModelError, RuntimeError, ArithmeticError, ValueError) as error:
            # The old head may know what was forgotten.
            LOG.warning("the head cannot be fitted again and is let go: %s", error)
            let_go(self._vault)

    def _behind(self) -> bool:
        """Whether the head must be fitted again; another model's in good order is left alone."""
        fitted = _fitted_on(self._vault)
        if fitted is None or self._bundle.spec.reads_frames:
            return False
        return fitted == b"" or (fitted != self._stamp() and self._calibrator().fitted)

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
        self._calibrator().fit(*heads.usable(logits, labels, coordinates), quietly=True)
        self._vault.put(_FITTED, self._stamp())

    def _calibrator(self) -> Calibrator:
        """What keeps this model's head."""
        bundle = self._bundle
        return Calibrator(
            self._vault, model_hash=bundle.model_hash, prior=bundle.prior, labels=bundle.labels
        )

    def _stamp(self) -> bytes:
        """Which recordings this model's head is to be fitted on, 32 bytes."""
        kept = self._kept()
        facts = [self._bundle.model_hash, kept.names, kept.emotions]
        return hashlib.sha256(json.dumps(facts).encode()).digest()


def labelled(folder: Path, *, vault: Vault | None = None) -> tuple[str, ...]:
    """Names of the recordings that a device's user labelled, whatever heard them.

    Args:
        folder: The user's device folder.
        vault: The device's, opened; None opens it.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault cannot be read.
    """
    return recordings.names(recordings.read(recordings.vault_of(folder, vault), _PLACE))


def forget(folder: Path, name: str, *, vault: Vault | None = None) -> bool:
    """Forget one recording and its label where no model is at hand to fit the head again.

    Args:
        folder: The user's device folder.
        name: What :meth:`Labeller.label` gave; others are let pass.
        vault: The device's, opened; None opens it.

    Returns:
        Whether the head was let go: population's stands in until a model fits it again.

    Guarantees:
        - Afterwards the head is not fitted on the recording.
        - It may be repeated: killed on the way, a second call finishes the first.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault cannot be read or written.
    """
    vault = recordings.vault_of(folder, vault)
    with vault.alone(_PLACE):
        _take_out(vault, name)
        if _fitted_on(vault) != b"":
            return False
        let_go(vault)
        return True


def let_go(vault: Vault) -> None:
    """Put the head of no model in the place of the kept one; :meth:`Labeller.heal` fits it again.

    It is not deleted: its version must be known still, or the server's copy, which knows what was
    forgotten, would be taken for a newer head. The caller holds the labels alone.
    """
    _say(vault, b"")
    if vault.has("head"):
        nobody = Calibrator(vault, model_hash=_NOBODYS, prior=HeadPrior(mean=heads.identity(2)))
        nobody.fit(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), quietly=True)


def kept(vault: Vault, extractor: str, labels: tuple[str, ...], width: int) -> Examples:
    """What a vault's user labelled, for a model with these labels and this extractor.

    Args:
        vault: The device's.
        extractor: The model's.
        labels: The model's emotions, in the order of its classes; recordings of others are left
            out, and those whose numbers are far too large.
        width: How many features it reads.
    """
    found = recordings.of(recordings.read(vault, _PLACE), extractor, width)
    good = recordings.usable(found.rows).tolist()
    known = [
        place for place, emotion in enumerate(found.emotions) if emotion in labels and good[place]
    ]
    numbers = [labels.index(found.emotions[place]) for place in known]
    return Examples(
        features=found.rows[known],
        frames=torch.ones(len(known), dtype=torch.int64),
        labels=torch.tensor(numbers, dtype=torch.int64),
    )


def alone(vault: Vault) -> AbstractContextManager[None]:
    """Hold a vault's labels and head, so that no other program changes them meanwhile."""
    return vault.alone(_PLACE)


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


def _take_out(vault: Vault, name: str) -> None:
    """Remove one recording, if it is there, and say first that the head is not fitted on the rest.

    The other way round, a program killed in between would leave a head that knows it, unnoticed.
    """
    parts = recordings.read(vault, _PLACE)
    if name in recordings.names(parts):
        _say(vault, b"")
        recordings.write(vault, _PLACE, [part.without(name) for part in parts])


def _fitted_on(vault: Vault) -> bytes | None:
    """See ``_FITTED``."""
    return vault.get(_FITTED) if vault.has(_FITTED) else None


def _say(vault: Vault, fitted: bytes | None) -> None:
    """Keep what the head was fitted on."""
    if fitted is None:
        vault.delete(_FITTED)
    else:
        vault.put(_FITTED, fitted)
