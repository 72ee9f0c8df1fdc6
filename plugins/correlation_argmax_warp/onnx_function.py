"""The op as an ONNX function in standard operators (opset 18), for runtimes without the plugin. Imports onnx, numpy.

The body holds for any batch, height and width, for fp16 and fp32; the attributes are baked into it. It uses no loops,
no branches and no sampling operator, never holds the cost volume, and has no 64-bit output, so that TensorRT can build
it too. Working copies: a few tensors of the size of 1/(2D+1) of the cost volume.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.rules import check_attributes
from mtu.plugins.onnx_body import Body

INPUTS = ("motion", "motion_prev", "detail_prev")
OUTPUTS = ("warped", "displacement")
BLOCK = 16
"""Positions of a row that share a matrix product: larger wastes arithmetic, smaller wastes calls."""

UNIT = 2**22
"""Steps into which 1 is divided where vectors are normalised."""

_END = 2**31 - 1


def function_proto(max_displacement: int, pool_size: int, scale: int) -> onnx.FunctionProto:
    """The body of the op for these attributes; see `Body.function`. Limits: B * scale*h * w < 2**31.

    Raises InvalidInputError for attributes outside the rules.
    """
    check_attributes(max_displacement, pool_size, scale)
    body = Body()
    shape = body.op("Shape", "motion")
    height, width = (body.op("Gather", shape, body.ints(axis), axis=0) for axis in (2, 3))
    _match(body, height, width, max_displacement, pool_size)
    _warp(body, height, width, max_displacement, scale)
    return body.function(OP, INPUTS, OUTPUTS)


def _match(body: Body, height: str, width: str, max_displacement: int, pool_size: int) -> None:
    """Adds the output `displacement`. `height`, `width`: int64 of one element.

    A row of the map is cut into blocks. A block is multiplied with the stretch of a row of motion_prev that it can
    reach (`reach` positions); of each product the entries [i + dx + D, i] are the similarities at displacement dx. For
    one dy after the other they are fetched from there by their places and become maps, one for each dx.

    Rows of the products are those of motion_prev: it is motion, the smaller operand, that is shifted by -dy. One row
    of zeros is added to motion_prev, for all that is above and below it.
    """
    d, span, r = max_displacement, 2 * max_displacement + 1, pool_size // 2
    reach = BLOCK + 2 * d
    count = body.op("Div", body.op("Add", width, body.ints(BLOCK - 1)), body.ints(BLOCK))
    fill = body.op("Sub", body.op("Mul", count, body.ints(BLOCK)), width)

    a = _normalised(body, "motion")
    if r:
        # Averages of the products are then sums of the true ones: exact where equal costs must stay equal.
        a = body.op("Mul", a, body.constant(np.array(pool_size**2, np.float32)))
    a = body.op("Pad", a, body.op("Concat", body.ints(0, 0, d, 0, 0, 0, d + 1), fill, axis=0))
    a = body.op("Reshape", a, body.ints(0, 0, 0, -1, BLOCK))
    a = body.op("Transpose", a, perm=[0, 2, 3, 1, 4])  # [B, 2D + h + 1, count, C, BLOCK]

    right = body.op("Add", fill, body.ints(d))
    b = body.op("Transpose", _normalised(body, "motion_prev"), perm=[0, 2, 3, 1])
    b = body.op("Pad", b, body.op("Concat", body.ints(0, 0, d, 0, 0, 1), right, body.ints(0), axis=0))
    starts = body.op("Mul", _positions(body, count), body.int32(BLOCK))
    offsets = body.constant(np.arange(reach, dtype=np.int32))
    stretches = body.op("Add", body.op("Unsqueeze", starts, body.ints(1)), offsets)
    b = body.op("Gather", b, stretches, axis=2)  # [B, h + 1, count, reach, C]

    # Places of the similarities among the products of a row, [span, w]. Fetched, they are rows of maps,
    # [h + 1, span] of them; then places of those rows for each dx, [span, D + h + D], of which each dy takes a part.
    each_dx = np.arange(span, dtype=np.int32).reshape(span, 1)
    x = _positions(body, width)
    place = body.op("Mul", body.op("Mod", x, body.int32(BLOCK)), body.int32(BLOCK + 1 - reach))
    place = body.op("Add", body.op("Add", place, body.op("Mul", x, body.int32(reach))), body.constant(each_dx * BLOCK))
    outside = body.op("Expand", body.op("Cast", height, to=TensorProto.INT32), body.ints(d))  # the row of zeros
    rows = body.op("Concat", outside, _positions(body, height), outside, axis=0)
    rows = body.op("Add", body.op("Mul", rows, body.int32(span)), body.constant(each_dx))

    all_rows = body.op("Concat", body.ints(0, -1), width, axis=0)

    values, indices = [], []
    for dy in range(-d, d + 1):
        cost = body.op("MatMul", b, body.cut(a, d - dy, -(d + dy) or _END, axis=1))
        cost = body.op("Gather", body.op("Reshape", cost, body.ints(0, 0, -1)), place, axis=2)  # [B, h + 1, span, w]
        cost = body.op("Reshape", cost, all_rows)
        cost = body.op("Gather", cost, body.cut(rows, d + dy, dy - d or _END, axis=1), axis=1)  # [B, span, h, w]
        if r:
            square, pads = [pool_size, pool_size], [r, r, r, r]
            cost = body.op("AveragePool", cost, kernel_shape=square, pads=pads, count_include_pad=1)
        values.append(body.op("ReduceMax", cost, body.ints(1), keepdims=1))
        indices.append(body.op("ArgMax", cost, axis=1, keepdims=1))  # the first of equals
    value = body.op("Concat", *values, axis=1)
    index = body.op("Cast", body.op("Concat", *indices, axis=1), to=TensorProto.INT32)
    index = body.op("Add", index, body.constant((each_dx * span).reshape(span, 1, 1)))
    is_best = body.op("Equal", value, body.op("ReduceMax", value, body.ints(1), keepdims=1))
    index = body.op("Where", is_best, index, body.int32(span**2 - 1))
    body.op("ReduceMin", index, body.ints(1), keepdims=0, output="displacement")


def _positions(body: Body, size: str) -> str:
    """0, 1, ... size - 1 in int32. `size`: int64 of one element."""
    zero, one = (body.constant(np.array(value, np.int64)) for value in (0, 1))
    return body.op("Cast", body.op("Range", zero, body.op("Squeeze", size, body.ints(0)), one), to=TensorProto.INT32)


def _normalised(body: Body, x: str) -> str:
    """x / max(|x|, 1e-12) over the channels in units of 1/UNIT, rounded to whole ones, in fp32.

    Rounding keeps equal costs equal where a runtime multiplies by the reciprocal instead of dividing, as OpenVINO does:
    the quotients of the tied cases are off by less than half a unit. UNIT is a power of two, so that products and sums
    are those of the unit vectors, and coarser than fp32 by as little as that takes.
    """
    x = body.op("Cast", x, to=TensorProto.FLOAT)
    length = body.op("ReduceL2", x, body.ints(1), keepdims=1)
    length = body.op("Max", length, body.constant(np.array(1e-12, np.float32)))
    return body.op("Round", body.op("Div", x, body.op("Mul", length, body.constant(np.array(1 / UNIT, np.float32)))))


def _warp(body: Body, height: str, width: str, max_displacement: int, scale: int) -> None:
    """Adds the output `warped`. `scale` pixels of a line, channels last, are fetched as one row of a table."""
    zero, span = body.int32(0), body.int32(2 * max_displacement + 1)
    h, w = (body.op("Cast", x, to=TensorProto.INT32) for x in (height, width))
    dy = body.op("Div", "displacement", span)
    dx = body.op("Sub", "displacement", body.op("Mul", dy, span))
    y = body.op("Sub", body.op("Unsqueeze", _positions(body, height), body.ints(1)), body.int32(max_displacement))
    x = body.op("Sub", _positions(body, width), body.int32(max_displacement))
    y, x = body.op("Add", dy, y), body.op("Add", dx, x)
    in_height = body.op("And", body.op("GreaterOrEqual", y, zero), body.op("Less", y, h))
    in_width = body.op("And", body.op("GreaterOrEqual", x, zero), body.op("Less", x, w))
    inside = body.op("Unsqueeze", body.op("And", in_height, in_width), body.ints(2))

    shape = body.op("Shape", "detail_prev")
    batch, channels = (body.op("Gather", shape, body.ints(axis), axis=0) for axis in (0, 1))
    image = body.op("Unsqueeze", body.op("Mul", _positions(body, batch), h), body.ints(1, 2))
    row = body.op("Mul", body.op("Add", y, image), body.int32(scale))
    row = body.op("Unsqueeze", body.op("Add", body.op("Mul", row, w), x), body.ints(2))
    lines = body.op("Mul", body.constant(np.arange(scale, dtype=np.int32).reshape(scale, 1)), w)
    row = body.op("Add", row, lines)  # [B, h, scale, w]

    table = body.op("Transpose", "detail_prev", perm=[0, 2, 3, 1])
    length = body.op("Mul", channels, body.ints(scale))
    table = body.op("Reshape", table, body.op("Concat", body.ints(-1), length, axis=0))
    # A row of zeros at its end, for what comes from outside.
    outside = body.op("Cast", body.op("Gather", body.op("Shape", table), body.ints(0), axis=0), to=TensorProto.INT32)
    zeros = body.op("CastLike", body.constant(np.zeros((1, 1), np.float32)), "detail_prev")
    zeros = body.op("Expand", zeros, body.op("Concat", body.ints(1), length, axis=0))
    table = body.op("Concat", table, zeros, axis=0)
    x = body.op("Gather", table, body.op("Where", inside, row, outside), axis=0)  # [B, h, scale, w, scale * c]
    full = body.op("Concat", body.op("Gather", shape, body.ints(0, 2, 3), axis=0), channels, axis=0)
    body.op("Transpose", body.op("Reshape", x, full), perm=[0, 3, 1, 2], output="warped")
