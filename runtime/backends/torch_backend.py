"""PyTorch, for comparison and debugging: eager, or compiled. Imports torch and onnx (extra [export]).

It runs the network of the model's family with the weights that the bundle's ONNX holds, so that a comparison with
another backend compares executors and nothing else. The one place behind the export that knows families.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface
from mtu.models.checkpoint import Checkpoint
from mtu.models.families import find_family
from mtu.runtime.backends import Finished, Gate, Request, non_finite, out_of_memory
from mtu.runtime.bundle import Bundle, check_metadata


class TorchBackend:
    """See `mtu.runtime.backends.Backend`; states are torch tensors on the device."""

    in_flight = 0

    def __init__(
        self, interface: Interface, graphs: Mapping[str, torch.nn.Module], device: str, name: str = "torch"
    ) -> None:
        """`graphs` are those of the family (`graphs(network)`), `device` as torch names it."""
        self.name = name
        self.interface = interface
        self.stacks = interface.batched
        self.arithmetic = interface.arithmetic
        self.device = device
        self.remarks: list[str] = []
        self._gate = Gate(name)
        dtype = torch.float16 if interface.precision == "fp16" else torch.float32
        self._graphs: dict[str, Any] = {name: graph.to(device, dtype).eval() for name, graph in graphs.items()}

    def submit(self, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> Finished:
        """See `Backend.submit`."""
        with self._gate:
            try:
                return self._run(graph, frames, states)
            except (RuntimeError, MemoryError) as error:
                if not _is_about_memory(error):
                    raise
                raise out_of_memory(self.name, *next(iter(frames.values())).shape[1:3]) from None

    @torch.inference_mode()
    def _run(self, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> Finished:
        described = self.interface.graph(graph)
        inputs = [
            states[described.states[name]] if name in described.states else self._on_device(frames[name])
            for name in (each.tensor.name for each in described.inputs)
        ]
        with without_tf32():
            given = self._graphs[graph](*inputs)
        names = [each.tensor.name for each in described.outputs]
        values = dict(zip(names, given if isinstance(given, tuple) else (given,), strict=True))
        kept = self.interface.states
        floats = [each.tensor.name for each in self.interface.with_role("state", "map")]
        return Finished(
            states={name: values[name] for name in kept},
            outputs={name: value.cpu().numpy() for name, value in values.items() if name not in kept},
            non_finite=non_finite({name: torch.stack(values[name].aminmax()).cpu().numpy() for name in floats}),
        )

    def _on_device(self, frame: np.ndarray) -> torch.Tensor:
        # torch warns about arrays that are not writable, though it only reads this one.
        return torch.from_numpy(frame if frame.flags.writeable else frame.copy()).to(self.device)

    def read_states(self, states: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Backend.read_states`."""
        with self._gate:
            return {name: np.array(value.cpu().numpy()) for name, value in states.items()}

    def write_states(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Backend.write_states`."""
        with self._gate:
            return {name: torch.tensor(value, device=self.device) for name, value in arrays.items()}

    def compile(self) -> None:
        """Compiles all graphs at their first call, which then takes a minute; once for each frame size."""
        self._graphs = {name: torch.compile(graph, dynamic=False) for name, graph in self._graphs.items()}

    def close(self) -> None:
        """See `Backend.close`."""
        if self._gate.close():
            self._graphs.clear()


def _is_about_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to ...", or
    # hands on oneDNN's "could not create a primitive" or "... a memory object".
    found = str(error)
    return isinstance(error, MemoryError) or "memory" in found or found.startswith("could not create a")


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions and matrix products of fp32 are fp32 on CUDA too; torch does the former in TF32 unless told so."""
    kinds: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = False
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.allow_tf32 = value


def read_checkpoint(bundle: Bundle) -> Checkpoint:
    """The weights that a bundle's graphs hold, in fp32. Raises InvalidInputError if they cannot be read, or if torch
    could not compute what the bundle does."""
    interface = bundle.interface
    if interface.int8_layers:
        raise InvalidInputError(
            f"model {bundle.directory} is {interface.arithmetic}, and torch computes in fp32 or fp16 alone: use"
            " --backend onnxruntime, or the bundle it was made of"
        )
    stored: dict[str, TensorProto] = {}
    read: set[str] = set()  # by nodes
    for graph in interface.graphs:
        path = bundle.graph(graph.name)
        try:
            model = onnx.load(path)
        except (DecodeError, OSError, onnx.checker.ValidationError) as error:
            raise InvalidInputError(f"{path} cannot be read as ONNX: {error}") from None
        check_metadata({prop.key: prop.value for prop in model.metadata_props}, interface, graph, str(path))
        stored |= {tensor.name: tensor for tensor in model.graph.initializer}
        read |= {name for node in model.graph.node for name in node.input}
    family = find_family(interface.family)
    with torch.device("meta"):
        shapes = {name: torch.empty(tuple(tensor.dims)) for name, tensor in stored.items()}
        if (found := family.settings_of(shapes)) != interface.settings:
            raise InvalidInputError(
                f"model {bundle.directory} holds the weights of {found}, bundle.json says {dict(interface.settings)}:"
                " export the model again"
            )
        expected = family.network(interface.settings).state_dict()
    weights = {}
    for key, value in expected.items():
        if key in stored:
            weights[key] = torch.from_numpy(_weights(stored[key], value, bundle))
        elif key in read:
            raise InvalidInputError(f"{bundle.directory} lacks the weights {key}; export the model again")
        else:  # inference does not use them
            weights[key] = torch.zeros(value.shape)
    return Checkpoint(interface.family, interface.settings, weights, from_digest=interface.weights)


def _weights(tensor: TensorProto, expected: torch.Tensor, bundle: Bundle) -> np.ndarray:
    precision, directory = bundle.interface.precision, bundle.directory
    if tensor.data_type == TensorProto.FLOAT and precision == "fp16":
        raise InvalidInputError(
            f"model {directory} keeps {tensor.name} in fp32 among fp16 layers, and torch computes in one type:"
            " use --backend onnxruntime, or export the model again without --keep-fp32"
        )
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    if tuple(tensor.dims) != tuple(expected.shape) or tensor.data_type != kind:
        found = f"{TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
        raise InvalidInputError(
            f"{directory} holds {tensor.name} as {found}, should be {precision} {list(expected.shape)};"
            " export the model again"
        )
    try:
        return numpy_helper.to_array(tensor).astype(np.float32)
    except ValueError as error:
        raise InvalidInputError(f"{directory} holds a broken {tensor.name} ({error}); export the model again") from None


def open_backend(request: Request) -> TorchBackend:
    """`device` as `choose_device` takes it."""
    bundle, device = request.bundle, choose_device(request.device)
    backend = open_network(read_checkpoint(bundle), bundle.interface, device, request.name)
    if request.name == "torch-compile":
        backend.compile()
    return backend


def open_network(checkpoint: Checkpoint, interface: Interface, device: str, name: str = "torch") -> TorchBackend:
    """The network of a checkpoint. Raises InvalidInputError where the interface is not that of the family."""
    family = find_family(checkpoint.family)
    if family.describe(checkpoint.settings).graphs != interface.graphs and interface.precision == "fp32":
        raise InvalidInputError(
            f"the model's graphs are not those of {checkpoint.family} in this release: use --backend onnxruntime,"
            " or export the model again"
        )
    return TorchBackend(interface, family.graphs(checkpoint.network()), device, name)


def choose_device(device: str) -> str:
    """torch's name of a device: "auto" is CUDA where torch finds it, else the CPU. Raises InvalidInputError."""
    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise InvalidInputError(f"torch finds no CUDA device for --device {device}; use --device cpu")
    return ("cuda" if available else "cpu") if device == "auto" else device
