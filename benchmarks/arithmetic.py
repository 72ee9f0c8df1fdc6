"""How much arithmetic a frame takes, and how much the machine can do. Imports numpy; onnx where a graph is counted."""

from __future__ import annotations

import math
import time

import numpy as np

from mtu.core.interface import Graph
from mtu.runtime.backends import Model, Stages
from mtu.runtime.bundle import Bundle

PRODUCT = 2048
"""Rows and columns of the matrices whose product is the measure of what the machine can do."""


def frame_gflop(model: Model, height: int, width: int) -> float | None:
    """Billions of floating point operations of the convolutions of a frame that is no first one, two for each
    multiplication and addition; of mtu2 they are 99 % of all. None for an engine, and where onnx is not installed.
    """
    if isinstance(model, Stages):
        total = 0.0
        for stage in model.models:
            gflop = frame_gflop(stage, height, width)
            if gflop is None:
                return None
            total, height, width = total + gflop, height * stage.interface.scale, width * stage.interface.scale
        return total
    if not isinstance(model, Bundle):
        return None
    try:
        import onnx  # noqa: F401
    except ImportError:
        return None
    step = max(model.interface.graphs, key=lambda graph: len(graph.states))
    return _convolutions(model, step, *model.interface.size.padded(height, width)) / 1e9


def _convolutions(bundle: Bundle, graph: Graph, height: int, width: int) -> int:
    import onnx

    from mtu.plugins.nodes import tensors_of, with_sizes

    sizes = {each.tensor.name: each.tensor.at(height, width) for each in graph.inputs}
    found = with_sizes(onnx.load(bundle.graph(graph.name)), sizes)
    shapes = {name: shape for name, (shape, _) in tensors_of(found).items()}
    operations = 0
    for node in found.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            # Every output is a sum over a kernel; of a transposed one, every input goes into as many.
            positions = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
            operations += 2 * math.prod(positions) * math.prod(shapes[node.input[1]][1:])
    return operations


def product_gflops(repeats: int = 5) -> float:
    """Billions of operations a second that numpy reaches in fp32 with all cores: the best of some matrix products."""
    matrix = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT), dtype=np.float32)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return 2 * PRODUCT**3 / min(seconds) / 1e9
