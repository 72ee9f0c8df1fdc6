"""Bundles of tiny networks that are not ours, made of ONNX nodes: no torch, no export, a few milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mtu.core.interface import Frame, Graph, Input, Interface, Output, Tensor, Unit
from mtu.export.bundle_files import save_bundle
from mtu.runtime.bundle import Bundle, open_bundle

KINDS = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
NEAREST = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
FRAME = Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0))


def write_bundle(
    directory: Path, output: Output, nodes: list, constants: dict, inputs: tuple[Input, ...] = (FRAME,), **described
) -> Bundle:
    """A network with one graph, `picture`, that takes the frame, or `inputs`, and gives `output`."""
    graph = Graph("picture", inputs, (output,))
    values = [
        helper.make_tensor_value_info(tensor.name, KINDS[tensor.dtype], tensor.shape)
        for tensor in graph.tensors.values()
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[: len(inputs)], values[len(inputs) :], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    directory.mkdir()
    save_bundle(directory, Interface("test", "test", {}, (graph,), **described), {"picture": model})
    return open_bundle(directory)


def map_bundle(directory: Path, unit: Unit | None = None, offset: int = 0) -> Bundle:
    """Gives the mean of the three colours, over 255, as a map; of the frame at `offset`."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "peak"], ["map"]),
    ]
    constants = {"axes": np.array([3]), "peak": np.array(255, np.float32)}
    inputs = (Input(FRAME.tensor, Frame("image", offset)),)
    output = Output(Tensor("map", "float32", (1, "H", "W")), "map", unit=unit)
    return write_bundle(directory, output, nodes, constants, inputs)


def negative_bundle(directory: Path, **described) -> Bundle:
    """Gives 255 less the frame."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["top", "x"], ["y"]),
        helper.make_node("Cast", ["y"], ["negative"], to=TensorProto.UINT8),
    ]
    picture = Output(Tensor("negative", "uint8", (1, "H", "W", 3)), "picture")
    return write_bundle(directory, picture, nodes, {"top": np.array(255, np.float32)}, **described)


def views_bundle(directory: Path, *, right: int = 0, left: int = 0, channels: tuple[int, ...] = (0, 1, 2)) -> Bundle:
    """Reads three streams: gives the red of the image, the green of the right view and the blue of the left one (or
    other `channels` of theirs), of frames at these offsets."""
    offsets = {"image": 0, "right": right, "left": left}
    inputs = tuple(Input(Tensor(name, "uint8", (1, "H", "W", 3)), Frame(name, at)) for name, at in offsets.items())
    nodes = [helper.make_node("Gather", [name, f"of_{name}"], [f"c_{name}"], axis=3) for name in offsets]
    nodes.append(helper.make_node("Concat", [f"c_{name}" for name in offsets], ["picture"], axis=3))
    constants = {f"of_{name}": np.array([channel]) for name, channel in zip(offsets, channels, strict=True)}
    picture = Output(Tensor("picture", "uint8", (1, "H", "W", 3)), "picture")
    return write_bundle(directory, picture, nodes, constants, inputs, streams=tuple(offsets))


def doubling_bundle(directory: Path) -> Bundle:
    """Gives a picture of twice the size, each pixel four times."""
    nodes = [helper.make_node("Resize", ["frame", "", "twice"], ["large"], **NEAREST)]
    picture = Output(Tensor("large", "uint8", (1, "2*H", "2*W", 3)), "picture")
    return write_bundle(directory, picture, nodes, {"twice": np.array([1, 2, 2, 1], np.float32)}, scale=2)
