"""Casts an exported fp32 graph to fp16, but for the layers that are kept in fp32. Imports onnx and numpy, no torch.

TensorRT 11 has no fp16 switch: precision is what the graph says. So the graph says it: weights, states and arithmetic
become fp16; frames stay uint8; the custom op keeps its fp32 matching (its function casts inside); and the last scaling
to 0..255 is done in fp32, where rounding to nearest is exact.

Note [layers kept in fp32]
    A kept layer computes in fp32 with fp32 weights, and so does the activation on what it gives. What lies between two
    kept layers, or between one and the last scaling, is fp32 as well: sums, concatenations, and the map that a custom
    op moves. So a map that fp16 cannot hold gets through where all layers that make it and all that take it are kept.
    Everywhere else a Cast stands at the border. States are fp16 at the graph's own border whatever is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from mtu.core.errors import InvalidInputError, MissingFileError, some
from mtu.core.interface import Interface, Tensor
from mtu.export.graph_view import GraphView
from mtu.plugins.op import DOMAIN

LARGEST = 65504.0
"""The largest value that fp16 can hold."""
HALF_QUANTISING_OPSET = 19
"""The first opset whose QuantizeLinear takes fp16; the nodes of our graphs mean the same in it as in 18."""
LISTED = 4
"""How many names of layers a message lists."""
ALWAYS_FP32 = {("Resize", 2)}
"""Inputs of standard operators that cannot be fp16: the scales of Resize."""


def read_layers(path: Path) -> frozenset[str]:
    """The layers that a file of `mtu-calibrate ranges --keep` names: one a line, lines with # are comments.

    Raises MissingFileError or InvalidInputError if it cannot be read.
    """
    if not path.exists():
        raise MissingFileError(f"--keep-fp32 {path} does not exist: make it with mtu-calibrate ranges --keep")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise InvalidInputError(
            f"--keep-fp32 {path} cannot be read: give a text file with the name of a layer on each line"
        ) from None
    return frozenset(line for line in lines if line and not line.startswith("#"))


def check_layers(keep: Iterable[str], known: Iterable[str]) -> None:
    """Raises InvalidInputError if `keep` has a layer that is not among `known`, those of the network."""
    known = list(known)
    if unknown := sorted(set(keep).difference(known)):
        raise InvalidInputError(
            f"--keep-fp32 names {some(unknown)}, which the network has not: its layers are"
            f" {', '.join(known[:LISTED])} and so on, named as in the checkpoint"
        )


def fp32_layers(model: onnx.ModelProto) -> frozenset[str]:
    """The layers that compute in fp32, in a graph that may be fp16 otherwise. `model` has the ops' functions."""
    floats = fp32_tensors(model)
    return frozenset(name for name, nodes in GraphView(model).layers.items() if nodes[0].output[0] in floats)


def fp32_nodes(model: onnx.ModelProto, keep: Iterable[str]) -> frozenset[str]:
    """The names of the nodes that compute in fp32 where the layers `keep` are kept: see Note [layers kept in fp32].

    Layers that the graph has not are passed over; the last scaling, which is always fp32, is not among the nodes.
    """
    view = GraphView(model)
    kept = [node for layer in keep for node in view.layers.get(layer, ())]
    nodes = {node.name for node in kept}
    behind: set[str] = set()  # tensors that come from a kept layer
    for node in view.nodes:
        if node.name in nodes or (not view.is_layer(node) and behind.intersection(view.carried(node))):
            behind.update(view.given(node))
    # Tensors that lead to a kept layer or to the last scaling.
    before = {name for node in view.scaling for name in node.input}
    before -= {name for node in view.scaling for name in node.output}
    for node in reversed(view.nodes):
        if node.name in nodes or (not view.is_layer(node) and before.intersection(view.given(node))):
            before.update(view.carried(node))
    both = behind & before
    between = {node.name for node in view.nodes if not view.is_layer(node) and both.intersection(view.given(node))}
    activations = {
        node.name for node in view.nodes if (layer := view.activated(node)) is not None and layer.name in nodes
    }
    of_weights = set()
    waiting = [name for node in kept for name in node.input[1:]]
    while waiting:
        if maker := view.producers.get(waiting.pop()):
            of_weights.add(maker.name)
            waiting += maker.input
    return frozenset(nodes | activations | of_weights | (between - {node.name for node in view.scaling}))


