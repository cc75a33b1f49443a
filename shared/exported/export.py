"""Export of a trained model: its graph is written, and its answers are compared with torch's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import audio, calibration
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import ModelError
from sottovoce.shared.exported.exported_model import (
    ExportedModel,
    ExportedRecord,
    FamiliarRecord,
    count_frames,
    encode_record,
)
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.exported.model_graph import build_graph
from sottovoce.shared.features import whisper
from sottovoce.shared.models.model_folder import METADATA_FILE, ONNX_FILE, write_model_folder
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.speaker.unlabelled_adaptation import BETWEEN_VARIANCE_FACTOR

CARD_FILE = "MODEL_CARD.md"

LARGEST_DIFFERENCE = {
    WeightType.FLOAT32: 1e-4,
    WeightType.FLOAT16: 1e-2,
    WeightType.INT8: 0.1,
}
"""Largest difference of a probability from torch's that an export may have, by type of weights."""

_CHECKED_S = (0.04, 1.7, 31.0)
"""Lengths of the sounds that are compared: padded, usual, and in two windows."""

_CARD = """
## Exported

This folder holds the model as one ONNX graph, weights in {weights}. Its probabilities differed from
PyTorch's by at most {difference:.1e} on sounds made up for the comparison. The user's own mean and
head are applied outside of it.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """Outcome of an export.

    Attributes:
        digest: SHA-256 of the manifest, 64 hexadecimal digits.
        graph_bytes: Size of the graph.
        largest_difference: Largest difference of a probability from torch's.
    """

    digest: str
    graph_bytes: int
    largest_difference: float


def export_model(
    package: ModelPackage, folder: Path, *, weights: WeightType, card: bytes = b""
) -> ExportReport:
    """Write a model's ONNX folder, if its answers are those of the model.

    Args:
        package: The model.
        folder: Made where it is missing; what an earlier export left in it is replaced.
        weights: How weights are kept; arithmetic is in float32 whatever it is.
        card: The model's card, which the export's figures are added to; b"" has none.

    Returns:
        Hash, size, and largest difference.

    Raises:
        ModelError: A model that has no graph yet, or one whose probabilities differ from torch's by
            more than ``LARGEST_DIFFERENCE``; nothing was written.
    """
    graph = build_graph(package, whisper.load_encoder(), weights)
    record = describe_export(package, weights)
    difference = measure_difference(package, ExportedModel(record, graph))
    limit = LARGEST_DIFFERENCE[weights]
    # Written so that NaN fails it.
    if not difference <= limit:
        raise ModelError(
            f"probabilities of the {weights} graph differ by {difference:.2g} from the model's, "
            f"{limit:g} may be: export it as {WeightType.FLOAT32}"
        )
    added = _CARD.format(weights=weights.value, difference=difference).encode()
    files = {ONNX_FILE: graph, METADATA_FILE: encode_record(record), CARD_FILE: card + added}
    digest = write_model_folder(folder, files)
    return ExportReport(digest=digest, graph_bytes=len(graph), largest_difference=difference)


def describe_export(package: ModelPackage, weights: WeightType) -> ExportedRecord:
    """Describe a model in the record of its export."""
    basis, known = package.prior.basis, package.familiar_speech
    familiar = None
    if known is not None:
        familiar = FamiliarRecord(
            mean=tuple(known.mean.tolist()),
            scale=tuple(known.scale.tolist()),
            limit=float(known.limit),
        )
    return ExportedRecord(
        labels=package.labels,
        extractor=package.extractor,
        feature_version=package.feature_version,
        weights=weights.value,
        subtracts_user_mean=package.subtracts_user_mean,
        centre=tuple(package.centre.tolist()),
        prior=package.prior.as_dict(),
        basis_tag=basis.tag.hex() if basis else "",
        familiar_speech=familiar,
        model_hash=package.model_hash,
        unknown_voice_temperature=package.unknown_voice_temperature,
        voice_prior_utterances=_voice_prior_utterances(package),
    )


def _voice_prior_utterances(package: ModelPackage) -> float:
    """How many utterances of a voice weigh as much as the population's mean does."""
    statistics = package.speaker_statistics
    between = BETWEEN_VARIANCE_FACTOR * statistics.between.clamp(min=1e-12)
    return float((statistics.within / between).median())


def measure_difference(package: ModelPackage, exported: ExportedModel) -> float:
    """Measure the largest difference of a probability between a model and its export.

    Sounds are made up: noise that swells and fades, of lengths that take every way through the
    graph, pooled over some of their frames.
    """
    generator = torch.Generator().manual_seed(0)
    worst = []
    for seconds in _CHECKED_S:
        times = torch.arange(round(seconds * audio.SAMPLE_RATE))
        swelling = 0.05 * (1 + torch.sin(times / 3_000))
        samples = torch.randn(len(times), generator=generator) * swelling
        spoken = torch.rand(count_frames(len(samples)), generator=generator) > 0.3
        spoken[:2] = True
        found = exported.run(samples.numpy(), spoken.numpy(), exported.centre)
        chances = exported.head.compute_probabilities(found.logits)
        apart = _expected(package, samples, spoken) - torch.from_numpy(chances)
        worst.append(float(apart.abs().max()))
    return float(np.max(worst))


def _expected(package: ModelPackage, samples: Tensor, spoken: Tensor) -> Tensor:
    """Probabilities by torch for an unknown user, shape (classes,)."""
    outputs = whisper.load_encoder()(Signal(samples, audio.SAMPLE_RATE))
    features = whisper.pool_statistics(outputs, spoken)[None]
    one = torch.ones(1, dtype=torch.int64)
    logits, coordinates = package.logits_and_coordinates(features, one, package.centre)
    head = package.prior.mean
    return torch.softmax(calibration.calibrate_logits(head, logits, coordinates).double(), 1)[0]
