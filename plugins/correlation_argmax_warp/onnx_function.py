"""The op as an ONNX function in standard operators (opset 18), for runtimes without the plugin. Imports onnx, numpy.

The body holds for any batch, height and width, for fp16 and fp32; the attributes are baked into it. It uses no loops,
no branches and no sampling operator, never holds the cost volume, and has no 64-bit output, so that TensorRT can build
it too. Working copies: a few tensors of the size of 1/(2D+1) of the cost volume.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.rules import check_attributes
from mtu.plugins.op import DOMAIN

OPSET = 18
INPUTS = ("motion", "motion_prev", "detail_prev")
OUTPUTS = ("warped", "displacement")
BLOCK = 20
"""Positions of a row that share a matrix product: larger wastes arithmetic, smaller wastes calls."""

UNIT = 2**22
"""Steps into which 1 is divided where vectors are normalised."""

_END = 2**31 - 1


def function_proto(max_displacement: int, pool_size: int, scale: int) -> onnx.FunctionProto:
    """The body of the op for these attributes: domain, name and inputs as the custom node's.

    A model with the node and this function in `model.functions` must import opset 18 of the default domain and
    version OP.version of DOMAIN. Bodies for different attributes cannot share a model, since a function is found by
    its name. Limits: scale*h * scale*w < 2**31. Raises InvalidInputError for attributes outside the rules.
    """
    check_attributes(max_displacement, pool_size, scale)
    body = _Body()
    shape = body.op("Shape", "motion")
    height, width = (body.op("Gather", shape, body.ints(axis), axis=0) for axis in (2, 3))
    row, column = _best_displacement(body, height, width, max_displacement, pool_size)
    span = body.int32(2 * max_displacement + 1)
    body.op("Add", body.op("Mul", row, span), column, output="displacement")
    _warp(body, row, column, height, width, max_displacement, scale)
    return helper.make_function(
        DOMAIN,
        OP.name,
        INPUTS,
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        list(OP.node_attributes({})),
    )


class _Body:
    """The nodes of the function, in order. Each call of `op` adds one and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A list of int64, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def int32(self, value: int) -> str:
        return self.constant(np.array(value, np.int32))

    def cut(self, x: str, start: int, end: int, axis: int) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis))


