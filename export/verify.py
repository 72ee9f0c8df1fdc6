"""Proves an exported bundle: ONNX checker, shape inference, onnxruntime against torch. Imports all three."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import shape_inference

from mtu.core.errors import InvalidInputError
from mtu.core.interface import FRAME_NAMES, GRAPHS, Interface
from mtu.models.mtu.network import Network
from mtu.runtime.backends import Pending, open_backend
from mtu.runtime.backends.torch_backend import TorchBackend
from mtu.runtime.bundle import Bundle

SIZE = (48, 64)
"""Height and width of the frames compared."""
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
"""Largest mean absolute difference of a state, relative to its largest value where that is above 1."""


def verify(bundle: Bundle, network: Network) -> None:
    """Raises InvalidInputError if a graph is not valid ONNX, or onnxruntime does not give what torch gives.

    Compared: the first frame and one step from it, on random frames, states and restored picture.
    """
    for graph in GRAPHS:
        path = bundle.graph(graph)
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model, full_check=True)
            shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
            raise InvalidInputError(f"{path.name} is not valid ONNX: {error}") from None
    backend = open_backend("onnxruntime", bundle, "cpu")
    # The truth is the fp32 network, whatever the precision of the bundle.
    truth = TorchBackend(Interface(backend.interface.config), network, "cpu")
    rng = np.random.default_rng(0)
    window = dict(zip(FRAME_NAMES, rng.integers(0, 256, (5, 1, *SIZE, 3), dtype=np.uint8), strict=True))
    tolerance = TOLERANCE[backend.interface.state_dtype]
    try:
        expected = truth.submit(window).states
        _compare("first", expected, _on_host(backend.submit(window)), tolerance)
        as_stored = {name: value.numpy().astype(backend.interface.state_dtype) for name, value in expected.items()}
        found = _on_host(backend.submit({**window, **as_stored}))
        _compare("step", truth.submit({**window, **expected}).states, found, tolerance)
    finally:
        backend.close()


def _on_host(pending: Pending) -> dict[str, np.ndarray]:
    pending.result()  # raises if a value is not finite
    return {name: value.numpy() for name, value in pending.states.items()}


def _compare(graph: str, expected: Mapping[str, torch.Tensor], found: dict[str, np.ndarray], tolerance: float) -> None:
    for name, value in found.items():
        truth = expected[name].numpy()
        difference = float(np.abs(value.astype(np.float32) - truth).mean()) / max(1.0, float(np.abs(truth).max()))
        if not difference <= tolerance:
            raise InvalidInputError(
                f"{graph}.onnx gives another {name.removesuffix('_in')} than torch (difference {difference:.2g},"
                f" allowed {tolerance:g}); please report this"
            )
