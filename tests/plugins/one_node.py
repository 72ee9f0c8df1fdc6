"""A model of one custom node. Nothing here is a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.onnx_body import OPSET
from mtu.plugins.op import DOMAIN, Op

Shape = Sequence[int | str]
"""A string is a dynamic size."""
Tensors = Mapping[str, tuple[int, Shape]]
"""Of each its type, as in TensorProto, and shape."""


def model_of(op: Op, attributes: Mapping[str, int], inputs: Tensors, outputs: Tensors) -> onnx.ModelProto:
    """A model of one node of an op, with its function.

    Raises InvalidInputError for attributes outside the rules.
    """
    node = helper.make_node(op.name, list(inputs), list(outputs), name="compensation", domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(*item) for item in op.node_attributes(attributes).items())
    sides = ([helper.make_tensor_value_info(name, *what) for name, what in each.items()] for each in (inputs, outputs))
    function = op.part(op.function)(**attributes)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, op.version)]
    graph = helper.make_graph([node], op.name, *sides)
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def model(
    motion_shape: Shape,
    detail_shape: Shape,
    *,
    max_displacement: int = 10,
    pool_size: int = 5,
    scale: int = 4,
    motion_type: int = TensorProto.FLOAT,
    detail_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """That of CorrelationArgmaxWarp. Shapes are [B, C, h, w] and [B, c, scale*h, scale*w]."""
    attributes = {"max_displacement": max_displacement, "pool_size": pool_size, "scale": scale}
    motion, detail = (motion_type, motion_shape), (detail_type, detail_shape)
    index = (TensorProto.INT32, (motion_shape[0], *motion_shape[2:]))
    inputs = {"motion": motion, "motion_prev": motion, "detail_prev": detail}
    return model_of(OP, attributes, inputs, {"warped": detail, "displacement": index})