def _best_displacement(body: _Body, height: str, width: str, max_displacement: int, pool_size: int) -> tuple[str, str]:
    """(dy + D, dx + D) of the best match at each position, int32 [B, h, w]. `height`, `width`: int64 of one element.

    A row of the map is cut into blocks. A block and the pooling margin around it (`size` positions) is multiplied with
    the stretch of a row of motion_prev that it can reach (`reach` positions). Entry [i, i + dx + D] of the product is
    the similarity at displacement dx; reading it as rows that are one longer puts each dx into a column.

    Rows here are those of motion_prev: it is motion, the smaller operand, that is shifted by -dy. Row p of the result
    for dy therefore belongs to row p - dy of the map; all of them are put straight at the end, where they are small.
    """
    d, span, r = max_displacement, 2 * max_displacement + 1, pool_size // 2
    size, reach = BLOCK + 2 * r, BLOCK + 2 * r + 2 * d
    margin = min(d, r)  # rows above and below the map whose pooled cost is not zero
    count = body.op("Div", body.op("Add", width, body.ints(BLOCK - 1)), body.ints(BLOCK))
    fill = body.op("Sub", body.op("Mul", count, body.ints(BLOCK)), width)

    a = body.op("Transpose", _normalised(body, "motion"), perm=[0, 2, 3, 1])
    if r:
        # Averages of the products are then sums of the true ones: exact where equal costs must stay equal.
        a = body.op("Mul", a, body.constant(np.array(pool_size**2, np.float32)))
    spare = _spare_blocks(size)
    right = body.op("Add", fill, body.ints(spare * BLOCK - r))
    a = body.op("Pad", a, body.op("Concat", body.ints(0, d, r, 0, 0, d), right, body.ints(0), axis=0))
    channels = body.op("Gather", body.op("Shape", "motion"), body.ints(1), axis=0)
    a = body.op("Reshape", a, body.op("Concat", body.ints(0, 0, -1, BLOCK), channels, axis=0))
    a = body.op("Transpose", a, perm=[0, 2, 1, 3, 4])
    a = _stretches(body, a, spare, size, axis=3)  # [B, count, h + 2D, size, C]

    spare = _spare_blocks(reach)
    right = body.op("Add", fill, body.ints(spare * BLOCK - r - d))
    b = _normalised(body, "motion_prev")
    b = body.op("Pad", b, body.op("Concat", body.ints(0, 0, 0, r + d, 0, 0, 0), right, axis=0))
    b = body.op("Reshape", b, body.ints(0, 0, 0, -1, BLOCK))
    b = body.op("Transpose", b, perm=[0, 3, 2, 1, 4])
    b = _stretches(body, b, spare, reach, axis=4)  # [B, count, h, C, reach]

    per_row = body.op("Concat", body.ints(0), count, body.ints(1, -1), axis=0)
    values, columns = [], []
    for dy in range(-d, d + 1):
        cost = body.op("MatMul", body.cut(a, d - dy, -(d + dy) or _END, axis=2), b)
        cost = body.op("Reshape", cost, body.ints(0, 0, 0, -1))
        cost = body.op("Pad", cost, body.ints(0, 0, 0, 0, 0, 0, 0, size))
        cost = body.op("Reshape", cost, body.ints(0, 0, 0, size, reach + 1))
        cost = body.cut(cost, 0, span, axis=4)  # [B, count, h, size, span]
        if r:
            cost = body.op("Reshape", cost, body.ints(0, 0, 0, -1))
            pads = [r + margin, 0, r + margin, 0]
            cost = body.op("AveragePool", cost, kernel_shape=[pool_size, 1], pads=pads, count_include_pad=1)
            cost = body.op("Reshape", cost, body.ints(0, -1, size, span))
            cost = body.op("AveragePool", cost, kernel_shape=[pool_size, 1])  # [B, count * (h + 2 margin), BLOCK, span]
        value = body.op("ReduceMax", cost, body.ints(-1), keepdims=0)
        column = body.op("ArgMax", cost, axis=-1, keepdims=0)  # the first of equals
        values.append(body.op("Reshape", value, per_row))
        columns.append(body.op("Reshape", column, per_row))

    best_row = body.op("ArgMax", _straightened(body, values, d, margin), axis=2, keepdims=1)
    # The column of that row is picked by comparing: OpenVINO breaks a GatherElements that comes after a Slice.
    rows = body.constant(np.arange(span, dtype=np.int64).reshape(span, 1))
    columns_there = body.op("Cast", _straightened(body, columns, d, margin), to=TensorProto.INT32)
    best_column = body.op("Where", body.op("Equal", best_row, rows), columns_there, body.int32(0))
    best_column = body.op("ReduceSum", best_column, body.ints(2), keepdims=1)
    return _to_map(body, best_row, height, width), _to_map(body, best_column, height, width)


def _normalised(body: _Body, x: str) -> str:
    """x / max(|x|, 1e-12) over the channels in units of 1/UNIT, rounded to whole ones, in fp32.

    Rounding keeps equal costs equal where a runtime multiplies by the reciprocal instead of dividing, as OpenVINO does:
    the quotients of the tied cases are off by less than half a unit. UNIT is a power of two, so that products and sums
    are those of the unit vectors, and coarser than fp32 by as little as that takes.
    """
    x = body.op("Cast", x, to=TensorProto.FLOAT)
    length = body.op("ReduceL2", x, body.ints(1), keepdims=1)
    length = body.op("Max", length, body.constant(np.array(1e-12, np.float32)))
    return body.op("Round", body.op("Div", x, body.op("Mul", length, body.constant(np.array(1 / UNIT, np.float32)))))


