"""Proves an exported bundle: ONNX checker, shape inference, onnxruntime against torch. Imports all three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import shape_inference

from mtu.core.errors import InvalidInputError
from mtu.models.checkpoint import Checkpoint
from mtu.models.families import errors_of
from mtu.runtime.backends import Backend, open_backend
from mtu.runtime.backends.torch_backend import open_network
from mtu.runtime.bundle import Bundle

SIZE = (48, 64)
"""Height and width of the frames compared, or the model's smallest."""
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest mean absolute difference of a state, a map or a picture in [0, 1], relative to its largest value where that
is above 1."""


def verify(bundle: Bundle, checkpoint: Checkpoint) -> dict[str, float]:
    """Raises InvalidInputError if a graph is not valid ONNX, or onnxruntime does not give what torch gives.

    Compared on random frames: a first frame and one after it from its states; states, maps and pictures. Of a batched
    model also two streams at once with each alone; gives the largest difference of each output between these.
    """
    for path in bundle.files:
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model, full_check=True)
            shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
            raise InvalidInputError(f"{path.name} is not valid ONNX: {error}") from None
    backend = open_backend("onnxruntime", bundle, "cpu")
    interface = bundle.interface
    # The truth is the fp32 network, whatever the precision of the bundle.
    truth: Any = open_network(checkpoint, checkpoint.describe(), "cpu")
    rng = np.random.default_rng(0)
    height, width = interface.size.padded(*SIZE)
    frames = {name: rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8) for name in interface.frames}
    states: dict[str, np.ndarray] = {}
    try:
        for _ in range(2 if interface.states else 1):
            graph = interface.graph_for(states).name
            with errors_of(checkpoint.family):
                expected = _run(truth, graph, frames, states)
            found = _run(backend, graph, frames, states)
            for output in interface.outputs:
                shape, name = output.tensor.at(height, width), output.tensor.name
                _compare_shapes(graph, name, shape, expected[name], found[name])
            _compare(graph, expected, found, TOLERANCE[interface.precision])
            states = {name: expected[name] for name in interface.states}
        return compare_streams(backend) if interface.batched else {}
    finally:
        backend.close()


def takes_streams(checkpoint: Checkpoint) -> bool:
    """Whether the network, in torch, gives for two streams at once what it gives for each alone."""
    described = checkpoint.describe()
    if any(tensor.shape[:1] != (1,) for tensor in described.tensors.values()):
        return False
    network: Any = open_network(checkpoint, described, "cpu")
    try:
        with errors_of(checkpoint.family):
            compare_streams(network)
    except Exception:  # whatever a network raises that was not made for it; what is wrong with one stream is told later
        return False
    return True


def compare_streams(backend: Backend) -> dict[str, float]:
    """The largest difference of each output between two streams computed at once and each alone: random first frames
    and ones after them, from the states of those.

    Raises InvalidInputError where it is more than rounding.
    """
    interface, rng = backend.interface, np.random.default_rng(0)
    height, width = interface.size.padded(*SIZE)
    frames = {name: rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8) for name in interface.frames}
    states: dict[str, np.ndarray] = {}
    largest = dict.fromkeys((each.tensor.name for each in interface.outputs), 0.0)
    for _ in range(2 if interface.states else 1):
        graph = interface.graph_for(states).name
        alone = [_run(backend, graph, _row(frames, row), _row(states, row)) for row in range(2)]
        expected = {name: np.concatenate([each[name] for each in alone]) for name in largest}
        found = _run(backend, graph, frames, states)
        for output in interface.outputs:
            shape, name = output.tensor.at(height, width, 2), output.tensor.name
            _compare_shapes(graph, name, shape, expected[name], found[name])
            largest[name] = max(largest[name], float(np.abs(found[name].astype(np.float64) - expected[name]).max()))
        _compare(graph, expected, found, TOLERANCE[interface.precision], "for two streams at once than for each")
        states = {name: expected[name] for name in interface.states}
    return largest


def _row(arrays: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array[row : row + 1]) for name, array in arrays.items()}


def _run(
    backend: Backend, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All outputs of a graph as numpy arrays."""
    kinds = backend.interface.states
    given = {name: value.astype(kinds[name].dtype) for name, value in states.items()}
    pending = backend.submit(graph, frames, backend.write_states(given))
    outputs = pending.result()  # raises if a value is not finite
    return {**outputs, **backend.read_states(pending.states)}


def _compare_shapes(graph: str, name: str, wanted: tuple[int, ...], truth: np.ndarray, found: np.ndarray) -> None:
    for who, shape in (("torch", truth.shape), (f"{graph}.onnx", found.shape)):
        if shape != wanted:
            raise InvalidInputError(
                f"graph {graph}: {who} gives {name} as {list(shape)}, the description says {list(wanted)};"
                " please report this, or mend your family's file"
            )


def _compare(
    graph: str,
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    tolerance: float,
    than: str = "than torch",
) -> None:
    for name, truth in expected.items():
        if truth.dtype == np.int32:
            continue  # where two matches are nearly as good, rounding decides
        peak = 255.0 if truth.dtype == np.uint8 else max(1.0, float(np.abs(truth).max()))
        difference = float(np.abs(found[name].astype(np.float32) - truth.astype(np.float32)).mean()) / peak
        if not difference <= tolerance * (20 if truth.dtype == np.uint8 else 1):  # of steps of 8 bits
            raise InvalidInputError(
                f"{graph}.onnx gives another {name} {than} (difference {difference:.2g},"
                f" allowed {tolerance:g}); please report this"
            )
