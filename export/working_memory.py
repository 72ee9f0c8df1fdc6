"""What a graph's tensors take that are alive at one time, if no layers are fused. Imports onnx and numpy."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, shape_inference

from mtu.core.interface import Graph, Interface

MEASURED = (1440, 2560)
"""Height and width at which the bytes for a pixel are worked out; large, so that margins do not count."""


def sized(model: onnx.ModelProto, graph: Graph, height: int, width: int) -> onnx.ModelProto:
    """A copy for padded frames of one size, with the shapes of all tensors. Functions stay."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, graph.tensors[value.name].at(height, width), strict=True):
            dim.dim_value = size
    return shape_inference.infer_shapes(fixed)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[list[int], np.dtype[np.generic]]]:
    """Shape and type of every tensor that `sized` has found, weights too."""
    found = {}
    for weight in model.graph.initializer:
        found[weight.name] = list(weight.dims), np.dtype(helper.tensor_dtype_to_np_dtype(weight.data_type))
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            found[value.name] = [dim.dim_value for dim in tensor.shape.dim], kind
    return found


def working_memory(model: onnx.ModelProto, graph: Graph, height: int, width: int) -> tuple[int, int, int]:
    """Bytes of the weights, of inputs and outputs, and of the other tensors that are alive at one time."""
    found = sized(model, graph, height, width)
    known = {
        name: int(np.prod(shape, dtype=np.float64)) * kind.itemsize for name, (shape, kind) in shapes_of(found).items()
    }
    last_use = {name: index for index, node in enumerate(found.graph.node) for name in node.input}
    outer = {value.name for value in (*found.graph.input, *found.graph.output)}
    alive = peak = 0
    for index, node in enumerate(found.graph.node):
        alive += sum(known.get(name, 0) for name in node.output if name not in outer)
        peak = max(peak, alive)
        ended = {name for name in (*node.input, *node.output) if last_use.get(name, index) == index}
        produced = ended - outer - {tensor.name for tensor in found.graph.initializer}
        alive -= sum(known.get(name, 0) for name in produced)
    weights = sum(len(tensor.raw_data) for tensor in found.graph.initializer)
    return weights, sum(known[name] for name in outer), peak


def working_bytes(model: onnx.ModelProto, interface: Interface, graph: Graph) -> int:
    """For `Interface.working_bytes`: tensors of a graph that are alive at one time, inputs and outputs among them."""
    height, width = interface.size.padded(*MEASURED)
    _, outer, peak = working_memory(model, graph, height, width)
    return round((outer + peak) / (height * width))
