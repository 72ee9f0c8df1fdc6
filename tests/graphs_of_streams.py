"""What tests of several families ask of a bundle whose graphs take several streams. Nothing here is a test."""

from __future__ import annotations

import contextlib

import onnx

from mtu.export.verify import compare_streams
from mtu.runtime import Bundle, open_backend


def axes(bundle: Bundle) -> set[str | int]:
    """What axis 0 of the inputs and outputs is called, or its size where that is fixed."""
    models = [onnx.load(path) for path in bundle.files]
    values = [value for model in models for value in (*model.graph.input, *model.graph.output)]
    firsts = [value.type.tensor_type.shape.dim[0] for value in values]
    return {dim.dim_param or dim.dim_value for dim in firsts}


def takes_streams(bundle: Bundle) -> bool:
    """Whether it says so, and two streams at once are what each is alone, bit for bit with onnxruntime."""
    assert axes(bundle) == {"N"}
    with contextlib.closing(open_backend("onnxruntime", bundle, "cpu")) as backend:
        largest = compare_streams(backend)
        return bundle.interface.batched and backend.stacks and not any(largest.values())
