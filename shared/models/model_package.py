"""Model package: everything that turns features into probabilities, and nothing else.

A folder of ``model.safetensors`` with the tensors, ``model.json`` with labels and settings, a card
for people, and a manifest with the SHA-256 of each file. A folder whose files do not belong
together is refused. Folders of earlier releases have no manifest; they are read with a warning,
because devices hold heads that are bound to them, and a manifest alone stops no forger: who needs
to know whose a model is pins its signer's key, and then a folder without a manifest is refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sottovoce.shared import codec
from sottovoce.shared.calibration import HeadPrior, prior_from_file
from sottovoce.shared.errors import ModelError, SottovoceError
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.shared.models.model_folder import (
    MANIFEST_FILE,
    METADATA_FILE,
    WEIGHTS_FILE,
    read_model_folder,
    write_model_folder,
)
from sottovoce.shared.models.model_record import (
    SCHEMA,
    ModelRecord,
    decode_record,
    load_tensors,
)
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.printable import get_logger
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
from sottovoce.shared.speaker.neutral_direction import validate_direction
from sottovoce.shared.speaker.normalisation import SpeakerStatistics, average_frames

LOG = get_logger("sottovoce.models")

_NEUTRAL_DIRECTION = "neutral_direction"
_STATISTICS_PREFIX = "speaker_statistics."
_FAMILIAR_PREFIX = "familiar_speech."


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
        familiar_speech: Where public speech lies in projected space; None in models of earlier
            releases and in those without public corpora, whose answers to other sounds nothing
            tempers.
        feature_version: Version of the features on which it was trained.
        unknown_voice_temperature: What log probabilities are divided by while nothing is known of a
            voice and its microphone, at least 1.

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
    familiar_speech: FamiliarSpeech | None = None
    feature_version: int = FEATURE_VERSION
    unknown_voice_temperature: float = 1.0

    def __post_init__(self) -> None:
        inputs, classes = self.projection.output_size, len(self.labels)
        fits = {
            "labels": classes == self.spec.classes == len(set(self.labels)),
            "projection": inputs == self.spec.inputs,
            "centre": self.centre.shape == (inputs,) and bool(self.centre.isfinite().all()),
            "speaker_statistics": self.speaker_statistics.between.shape == (inputs,)
            and all(
                bool(tensor.isfinite().all())
                for tensor in self.speaker_statistics.to_tensors().values()
            ),
            "familiar_speech": self.familiar_speech is None
            or self.familiar_speech.mean.shape == (inputs,),
            "prior": self.prior.mean.classes == classes,
            "basis": self.prior.basis is None or self.prior.basis.width == self._width,
            "weights": self.weights.dtype == torch.float32,
            "unknown_voice_temperature": 1 <= self.unknown_voice_temperature < math.inf,
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

    def measure_unfamiliarity(self, features: Tensor, frames: Tensor, mean: Tensor) -> float:
        """Measure how far a recording lies from the speech that the model knows.

        Args:
            features: Of one recording, shape (1, features) or (1, frames, features).
            frames: Its real frames, shape (1,), int64.
            mean: The user's mean, or ``centre``, shape (inputs,).

        Returns:
            In units of the limit; 0 where the model has no statistics of public speech.
        """
        if self.familiar_speech is None:
            return 0.0
        projected = average_frames(self.projection.project_features(features), frames)
        return self.familiar_speech.measure_unfamiliarity(projected[0], mean)

    def save(
        self,
        folder: Path,
        *,
        card: bytes | None = None,
        fold: str = "",
        trained_without: tuple[str, ...] = (),
    ) -> str:
        """Write the model folder, the manifest last, so that an incomplete one is refused.

        Args:
            folder: Made where it is missing; a signature in it is removed.
            card: Content of ``MODEL_CARD.md``; None writes none.
            fold: The fold that the model is of, in a run.
            trained_without: Speakers that the model was not trained on, in a run.

        Returns:
            SHA-256 of the manifest, and so of the whole folder: 64 hexadecimal digits.
        """
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
        if self.familiar_speech is not None:
            for name, tensor in self.familiar_speech.to_tensors().items():
                tensors[_FAMILIAR_PREFIX + name] = tensor
        # Copies: safetensors refuses tensors that share memory, as default statistics do.
        data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
        record = ModelRecord(
            schema=SCHEMA,
            labels=self.labels,
            extractor=self.extractor,
            feature_version=self.feature_version,
            unknown_voice_temperature=self.unknown_voice_temperature,
            model=self.spec.to_dict(),
            row_norm=self.projection.row_norm,
            subtracts_user_mean=self.subtracts_user_mean,
            prior=self.prior.as_dict(),
            model_hash=self.model_hash,
            sha256=hashlib.sha256(data).hexdigest(),
            fold=fold,
            trained_without=trained_without,
        )
        text = json.dumps(codec.to_plain(record), indent=1, sort_keys=True) + "\n"
        files = {WEIGHTS_FILE: data, METADATA_FILE: text.encode()}
        return write_model_folder(folder, files | ({"MODEL_CARD.md": card} if card else {}))

    @classmethod
    def load(cls, folder: Path, *, trusted_key: str = "") -> "ModelPackage":
        """Read a model folder of the present schema, or of an earlier one with a warning.

        Args:
            folder: The model folder.
            trusted_key: Public key that must have signed it, 64 hexadecimal digits; "" asks for no
                signature.

        Guarantees:
            - Nothing is downloaded, run or unpickled, whatever the files say.
            - Less than 1 GB of memory is used, and none for what the files only claim.

        Raises:
            ModelError: None there, damaged, altered, of another release, or not signed by the key.
        """
        way_out = "copy the model folder again, or train it anew"
        try:
            content = read_model_folder(folder, trusted_key=trusted_key)
            package = cls._from_files(content.files, has_manifest=bool(content.digest))
        except FileNotFoundError as error:
            raise ModelError(f"{folder} holds no model: no {error.filename}; {way_out}") from error
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder} holds no usable model ({error}); {way_out}") from error
        except SottovoceError as error:
            raise ModelError(f"{folder} holds no usable model: {error}; {way_out}") from error
        if not content.digest:
            LOG.warning(
                "%s was written by an earlier release, without a manifest: nothing shows that "
                "its labels and settings belong to its weights; export the model anew",
                folder,
            )
        return package

    @classmethod
    def _from_files(cls, files: Mapping[str, bytes], *, has_manifest: bool) -> "ModelPackage":
        """Build the package, each part checked against the model's description."""
        if WEIGHTS_FILE not in files:
            raise ModelError("it is an exported model: open it with OnnxRecogniser")
        record = decode_record(files[METADATA_FILE], name=METADATA_FILE)
        if record.schema == SCHEMA and not has_manifest:
            raise ModelError(f"its schema is {SCHEMA}, and its {MANIFEST_FILE} is missing")
        data = files[WEIGHTS_FILE]
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise ModelError(f"{WEIGHTS_FILE} is not the one that {METADATA_FILE} names")
        spec = ModelSpec.from_dict(record.model)
        tensors = load_tensors(data, record, spec)
        package = cls(
            labels=record.labels,
            extractor=record.extractor,
            feature_version=record.feature_version,
            unknown_voice_temperature=record.unknown_voice_temperature,
            spec=spec,
            weights=tensors["weights"],
            projection=PublicProjection(
                mean=tensors["projection.mean"],
                matrix=tensors["projection.matrix"],
                row_norm=record.row_norm,
            ),
            centre=tensors["centre"],
            speaker_statistics=SpeakerStatistics.from_tensors(
                _with_prefix(tensors, _STATISTICS_PREFIX)
            ),
            prior=prior_from_file(record.prior, tensors),
            subtracts_user_mean=record.subtracts_user_mean,
            model_hash=record.model_hash,
            neutral_direction=tensors.get(_NEUTRAL_DIRECTION),
            familiar_speech=FamiliarSpeech.from_tensors(_with_prefix(tensors, _FAMILIAR_PREFIX)),
        )
        package.build_network()  # refuses weights that are not finite
        return package


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
