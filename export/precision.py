"""Casts an exported fp32 graph to fp16. Imports onnx and numpy; needs no torch.

TensorRT 11 has no fp16 switch: precision is what the graph says. So the graph says it: weights, states and arithmetic
become fp16; frames stay uint8; the custom op keeps its fp32 matching (its function casts inside); and the last scaling
to 0..255 is done in fp32, where rounding to nearest is exact.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu.models.errors import InvalidInputError
from mtu.models.interface import OUTPUT_NAME

OUTPUT_SCALE = "output_scale"
"""Name of the 255 that stays in fp32."""


def to_fp16(model: onnx.ModelProto) -> None:
    """Rewrites a graph made by `export_graph` in place. Raises InvalidInputError if a weight overflows fp16."""
    graph = model.graph
    scale = _scaling_node(graph)
    _give_own_constant(graph, scale)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name != OUTPUT_SCALE:
            value = numpy_helper.to_array(tensor)
            if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
                raise InvalidInputError(f"weights {tensor.name} exceed fp16's range of 65504: use --precision fp32")
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for outer in (*graph.input, *graph.output):
        if outer.type.tensor_type.elem_type == TensorProto.FLOAT:
            outer.type.tensor_type.elem_type = TensorProto.FLOAT16
    _scale_in_fp32(graph, scale)


def _scaling_node(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The Mul by 255 that the picture goes through: Mul, Round, Transpose, Cast."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers[OUTPUT_NAME]
    while node.op_type in ("Cast", "Transpose", "Round"):
        node = producers[node.input[0]]
    assert node.op_type == "Mul", node.op_type
    return node


def _give_own_constant(graph: onnx.GraphProto, scale: onnx.NodeProto) -> None:
    """Gives the output scaling a copy of its 255, which the scaling of the inputs may share."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    index = next(i for i, name in enumerate(scale.input) if name in constants)
    own = onnx.TensorProto()
    own.CopyFrom(constants[scale.input[index]])
    own.name = scale.input[index] = OUTPUT_SCALE
    graph.initializer.append(own)


def _scale_in_fp32(graph: onnx.GraphProto, scale: onnx.NodeProto) -> None:
    index = next(i for i, name in enumerate(scale.input) if name != OUTPUT_SCALE)
    cast = helper.make_node("Cast", [scale.input[index]], ["restored_fp32"], "node_restored_fp32", to=TensorProto.FLOAT)
    scale.input[index] = cast.output[0]
    graph.node.insert(next(i for i, node in enumerate(graph.node) if node.name == scale.name), cast)
