"""Looks into exported graphs. Nothing here is a test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper


def before_rounding(model: onnx.ModelProto, frames: Mapping[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime has before the picture becomes 8 bits, [1, 3, H, W] in [0, 1]."""
    import onnxruntime

    (clip,) = [node for node in model.graph.node if node.op_type == "Clip"]
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.append(helper.make_empty_tensor_value_info(clip.output[0]))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([clip.output[0]], frames)[0]
    return found
