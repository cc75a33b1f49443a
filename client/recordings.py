"""Recordings that a device keeps to learn from: features, sealed in its vault, and never sound.

One row of features each, under a hash of them as its name: a recording that comes twice is kept
once. What several extractors heard lies side by side, because a model reads only its own
extractor's. Of each the newest 200 are kept; older ones make room.
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
"""Recordings of one extractor that are kept in one place. More hardly move a mean."""

LARGEST: Final = 1e9
"""Largest number that is learned from. Speech stays far below; what squares and sums make of it
stays far below the end of float32."""

_ID_DIGITS: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recordings:
    """What one extractor heard, in one place of a vault, the oldest first.

    Attributes:
        extractor: What computed the features.
        names: Of the recordings.
        rows: Their features, shape (recordings, features), float32.
        emotions: What their user said they were; none at all where nobody was asked.
    """

    extractor: str
    names: tuple[str, ...]
    rows: Tensor
    emotions: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        """What a model must read to learn from these: extractor and width."""
        return self.extractor, int(self.rows.shape[1])

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


class Learner:
    """Learns of one user, under one model, from recordings in one place of their vault.

    Args:
        folder: The user's device folder.
        bundle: The model.
        vault: The device's, opened; None opens it, which a passphrase forbids.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault is damaged, or its key is not its owner's alone.
    """

    place: ClassVar[str]

    def __init__(self, folder: Path, bundle: Bundle, *, vault: Vault | None = None) -> None:
        self._folder: Final = folder
        self._vault: Final = vault_of(folder, vault)
        self._bundle: Final = bundle

    @property
    def heard(self) -> tuple[str, ...]:
        """Names of the recordings that were learned from, the oldest first."""
        return self._kept().names

    def _kept(self) -> Recordings:
        """What this model's extractor heard."""
        width = int(self._bundle.front.mean.shape[0])
        return of(read(self._vault, self.place), self._bundle.extractor, width)

    def _keep(self, features: Tensor, emotion: str | None = None) -> str:
        """One recording more, under the name that comes back; nothing where it is there already.

        The caller holds the place alone: what another program adds meanwhile would be lost.
        """
        kept = self._kept()
        found, name = kept.added(features, emotion)
        if found is not kept:
            others = [part for part in read(self._vault, self.place) if part.key != kept.key]
            write(self._vault, self.place, [*others, found])
        return name


def of(parts: Sequence[Recordings], extractor: str, width: int) -> Recordings:
    """One extractor's; another's features, or those of another width, tell a model nothing."""
    mine = [part for part in parts if part.key == (extractor, width)]
    return mine[0] if mine else _none(extractor, width)


def names(parts: Sequence[Recordings]) -> tuple[str, ...]:
    """Names of all recordings, whatever heard them; each extractor's oldest first."""
    return tuple(name for part in parts for name in part.names)


def read(vault: Vault, place: str) -> tuple[Recordings, ...]:
    """What :func:`write` kept.

    Raises:
        PrivacyError: It is damaged.
    """
    if not vault.has(place):
        return ()
    kept = vault.get_tensors(place)
    try:
        about = json.loads(bytes(kept["about"].tolist()))
        if isinstance(about, dict):  # once there was room for one extractor alone
            return (_part(about, kept["rows"]),)
        return tuple(_part(words, kept[f"rows.{at}"]) for at, words in enumerate(about))
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(f"what the device heard is damaged ({error}); delete {place}") from error


def write(vault: Vault, place: str, parts: Sequence[Recordings]) -> None:
    """Keep all of it, in one atomic write; an order of its own tells nothing of what is gone."""
    kept = sorted((part for part in parts if part.names), key=lambda part: part.key)
    words = [
        {"extractor": part.extractor, "names": part.names, "emotions": part.emotions}
        for part in kept
    ]
    about = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    rows = {f"rows.{at}": part.rows for at, part in enumerate(kept)}
    vault.put_tensors(place, {"about": about, **rows})


def vault_of(folder: Path, vault: Vault | None = None) -> Vault:
    """A device's vault.

    Args:
        folder: The user's device folder.
        vault: The same, opened already.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault is damaged, or its key is not its owner's alone.
    """
    if not Device.exists(folder):
        raise SettingError(f"{folder} holds no device; name the folder of one, or leave it out")
    return vault or Vault.open(folder / "vault")


def check(features: Tensor, width: Sequence[int]) -> None:
    """Refuse features that nothing can be learned from, with a ``ModelError``."""
    if features.shape != tuple(width) or not bool(features.isfinite().all()):
        raise ModelError(
            f"features of shape {tuple(features.shape)}; {tuple(width)} finite numbers are "
            "needed: nothing was learned"
        )
    if not bool(usable(features)):
        raise ModelError(
            f"features of up to {float(features.abs().max()):.3g}; at most {LARGEST:g} is learned "
            "from: record again, nothing was learned"
        )


def usable(rows: Tensor) -> Tensor:
    """Which rows, shape (..., numbers), hold only numbers that can be learned from, shape (...)."""
    return (rows.abs() <= LARGEST).all(-1)  # NaN is not


def _part(words: dict[str, object], rows: Tensor) -> Recordings:
    """One extractor's, as it was kept."""
    names, emotions = words["names"], words.get("emotions", ())
    if not isinstance(names, list) or not isinstance(emotions, list | tuple) or rows.dim() != 2:
        raise TypeError("parts of other kinds")
    if len(rows) != len(names) or len(emotions) not in (0, len(names)):
        raise ValueError("parts of different lengths")
    return Recordings(
        extractor=str(words["extractor"]), names=tuple(names), rows=rows, emotions=tuple(emotions)
    )


def _none(extractor: str, width: int) -> Recordings:
    """Nothing kept."""
    return Recordings(extractor=extractor, names=(), rows=torch.zeros(0, width))
