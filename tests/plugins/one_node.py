"""A model of one custom node. Nothing here is a test."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.onnx_function import INPUTS, OPSET, OUTPUTS, function_proto
from mtu.plugins.op import DOMAIN


def model(
    motion_shape: Sequence[int | str],
    detail_shape: Sequence[int | str],
    *,
    max_displacement: int = 10,
    pool_size: int = 5,
    scale: int = 4,
    motion_type: int = TensorProto.FLOAT,
    detail_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of one custom node and its function.

    Shapes are [B, C, h, w] and [B, c, scale*h, scale*w]; a string is a dynamic size. Types are TensorProto.FLOAT or
    FLOAT16. Raises InvalidInputError for attributes outside the rules.
    """
    attributes = {"max_displacement": max_displacement, "pool_size": pool_size, "scale": scale}
    value = helper.make_tensor_value_info
    index_shape = (motion_shape[0], *motion_shape[2:])
    node = helper.make_node(OP.name, INPUTS, OUTPUTS, name="compensation", domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(*item) for item in OP.node_attributes(attributes).items())
    graph = helper.make_graph(
        [node],
        OP.name,
        [
            value("motion", motion_type, motion_shape),
            value("motion_prev", motion_type, motion_shape),
            value("detail_prev", detail_type, detail_shape),
        ],
        [value("warped", detail_type, detail_shape), value("displacement", TensorProto.INT32, index_shape)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, OP.version)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function_proto(**attributes)], ir_version=10)
