"""Puts int8 into an exported fp32 graph: Q and DQ around convolutions. Imports onnx and numpy; needs no torch.

Note [where Q and DQ stand]
    Explicit quantisation: QuantizeLinear and DequantizeLinear nodes say what is int8, and a runtime that sees
    DQ -> Conv -> Q computes the convolution in int8. Everything is symmetric (zero point 0, -127 to 127), the weights
    have a scale for each output channel, biases stay fp32: what TensorRT 10 and 11 and TensorRT-RTX take.

        x -> Q -> DQ -> Conv -> Q -> DQ -> Relu -> y

    The second pair stands before the ReLU and has the scale of what comes out behind it. Rounding and a ReLU commute
    when zero stays zero, so y is what it would be with the pair behind the ReLU. A leaky ReLU lets through what is
    below 0, so its pair has the scale of what the convolution gives. ONNX Runtime, on a CPU, computes in int8 in this
    order alone. TensorRT fuses convolution, activation and a Q behind them instead, and wants no Q before the
    activation: `for_tensorrt` takes the second pair away. The next convolution rounds what it takes all the same; sums
    and skip connections then read what was not rounded at all, so the engine is nearer to fp32 than the bundle.

    Only the convolution takes the rounded x. Whatever else reads x (the sums of the residual blocks, the skip
    connections, a custom op, a state) reads the fp32 map. onnxruntime.quantization gives the rounded map to all of
    them, which is why it does not do this here.

Note [what is never int8]
    Candidates are the convolutions with a ReLU or leaky ReLU behind them whose result is neither an output of the graph
    nor an input of a custom op, wherever the graph uses them. So an output layer (a residual that is added to the
    frame), the second layer of a residual block without an activation, and what a custom op matches or a state keeps
    stay as they are. Transposed convolutions stay too: onnxruntime has none in int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mtu.export.graph_view import GraphView
from mtu.plugins.op import DOMAIN

SMALLEST_SCALE = 2.0**-24
"""The smallest number above 0 in fp16, which the scales become where the graph does; 0 is no scale."""
LEVELS = 127
"""Largest int8 value used; -128 is not, so that a range is symmetric."""
FUSED = ("Relu", "LeakyRelu")
"""The activations behind which a convolution can be int8."""
QUANTISED, DEQUANTISED = "_quantised", "_dequantised"


@dataclass(frozen=True)
class Layer:
    """A convolution that can be int8, at one of its places in a graph."""

    name: str
    """As in the checkpoint: "HGs.0.enc1.0"."""
    input: str
    """The tensor that it takes."""
    output: str
    """The tensor whose largest value its result has to hold: behind a ReLU, before a leaky one."""
    node: onnx.NodeProto
    activation: onnx.NodeProto


@dataclass(frozen=True)
class Limits:
    """What int8 has to hold: the largest absolute values of a layer's `input` and `output`."""

    input: float
    output: float


def candidates(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph that can be int8, in its order. See Note [what is never int8]."""
    view = GraphView(model)
    kept = {*view.outputs, *(name for node in view.nodes if node.domain == DOMAIN for name in node.input)}
    activations = {node.name: view.activation(node) for nodes in view.layers.values() for node in nodes}

    def can_be(node: onnx.NodeProto) -> bool:
        activation = activations[node.name]
        is_fused = activation is not None and activation.op_type in FUSED and activation.output[0] not in kept
        return node.op_type == "Conv" and node.input[1] in view.weights and is_fused

    good = {name for name, nodes in view.layers.items() if all(map(can_be, nodes))}
    found = []
    for node in view.nodes:
        activation = activations.get(node.name)
        if activation is not None and (name := view.layer_of[node.name]) in good:
            measured = activation if activation.op_type == "Relu" else node
            found.append(Layer(name, node.input[0], measured.output[0], node, activation))
    return found


def quantise(model: onnx.ModelProto, limits: Mapping[str, Limits]) -> None:
    """Makes the layers that `limits` names int8, in place; a layer that the graph does not have is left out.

    A limit of 0 (nothing was seen to go in or come out) counts as 1.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, list[onnx.NodeProto]] = {}  # the node with this output
    made: set[str] = set()
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), "int8_zero"))
    for layer in (each for each in candidates(model) if each.name in limits):
        node, limit = layer.node, limits[layer.name]
        nodes = before.setdefault(node.output[0], [])
        scale = _scale(limit.input)
        if layer.input not in made:
            nodes += _pair(graph, layer.input, scale)
            made.add(layer.input)
        if node.input[1] not in made:
            bias = numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 else np.zeros(1, np.float32)
            nodes.append(_quantise_weights(graph, weights[node.input[1]], bias, scale))
            made.add(node.input[1])
        before[layer.activation.output[0]] = _pair(graph, node.output[0], _scale(limit.output))
        node.input[0], node.input[1] = layer.input + DEQUANTISED, node.input[1] + DEQUANTISED
        layer.activation.input[0] += DEQUANTISED
    ordered = [each for node in graph.node for each in (*before.get(node.output[0], []), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def for_tensorrt(model: onnx.ModelProto) -> None:
    """Takes away the Q and DQ between a convolution and its activation, in place. See Note [where Q and DQ stand]."""
    view = GraphView(model)
    gone = []
    for node in view.nodes:
        dequantise = view.activated(node)
        if dequantise is not None and dequantise.op_type == "DequantizeLinear":
            quantise_node = view.producers[dequantise.input[0]]
            node.input[0] = quantise_node.input[0]
            gone += [quantise_node, dequantise]
    for node in gone:
        model.graph.node.remove(node)


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
    scales = np.abs(weights).max(axis=tuple(range(1, weights.ndim))) / LEVELS
    # onnxruntime makes the bias int32 in steps of both scales together: that has to hold it, if weights are nearly 0.
    scales = np.maximum(scales, np.abs(bias) / (input_scale * 2**30))
    scales = np.maximum(scales, SMALLEST_SCALE).astype(np.float32)
    rounded = np.clip(np.rint(weights / np.expand_dims(scales, [*range(1, weights.ndim)])), -LEVELS, LEVELS).astype(
        np.int8
    )
    tensor.CopyFrom(numpy_helper.from_array(rounded, name))
    graph.initializer.append(numpy_helper.from_array(scales, name + "_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scales), np.int8), name + "_zero"))
    inputs = [name, name + "_scale", name + "_zero"]
    return helper.make_node("DequantizeLinear", inputs, [name + DEQUANTISED], f"dequantise_{name}", axis=0)
