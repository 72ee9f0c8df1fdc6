"""PyTorch eager, for comparison and debugging. Imports torch and onnx (extra [export]).

It runs the network of `mtu.models.network` with the weights that the bundle's ONNX holds, so that a comparison with
another backend compares executors and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from mtu.models.checkpoint import Checkpoint
from mtu.models.errors import InvalidInputError
from mtu.models.interface import FRAME_NAMES, GraphName, Interface
from mtu.models.network import Network
from mtu.runtime.backends import check_finite
from mtu.runtime.bundle import Bundle


class TorchBackend:
    """See `mtu.runtime.backends.Backend`; states are torch tensors on the device."""

    def __init__(self, interface: Interface, network: Network, device: str, name: str = "torch") -> None:
        """`device` as torch names it."""
        self.name = name
        self.interface = interface
        self.device = device
        self._dtype = torch.float16 if interface.state_dtype == "float16" else torch.float32
        self._network = network.to(device, self._dtype).eval()

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `Backend.run`."""
        frames = [self._to_float(inputs[name]) for name in FRAME_NAMES]
        names = self.interface.states
        if any(state.input.name in inputs for state in names):
            restored, states, displacement = self._network.step(frames, [inputs[state.input.name] for state in names])
        else:
            restored, states, displacement = self._network.first(frames)
        outputs: dict[str, Any] = {state.output.name: value for state, value in zip(names, states, strict=True)}
        check_finite({name: value.amax().cpu().numpy() for name, value in outputs.items()})
        picture = (restored.float() * 255).round().to(torch.uint8)
        outputs["output"] = picture.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        if displacement is not None:
            outputs["displacement"] = displacement.cpu().numpy()
        return outputs

    def _to_float(self, frame: np.ndarray) -> torch.Tensor:
        # torch warns about arrays that are not writable, though it only reads this one.
        frame = frame if frame.flags.writeable else frame.copy()
        return torch.from_numpy(frame).to(self.device).to(self._dtype).permute(0, 3, 1, 2) / 255

    def compile(self) -> None:
        """Compiles both graphs at their first call, which then takes a minute; once for each frame size."""
        self._network.first = torch.compile(self._network.first, dynamic=False)  # type: ignore[method-assign]
        self._network.step = torch.compile(self._network.step, dynamic=False)  # type: ignore[method-assign]

    def close(self) -> None:
        """See `Backend.close`."""
        del self._network


def read_model(bundle: Bundle) -> tuple[Interface, Checkpoint]:
    """The interface and weights that a bundle's step graph holds. Raises InvalidInputError if it cannot be read."""
    path = bundle.graph("step")
    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise InvalidInputError(f"{path} cannot be read as ONNX: {error}") from None
    graph: GraphName = "step"
    interface = Interface.from_metadata({prop.key: prop.value for prop in model.metadata_props}, graph, str(path))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {}
    for key, value in Network(interface.config).state_dict().items():
        if key in stored:
            weights[key] = torch.from_numpy(numpy_helper.to_array(stored[key]).astype(np.float32))
        elif key.startswith("motion_layer.") and not interface.has_motion:
            weights[key] = value  # one unit estimates no motion: its graph has no such layer, and nothing reads it
        else:
            raise InvalidInputError(f"{path} lacks the weights {key}; export the model again")
    return interface, Checkpoint(interface.config, weights)


def open_backend(bundle: Bundle, device: str, name: str = "torch") -> TorchBackend:
    """`device` "auto" is CUDA where torch finds it, else the CPU."""
    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise InvalidInputError(f"torch finds no CUDA device for --device {device}; use --device cpu")
    interface, checkpoint = read_model(bundle)
    chosen = ("cuda" if available else "cpu") if device == "auto" else device
    return TorchBackend(interface, checkpoint.network(), chosen, name)