def _spare_blocks(length: int) -> int:
    """How many blocks after its own a stretch of `length` positions reaches into."""
    return -(-length // BLOCK) - 1


def _stretches(body: _Body, blocks: str, spare: int, length: int, axis: int) -> str:
    """Overlapping stretches of `length` positions, one from the start of each block but the last `spare` ones.

    `blocks` has the blocks on axis 1 and the positions within a block on `axis`.
    """
    if not spare:
        return blocks
    parts = []
    for i in range(spare + 1):
        part = body.cut(blocks, i, i - spare or _END, axis=1)
        rest = length - i * BLOCK
        parts.append(body.cut(part, 0, rest, axis) if rest < BLOCK else part)
    return body.op("Concat", *parts, axis=axis)


def _straightened(body: _Body, rows_of_dy: list[str], d: int, margin: int) -> str:
    """Results of all dy, each [B, count, 1, (h + 2 margin) * BLOCK] in rows p = y + dy -> [B, count, 2D+1, h * BLOCK].

    Reading the rows of all dy as rows that are one longer moves row p of the i-th dy to p - i.
    """
    span, outer = 2 * d + 1, (d - margin) * BLOCK
    x = body.op("Concat", *rows_of_dy, axis=2)
    if outer:
        x = body.op("Pad", x, body.ints(0, 0, 0, outer, 0, 0, 0, outer))
    x = body.op("Reshape", x, body.ints(0, 0, -1))
    x = body.op("Pad", x, body.ints(0, 0, 0, 0, 0, span * BLOCK))
    x = body.op("Reshape", x, body.ints(0, 0, span, -1))
    return body.cut(x, 0, -span * BLOCK, axis=3)


def _to_map(body: _Body, x: str, height: str, width: str) -> str:
    """[B, count, 1, h * BLOCK] int64 -> [B, h, w] int32."""
    x = body.op("Cast", x, to=TensorProto.INT32)
    x = body.op("Reshape", x, body.op("Concat", body.ints(0, 0), height, body.ints(BLOCK), axis=0))
    x = body.op("Reshape", body.op("Transpose", x, perm=[0, 2, 1, 3]), body.ints(0, 0, -1))
    return body.op("Slice", x, body.ints(0), width, body.ints(2))


def _warp(body: _Body, row: str, column: str, height: str, width: str, max_displacement: int, scale: int) -> None:
    """Adds the output `warped`: every element is fetched by its place in its plane, H * W being a zero put there."""
    zero, one, minus_d = body.int32(0), body.int32(1), body.int32(-max_displacement)
    h, w = (body.op("Squeeze", body.op("Cast", x, to=TensorProto.INT32), body.ints(0)) for x in (height, width))
    # Range starts at -D because row and column are dy + D and dx + D.
    y = body.op("Unsqueeze", body.op("Range", minus_d, body.op("Add", h, minus_d), one), body.ints(1))
    x = body.op("Range", minus_d, body.op("Add", w, minus_d), one)
    y, x = body.op("Add", row, y), body.op("Add", column, x)
    in_height = body.op("And", body.op("GreaterOrEqual", y, zero), body.op("Less", y, h))
    in_width = body.op("And", body.op("GreaterOrEqual", x, zero), body.op("Less", x, w))
    full_width = body.op("Mul", w, body.int32(scale))
    corner = body.op("Mul", body.op("Add", body.op("Mul", y, full_width), x), body.int32(scale))
    steps = np.arange(scale, dtype=np.int32)
    offset = body.op("Mul", body.constant(steps.reshape(scale, 1, 1)), full_width)
    offset = body.op("Add", offset, body.constant(steps))  # [scale, 1, scale]
    outside = body.op("Mul", body.op("Mul", h, full_width), body.int32(scale))
    axes = body.ints(2, 4)
    element = body.op("Add", body.op("Unsqueeze", corner, axes), offset)  # [B, h, scale, w, scale]
    inside = body.op("Unsqueeze", body.op("And", in_height, in_width), axes)
    element = body.op("Reshape", body.op("Where", inside, element, outside), body.ints(0, 1, -1))

    shape = body.op("Shape", "detail_prev")
    each_plane = body.op("Concat", body.op("Gather", shape, body.ints(0, 1), axis=0), body.ints(1), axis=0)
    zeros = body.op("CastLike", body.constant(np.zeros((1, 1, 1), np.float32)), "detail_prev")
    planes = body.op("Reshape", "detail_prev", body.ints(0, 0, -1))
    planes = body.op("Concat", planes, body.op("Expand", zeros, each_plane), axis=2)
    warped = body.op("GatherElements", planes, body.op("Expand", element, each_plane), axis=2)
    body.op("Reshape", warped, shape, output="warped")
