"""Recordings that a device keeps to learn from: features, sealed in its vault, and never sound.

One row of features each, under a hash of them as its name: a recording that comes twice is kept
once. The newest 200 are kept; older ones make room.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor

from sottovoce.client.device import Device
from sottovoce.client.vault import Vault
from sottovoce.shared.bundle import Bundle
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError

MOST: Final = 200
"""Recordings that are kept in one place. More hardly move a mean."""

_ID_DIGITS: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recordings:
    """What lies in one place of a vault, the oldest first.

    Attributes:
        extractor: What computed the features; "" where nothing was ever kept.
        names: Of the recordings.
        rows: Their features, shape (recordings, features), float32.
        emotions: What their user said they were; none at all where nobody was asked.
    """

    extractor: str
    names: tuple[str, ...]
    rows: Tensor
    emotions: tuple[str, ...] = ()

    def of(self, extractor: str, width: int) -> "Recordings":
        """These, if the extractor is theirs; another's features tell a model nothing."""
        return self if self.extractor == extractor else _none(extractor, width)

    def added(self, row: Tensor, emotion: str | None = None) -> tuple["Recordings", str]:
        """With one recording more, or with another emotion for one that is there; and its name."""
        kept = row.detach().float().contiguous()
        name = hashlib.sha256(kept.numpy().tobytes()).hexdigest()[:_ID_DIGITS]
        rest = self.without(name) if emotion is not None else self
        if name in rest.names:
            return self, name
        more = () if emotion is None else (*rest.emotions, emotion)
        found = Recordings(
            extractor=self.extractor,
            names=(*rest.names, name)[-MOST:],
            rows=torch.cat([rest.rows, kept[None]])[-MOST:],
            emotions=more[-MOST:],
        )
        return found, name

    def without(self, name: str) -> "Recordings":
        """Without one recording, if it is there."""
        left = [place for place, other in enumerate(self.names) if other != name]
        return Recordings(
            extractor=self.extractor,
            names=tuple(self.names[place] for place in left),
            rows=self.rows[left],
            emotions=tuple(self.emotions[place] for place in left if self.emotions),
        )

    def write(self, vault: Vault, place: str) -> None:
        """Keep all of it, in one atomic write."""
        words = {"extractor": self.extractor, "names": list(self.names)}
        if self.emotions:
            words["emotions"] = list(self.emotions)
        about = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
        vault.put_tensors(place, {"rows": self.rows, "about": about})


class Learner:
    """Learns of one user, under one model, from recordings in one place of their vault.

    Args:
        folder: The user's device folder.
        bundle: The model.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault is damaged, or its key is not its owner's alone.
    """

    place: ClassVar[str]

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._folder: Final = folder
        self._vault: Final = vault_of(folder)
        self._bundle: Final = bundle

    @property
    def heard(self) -> tuple[str, ...]:
        """Names of the recordings that were learned from, the oldest first."""
        return self._kept().names

    def _kept(self) -> Recordings:
        """What this model's extractor heard."""
        width = int(self._bundle.front.mean.shape[0])
        return read(self._vault, self.place).of(self._bundle.extractor, width)

    def _keep(self, features: Tensor, emotion: str | None = None) -> str:
        """One recording more, under the name that comes back; nothing where it is there already."""
        kept = self._kept()
        found, name = kept.added(features, emotion)
        if found is not kept:
            found.write(self._vault, self.place)
        return name


def read(vault: Vault, place: str) -> Recordings:
    """What :meth:`Recordings.write` kept.

    Raises:
        PrivacyError: It is damaged.
    """
    if not vault.has(place):
        return _none("", 0)
    kept = vault.get_tensors(place)
    try:
        about = json.loads(bytes(kept["about"].tolist()))
        found = Recordings(
            extractor=str(about["extractor"]),
            names=tuple(about["names"]),
            rows=kept["rows"],
            emotions=tuple(about.get("emotions", ())),
        )
        if len(found.rows) != len(found.names) or len(found.emotions) not in (0, len(found.names)):
            raise ValueError("parts of different lengths")
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(f"what the device heard is damaged ({error}); delete {place}") from error
    return found


def vault_of(folder: Path) -> Vault:
    """A device's vault.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault is damaged, or its key is not its owner's alone.
    """
    if not Device.exists(folder):
        raise SettingError(f"{folder} holds no device; name the folder of one")
    return Vault.open(folder / "vault")


def check(features: Tensor, width: Sequence[int]) -> None:
    """Refuse features that nothing can be learned from, with a ``ModelError``."""
    if features.shape != tuple(width) or not bool(features.isfinite().all()):
        raise ModelError(
            f"features of shape {tuple(features.shape)}; {tuple(width)} finite numbers are "
            "needed: nothing was learned"
        )


def _none(extractor: str, width: int) -> Recordings:
    """Nothing kept."""
    return Recordings(extractor=extractor, names=(), rows=torch.zeros(0, width))
