"""Writer of ONNX graphs, one operator at a time, with weights in the type that they are kept in."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

OPSET = 20
"""Operators of ONNX 1.15, of 2023, the first that have GELU; onnxruntime reads them since 1.17."""

_IR_VERSION = 9  # of the same release of ONNX
_LARGEST_INT8 = 127

Array = NDArray[np.generic]


class WeightType(enum.StrEnum):
    """Number format in which weights are kept; all arithmetic is in float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass(slots=True)
class GraphWriter:
    """A graph in the making; a value is known by its name.

    Attributes:
        nodes: Operators so far.
        initializers: Constants and weights so far.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401
        """Add an operator of one output; returns the output's name."""
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        node = onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Split a value into equal parts along an axis."""
        names = [f"split_{len(self.nodes)}_{part}" for part in range(parts)]
        node = onnx.helper.make_node("Split", [value], names, axis=axis, num_outputs=parts)
        self.nodes.append(node)
        return names

    def constant(self, value: object, kind: str = "int64") -> str:
        """Add a constant, such as a shape; equal ones are kept once."""
        array = np.asarray(value, dtype=kind)
        name = f"{kind}_{array.ndim}_{'_'.join(map(str, array.reshape(-1).tolist()))}"
        if name not in {one.name for one in self.initializers}:
            self._keep(name, array)
        return name

    def number(self, value: float) -> str:
        """Add a float32 constant."""
        return self.constant(value, "float32")

    def weight(self, name: str, value: Array, kind: WeightType, *, scale_axis: int = 0) -> str:
        """Add a weight; its value in the graph is float32, in whatever type it is kept.

        Whole numbers of 8 bits come with one scale for each row or column, so that the sizes of
        rows may differ. Sessions unfold all of them once, when they load the graph.

        Args:
            name: Name of the weight in the file.
            value: The weight, float32.
            kind: Type in which it is kept.
            scale_axis: For 8 bits: the axis along which scales differ.
        """
        if kind is WeightType.FLOAT32:
            return self._keep(name, value.astype(np.float32))
        if kind is WeightType.FLOAT16:
            # What 16 bits cannot hold becomes infinite, and shows when answers are compared.
            with np.errstate(over="ignore"):
                kept = self._keep(name, value.astype(np.float16))
            return self.add("Cast", kept, to=onnx.TensorProto.FLOAT)
        others = tuple(axis for axis in range(value.ndim) if axis != scale_axis)
        largest = np.abs(value).max(axis=others, keepdims=True)
        scale = np.maximum(largest, np.finfo(np.float32).tiny) / _LARGEST_INT8
        kept = self._keep(name, np.round(value / scale).astype(np.int8))
        scales = self._keep(name + "/scale", scale.astype(np.float32))
        return self.add("Mul", self.add("Cast", kept, to=onnx.TensorProto.FLOAT), scales)

    def build(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        *,
        metadata: dict[str, str],
    ) -> bytes:
        """Build the file, checked by ONNX's own checker."""
        graph = onnx.helper.make_graph(
            self.nodes, "sottovoce", list(inputs), list(outputs), initializer=self.initializers
        )
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(
            graph, producer_name="sottovoce", opset_imports=opsets, ir_version=_IR_VERSION
        )
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def _keep(self, name: str, array: Array) -> str:
        self.initializers.append(onnx.numpy_helper.from_array(np.array(array, order="C"), name))
        return name
