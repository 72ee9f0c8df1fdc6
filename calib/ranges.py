"""The ranges of values that the tensors of a model hold on clips, measured in onnxruntime.

Imports onnx and onnxruntime. It reads models and frames, and writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mtu.calib.rollout import feeds
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.export.bundle_files import load_graphs
from mtu.export.graph_view import GraphView
from mtu.export.precision import LARGEST, fp32_tensors
from mtu.runtime import Bundle, Picture, open_backend

VANISHING = 0.9
"""Share of the values that are not 0; if so many are below fp16's smallest normal number, they vanish."""
SMALLEST_NORMAL = 2.0**-14
HALF_STEP = 2.0**-25
"""The largest value that becomes 0 in fp16."""

COUNTS = {
    "finite": ("LessOrEqual", float(np.finfo(np.float32).max)),
    "zeros": ("LessOrEqual", 0.0),
    "above": ("Greater", LARGEST),
    "gone": ("LessOrEqual", HALF_STEP),
    "tiny": ("Less", SMALLEST_NORMAL),
}
"""What is counted of the absolute values of a tensor, by ONNX's comparisons; zeros count as gone and tiny as well."""


@dataclass(frozen=True)
class Range:
    """What a tensor held in all frames together."""

    lowest: float
    highest: float
    elements: int
    zeros: int
    above: int
    """Elements beyond 65504 on either side, which overflow in fp16."""
    gone: int
    """Elements that are not 0 and become 0 in fp16."""
    tiny: int
    """Elements that are not 0 and become 0 or subnormal in fp16; among them those that are gone."""

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(-self.lowest, self.highest)

    @property
    def above_share(self) -> float:
        """Of the elements that overflow, 0 to 1."""
        return self.above / self.elements

    @property
    def tiny_share(self) -> float:
        """Of those that become 0 or subnormal among all that are not 0, 0 to 1."""
        return self.tiny / max(1, self.elements - self.zeros)

    def trouble(self, margin: float) -> str:
        """Why fp16 is too narrow, to be said behind the tensor's name; empty if it is not."""
        if self.largest * margin > LARGEST:
            more = f" (other videos may reach {margin:g} times that)" if self.largest <= LARGEST else ""
            return f"reaches {self.largest:.4g}{more}"
        if self.tiny_share >= VANISHING:
            return f"has {self.tiny_share:.1%} of its values below 2^-14"
        return ""

    def __or__(self, other: Range) -> Range:
        return Range(
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.elements + other.elements,
            self.zeros + other.zeros,
            self.above + other.above,
            self.gone + other.gone,
            self.tiny + other.tiny,
        )


def range_of(values: NDArray[Any]) -> Range:
    """The range of an array of fp32 values, none of them missing or infinite."""
    size = np.abs(values)
    zeros = int((size == 0).sum())
    return Range(
        lowest=float(values.min()),
        highest=float(values.max()),
        elements=values.size,
        zeros=zeros,
        above=int((size > LARGEST).sum()),
        gone=int((size <= HALF_STEP).sum()) - zeros,
        tiny=int((size < SMALLEST_NORMAL).sum()) - zeros,
    )


def load_fp32(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    """The graphs of an fp32 bundle; raises InvalidInputError for any other, or a broken one."""
    if bundle.interface.arithmetic != "fp32":
        raise InvalidInputError(
            f"model {bundle.directory} is {bundle.interface.arithmetic}: calibration needs the fp32 bundle that it was"
            " made of, or that mtu-export onnx makes of its checkpoint"
        )
    return load_graphs(bundle)


def measure(
    bundle: Bundle, clips: Iterable[Iterable[Picture]], progress: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Range]]:
    """The range of every fp32 tensor of all graphs but the weights, by its name in the graph, over all clips.

    A clip is uint8 frames [H, W, 3] of one size; the states are the model's own. `progress` is called after each frame.
    Runs in onnxruntime on the CPU. A graph that no frame went through (one with states, of clips of one frame) is left
    out. Raises InvalidInputError for clips that cannot be used, NonFiniteError with the tensor's name and the number of
    the frame if a value is not finite.
    """
    models = load_graphs(bundle)
    measuring: dict[str, _Measuring] = {}
    found: dict[str, dict[str, Range]] = {}
    with contextlib.closing(open_backend("onnxruntime", bundle, "cpu")) as backend:
        for clip in clips:
            for index, (graph, inputs) in enumerate(feeds(backend, clip)):
                if graph not in measuring:
                    measuring[graph] = _Measuring(models[graph])
                ranges = measuring[graph].run(inputs, index)
                if graph in found:
                    ranges = {name: found[graph][name] | each for name, each in ranges.items()}
                found[graph] = ranges
                progress()
    return found


class _Measuring:
    """A graph that gives what its tensors hold in place of its outputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        view = GraphView(model)
        floats = fp32_tensors(model) - view.weights.keys()
        order = [*view.inputs, *view.producers]
        self._names = [name for name in order if name in floats]  # the first that is not finite is the one to name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # In the order of the nodes, so that a tensor is measured when it is made and freed when it has been used:
        # otherwise all of them are in memory at once.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        content = _measuring(model, self._names).SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, Any], index: int) -> dict[str, Range]:
        """The ranges in frame `index`; raises NonFiniteError."""
        found = {}
        values = iter(self._session.run(None, dict(inputs)))
        for name in self._names:
            lowest, highest = float(next(values)), float(next(values))
            elements, finite, zeros, above, gone, tiny = (int(next(values)) for _ in ("elements", *COUNTS))
            if finite < elements:
                raise NonFiniteError([name], index)
            found[name] = Range(lowest, highest, elements, zeros, above, gone - zeros, tiny - zeros)
        return found


def _measuring(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of a graph that gives of each of the tensors `names`, in order, lowest, highest, elements and `COUNTS`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.output[:]
    kinds = {"lowest": TensorProto.FLOAT, "highest": TensorProto.FLOAT, "elements": TensorProto.INT64}
    kinds |= dict.fromkeys(COUNTS, TensorProto.INT32)
    for name in names:
        for what, kind in kinds.items():
            graph.output.append(helper.make_tensor_value_info(f"{name}/{what}", kind, []))
    for count, (_, limit) in COUNTS.items():
        graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float32), f"measure/{count}"))
    nodes = [node for value in graph.input if value.name in names for node in _measuring_nodes(value.name)]
    for node in graph.node:
        nodes += [node, *(each for name in node.output if name in names for each in _measuring_nodes(name))]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _measuring_nodes(name: str) -> list[onnx.NodeProto]:
    nodes = []

    def add(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}/{output}"], f"{name}/{output}", **attributes))
        return f"{name}/{output}"

    add("ReduceMin", [name], "lowest", keepdims=0)
    add("ReduceMax", [name], "highest", keepdims=0)
    add("Size", [name], "elements")
    size = add("Abs", [name], "size")
    for count, (comparison, _) in COUNTS.items():
        where = add(comparison, [size, f"measure/{count}"], f"{count}_where")
        ones = add("Cast", [where], f"{count}_ones", to=TensorProto.INT32)
        add("ReduceSum", [ones], count, keepdims=0)
    return nodes
