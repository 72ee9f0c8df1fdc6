"""The body of an op's ONNX function, node by node. Imports onnx and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mtu.plugins.op import DOMAIN, Op

OPSET = 18
"""Of the functions, and of the models that hold them: onnxruntime refuses a function whose opset is not the model's.
The newest that TensorRT 8.6 to 11 and TensorRT-RTX all read."""


class Body:
    """The nodes of a function, in order. Each call of `op` adds one and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def split(self, x: str, count: int, axis: int) -> list[str]:
        """`count` equal parts."""
        names = [f"part_{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node("Split", [x], names, axis=axis, num_outputs=count))
        return names

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """One node for equal arrays."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A list of int64, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def int32(self, value: int) -> str:
        """One int32."""
        return self.constant(np.array(value, np.int32))

    def cut(self, x: str, start: int, end: int, axis: int) -> str:
        """A slice."""
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis))

    def function(self, op: Op, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.FunctionProto:
        """The function of an op: domain, name and inputs as the custom node's.

        A model with the node and this function in `model.functions` must import `OPSET` of the default domain and
        `op.version` of `DOMAIN`. Bodies for different attributes cannot share a model, since a function is found by
        its name.
        """
        opsets = [helper.make_opsetid("", OPSET)]
        names = list(op.node_attributes({}))
        return helper.make_function(DOMAIN, op.name, inputs, outputs, self.nodes, opsets, names)
