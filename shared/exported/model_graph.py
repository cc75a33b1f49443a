"""The ONNX graph of a trained model: from a waveform to features, inputs, logits and coordinates.

========== ============== ==========================================================================
input      shape          what it is
========== ============== ==========================================================================
samples    (samples,)     mono at 16 kHz, float32, full scale 1, cut to its speech with its margins
spoken     (frames,)      which of the encoder's frames are speech, bool; at least two
mean       (inputs,)      the user's mean, or the population's centre, float32
========== ============== ==========================================================================

``frames`` are 20 ms, rounded up: ceil(floor(max(samples, 800) / 160) / 2).

=========== ============== =========================================================================
output      shape          what it is
=========== ============== =========================================================================
features    (features,)    what the feature extractor gives
projected   (inputs,)      the same behind the public projection; the mean is not subtracted yet
logits      (classes,)     the shared model's, before the user's head
coordinates (rank,)        what a head's adapter weighs; only of models whose heads have a basis
=========== ============== =========================================================================

It may be of any length; what is longer than 30 s is encoded in parts, at 60 MB of memory each.
"""

from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from sottovoce.shared import audio
from sottovoce.shared.calibration.adapter_basis import MAX_COORDINATE
from sottovoce.shared.errors import ModelError
from sottovoce.shared.exported.encoder_graph import EncoderGraph
from sottovoce.shared.exported.graph_writer import GraphWriter, WeightType
from sottovoce.shared.features.whisper import WhisperEncoder
from sottovoce.shared.models.model_package import ModelPackage

EXTRACTOR: Final = "whisper-tiny-en"
"""The feature extractor that has a graph."""

KINDS: Final = ("linear", "mlp")
"""Kinds of shared models that have a graph."""

_FLOAT = onnx.TensorProto.FLOAT


def build_graph(package: ModelPackage, encoder: WhisperEncoder, kind: WeightType) -> bytes:
    """Build the graph of a model.

    The encoder's weights were published in 16 bits, so ``FLOAT32`` keeps them in 16 bits without
    loss, and the model's own in 32; ``FLOAT16`` keeps all in 16, ``INT8`` all matrices in 8.

    Args:
        package: The model.
        encoder: The encoder that it reads.
        kind: How weights are kept.

    Returns:
        Content of an ONNX file.

    Raises:
        ModelError: A model of another kind or extractor, for which there is no graph.
    """
    require_exportable(package)
    graph = GraphWriter()
    hidden = EncoderGraph(graph, encoder, kind).write("samples")
    features = _pool(graph, hidden, "spoken")
    outputs = _write_model(graph, package, features, kind)
    return graph.build(
        [
            onnx.helper.make_tensor_value_info("samples", _FLOAT, ["samples"]),
            onnx.helper.make_tensor_value_info("spoken", onnx.TensorProto.BOOL, ["frames"]),
            onnx.helper.make_tensor_value_info("mean", _FLOAT, [package.spec.inputs]),
        ],
        [onnx.helper.make_tensor_value_info(*output) for output in outputs],
        metadata={
            "model_hash": package.model_hash,
            "labels": ",".join(package.labels),
            "sample_rate": str(audio.SAMPLE_RATE),
            "weights": kind.value,
        },
    )


def require_exportable(package: ModelPackage) -> None:
    """Refuse a model for which there is no graph.

    Raises:
        ModelError: It reads another extractor, or is of another kind; the message says which.
    """
    spec = package.spec
    if package.extractor != EXTRACTOR or spec.kind not in KINDS or spec.pooling != "none":
        pooled = "" if spec.pooling == "none" else f" with {spec.pooling} pooling"
        raise ModelError(
            f"a {spec.kind} model{pooled} on {package.extractor} cannot be exported yet: only "
            f"{' and '.join(KINDS)} models on {EXTRACTOR} can; predict with the model folder itself"
        )


def _pool(graph: GraphWriter, layers: list[str], spoken: str) -> str:
    """Means, then deviations (n - 1), of layers over the frames of speech, (features,)."""
    weights = graph.add("Cast", spoken, to=_FLOAT)
    row = graph.add("Unsqueeze", weights, graph.constant([0]))
    count = graph.add("ReduceSum", row, graph.constant([1]), keepdims=1)
    fewer = graph.add("Sub", count, graph.number(1.0))
    means, deviations = [], []
    for layer in layers:
        mean = graph.add("Div", graph.add("MatMul", row, layer), count)
        apart = graph.add("Sub", layer, mean)
        squares = graph.add("MatMul", row, graph.add("Mul", apart, apart))
        means.append(mean)
        deviations.append(graph.add("Sqrt", graph.add("Div", squares, fewer)))
    joined = graph.add("Concat", *means, *deviations, axis=1)
    return graph.add("Squeeze", joined, graph.constant([0]), output="features")


def _write_model(
    graph: GraphWriter, package: ModelPackage, features: str, kind: WeightType
) -> list[tuple[str, int, list[int]]]:
    """Write projection, normalisation, network and basis; returns all outputs of the graph."""
    projection, network = package.projection, package.build_network()
    own = WeightType.FLOAT16 if kind is WeightType.FLOAT16 else WeightType.FLOAT32
    mean = graph.weight("projection/mean", _values(projection.mean), own)
    # One scale a feature: features differ in size far more than inputs do.
    large = WeightType.INT8 if kind is WeightType.INT8 else own
    matrix = graph.weight("projection/matrix", _values(projection.matrix), large)
    centred = graph.add("Unsqueeze", graph.add("Sub", features, mean), graph.constant([0]))
    row = graph.add("MatMul", centred, matrix)
    graph.add("Squeeze", row, graph.constant([0]), output="projected")
    row = graph.add("Sub", row, "mean")
    if projection.row_norm:
        norm = graph.add("ReduceL2", row, graph.constant([1]), keepdims=1)
        norm = graph.add("Max", norm, graph.number(1e-12))
        row = graph.add("Mul", row, graph.add("Div", graph.number(projection.row_norm), norm))
    if package.spec.kind == "mlp":
        hidden = network.backbone.state_dict()
        weight = graph.weight("hidden/weight", _values(hidden["layer.weight"]).T, own)
        bias = graph.weight("hidden/bias", _values(hidden["layer.bias"]), own)
        row = graph.add("Relu", graph.add("Add", graph.add("MatMul", row, weight), bias))
    head = network.head
    weight = graph.weight("head/weight", _values(head.weight).T, own)
    bias = graph.weight("head/bias", _values(head.bias * head.bias_feature), own)
    logits = graph.add("Add", graph.add("MatMul", row, weight), bias)
    graph.add("Squeeze", logits, graph.constant([0]), output="logits")
    outputs: list[tuple[str, int, list[int]]] = [
        ("features", _FLOAT, [len(projection.mean)]),
        ("projected", _FLOAT, [package.spec.inputs]),
        ("logits", _FLOAT, [package.spec.classes]),
    ]
    if basis := package.prior.basis:
        centre = graph.weight("basis/centre", _values(basis.centre), own)
        directions = graph.weight("basis/matrix", _values(basis.matrix).T, own)
        found = graph.add("MatMul", graph.add("Sub", row, centre), directions)
        limits = (graph.number(sign * MAX_COORDINATE) for sign in (-1, 1))
        found = graph.add("Clip", found, *limits)
        graph.add("Squeeze", found, graph.constant([0]), output="coordinates")
        outputs.append(("coordinates", _FLOAT, [basis.rank]))
    return outputs


def _values(tensor: torch.Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.detach().numpy()
    return values
