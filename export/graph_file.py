"""A graph as the bytes of a bundle's file. Imports onnx."""

from __future__ import annotations

from importlib.metadata import version

import onnx

from mtu.models.interface import GraphName, Interface


def to_bytes(model: onnx.ModelProto, interface: Interface, graph: GraphName) -> bytes:
    """The content of `first.onnx` or `step.onnx`; sets the model's metadata. The same model gives the same bytes."""
    onnx.helper.set_model_props(model, interface.to_metadata(graph))
    model.producer_name, model.producer_version = "mtu-trt", version("mtu-trt")
    content: bytes = model.SerializeToString(deterministic=True)
    return content
