"""A model on single pictures in floats, before anything is rounded to 8 bits. Imports onnx and onnxruntime.

The graphs of a bundle take and give uint8. Here the first type and the last rounding are taken out of a copy in memory;
all between is as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Graph
from mtu.core.window import cut, pad
from mtu.export.bundle_files import load_graphs
from mtu.export.graph_view import GraphView
from mtu.runtime.backends.ort_backend import chosen_device, load_graph, run_failed
from mtu.runtime.bundle import Bundle

Floats = NDArray[np.float32]
PEAK = np.float32(255)
"""White in a graph."""


class FloatModel:
    """Bundles in a row, in onnxruntime. Every picture is a sequence of its own: no state, and no frame beside it."""

    def __init__(self, stages: Sequence[Bundle], device: str) -> None:
        """`device` as in `open_backend`. Raises InvalidInputError, MissingExtraError."""
        device = chosen_device(device)
        self._stages = [(bundle, *_loaded(bundle, device)) for bundle in stages]

    def restore(self, name: str, streams: Mapping[str, Floats]) -> Floats:
        """The picture made of those of each stream, all float32 [H, W, 3] in [0, 1]; `name` is for messages.

        Raises InvalidInputError, NonFiniteError.
        """
        result: Floats | None = None
        for bundle, graph, session in self._stages:
            if result is not None:
                streams = dict.fromkeys(bundle.interface.streams, result)
            size = bundle.interface.size
            fed = {
                given: np.ascontiguousarray(pad(streams[frame.stream] * PEAK, size)[None])  # type: ignore[arg-type]
                for given, frame in graph.frames.items()
            }
            output = bundle.interface.the("picture")
            assert output is not None, "only models that give pictures are measured"
            height, width = next(iter(streams.values())).shape[:2]
            try:
                (picture,) = session.run([output.tensor.name], fed)
            except Exception as error:  # onnxruntime's exceptions share no base but this one
                raise run_failed(error, f"{graph.name}.onnx", height, width) from None
            if not np.isfinite(picture).all():
                raise NonFiniteError([f"{output.tensor.name} of {name}"])
            result = cut(picture, output.tensor, height, width).astype(np.float32) / PEAK
        assert result is not None
        return result


def _loaded(bundle: Bundle, device: str) -> tuple[Graph, Any]:
    """The graph for a first frame, and a session for it in floats."""
    graph = bundle.interface.graph_for({})
    model = load_graphs(bundle)[graph.name]
    leave_rounding_out(model, graph, str(bundle.graph(graph.name)))
    return graph, load_graph(model.SerializeToString(), device, str(bundle.graph(graph.name)))


def leave_rounding_out(model: onnx.ModelProto, graph: Graph, source: str) -> None:
    """Makes the frames and pictures of a bundle's graph float32 [0, 255], not rounded; `source` is for messages.

    Raises InvalidInputError for a graph that does not end in a cast to uint8.
    """
    view = GraphView(model)
    pictures = {each.tensor.name for each in graph.outputs if each.role == "picture"}
    if not all(name in view.producers and view.producers[name].op_type == "Cast" for name in pictures):
        raise InvalidInputError(
            f"{source} does not end in a cast to 8 bits that could be left out: measure it with a layout of videos"
        )
    for node in view.scaling:
        if node.op_type == "Round":
            node.op_type = "Identity"
        elif node.op_type == "Cast":
            for attribute in node.attribute:
                attribute.i = TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if value.name in graph.frames or value.name in pictures:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del model.graph.value_info[:]
