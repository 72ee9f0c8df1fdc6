"""The nodes of our ops in an ONNX graph, and the sizes of its tensors. Imports onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, shape_inference

from mtu.plugins.op import DOMAIN, Op, find_op


def op_nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Op]]:
    """The nodes of our domain in order, each with its op. Raises InvalidInputError for one that is no op of ours."""
    return ((node, find_op(node.op_type)) for node in model.graph.node if node.domain == DOMAIN)


def with_sizes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """A copy for inputs of these shapes, in which those of all other tensors are worked out. Functions stay."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    return shape_inference.infer_shapes(fixed)


def tensors_of(model: onnx.ModelProto) -> dict[str, tuple[list[int], np.dtype[np.generic]]]:
    """Shape and type of every tensor that `with_sizes` has found, weights too."""
    graph = model.graph
    found = {weight.name: (list(weight.dims), _kind(weight.data_type)) for weight in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            found[value.name] = [dim.dim_value for dim in tensor.shape.dim], _kind(tensor.elem_type)
    return found


def _kind(elem_type: int) -> np.dtype[np.generic]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))


def check_nodes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises InvalidInputError unless the kernels can do all nodes of our ops.

    `shapes` are those of the graph's inputs, `model` has the ops' functions, by which sizes behind a node are found.
    """
    known = tensors_of(with_sizes(model, shapes))
    for node, op in op_nodes(model):
        sizes, kinds = zip(*(known[name] for name in node.input), strict=True)
        given = {each.name: each.i for each in node.attribute if each.name in op.attributes}
        op.check(given, list(sizes), [kind.name for kind in kinds])
