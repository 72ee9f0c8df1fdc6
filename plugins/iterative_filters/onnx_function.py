"""The op as an ONNX function in standard operators (opset 18), for runtimes without the plugin. Imports onnx, numpy.

The body holds for any batch, channels, height and width, for fp16 and fp32; the attribute is baked into it.

onnxruntime computes a node's inputs from the one that stands last. So what reads the features stands behind what reads
the filters: those of an iteration are computed after the iteration before, not all at the beginning.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from mtu.plugins.iterative_filters import OP
from mtu.plugins.iterative_filters.rules import SLOPE, check_attributes, parts
from mtu.plugins.onnx_body import Body

INPUTS = ("x", "filters")
OUTPUTS = ("filtered",)
_END = 2**31 - 1


def function_proto(shared_taps: int) -> onnx.FunctionProto:
    """The body of the op; see `Body.function`. Raises InvalidInputError for an attribute outside the rules."""
    check_attributes(shared_taps)
    body = Body()
    filters = body.op("Cast", "filters", to=TensorProto.FLOAT)
    *taps, bias = body.split(filters, parts(shared_taps), axis=1)
    y = body.op("Cast", "x", to=TensorProto.FLOAT)
    y = _weighted(body, y, taps[:3], axis=2)
    y = _weighted(body, y, taps[-3:], axis=3)
    y = body.op("LeakyRelu", body.op("Add", y, bias), alpha=SLOPE)
    body.op("CastLike", y, "x", output="filtered")
    return body.function(OP, INPUTS, OUTPUTS)


def _weighted(body: Body, x: str, taps: list[str], axis: int) -> str:
    """The element before, the element and the one after along an axis, each times its tap, added up."""
    before = [int(each == axis) for each in range(4)]
    middle = body.op("Mul", x, taps[1])
    padded = body.op("Pad", x, body.ints(*before, *before), mode="edge")
    first = body.op("Mul", body.cut(padded, 0, -2, axis), taps[0])
    last = body.op("Mul", body.cut(padded, 2, _END, axis), taps[2])
    return body.op("Add", body.op("Add", first, middle), last)
