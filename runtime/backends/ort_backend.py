"""ONNX Runtime, on the CPU or through CUDA. Imports onnxruntime (extra [cpu] or [gpu]).

Everything goes through IO binding, so the states are handed from frame to frame on the device they were made on.
Tuning notes: the runtime optimises the graph at load (0.5 s); on a CPU it takes all cores; the arena grows to the
largest frame. On a GPU the check for non-finite values copies the states to the host after every frame.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Official builds from 1.29 on report model names and more to Microsoft unless this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.core.interface import Dim, Graph
from mtu.core.processor import CPUINFO, processor_flags
from mtu.runtime.backends import Finished, Gate, Request, non_finite, out_of_memory
from mtu.runtime.bundle import Bundle, check_metadata, check_tensors
from mtu.runtime.gpu import find_gpu

ORT_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
}
"""numpy's names of onnxruntime's types."""
SILENT = 4
"""Fatal errors only: onnxruntime writes the others to stderr, and raises them besides, which is said in our words."""


class OrtBackend:
    """See `mtu.runtime.backends.Backend`; states are OrtValues on the session's device."""

    name = "onnxruntime"
    in_flight = 0

    def __init__(self, bundle: Bundle, device: str) -> None:
        """`device` is "cpu", "cuda" or "cuda:N"."""
        self._kind, self._index = _parts(device)
        self.device = device
        self.remarks: list[str] = []
        self._gate = Gate(self.name)
        self.interface = bundle.interface
        self.stacks = self.interface.batched
        self.arithmetic = bundle.interface.arithmetic
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        for graph in self.interface.graphs:
            path = str(bundle.graph(graph.name))
            session = load_graph(path, device, path)
            self._check(session, graph, path)
            self._sessions[graph.name] = session

    def _check(self, session: onnxruntime.InferenceSession, graph: Graph, path: str) -> None:
        """Raises InvalidInputError unless the file is the graph that the bundle describes."""
        check_metadata(session.get_modelmeta().custom_metadata_map, self.interface, graph, path)
        for kind, described, nodes in (
            ("input", graph.inputs, session.get_inputs()),
            ("output", graph.outputs, session.get_outputs()),
        ):
            found = {node.name: (ORT_TYPES.get(node.type, node.type), _fixed(node.shape)) for node in nodes}
            check_tensors(kind, (each.tensor for each in described), found, path, batched=self.interface.batched)

    def submit(self, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> Finished:
        """See `Backend.submit`."""
        with self._gate:
            return self._run(self.interface.graph(graph), frames, states)

    def _run(self, graph: Graph, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> Finished:
        session = self._sessions[graph.name]
        binding = session.io_binding()
        for name in graph.frames:
            binding.bind_cpu_input(name, frames[name])
        for name, source in graph.states.items():
            binding.bind_ortvalue_input(name, states[source])
        kept = self.interface.states
        for output in graph.outputs:
            on_device = output.tensor.name in kept and self._kind == "cuda"
            binding.bind_output(output.tensor.name, "cuda" if on_device else "cpu", self._index if on_device else 0)
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = SILENT
        try:
            session.run_with_iobinding(binding, quiet)
        except Exception as error:
            height, width = next(iter(frames.values())).shape[1:3]
            raise run_failed(error, f"{graph.name}.onnx", height, width) from None
        names = [output.tensor.name for output in graph.outputs]
        values = dict(zip(names, binding.get_outputs(), strict=True))
        floats = [output.tensor.name for output in self.interface.with_role("state", "map")]
        return Finished(
            states={name: values[name] for name in kept},
            outputs={name: value.numpy() for name, value in values.items() if name not in kept},
            non_finite=non_finite({name: values[name].numpy() for name in floats}),
        )

    def read_states(self, states: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Backend.read_states`."""
        with self._gate:
            return {name: np.array(value.numpy()) for name, value in states.items()}

    def write_states(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Backend.write_states`."""
        with self._gate:
            return {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self._kind, self._index)
                for name, value in arrays.items()
            }

    def close(self) -> None:
        """See `Backend.close`."""
        if self._gate.close():
            self._sessions.clear()


def load_graph(graph: str | bytes, device: str, name: str) -> onnxruntime.InferenceSession:
    """A session for an ONNX file, given by its path or content, on "cpu", "cuda" or "cuda:N"; `name` is for messages.

    Raises InvalidInputError.
    """
    kind, index = _parts(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.enable_mem_pattern = False  # from the second frame on it is a block on top of the arena
    if not sums_are_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "cuda":
        # Without TF32: fp32 is to be fp32 here too.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}))
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base but this one
        raise InvalidInputError(f"{name} cannot be loaded by onnxruntime: {_reason(error)}") from None
    if kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise InvalidInputError(
            f"onnxruntime could not start CUDA on {device}:"
            " check the driver and the CUDA libraries, or use --device cpu"
        )
    return session


def run_failed(error: Exception, name: str, height: int, width: int) -> InvalidInputError:
    """What to raise for an error of onnxruntime in the graph `name` on frames of this size."""
    if _is_about_memory(error):
        return out_of_memory(OrtBackend.name, height, width)
    return InvalidInputError(
        f"onnxruntime could not run {name} on frames of {width}x{height}: {_reason(error)}; export the model again"
    )


def sums_are_exact(machine: str = platform.machine(), cpuinfo: Path = CPUINFO) -> bool:
    """Whether int8 models are right on this processor as they are.

    On x86 without VNNI, onnxruntime adds products of int8 in 16 bits, and large ones overflow; told so, it takes a
    slower way, which it also would where that is not needed. Without /proc/cpuinfo nobody can know, and the answer is
    no.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return True
    return bool(processor_flags(cpuinfo) & {"avx512_vnni", "avx_vnni"})


def _fixed(shape: Sequence[Dim | None]) -> tuple[int | None, ...]:
    """A shape with None for the sizes that are free."""
    return tuple(size if isinstance(size, int) else None for size in shape)


def _is_about_memory(error: Exception) -> bool:
    # It has no exception of its own: "bad allocation", "std::bad_alloc", "Failed to allocate memory for requested ...".
    return isinstance(error, MemoryError) or "alloc" in str(error) or "out of memory" in str(error)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def open_backend(request: Request) -> OrtBackend:
    """See `chosen_device`."""
    return OrtBackend(request.bundle, chosen_device(request.device))


def chosen_device(device: str) -> str:
    """`device` itself; "auto" is CUDA where this onnxruntime was built with it and a device answers, else the CPU."""
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device.startswith("cuda") and not has_cuda:
        raise MissingExtraError("onnxruntime-gpu", "gpu", f"--device {device}")
    if device != "auto":
        return device
    return "cuda:0" if has_cuda and find_gpu() is not None else "cpu"


def _parts(device: str) -> tuple[str, int]:
    kind, _, number = device.partition(":")
    return kind, int(number or 0)
