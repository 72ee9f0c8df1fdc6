"""The nodes of our ops in an ONNX graph. Imports onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import helper, shape_inference

from mtu.plugins.op import DOMAIN, Op, find_op


def op_nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Op]]:
    """The nodes of our domain in order, each with its op. Raises InvalidInputError for one that is no op of ours."""
    return ((node, find_op(node.op_type)) for node in model.graph.node if node.domain == DOMAIN)


def check_nodes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises InvalidInputError unless the kernels can do all nodes of our ops.

    `shapes` are those of the graph's inputs, `model` has the ops' functions, by which sizes behind a node are found.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    graph = shape_inference.infer_shapes(fixed).graph
    tensors = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    for node, op in op_nodes(model):
        values = [tensors[name] for name in node.input]
        sizes = [[dim.dim_value for dim in value.shape.dim] for value in values]
        types = [helper.tensor_dtype_to_np_dtype(value.elem_type).name for value in values]
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        op.check({name: given[name] for name in op.attributes if name in given}, sizes, types)
