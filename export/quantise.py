"""Puts int8 into an exported fp32 graph: Q and DQ around convolutions. Imports onnx and numpy; needs no torch.

Note [where Q and DQ stand]
    Explicit quantisation: QuantizeLinear and DequantizeLinear nodes say what is int8, and a runtime that sees
    DQ -> Conv -> Q computes the convolution in int8. Everything is symmetric (zero point 0, -127 to 127), the weights
    have a scale for each output channel, biases stay fp32: what TensorRT 10 and 11 and TensorRT-RTX take.

        x -> Q -> DQ -> Conv -> Q -> DQ -> Relu -> y

    The second pair stands before the ReLU and has the scale of what comes out behind it. Rounding and a ReLU commute
    when zero stays zero, so y is what it would be with the pair behind the ReLU. ONNX Runtime, on a CPU, computes in
    int8 in this order alone. TensorRT fuses convolution, ReLU and a Q behind them instead, and wants no Q before the
    ReLU: `for_tensorrt` takes the second pair away. The next convolution rounds what it takes all the same; sums and
    skip connections then read what was not rounded at all, so the engine is nearer to fp32 than the bundle.

    Only the convolution takes the rounded x. Whatever else reads x (the sums of the residual blocks, the skip
    connections, the op, a state) reads the fp32 map. onnxruntime.quantization gives the rounded map to all of them,
    which is why it does not do this here.

Note [what is never int8]
    Candidates are the convolutions with a ReLU behind them whose result is neither an output of the graph nor an input
    of the custom op. So the output layer (the residual that is added to the frame) and the motion layer (its result is
    a state and is matched) stay as they are, and with them the op. Transposed convolutions stay too: onnxruntime has
    none in int8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mtu.plugins.op import DOMAIN

SMALLEST_SCALE = 2.0**-24
"""The smallest number above 0 in fp16, which the scales become where the graph does; 0 is no scale."""
LEVELS = 127
"""Largest int8 value used; -128 is not, so that a range is symmetric."""
QUANTISED, DEQUANTISED = "_quantised", "_dequantised"


@dataclass(frozen=True)
class Layer:
    """A convolution that can be int8, by its names in one graph."""

    name: str
    """As in the checkpoint: "HGs.0.enc1.0"."""
    input: str
    """The tensor that it takes."""
    output: str
    """The tensor behind its ReLU."""


@dataclass(frozen=True)
class Limits:
    """What int8 has to hold: the largest absolute values that a layer takes and that come out behind its ReLU."""

    input: float
    output: float


def candidates(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph that can be int8, in its order. See Note [what is never int8]."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = {value.name for value in model.graph.output}
    kept |= {name for node in model.graph.node if node.domain == DOMAIN for name in node.input}
    return [
        Layer(node.input[1].removesuffix(".weight"), node.input[0], relu.output[0])
        for node, relu in _activated(model)
        if node.input[1] in weights and relu.output[0] not in kept
    ]


def quantise(model: onnx.ModelProto, limits: Mapping[str, Limits]) -> None:
    """Makes the layers that `limits` names int8, in place; a layer that the graph does not have is left out.

    A limit of 0 (nothing was seen to go in or come out) counts as 1.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = {layer.name for layer in candidates(model)}.intersection(limits)
    before: dict[str, list[onnx.NodeProto]] = {}  # the node with this output
    made: set[str] = set()
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), "int8_zero"))
    for node, relu in list(_activated(model)):
        layer = node.input[1].removesuffix(".weight")
        if layer not in layers:
            continue
        nodes = before.setdefault(node.output[0], [])
        scale = _scale(limits[layer].input)
        source = node.input[0]
        if source not in made:
            nodes += _pair(graph, source, scale)
            made.add(source)
        bias = numpy_helper.to_array(weights[node.input[2]])
        nodes.append(_quantise_weights(graph, weights[node.input[1]], bias, scale))
        before[relu.output[0]] = _pair(graph, node.output[0], _scale(limits[layer].output))
        node.input[0], node.input[1] = source + DEQUANTISED, node.input[1] + DEQUANTISED
        relu.input[0] += DEQUANTISED
    ordered = [each for node in graph.node for each in (*before.get(node.output[0], []), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def for_tensorrt(model: onnx.ModelProto) -> None:
    """Takes away the Q and DQ between a convolution and its ReLU, in place. See Note [where Q and DQ stand]."""
    producers = {name: node for node in model.graph.node for name in node.output}
    gone = []
    for node in model.graph.node:
        if node.op_type != "Relu" or producers[node.input[0]].op_type != "DequantizeLinear":
            continue
        dequantise = producers[node.input[0]]
        quantise_node = producers[dequantise.input[0]]
        node.input[0] = quantise_node.input[0]
        gone += [quantise_node, dequantise]
    for node in gone:
        model.graph.node.remove(node)


def _activated(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Every convolution with a bias, and the ReLU that alone reads it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        behind = readers.get(node.output[0], []) if node.op_type == "Conv" else []
        if [reader.op_type for reader in behind] == ["Relu"] and len(node.input) == 3:
            yield node, behind[0]


def _scale(largest: float) -> float:
    return max((largest or 1.0) / LEVELS, SMALLEST_SCALE)


def _pair(graph: onnx.GraphProto, name: str, scale: float) -> list[onnx.NodeProto]:
    """Q and DQ of an activation; the result is `name` + DEQUANTISED."""
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), name + "_scale"))
    quantised, parameters = name + QUANTISED, [name + "_scale", "int8_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [quantised], f"quantise_{name}"),
        helper.make_node("DequantizeLinear", [quantised, *parameters], [name + DEQUANTISED], f"dequantise_{name}"),
    ]


def _quantise_weights(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, bias: np.ndarray, input_scale: float
) -> onnx.NodeProto:
    """Replaces weights [O, I, k, k] by int8 ones of the same name; gives the DQ that makes them fp32 again."""
    name = tensor.name
    weights = numpy_helper.to_array(tensor)
    scales = np.abs(weights).max(axis=(1, 2, 3)) / LEVELS
    # onnxruntime makes the bias int32 in steps of both scales together: that has to hold it, if weights are nearly 0.
    scales = np.maximum(scales, np.abs(bias) / (input_scale * 2**30))
    scales = np.maximum(scales, SMALLEST_SCALE).astype(np.float32)
    rounded = np.clip(np.rint(weights / scales[:, None, None, None]), -LEVELS, LEVELS).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(rounded, name))
    graph.initializer.append(numpy_helper.from_array(scales, name + "_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scales), np.int8), name + "_zero"))
    inputs = [name, name + "_scale", name + "_zero"]
    return helper.make_node("DequantizeLinear", inputs, [name + DEQUANTISED], f"dequantise_{name}", axis=0)
