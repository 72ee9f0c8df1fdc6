"""A graph as the bytes of a bundle's file. Imports onnx."""

from __future__ import annotations

import onnx

from mtu.core.interface import GraphName, Interface
from mtu.core.release import VERSION


def to_bytes(model: onnx.ModelProto, interface: Interface, graph: GraphName) -> bytes:
    """The content of `first.onnx` or `step.onnx`; sets the model's metadata. The same model gives the same bytes."""
    onnx.helper.set_model_props(model, interface.to_metadata(graph))
    model.producer_name, model.producer_version = "mtu-trt", VERSION
    content: bytes = model.SerializeToString(deterministic=True)
    return content
