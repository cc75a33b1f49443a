"""The user's normaliser on the device, learned from speech that nobody labelled.

What is kept, sealed in the vault, is one row of features for each utterance that was learned from:
not sums, because what a row tells depends on the model, and because sums could not be undone to
the last bit. The mean is computed anew from the rows that are kept, in milliseconds. So forgetting
is exact: afterwards the mean is the one of a device that never heard the utterance. (What a full
store let go to make room for it does not come back.)

Nothing here leaves the device, and nothing is booked: the mean is used for prediction only.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.client import device as devices
from sottovoce.client import recordings
from sottovoce.client.recordings import Learner
from sottovoce.client.vault import Vault
from sottovoce.shared import neutral, unlabelled
from sottovoce.shared.errors import SettingError
from sottovoce.shared.front import finish

_PLACE: Final = "heard"


class Listener(Learner):
    """Learns one user's mean under one model, from what it hears; arguments as for ``Learner``."""

    place = _PLACE

    def learn(self, features: Tensor) -> str:
        """Learn from one utterance of the user, whatever its emotion.

        Args:
            features: What the model's extractor gave, shape (features,).

        Returns:
            Its name, for :meth:`forget`: a hash of the features, so that an utterance that comes
            twice counts once.

        Raises:
            SettingError: The model takes nobody's mean off, or reads frames.
            ModelError: Features of another width, not finite, or far too large; nothing was
                learned.
            PrivacyError: The vault cannot be read or written; what was kept before is kept still.
        """
        self._check(features)
        with self._vault.alone(_PLACE):
            return self._keep(features)

    def forget(self, name: str) -> None:
        """Forget one utterance; see :func:`forget`."""
        forget(self._folder, name, vault=self._vault)

    def mean(self) -> Tensor | None:
        """What to take off for this user, shape (inputs,), float32.

        From everything that was heard; where that is nothing, as the last run enrolled the user;
        None where no clip enrolled anybody, or the mean stands behind another front. Then it is
        the population's centre, which every model has its own of.

        Raises:
            PrivacyError: What is kept is damaged.
        """
        if not self._bundle.user_mean:
            return None
        features = self._kept().rows
        return self._heard_mean(self._rows(features)) if len(features) else self._enrolled_mean()

    def _heard_mean(self, rows: Tensor) -> Tensor:
        """The user's mean from enrolment and what was heard since, shape (inputs,)."""
        enrolled, calm = self._enrolled()
        known, loose = (enrolled, rows) if calm else (rows[:0], torch.cat([enrolled, rows]))
        bundle = self._bundle
        belief = unlabelled.begin(known, bundle.population, bundle.neutral)
        mean = unlabelled.estimate(
            loose,
            self._neutral(loose, belief.mean),
            belief,
            bundle.population,
            even=unlabelled.even_share(bundle.labels),
            direction=bundle.neutral,
        )
        return bundle.centre + mean

    def _enrolled_mean(self) -> Tensor | None:
        """The user's mean as a run left it, if it was learned behind this model's front."""
        if not self._vault.has("normaliser"):
            return None
        kept = self._vault.get_tensors("normaliser")
        front = bytes(kept["front"].tolist()) if "front" in kept else b""
        mean, centre = kept["mean"], self._bundle.centre
        fits = mean.shape == centre.shape and bool(recordings.usable(mean))
        if not fits or front.hex() != self._bundle.front.digest():
            return None
        return mean if len(self._enrolled()[0]) else None

    def _rows(self, features: Tensor) -> Tensor:
        """Features behind the front, the centre taken off, broken and huge ones left out."""
        rows = self._bundle.front.project(features) - self._bundle.centre
        return rows[recordings.usable(features) & recordings.usable(rows)]

    def _enrolled(self) -> tuple[Tensor, bool]:
        """Rows of the clips that enrolled the user, and whether they are known to be neutral."""
        features, calm = devices.enrolment(self._folder, self._vault)
        if features.shape[1:] != self._bundle.front.mean.shape:  # of another extractor
            features = features.new_zeros(0, self._bundle.front.mean.shape[0])
        return self._rows(features), calm

    def _neutral(self, rows: Tensor, mean: Tensor) -> Tensor:
        """The shared model's chance that each utterance is neutral, shape (utterances,)."""
        single = torch.ones(len(rows), dtype=torch.int64)
        inputs = finish(rows, mean, single, length=self._bundle.front.length)
        with torch.no_grad():
            chances = torch.softmax(self._bundle.network()(inputs, single), 1)
        return chances[:, neutral.classes(self._bundle.labels)].sum(1)

    def _check(self, features: Tensor) -> None:
        """Refuse what nothing can be learned from."""
        if not self._bundle.user_mean:
            raise SettingError("this model takes nobody's mean off: there is nothing to learn")
        if self._bundle.spec.pooling != "none":
            raise SettingError("this model reads frames, from which no mean is learned yet")
        recordings.check(features, self._bundle.front.mean.shape)


def heard(folder: Path, *, vault: Vault | None = None) -> tuple[str, ...]:
    """Names of the utterances that a device learned from, whatever heard them; see below."""
    return recordings.names(recordings.read(recordings.vault_of(folder, vault), _PLACE))


def forget(folder: Path, name: str, *, vault: Vault | None = None) -> None:
    """Forget one utterance: its features go, and with them all that they told.

    Args:
        folder: The user's device folder.
        name: What :meth:`Listener.learn` gave, whatever the model.
        vault: The device's, opened; None opens it.

    Guarantees:
        - Afterwards the user's mean is, to the last bit, what it would be without the utterance.

    Raises:
        SettingError: There is no device, or it keeps no utterance of that name.
        PrivacyError: The vault cannot be read or written; the utterance is kept still.
    """
    vault = recordings.vault_of(folder, vault)
    with vault.alone(_PLACE):
        kept = recordings.read(vault, _PLACE)
        if name not in recordings.names(kept):
            held = ", ".join(recordings.names(kept)) or "none"
            raise SettingError(f"{folder} keeps no utterance {name!r}; it keeps {held}")
        recordings.write(vault, _PLACE, [part.without(name) for part in kept])
