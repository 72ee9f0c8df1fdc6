"""Models that are no network of this project, each a few ONNX nodes and a description by hand. Nothing here is a test.

`opposite`: one graph, no states, the picture at twice the size. `difference`: one graph, no states, a map made of two
frames.
`trail`: three frames ahead, none behind, two graphs and two states, of which one has no size in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor
from mtu.export.bundle_files import save_bundle
from mtu.runtime.bundle import Bundle, open_bundle

OPSET = 18
CONSTANTS = {
    "half": np.float32(0.5),
    "top": np.float32(255),
    "infinity": np.float32(np.inf),
    "twice": np.array([1, 2, 2, 1], np.float32),
    "channels": np.array([3]),
    "sides": np.array([1, 2]),
}


def frame(name: str, offset: int = 0) -> Input:
    """An input that is a frame."""
    return Input(Tensor(name, "uint8", (1, "H", "W", 3)), Frame("image", offset))


def opposite(directory: Path) -> Bundle:
    """See above. Frames are a multiple of 8, from 16."""
    picture = Output(Tensor("negative", "uint8", (1, "2*H", "2*W", 3)), "picture")
    interface = Interface(
        family="by hand",
        variant="opposite",
        settings={},
        graphs=(Graph("only", (frame("image"),), (picture,)),),
        size=Size(8, 16),
        scale=2,
    )
    nodes = [
        ("Cast", "image", "values", {"to": TensorProto.FLOAT}),
        ("Sub", "top values", "turned", {}),
        ("Resize", "turned  twice", "large", {"mode": "nearest"}),
        ("Cast", "large", "negative", {"to": TensorProto.UINT8}),
    ]
    return save(directory, interface, {"only": nodes})


def difference(directory: Path) -> Bundle:
    """See above: half of how far the next frame is from this one, in fp16; infinite where this one is 255."""
    output = Output(Tensor("change", "float16", (1, "H", "W")), "map")
    interface = Interface(
        family="by hand",
        variant="difference",
        settings={},
        graphs=(Graph("compare", (frame("here"), frame("next", 1)), (output,)),),
    )
    nodes = [
        ("Cast", "here", "a", {"to": TensorProto.FLOAT}),
        ("Cast", "next", "b", {"to": TensorProto.FLOAT}),
        ("Sub", "a b", "moved", {}),
        ("Abs", "moved", "far", {}),
        ("Div", "far top", "share", {}),
        ("Equal", "a top", "is_top", {}),
        ("Where", "is_top infinity share", "spoilt", {}),
        ("ReduceMean", "spoilt channels", "mean", {"keepdims": 0}),
        ("Mul", "mean half", "half_of_it", {}),
        ("Cast", "half_of_it", "change", {"to": TensorProto.FLOAT16}),
    ]
    return save(directory, interface, {"compare": nodes})


def trail(directory: Path) -> Bundle:
    """See above: half of the frame three later and half of what came before, which `begin` takes for this frame."""
    level, trace = Tensor("level", "float32", (1, 3)), Tensor("trace", "float32", (1, "H", "W", 3))
    outputs = (
        Output(level, "state"),
        Output(Tensor("picture", "uint8", (1, "H", "W", 3)), "picture"),
        Output(trace, "state"),
    )
    states = (
        Input(Tensor("trace_before", "float32", (1, "H", "W", 3)), State("trace")),
        Input(Tensor("level_before", "float32", (1, 3)), State("level")),
    )
    interface = Interface(
        family="by hand",
        variant="trail",
        settings={},
        graphs=(
            Graph("begin", (frame("now"), frame("later", 3)), outputs),
            Graph("go_on", (*states, frame("later", 3)), outputs),
        ),
        size=Size(2, 2),
    )
    begin = [
        ("Cast", "now", "trace_before", {"to": TensorProto.FLOAT}),
        ("ReduceMax", "trace_before sides", "level_before", {"keepdims": 0}),
    ]
    both = [
        ("Cast", "later", "values", {"to": TensorProto.FLOAT}),
        ("Add", "values trace_before", "sum", {}),
        ("Mul", "sum half", "trace", {}),
        ("ReduceMax", "values sides", "here", {"keepdims": 0}),
        ("Max", "here level_before", "level", {}),
        ("Min", "trace level", "dark", {}),
        ("Cast", "dark", "picture", {"to": TensorProto.UINT8}),
    ]
    return save(directory, interface, {"begin": begin + both, "go_on": both})


def save(directory: Path, interface: Interface, graphs: dict[str, list[tuple]]) -> Bundle:
    """The bundle of a description and the nodes of its graphs: operator, inputs, output, attributes."""
    models = {}
    for graph in interface.graphs:
        nodes = [
            helper.make_node(operator, inputs.split(" "), [output], **attributes)
            for operator, inputs, output, attributes in graphs[graph.name]
        ]
        used = {name for node in nodes for name in node.input}
        model = helper.make_model(
            helper.make_graph(
                nodes,
                graph.name,
                [value(each.tensor) for each in graph.inputs],
                [value(each.tensor) for each in graph.outputs],
                [numpy_helper.from_array(np.asarray(array), name) for name, array in CONSTANTS.items() if name in used],
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=9,
        )
        onnx.checker.check_model(model, full_check=True)
        models[graph.name] = model
    directory.mkdir(parents=True)
    save_bundle(directory, interface, models)
    return open_bundle(directory)


def value(tensor: Tensor) -> onnx.ValueInfoProto:
    """A tensor of a description as ONNX declares it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)
