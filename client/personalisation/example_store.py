"""Recordings that a device stores to learn from: features, sealed in its vault, and never sound.

One row of features each, under a hash of them as its name: a recording that comes twice is stored
once. The features of several extractors are stored side by side, because a model reads only its own
extractor's. Of what nobody labelled the newest 200 of each are kept; older ones make room. Labelled
ones may train, so none makes room for another: one recording more must be one change, not two.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor

from sottovoce.client.device.consent import Purpose, load_consent
from sottovoce.client.device.device import Device
from sottovoce.client.device.stored_clips import name_recording
from sottovoce.client.device.vault import FileVault, Vault
from sottovoce.shared.errors import ModelError, PrivacyError, SettingError
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.shared.models.model_package import ModelPackage

MAX_EXAMPLES: Final = 200
"""Recordings of one extractor that one blob holds. More hardly move a mean."""

MAX_LABELLED: Final = 2000
"""Labelled recordings of one extractor that one blob holds. A further one is refused."""

MAX_FEATURE_VALUE: Final = 1e9
"""Largest number that is learned from. Speech stays far below; what squares and sums make of it
stays far below the end of float32."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExampleStore:
    """Examples of one extractor, in one blob of a vault, the oldest first.

    Attributes:
        extractor: What computed the features.
        names: Of the recordings.
        features: Their features, shape (recordings, features), float32.
        emotions: What their user said they were; none at all where nobody was asked.
        feature_version: Version of the features.
    """

    extractor: str
    names: tuple[str, ...]
    features: Tensor
    emotions: tuple[str, ...] = ()
    feature_version: int = FEATURE_VERSION

    @property
    def feature_space(self) -> tuple[str, int, int]:
        """Extractor, version and width that a model must read to learn from these examples."""
        return self.extractor, self.feature_version, int(self.features.shape[1])

    def with_example(self, row: Tensor, emotion: str | None = None) -> tuple["ExampleStore", str]:
        """Add a recording, or give one that is there another emotion; the store and its name.

        Raises:
            SettingError: It has a label, and there are ``MAX_LABELLED`` already.
        """
        features = row.detach().float().contiguous()
        # The name is a hash of the features: the same recording has the same name, and is stored
        # once.
        name = name_recording(features)
        # A second label replaces the first.
        rest = self.without_example(name) if emotion is not None else self
        if name in rest.names:
            return self, name
        if emotion is not None and len(rest.names) >= MAX_LABELLED:
            raise SettingError(
                f"{len(rest.names)} recordings are labelled, the most that are kept; forget some "
                "first (sottovoce device list, sottovoce device forget)"
            )
        # The newest come last: of those without a label the oldest make room.
        start = 0 if emotion is not None else max(0, len(rest.names) + 1 - MAX_EXAMPLES)
        found = replace(
            self,
            names=(*rest.names, name)[start:],
            features=torch.cat([rest.features, features[None]])[start:],
            emotions=() if emotion is None else (*rest.emotions, emotion),
        )
        return found, name

    def without_example(self, name: str) -> "ExampleStore":
        """Remove one recording; an unknown name changes nothing."""
        remaining = [index for index, other in enumerate(self.names) if other != name]
        return replace(
            self,
            names=tuple(self.names[index] for index in remaining),
            features=self.features[remaining],
            emotions=tuple(self.emotions[index] for index in remaining if self.emotions),
        )


class VaultLearner:
    """Learns of one user, under one model, from recordings in one blob of their vault.

    Args:
        folder: The user's device folder.
        package: The model.
        vault: The device's, opened; None opens it, which a passphrase forbids.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault is damaged, or its key is not its owner's alone.
    """

    blob_name: ClassVar[str]

    def __init__(
        self, folder: Path, package: ModelPackage, *, vault: FileVault | None = None
    ) -> None:
        self._folder: Final = folder
        self._vault: Final = open_vault(folder, vault)
        self._package: Final = package

    def _require_consent(self) -> None:
        """Refuse to learn from a user who does not consent to it."""
        load_consent(self._folder, self._vault).require(Purpose.PERSONALISE)

    @property
    def example_names(self) -> tuple[str, ...]:
        """Names of the recordings that were learned from, the oldest first."""
        return self._load_store().names

    def _load_store(self) -> ExampleStore:
        """Load the recordings of this model's extractor."""
        width = int(self._package.projection.mean.shape[0])
        return select_store(
            read_stores(self._vault, self.blob_name), self._package.extractor, width
        )

    def _add_example(self, features: Tensor, emotion: str | None = None) -> str:
        """Add one recording, and return its name; nothing happens where it is there already.

        The caller holds the blob's lock: what another program adds meanwhile would be lost.
        """
        store = self._load_store()
        extended, name = store.with_example(features, emotion)
        if extended is not store:
            others = [
                part
                for part in read_stores(self._vault, self.blob_name)
                if part.feature_space != store.feature_space
            ]
            write_stores(self._vault, self.blob_name, [*others, extended])
        return name