def in_fp16(interface: Interface) -> Interface:
    """The description of the same model with weights, states and arithmetic in fp16."""

    def half(tensor: Tensor) -> Tensor:
        return replace(tensor, dtype="float16") if tensor.dtype == "float32" else tensor

    graphs = tuple(
        replace(
            graph,
            inputs=tuple(replace(each, tensor=half(each.tensor)) for each in graph.inputs),
            outputs=tuple(replace(each, tensor=half(each.tensor)) for each in graph.outputs),
        )
        for graph in interface.graphs
    )
    return replace(interface, precision="fp16", graphs=graphs)


def to_fp16(model: onnx.ModelProto, keep: Iterable[str] = ()) -> None:
    """Rewrites a graph made by `export_graph` in place; the layers `keep` stay fp32 (Note [layers kept in fp32]).

    Raises InvalidInputError if a weight of another layer overflows fp16.
    """
    graph, view = model.graph, GraphView(model)
    floats = fp32_tensors(model)
    single = fp32_nodes(model, keep) | {node.name for node in view.scaling}
    # For each tensor: is it taken in fp32, or in fp16, or in both.
    taken: dict[str, set[bool]] = {value.name: {False} for value in graph.output}
    uses = []
    for node in graph.node:
        # What an op does not hand on it matches, which it does in fp32 by itself.
        matched = set(node.input).difference(view.carried(node)) if node.domain == DOMAIN else ()
        for index, name in enumerate(node.input):
            if name in floats:
                in_fp32 = (node.name in single and name not in matched) or (node.op_type, index) in ALWAYS_FP32
                taken.setdefault(name, set()).add(in_fp32)
                uses.append((node, index, name, in_fp32))
    # The tensors that are there in fp32; the others are in fp16.
    made = {name for node in graph.node if node.name in single for name in node.output}
    made |= {tensor.name for tensor in graph.initializer if taken.get(tensor.name) == {True}}
    outputs = {value.name for value in graph.output}
    # What each tensor is called in fp16 and in fp32. An output of the graph has its own name in fp16.
    names = {name: (f"{name}_fp16", name) if name in made - outputs else (name, f"{name}_fp32") for name in floats}
    for node, index, name, in_fp32 in uses:
        node.input[index] = names[name][in_fp32]
    _cast_constants(graph, made, taken, names)
    _cast_between(graph, single, made, taken, names)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        for opset in (*model.opset_import, *(each for f in model.functions for each in f.opset_import)):
            if not opset.domain:
                opset.version = max(opset.version, HALF_QUANTISING_OPSET)


def _cast_constants(
    graph: onnx.GraphProto, made: set[str], taken: dict[str, set[bool]], names: dict[str, tuple[str, str]]
) -> None:
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or tensor.name in made:
            continue
        name, value = tensor.name, numpy_helper.to_array(tensor)
        if True in taken.get(name, ()):
            graph.initializer.append(numpy_helper.from_array(value, names[name][True]))
        if np.abs(value).max(initial=0) > LARGEST:
            raise InvalidInputError(
                f"weights {name} exceed fp16's range of {LARGEST:g}: stay with fp32, or keep their layer in fp32"
                " with --keep-fp32 and the file that mtu-calibrate ranges --keep writes"
            )
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), name))


def _cast_between(
    graph: onnx.GraphProto,
    single: frozenset[str],
    made: set[str],
    taken: dict[str, set[bool]],
    names: dict[str, tuple[str, str]],
) -> None:
    """Puts a Cast behind each tensor that is there in one type and taken in the other."""

    def casts(name: str) -> Iterator[onnx.NodeProto]:
        if name in names and (name not in made) in taken.get(name, ()):
            source, target = names[name] if name not in made else reversed(names[name])
            kind = TensorProto.FLOAT if name not in made else TensorProto.FLOAT16
            yield helper.make_node("Cast", [source], [target], f"node_{target}", to=kind)

    nodes = [cast for value in graph.input for cast in casts(value.name)]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT if node.name in single else TensorProto.FLOAT16
        born = list(node.output)
        for index, name in enumerate(born):
            if name in names:
                node.output[index] = names[name][name in made]
        nodes += [node, *(cast for name in born for cast in casts(name))]
    del graph.node[:]
    graph.node.extend(nodes)


def fp32_tensors(model: onnx.ModelProto) -> set[str]:
    """The names of all fp32 tensors of the main graph: inputs, weights, what nodes give. It has the ops' functions."""
    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
