"""An exported model as a package for torch, so that a device can learn with it.

The graph holds all that a package needs but the statistics of public speakers: of those the record
keeps one number, how many utterances of a voice weigh as much as the population's mean does, which
is what :class:`~sottovoce.client.recognition.onnx_recogniser.OnnxRecogniser` shrinks by too.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from torch import Tensor

from sottovoce.shared.calibration import prior_from_file
from sottovoce.shared.errors import ModelError
from sottovoce.shared.exported.exported_model import ExportedModel, ExportedRecord, is_exported
from sottovoce.shared.models.model_folder import ONNX_FILE, find_model, read_model_folder
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
from sottovoce.shared.speaker.normalisation import SpeakerStatistics, default_statistics
from sottovoce.shared.speaker.unlabelled_adaptation import BETWEEN_VARIANCE_FACTOR

_LAYERS: Final = ("hidden/weight", "hidden/bias", "head/weight", "head/bias")
"""The shared model's own weights in a graph, in the order of the flat vector."""


def open_package(model: str | Path, *, trusted_key: str = "") -> ModelPackage:
    """Open a model for torch, whether it was exported or not.

    Args:
        model: A run folder, the model in it, or what ``sottovoce export`` wrote.
        trusted_key: Public key that must have signed it, 64 hexadecimal digits; "" asks for no
            signature.

    Raises:
        ModelError: The model is missing, damaged, or not signed by the key.
    """
    folder = find_model(model)
    if not is_exported(folder):
        return ModelPackage.load(folder, trusted_key=trusted_key)
    # Verified and run first: what cannot predict is nothing to learn with.
    record = ExportedModel.load(folder, trusted_key=trusted_key).record
    graph = read_model_folder(folder, trusted_key=trusted_key).files[ONNX_FILE]
    return read_exported_package(record, graph)


def read_exported_package(record: ExportedRecord, graph: bytes) -> ModelPackage:
    """Read the package of an exported model from its graph.

    Args:
        record: Content of ``model.json``.
        graph: Content of ``model.onnx``, of the same model.

    Returns:
        A package that gives the graph's logits from the graph's features; its speaker statistics
        are alike in all inputs.

    Raises:
        ModelError: A graph without the weights that ``sottovoce export`` names, or of other sizes.
    """
    try:
        content = onnx.load_model_from_string(graph).graph
        weights = _read_weights(content)
        return _build_package(record, weights, _read_row_norm(content))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{ONNX_FILE} holds no model that a device can learn with ({error}); export it anew"
        ) from error


def _build_package(
    record: ExportedRecord, weights: Mapping[str, Tensor], row_norm: float
) -> ModelPackage:
    """Put the package together; it checks its parts itself."""
    matrix = weights["projection/matrix"]
    hidden = weights.get("hidden/weight")
    basis = {}
    if record.basis_tag:
        basis = {"basis.centre": weights["basis/centre"], "basis.matrix": weights["basis/matrix"].T}
    known = record.familiar_speech
    return ModelPackage(
        labels=record.labels,
        extractor=record.extractor,
        feature_version=record.feature_version,
        unknown_voice_temperature=record.unknown_voice_temperature,
        spec=ModelSpec(
            kind="linear" if hidden is None else "mlp",
            inputs=matrix.shape[1],
            classes=len(record.labels),
            # The graph's bias is multiplied by its constant input already.
            bias_feature=1.0,
            hidden=1 if hidden is None else hidden.shape[1],
        ),
        weights=torch.cat([_flatten(weights[name]) for name in _LAYERS if name in weights]),
        projection=PublicProjection(
            mean=weights["projection/mean"], matrix=matrix, row_norm=row_norm
        ),
        centre=torch.tensor(record.centre),
        speaker_statistics=_speaker_statistics(record),
        prior=prior_from_file(record.prior, basis),
        subtracts_user_mean=record.subtracts_user_mean,
        model_hash=record.model_hash,
        familiar_speech=None
        if known is None
        else FamiliarSpeech(
            mean=torch.tensor(known.mean),
            scale=torch.tensor(known.scale),
            limit=torch.tensor([known.limit]),
        ),
    )


def _read_weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Read all weights as float32, by name; those of 8 bits are unfolded by their scales."""
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found = {}
    for name, array in arrays.items():
        values = array.astype(np.float32) * arrays.get(f"{name}/scale", np.float32(1))
        found[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    return found


def _flatten(weight: Tensor) -> Tensor:
    """One weight as torch orders it: a graph's matrices are transposed."""
    return (weight.T if weight.dim() == 2 else weight).reshape(-1)


def _read_row_norm(graph: onnx.GraphProto) -> float:
    """Read to what length rows are scaled; 0 where they are not."""
    nodes = {output: node for node in graph.node for output in node.output}
    numbers = {one.name: one for one in graph.initializer}
    for node in graph.node:
        below = nodes.get(node.input[-1]) if node.op_type == "Div" else None
        # The one division by a length that is kept from zero; encoders divide by deviations.
        if below is not None and below.op_type == "Max":
            return float(onnx.numpy_helper.to_array(numbers[node.input[0]]))
    return 0.0


def _speaker_statistics(record: ExportedRecord) -> SpeakerStatistics:
    """Statistics that shrink a voice's mean as the record says."""
    # Centred projections are scaled to about 1; what counts is the ratio of the two variances.
    usual = default_statistics(len(record.centre))
    ratio = record.voice_prior_utterances * BETWEEN_VARIANCE_FACTOR
    return replace(usual, within=usual.within * ratio, neutral_within=usual.neutral_within * ratio)