def select_store(stores: Sequence[ExampleStore], extractor: str, width: int) -> ExampleStore:
    """Select one extractor's store; features of another, or computed otherwise, say nothing."""
    empty = ExampleStore(extractor=extractor, names=(), features=torch.zeros(0, width))
    return next((part for part in stores if part.feature_space == empty.feature_space), empty)


def list_names(stores: Sequence[ExampleStore]) -> tuple[str, ...]:
    """List the names of all recordings, of all extractors; each extractor's oldest first."""
    return tuple(name for part in stores for name in part.names)


def read_stores(vault: Vault, blob_name: str) -> tuple[ExampleStore, ...]:
    """Read what :func:`write_stores` wrote.

    Raises:
        PrivacyError: It is damaged.
    """
    if not vault.has_blob(blob_name):
        return ()
    tensors = vault.get_tensors(blob_name)
    try:
        about = json.loads(bytes(tensors["about"].tolist()))
        if isinstance(about, dict):  # once there was room for one extractor alone
            return (_parse_store(about, tensors["rows"]),)
        return tuple(_parse_store(words, tensors[f"rows.{at}"]) for at, words in enumerate(about))
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"what the device learned from is damaged ({error}); delete {blob_name}"
        ) from error


def write_stores(vault: Vault, blob_name: str, stores: Sequence[ExampleStore]) -> None:
    """Write all stores at once, atomically, in an order that tells nothing of what is gone."""
    # Sorted: the order of writing would tell which extractor was used last.
    ordered = sorted((part for part in stores if part.names), key=lambda part: part.feature_space)
    words = [
        {
            "extractor": part.extractor,
            "feature_version": part.feature_version,
            "names": part.names,
            "emotions": part.emotions,
        }
        for part in ordered
    ]
    about = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    rows = {f"rows.{at}": part.features for at, part in enumerate(ordered)}
    vault.put_tensors(blob_name, {"about": about, **rows})


def open_vault(folder: Path, vault: FileVault | None = None) -> FileVault:
    """Open a device's vault.

    Args:
        folder: The user's device folder.
        vault: The same, opened already.

    Raises:
        SettingError: There is no device.
        PrivacyError: The vault is damaged, or its key is not its owner's alone.
    """
    if not Device.exists(folder):
        raise SettingError(f"{folder} holds no device; name the folder of one, or leave it out")
    return vault or FileVault.open(folder / "vault")


def check_features(features: Tensor, width: Sequence[int]) -> None:
    """Refuse features that nothing can be learned from, with a ``ModelError``."""
    if features.shape != tuple(width) or not bool(features.isfinite().all()):
        raise ModelError(
            f"features of shape {tuple(features.shape)}; {tuple(width)} finite numbers are "
            "needed: nothing was learned"
        )
    if not bool(usable_rows(features)):
        raise ModelError(
            f"features of up to {float(features.abs().max()):.3g}; at most {MAX_FEATURE_VALUE:g} "
            "is learned from: record again, nothing was learned"
        )


def usable_rows(rows: Tensor) -> Tensor:
    """Mask of the rows, (..., numbers), whose numbers can all be learned from, shape (...)."""
    return (rows.abs() <= MAX_FEATURE_VALUE).all(-1)  # NaN is not


def _parse_store(words: dict[str, object], rows: Tensor) -> ExampleStore:
    """Parse one extractor's store."""
    names, emotions = words["names"], words.get("emotions", ())
    version = words.get("feature_version", 1)  # earlier releases wrote none
    if not isinstance(version, int):
        raise TypeError("a version that is none")
    if not isinstance(names, list) or not isinstance(emotions, list | tuple) or rows.dim() != 2:
        raise TypeError("parts of other kinds")
    if len(rows) != len(names) or len(emotions) not in (0, len(names)):
        raise ValueError("parts of different lengths")
    return ExampleStore(
        extractor=str(words["extractor"]),
        names=tuple(names),
        features=rows,
        emotions=tuple(emotions),
        feature_version=version,
    )
