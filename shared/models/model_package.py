"""Model package: everything that turns features into probabilities, and nothing else.

Two files: ``model.safetensors`` with the tensors, ``model.json`` with labels, settings and the
SHA-256 of the tensors. A package whose files do not belong together is refused.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.shared.atomic_files import replace_file, replace_text
from sottovoce.shared.calibration import HeadPrior, prior_from_file
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.speaker.neutral_direction import validate_direction
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

SCHEMA = 2
_WEIGHTS_FILE, _METADATA_FILE = "model.safetensors", "model.json"
_NEUTRAL_DIRECTION = "neutral_direction"
_STATISTICS_PREFIX = "speaker_statistics."

_SCHEMA_1_METADATA = {"length": "row_norm", "user_mean": "subtracts_user_mean"}
_SCHEMA_1_TENSORS = {
    "front.mean": "projection.mean",
    "front.matrix": "projection.matrix",
    "neutral": _NEUTRAL_DIRECTION,
    "population.between": _STATISTICS_PREFIX + "between",
    "population.within": _STATISTICS_PREFIX + "within",
    "population.neutral_offset": _STATISTICS_PREFIX + "neutral_offset",
    "population.neutral_within": _STATISTICS_PREFIX + "neutral_within",
    "population.offset_spread": _STATISTICS_PREFIX + "offset_variance",
}
"""Names of schema 1, which devices still hold, and their present names."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelPackage:
    """Trained model with its public projection, statistics and head prior.

    Attributes:
        labels: Emotions in the order of the classes.
        extractor: Name of the feature extractor.
        spec: Description of the shared model.
        weights: Shape (params,), float32.
        projection: The public projection of features.
        centre: Mean of the training population, shape (inputs,), float32.
        speaker_statistics: Variation between and within public speakers.
        prior: Prior of users' heads.
        subtracts_user_mean: Whether the model expects the user's mean to be subtracted.
        model_hash: SHA-256 to which heads are bound, 64 hexadecimal digits.
        neutral_direction: Unit vector from a speaker's mean towards neutral speech, shape
            (inputs,); None if the model gives none.

    Raises:
        ModelError: Parts that do not fit each other.
    """

    labels: tuple[str, ...]
    extractor: str
    spec: ModelSpec
    weights: Tensor
    projection: PublicProjection
    centre: Tensor
    speaker_statistics: SpeakerStatistics
    prior: HeadPrior
    subtracts_user_mean: bool
    model_hash: str
    neutral_direction: Tensor | None = None

    def __post_init__(self) -> None:
        inputs, classes = self.projection.output_size, len(self.labels)
        fits = {
            "labels": classes == self.spec.classes == len(set(self.labels)),
            "projection": inputs == self.spec.inputs,
            "centre": self.centre.shape == (inputs,) and bool(self.centre.isfinite().all()),
            "speaker_statistics": self.speaker_statistics.between.shape == (inputs,),
            "prior": self.prior.mean.classes == classes,
            "basis": self.prior.basis is None or self.prior.basis.width == self._width,
            "weights": self.weights.dtype == torch.float32,
            "model_hash": re.fullmatch("[0-9a-f]{64}", self.model_hash) is not None,
        }
        # All faults at once: whoever copies files by hand wants to know every one.
        unfit = [name for name, good in fits.items() if not good]
        if unfit:
            raise ModelError(
                f"{', '.join(unfit)} of the model do not fit a {self.spec.kind} of "
                f"{self.spec.inputs} inputs and {self.spec.classes} classes"
            )
        validate_direction(self.neutral_direction, inputs)

    @property
    def _width(self) -> int:
        """How many numbers the last layer reads."""
        return int(build_network(self.spec, seed=0).head.in_features)

    def build_network(self) -> Network:
        """Build the network with the package's weights, ready to predict."""
        network = build_network(self.spec, seed=0)
        load_parameters(network, self.weights)
        return network.eval()

    def compute_logits(
        self, features: Tensor, frames: Tensor, mean: Tensor, *, network: Network | None = None
    ) -> Tensor:
        """Compute the shared model's logits, shape (utterances, classes), before any head.

        Args:
            features: Shape (utterances, features) or (utterances, frames, features).
            frames: Real frames of each utterance, shape (utterances,), int64.
            mean: The user's mean, shape (inputs,); ``centre`` for an unknown user.
            network: From :meth:`build_network`, for callers that predict often.
        """
        return self.logits_and_coordinates(features, frames, mean, network=network)[0]

    def logits_and_coordinates(
        self, features: Tensor, frames: Tensor, mean: Tensor, *, network: Network | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute logits, and the coordinates in the prior's basis that heads need.

        Args:
            features: As in :meth:`compute_logits`.
            frames: Likewise.
            mean: Likewise.
            network: Likewise.

        Returns:
            Logits, shape (utterances, classes), and coordinates, shape (utterances, rank); None
            where the prior has no basis.
        """
        inputs = self.projection.prepare_inputs(features, mean, frames)
        return self.prior.logits_and_coordinates(network or self.build_network(), inputs, frames)

    def save(self, folder: Path) -> None:
        """Write both files; the metadata last, so that an incomplete package is refused."""
        folder.mkdir(parents=True, exist_ok=True)
        statistics = self.speaker_statistics.to_tensors()
        tensors = {
            "weights": self.weights,
            "projection.mean": self.projection.mean,
            "projection.matrix": self.projection.matrix,
            "centre": self.centre,
        } | {_STATISTICS_PREFIX + name: tensor for name, tensor in statistics.items()}
        tensors |= self.prior.prefixed_basis_tensors()
        if self.neutral_direction is not None:
            tensors[_NEUTRAL_DIRECTION] = self.neutral_direction
        # Copies: safetensors refuses tensors that share memory, as default statistics do.
        data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
        metadata = {
            "schema": SCHEMA,
            "labels": list(self.labels),
            "extractor": self.extractor,
            "model": self.spec.to_dict(),
            "row_norm": self.projection.row_norm,
            "subtracts_user_mean": self.subtracts_user_mean,
            "prior": self.prior.as_dict(),
            "model_hash": self.model_hash,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        replace_file(folder / _WEIGHTS_FILE, data)
        text = json.dumps(metadata, indent=1, sort_keys=True)
        replace_text(folder / _METADATA_FILE, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> "ModelPackage":
        """Read a package of the present schema or of schema 1.

        Raises:
            ModelError: None there, damaged, or of another release.
        """
        way_out = "copy the model folder again, or train it anew"
        try:
            metadata: dict[str, Any] = json.loads((folder / _METADATA_FILE).read_text())
            data = (folder / _WEIGHTS_FILE).read_bytes()
            schema = metadata["schema"]
            if schema not in (1, SCHEMA):
                raise ModelError(f"its schema is {schema}, this release reads 1 and {SCHEMA}")
            if hashlib.sha256(data).hexdigest() != metadata["sha256"]:
                raise ModelError(f"{_WEIGHTS_FILE} is not the one that {_METADATA_FILE} names")
            tensors = load(data)
            if schema == 1:
                metadata, tensors = _from_schema_1(metadata, tensors)
            package = cls(**_fields(metadata, tensors))
            package.build_network()  # refuses weights of another length, or that are not finite
        except FileNotFoundError as error:
            raise ModelError(f"{folder} holds no model: no {error.filename}; {way_out}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ModelError(f"{folder} holds no usable model ({error}); {way_out}") from error
        except (ModelError, SettingError) as error:
            raise ModelError(f"{folder} holds no usable model: {error}; {way_out}") from error
        return package


def _from_schema_1(
    metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of an earlier release under their present names."""
    return (
        {_SCHEMA_1_METADATA.get(name, name): value for name, value in metadata.items()},
        {_SCHEMA_1_TENSORS.get(name, name): tensor for name, tensor in tensors.items()},
    )


def _fields(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The package's fields from its files."""
    projection = PublicProjection(
        mean=tensors["projection.mean"],
        matrix=tensors["projection.matrix"],
        row_norm=float(metadata["row_norm"]),
    )
    statistics = {
        name.removeprefix(_STATISTICS_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_STATISTICS_PREFIX)
    }
    return {
        "labels": tuple(metadata["labels"]),
        "extractor": str(metadata["extractor"]),
        "spec": ModelSpec.from_dict(metadata["model"]),
        "weights": tensors["weights"],
        "projection": projection,
        "centre": tensors["centre"],
        "speaker_statistics": SpeakerStatistics.from_tensors(statistics),
        "prior": prior_from_file(metadata["prior"], tensors),
        "subtracts_user_mean": bool(metadata["subtracts_user_mean"]),
        "model_hash": str(metadata["model_hash"]),
        "neutral_direction": tensors.get(_NEUTRAL_DIRECTION),
    }
