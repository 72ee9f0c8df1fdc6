"""PyTorch eager, for comparison and debugging. Imports torch and onnx (extra [export]).

It runs the network of `mtu.models.mtu.network` with the weights that the bundle's ONNX holds, so that a comparison with
another backend compares executors and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from mtu.core.errors import InvalidInputError
from mtu.core.interface import (
    DISPLACEMENT_NAME,
    FRAME_NAMES,
    MAX_DISPLACEMENT,
    OUTPUT_NAME,
    POOL_SIZE,
    Interface,
)
from mtu.models.checkpoint import Checkpoint
from mtu.models.mtu.network import Network
from mtu.runtime.backends import Finished, Gate, Request, non_finite, out_of_memory
from mtu.runtime.bundle import Bundle


class TorchBackend:
    """See `mtu.runtime.backends.Backend`; states are torch tensors on the device."""

    in_flight = 0

    def __init__(self, interface: Interface, network: Network, device: str, name: str = "torch") -> None:
        """`device` as torch names it."""
        self.name = name
        self.interface = interface
        self.device = device
        self.remarks: list[str] = []
        self._gate = Gate(name)
        self._dtype = torch.float16 if interface.state_dtype == "float16" else torch.float32
        self._network = network.to(device, self._dtype).eval()

    def submit(self, inputs: Mapping[str, Any]) -> Finished:
        """See `Backend.submit`."""
        with self._gate:
            try:
                return self._run(inputs)
            except (RuntimeError, MemoryError) as error:
                if not _is_about_memory(error):
                    raise
                raise out_of_memory(self.name, *inputs[FRAME_NAMES[0]].shape[1:3]) from None

    @torch.inference_mode()
    def _run(self, inputs: Mapping[str, Any]) -> Finished:
        frames = [self._to_float(inputs[name]) for name in FRAME_NAMES]
        names = self.interface.states
        with without_tf32():
            if any(state.input.name in inputs for state in names):
                memory = [inputs[state.input.name] for state in names]
                restored, states, displacement = self._network.step(frames, memory)
            else:
                restored, states, displacement = self._network.first(frames)
        picture = (restored.float() * 255).round().to(torch.uint8)
        outputs = {OUTPUT_NAME: picture.permute(0, 2, 3, 1).contiguous().cpu().numpy()}
        if displacement is not None:
            outputs[DISPLACEMENT_NAME] = displacement.cpu().numpy()
        extremes = {
            state.output.name: torch.stack(value.aminmax()).cpu().numpy()
            for state, value in zip(names, states, strict=True)
        }
        return Finished(
            states={state.input.name: value for state, value in zip(names, states, strict=True)},
            outputs=outputs,
            non_finite=non_finite(extremes),
        )

    def _to_float(self, frame: np.ndarray) -> torch.Tensor:
        # torch warns about arrays that are not writable, though it only reads this one.
        frame = frame if frame.flags.writeable else frame.copy()
        return torch.from_numpy(frame).to(self.device).to(self._dtype).permute(0, 3, 1, 2) / 255

    def read_states(self, states: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Backend.read_states`."""
        with self._gate:
            return {name: np.array(value.cpu().numpy()) for name, value in states.items()}

    def write_states(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Backend.write_states`."""
        with self._gate:
            return {name: torch.tensor(value, device=self.device) for name, value in arrays.items()}

    def compile(self) -> None:
        """Compiles both graphs at their first call, which then takes a minute; once for each frame size."""
        self._network.first = torch.compile(self._network.first, dynamic=False)  # type: ignore[method-assign]
        self._network.step = torch.compile(self._network.step, dynamic=False)  # type: ignore[method-assign]

    def close(self) -> None:
        """See `Backend.close`."""
        if self._gate.close():
            del self._network


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


def read_model(bundle: Bundle) -> tuple[Interface, Checkpoint]:
    """The interface and weights that a bundle's step graph holds. Raises InvalidInputError if it cannot be read."""
    path = bundle.graph("step")
    try:
        model = onnx.load(path)
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise InvalidInputError(f"{path} cannot be read as ONNX: {error}") from None
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    interface = Interface.from_metadata(metadata, "step", str(path))
    if interface.int8_layers:
        raise InvalidInputError(
            f"model {bundle.directory} is {interface.precision}, and torch computes in fp32 or fp16 alone: use"
            " --backend onnxruntime, or the bundle it was made of"
        )
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {TensorProto.FLOAT16 if interface.state_dtype == "float16" else TensorProto.FLOAT}
    last = f"HGs.{interface.config.units - 1}.enc1.0.weight"
    if last not in stored:
        raise InvalidInputError(f"{path} lacks the weights {last}; export the model again")
    weights = {}
    with torch.device("meta"):
        expected = Network(interface.config).state_dict()
    for key, value in expected.items():
        if key in stored:
            tensor = stored[key]
            if tensor.data_type == TensorProto.FLOAT and interface.state_dtype == "float16":
                raise InvalidInputError(
                    f"model {bundle.directory} keeps {key} in fp32 among fp16 layers, and torch computes in one type:"
                    " use --backend onnxruntime, or export the model again without --keep-fp32"
                )
            if tuple(tensor.dims) != tuple(value.shape) or tensor.data_type not in kinds:
                found = f"{TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
                raise InvalidInputError(
                    f"{path} holds {key} as {found}, should be {interface.state_dtype} {list(value.shape)};"
                    " export the model again"
                )
            weights[key] = torch.from_numpy(_values(tensor, path).astype(np.float32))
        elif key.startswith("motion_layer.") and not interface.has_motion:
            # One unit estimates no motion: its graph has no such layer, and nothing reads it.
            weights[key] = torch.zeros(value.shape)
        else:
            raise InvalidInputError(f"{path} lacks the weights {key}; export the model again")
    return interface, Checkpoint(interface.config, weights)


def _values(tensor: TensorProto, path: Path) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except ValueError as error:
        raise InvalidInputError(f"{path} holds a broken {tensor.name} ({error}); export the model again") from None


def open_backend(request: Request) -> TorchBackend:
    """`device` as `choose_device` takes it."""
    bundle, device = request.bundle, choose_device(request.device)
    interface, checkpoint = read_model(bundle)
    if (interface.max_displacement, interface.pool_size) != (MAX_DISPLACEMENT, POOL_SIZE):
        raise InvalidInputError(
            f"{bundle.directory} searches {interface.max_displacement} positions and pools {interface.pool_size};"
            f" the torch network {MAX_DISPLACEMENT} and {POOL_SIZE}: use --backend onnxruntime"
        )
    return TorchBackend(interface, checkpoint.network(), device, request.name)


def choose_device(device: str) -> str:
    """torch's name of a device: "auto" is CUDA where torch finds it, else the CPU. Raises InvalidInputError."""
    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise InvalidInputError(f"torch finds no CUDA device for --device {device}; use --device cpu")
    return ("cuda" if available else "cpu") if device == "auto" else device
