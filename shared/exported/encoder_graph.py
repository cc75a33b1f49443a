"""Whisper's encoder as a part of an ONNX graph: from a waveform to the outputs of its layers.

Axes: ``windows`` of at most 30 s, ``bands`` of the mel spectrogram, ``width`` of the encoder.
Windows are of equal length, and what the last one lacks is masked, as if it ended before.
"""

import math

import onnx
import torch

from sottovoce.shared.exported.graph_writer import GraphWriter, WeightType
from sottovoce.shared.features import whisper
from sottovoce.shared.features.whisper import WhisperEncoder

_WINDOW, _HOP, _BANDS, _HEADS = 400, 160, 80, 6
_LONGEST_WINDOW = 3_000  # mel frames, 30 s
_SHORTEST = 800  # samples
_LARGEST_TIMESCALE = 10_000.0
_NEVER = -1e9  # a score of attention to what is not there
_FLOAT = onnx.TensorProto.FLOAT


class EncoderGraph:
    """Whisper's encoder as operators; the same arithmetic as :class:`WhisperEncoder`.

    Args:
        graph: Where operators are added.
        encoder: Its weights and mel filters.
        kind: How its matrices are kept.
    """

    def __init__(self, graph: GraphWriter, encoder: WhisperEncoder, kind: WeightType) -> None:
        self._graph = graph
        self._encoder = encoder
        self._matrices = WeightType.INT8 if kind is WeightType.INT8 else WeightType.FLOAT16

    def write(self, samples: str) -> list[str]:
        """Write the encoder; returns the outputs of the layers, each (frames, width)."""
        graph = self._graph
        mel = self._log_mel(samples)
        frames = self._length(mel, 1)
        windowed, length = self._cut_windows(mel, frames)
        hidden = self._stem(windowed, frames, length)
        encoded = self._divide_up(frames, graph.constant([2]))
        outputs = []
        bias = self._attention_bias(hidden, encoded)
        for index in range(max(whisper.LAYERS)):
            hidden = self._layer(hidden, f"layer_{index}/", bias)
            if index + 1 in whisper.LAYERS:
                joined = graph.add("Reshape", hidden, graph.constant([-1, whisper.HIDDEN_SIZE]))
                outputs.append(self._cut(joined, encoded, axis=0))
        return outputs

    def _log_mel(self, samples: str) -> str:
        """(samples,) -> (bands, mel frames)."""
        graph = self._graph
        count = graph.add("Shape", samples)
        lacking = graph.add("Sub", graph.constant([_SHORTEST]), count)
        lacking = graph.add("Max", lacking, graph.constant([0]))
        ends = graph.add("Concat", graph.constant([0]), lacking, axis=0)
        padded = graph.add("Pad", samples, ends)
        half = _WINDOW // 2
        padded = graph.add("Pad", padded, graph.constant([half, half]), mode="reflect")
        padded = graph.add("Reshape", padded, graph.constant([1, 1, -1]))
        spectrum = graph.add("Conv", padded, self._fourier_basis(), strides=[_HOP])
        # The last frame is dropped, as in Whisper's own log-mel code.
        spectrum = self._cut(spectrum, graph.constant([-1]), axis=2)
        real, imaginary = graph.split(graph.add("Mul", spectrum, spectrum), 2, axis=1)
        power = graph.add("Squeeze", graph.add("Add", real, imaginary), graph.constant([0]))
        filters = graph.weight("mel_filters", self._encoder.mel_filters.numpy(), WeightType.FLOAT32)
        energies = graph.add("MatMul", filters, power)
        energies = graph.add("Max", energies, graph.number(1e-10))
        log = graph.add("Mul", graph.add("Log", energies), graph.number(1 / math.log(10)))
        floor = graph.add("Sub", graph.add("ReduceMax", log, keepdims=0), graph.number(8.0))
        raised = graph.add("Add", graph.add("Max", log, floor), graph.number(4.0))
        return graph.add("Mul", raised, graph.number(0.25))

    def _fourier_basis(self) -> str:
        """Kernels of a Hann-windowed Fourier transform, (2 x bins, 1, window): cosines, then sines.

        Computed where the graph is loaded: as weights they would take more room than a layer.
        """
        graph = self._graph
        bins = self._range(_WINDOW // 2 + 1)
        times = self._range(_WINDOW)
        steps = graph.add(
            "Mul",
            graph.add("Unsqueeze", bins, graph.constant([1])),
            graph.add("Unsqueeze", times, graph.constant([0])),
        )
        # Whole turns are left out while the numbers are whole: float32 could not hold their rest.
        steps = graph.add("Mod", steps, graph.constant(_WINDOW))
        turn = graph.number(2 * math.pi / _WINDOW)
        angles = graph.add("Mul", graph.add("Cast", steps, to=_FLOAT), turn)
        times = graph.add("Mul", graph.add("Cast", times, to=_FLOAT), turn)
        raised = graph.add("Sub", graph.number(1.0), graph.add("Cos", times))
        hann = graph.add("Mul", raised, graph.number(0.5))
        waves = graph.add("Concat", graph.add("Cos", angles), graph.add("Sin", angles), axis=0)
        return graph.add("Unsqueeze", graph.add("Mul", waves, hann), graph.constant([1]))

    def _cut_windows(self, mel: str, frames: str) -> tuple[str, str]:
        """(bands, mel frames) -> (windows, bands, length), and the length, even, as (1,)."""
        graph = self._graph
        longest = graph.constant([_LONGEST_WINDOW])
        windows = self._divide_up(frames, longest)
        length = self._divide_up(frames, windows)
        length = graph.add("Add", length, graph.add("Mod", length, graph.constant([2])))
        lacking = graph.add("Sub", graph.add("Mul", windows, length), frames)
        ends = graph.add("Concat", graph.constant([0, 0, 0]), lacking, axis=0)
        padded = graph.add("Pad", mel, ends)
        shape = graph.add("Concat", graph.constant([_BANDS]), windows, length, axis=0)
        return graph.add("Transpose", graph.add("Reshape", padded, shape), perm=[1, 0, 2]), length

    def _stem(self, mel: str, frames: str, length: str) -> str:
        """(windows, bands, length) -> (windows, length / 2, width), with positions."""
        graph = self._graph
        wave = graph.add(
            "Conv", mel, self._weight("conv1/weight"), self._bias("conv1/bias"), pads=[1, 1]
        )
        wave = graph.add("Gelu", wave)
        # Behind the recording's end the next convolution must read zeros.
        places = graph.add("Concat", graph.constant([-1, 1]), length, axis=0)
        every = graph.add("Mul", self._length(mel, 0), length)
        inside = graph.add("Less", self._range_to(every), frames)
        inside = graph.add("Cast", graph.add("Reshape", inside, places), to=_FLOAT)
        wave = graph.add(
            "Conv",
            graph.add("Mul", wave, inside),
            self._weight("conv2/weight"),
            self._bias("conv2/bias"),
            pads=[1, 1],
            strides=[2],
        )
        hidden = graph.add("Transpose", graph.add("Gelu", wave), perm=[0, 2, 1])
        positions = graph.add("Div", length, graph.constant([2]))
        return graph.add("Add", hidden, self._positions(positions))

    def _positions(self, count: str) -> str:
        """Sinusoids of positions, (count, width), as the encoder's weights hold them."""
        graph = self._graph
        half = whisper.HIDDEN_SIZE // 2
        slowness = math.log(_LARGEST_TIMESCALE) / (half - 1)
        speeds = graph.weight(
            "position_speeds",
            torch.exp(-slowness * torch.arange(half)).numpy(),
            WeightType.FLOAT32,
        )
        at = graph.add("Cast", self._range_to(count), to=_FLOAT)
        angles = graph.add("Mul", graph.add("Unsqueeze", at, graph.constant([1])), speeds)
        waves = graph.add("Concat", graph.add("Sin", angles), graph.add("Cos", angles), axis=1)
        # In 16 bits, as they were published.
        rounded = graph.add("Cast", waves, to=onnx.TensorProto.FLOAT16)
        return graph.add("Cast", rounded, to=_FLOAT)

    def _attention_bias(self, hidden: str, encoded: str) -> str:
        """What attention adds to its scores, (windows, 1, 1, length): -1e9 behind the end."""
        graph = self._graph
        length = self._length(hidden, 1)
        every = graph.add("Mul", self._length(hidden, 0), length)
        beyond = graph.add("GreaterOrEqual", self._range_to(every), encoded)
        bias = graph.add("Mul", graph.add("Cast", beyond, to=_FLOAT), graph.number(_NEVER))
        places = graph.add("Concat", graph.constant([-1, 1, 1]), length, axis=0)
        return graph.add("Reshape", bias, places)

    def _layer(self, hidden: str, name: str, bias: str) -> str:
        """One pre-norm transformer layer, (windows, length, width) -> same."""
        graph = self._graph
        attention, feed = name + "self_attention/", name + "ffn/"
        projected = self._linear(self._norm(hidden, attention), attention + "linear_0")
        split = graph.constant([0, 0, _HEADS, whisper.HIDDEN_SIZE // _HEADS])
        queries, keys, values = (
            graph.add("Transpose", graph.add("Reshape", part, split), perm=order)
            for part, order in zip(
                graph.split(projected, 3, axis=2),
                ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]),
                strict=True,
            )
        )
        scale = graph.number(1 / math.sqrt(whisper.HIDDEN_SIZE // _HEADS))
        scores = graph.add("Add", graph.add("MatMul", graph.add("Mul", queries, scale), keys), bias)
        attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
        attended = graph.add("Transpose", attended, perm=[0, 2, 1, 3])
        attended = graph.add("Reshape", attended, graph.constant([0, 0, whisper.HIDDEN_SIZE]))
        hidden = graph.add("Add", hidden, self._linear(attended, attention + "linear_1"))
        inner = self._linear(self._norm(hidden, feed), feed + "linear_0")
        inner = self._linear(graph.add("Gelu", inner), feed + "linear_1")
        return graph.add("Add", hidden, inner)

    def _linear(self, value: str, name: str) -> str:
        graph, matrix = self._graph, self._encoder.weight(name + "/weight").numpy()
        # (outputs, inputs) -> (inputs, outputs); one scale an output.
        kept = graph.weight(name + "/weight", matrix.T, self._matrices, scale_axis=1)
        return graph.add("Add", graph.add("MatMul", value, kept), self._bias(name + "/bias"))

    def _norm(self, value: str, name: str) -> str:
        scale, shift = (self._bias(f"{name}layer_norm/{part}") for part in ("gamma", "beta"))
        return self._graph.add("LayerNormalization", value, scale, shift, axis=-1, epsilon=1e-5)

    def _weight(self, name: str) -> str:
        return self._graph.weight(name, self._encoder.weight(name).numpy(), self._matrices)

    def _bias(self, name: str) -> str:
        value = self._encoder.weight(name).numpy()
        return self._graph.weight(name, value, WeightType.FLOAT16)

    def _divide_up(self, value: str, by: str) -> str:
        """Quotient of whole numbers, rounded up."""
        graph = self._graph
        more = graph.add("Sub", graph.add("Add", value, by), graph.constant([1]))
        return graph.add("Div", more, by)

    def _length(self, value: str, axis: int) -> str:
        """Length of an axis, (1,)."""
        return self._graph.add("Shape", value, start=axis, end=axis + 1)

    def _range(self, count: int) -> str:
        constants = (self._graph.constant(number) for number in (0, count, 1))
        return self._graph.add("Range", *constants)

    def _range_to(self, count: str) -> str:
        """Whole numbers from 0 to below a count of shape (1,)."""
        graph = self._graph
        end = graph.add("Squeeze", count, graph.constant([0]))
        return graph.add("Range", graph.constant(0), end, graph.constant(1))

    def _cut(self, value: str, end: str, *, axis: int) -> str:
        """What lies before an index of an axis."""
        graph = self._graph
        return graph.add("Slice", value, graph.constant([0]), end, graph.constant([axis]))
