"""What a graph's tensors take that are alive at one time, if no layers are fused. Imports onnx and numpy."""

from __future__ import annotations

import numpy as np
import onnx

from mtu.core.interface import Graph, Interface
from mtu.plugins.nodes import tensors_of, with_sizes

MEASURED = (1440, 2560)
"""Height and width at which the bytes for a pixel are worked out; large, so that margins do not count."""


def working_memory(model: onnx.ModelProto, graph: Graph, height: int, width: int) -> tuple[int, int, int]:
    """Bytes of the weights, of inputs and outputs, and of the other tensors that are alive at one time."""
    found = with_sizes(model, {each.tensor.name: each.tensor.at(height, width) for each in graph.inputs})
    known = {
        name: int(np.prod(shape, dtype=np.float64)) * kind.itemsize for name, (shape, kind) in tensors_of(found).items()
    }
    last_use = {name: index for index, node in enumerate(found.graph.node) for name in node.input}
    outer = {value.name for value in (*found.graph.input, *found.graph.output)}
    alive = peak = 0
    for index, node in enumerate(found.graph.node):
        alive += sum(known.get(name, 0) for name in node.output if name not in outer)
        peak = max(peak, alive)
        ended = {name for name in (*node.input, *node.output) if last_use.get(name, index) == index}
        produced = ended - outer - {tensor.name for tensor in found.graph.initializer}
        alive -= sum(known.get(name, 0) for name in produced)
    weights = sum(len(tensor.raw_data) for tensor in found.graph.initializer)
    return weights, sum(known[name] for name in outer), peak


def working_bytes(model: onnx.ModelProto, interface: Interface, graph: Graph) -> int:
    """For `Interface.working_bytes`: tensors of a graph that are alive at one time, inputs and outputs among them."""
    height, width = interface.size.padded(*MEASURED)
    _, outer, peak = working_memory(model, graph, height, width)
    return round((outer + peak) / (height * width))
