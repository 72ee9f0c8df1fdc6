"""int8 graphs, as OpenVINO computes them rightly on the processor at hand. Imports numpy and onnx.

Note [int8 on a CPU]
    In our graphs int8 is symmetric: activations are -127 to 127, zero is 0. OpenVINO takes them so on a processor with
    AMX. Where it may not, it makes them 0 to 255 with zero at 128, and goes wrong on the way if a convolution reads a
    concatenation: pictures come out 34 dB from fp32 in place of 50 (OpenVINO 2026.4). If the graph says 0 to 255
    already, the same steps with the same values, it is right. With AMX that would be 1.1 times as slow.
    Without VNNI it adds products of int8 in 16 bits, which they overflow. There, and on a processor that is not known,
    activations are not rounded at all, and everything is computed in fp32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

ZERO = "uint8_zero"
"""The initializer that says which of 0 to 255 is zero."""


def fit_int8(model: onnx.ModelProto, units: str) -> None:
    """Changes the activations of a graph for a processor with these units, in place. See Note [int8 on a CPU]."""
    graph = model.graph
    quantised = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    pairs = [
        (quantised[node.input[0]], node)
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised
    ]
    if not pairs or units == "AMX":
        return
    if units == "VNNI":
        graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), ZERO))
        for node in (node for pair in pairs for node in pair):
            node.input[2] = ZERO
        return
    exact = {dequantise.output[0]: quantise.input[0] for quantise, dequantise in pairs}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    for node in (node for pair in pairs for node in pair):
        graph.node.remove(node)
