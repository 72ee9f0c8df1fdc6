"""The one description of the network's interface: tensor names, shapes, dtypes, window, states, size rule.

Export names its graph inputs from it, the builder its profiles, the runtime its buffers, calibration and tests their
feeds. Nothing else in the project spells a tensor name or counts states. Plain Python: no numpy, torch, onnx, tensorrt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mtu.core.errors import InvalidInputError

GraphName = Literal["first", "step"]
GRAPHS: tuple[GraphName, ...] = ("first", "step")
"""The graphs of a bundle: the first frame of a sequence, every later one."""

Dim = int | str

FORMAT_VERSION = "1"
"""Version of the metadata layout. Raised when a reader of the old layout would go wrong."""

_OP, _OP_VERSION = "CorrelationArgmaxWarp", 1  # as in the op's folder

SIZE_MULTIPLE = 4
"""Height and width fed to the network are multiples of this; the runtime pads and crops back."""

MAX_DISPLACEMENT = 10
"""Search radius D of the published networks."""

POOL_SIZE = 5
"""Pooling of the cost volume in the published networks."""

WINDOW = (-2, -1, 0, 1, 2)
"""Frame offsets the network sees at once, relative to the frame it restores."""

LOOK_AHEAD = 2
"""Frames that must arrive after a frame before it can be restored."""

FRAME_NAMES = ("frame_prev2", "frame_prev1", "frame", "frame_next1", "frame_next2")
"""Input names of the window, in the order of `WINDOW`."""

OUTPUT_NAME = "output"
DISPLACEMENT_NAME = "displacement"


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network: everything that can be read off a checkpoint's keys and tensor shapes."""

    units: int
    """Number N of stacked multi-task units, >= 1."""
    channels: int
    """Channels c of a detail feature map, >= 1."""
    blocks: int
    """Residual blocks in each unit's U-Net, >= 0."""

    def __post_init__(self) -> None:
        if any(type(value) is not int for value in dataclasses.astuple(self)):
            raise InvalidInputError(f"no such network: {self}; units, channels and blocks are whole numbers")
        if self.units < 1 or self.channels < 1 or self.blocks < 0:
            raise InvalidInputError(f"no such network: {self}; units and channels are at least 1, blocks at least 0")

    @property
    def words(self) -> str:
        """For a person: "2 units, 26 channels, 8 blocks"."""
        return ", ".join(f"{n} {name if n != 1 else name[:-1]}" for name, n in dataclasses.asdict(self).items())


PRESETS: Mapping[str, NetworkConfig] = {
    "mtu1": NetworkConfig(units=1, channels=26, blocks=8),
    "mtu2": NetworkConfig(units=2, channels=26, blocks=8),
    "mtu4": NetworkConfig(units=4, channels=26, blocks=8),
    "mtu10": NetworkConfig(units=10, channels=26, blocks=8),
    "mtu10-large": NetworkConfig(units=10, channels=48, blocks=6),
}
"""The published variants."""


def preset_config(name: str) -> NetworkConfig:
    """The configuration of a preset; raises InvalidInputError naming the presets that exist."""
    if name not in PRESETS:
        raise InvalidInputError(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_name(config: NetworkConfig) -> str:
    """The preset with this configuration, or "custom"."""
    return next((name for name, known in PRESETS.items() if known == config), "custom")


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output."""

    name: str
    dtype: str
    """numpy's name of the element type: uint8, int32, float16 or float32."""
    shape: tuple[Dim, ...]
    """Integers, or "H", "W", "H/4", "W/4" of the padded frame."""

    def at(self, height: int, width: int) -> tuple[int, ...]:
        """The concrete shape for a padded frame of height x width pixels (multiples of `SIZE_MULTIPLE`)."""
        sizes = {"H": height, "W": width, "H/4": height // 4, "W/4": width // 4}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)


@dataclass(frozen=True)
class StateSpec:
    """A recurrent tensor: `<name>_out` of one frame is `<name>_in` of the next."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def input(self) -> TensorSpec:
        """The tensor as an input of the step graph."""
        return TensorSpec(f"{self.name}_in", self.dtype, self.shape)

    @property
    def output(self) -> TensorSpec:
        """The tensor as an output of either graph."""
        return TensorSpec(f"{self.name}_out", self.dtype, self.shape)


@dataclass(frozen=True)
class Interface:
    """What a model takes, gives and carries from frame to frame.

    Two graphs share it. `first` restores the first frame of a sequence and has no state inputs; `step` restores every
    later one. Both take the five frames of the window and give the restored frame, the states and, for two units and
    more, the displacement index of the motion compensation. Indices outside the sequence are clamped by the caller:
    frame -1 is frame 0, frame T is frame T-1.
    """

    config: NetworkConfig
    state_dtype: Literal["float32", "float16"] = "float32"
    """Element type of the states, and of the arithmetic between the first and the last Cast."""
    checkpoint: str = ""
    """sha256 of the weights (names, shapes, fp32 values in key order), hexadecimal."""
    max_displacement: int = MAX_DISPLACEMENT
    """Search radius D of the motion compensation in positions of the quarter-size map."""
    pool_size: int = POOL_SIZE
    """Side of the square over which each channel of the cost volume is averaged."""
    op_version: int = _OP_VERSION
    int8_layers: tuple[str, ...] = ()
    """Convolutions that compute in int8, by their names in the checkpoint ("HGs.0.enc1.0"), in graph order."""

    def __post_init__(self) -> None:
        if self.state_dtype not in ("float32", "float16"):
            raise InvalidInputError(f"state_dtype {self.state_dtype!r}: choose float32 or float16")
        object.__setattr__(self, "int8_layers", tuple(self.int8_layers))  # JSON has lists
        if any(type(layer) is not str for layer in self.int8_layers):
            raise InvalidInputError(f"int8_layers {self.int8_layers!r}: must be texts")
        if type(self.checkpoint) is not str:
            raise InvalidInputError(f"checkpoint {self.checkpoint!r}: must be a text")
        for name in ("max_displacement", "pool_size", "op_version"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidInputError(f"{name} {value!r}: must be a whole number from 1")

    @property
    def preset(self) -> str:
        """Name of the published variant, or "custom"."""
        return preset_name(self.config)

    @property
    def precision(self) -> str:
        """What computes, in words: "fp32", "fp16", "fp32 with 40 layers in int8"."""
        kind = "fp16" if self.state_dtype == "float16" else "fp32"
        return f"{kind} with {len(self.int8_layers)} layers in int8" if self.int8_layers else kind

    @property
    def has_motion(self) -> bool:
        """Whether motion is compensated; a single unit uses none at inference."""
        return self.config.units > 1

    @property
    def frames(self) -> tuple[TensorSpec, ...]:
        """The window: uint8 RGB, channels last, one frame each."""
        return tuple(TensorSpec(name, "uint8", (1, "H", "W", 3)) for name in FRAME_NAMES)

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The recurrent tensors, in graph order.

        `restored`: the restored frame, RGB in [0, 1]. `motion`: features matched by the next frame, >= 0. `detail`:
        detail features of the last unit, warped by the next frame.
        """
        c = self.config.channels
        restored = StateSpec("restored", self.state_dtype, (1, 3, "H", "W"))
        if not self.has_motion:
            return (restored,)
        return (
            restored,
            StateSpec("motion", self.state_dtype, (1, 2 * c, "H/4", "W/4")),
            StateSpec("detail", self.state_dtype, (1, c, "H", "W")),
        )

    def inputs(self, graph: GraphName) -> tuple[TensorSpec, ...]:
        """Inputs of a graph, in order: the window, then for `step` the states."""
        return self.frames + (tuple(state.input for state in self.states) if graph == "step" else ())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of both graphs, in order: restored frame, states, displacement index.

        The index is (dy + D) * (2D + 1) + (dx + D) for a displacement of dy, dx positions; times 4, it is in pixels.
        """
        displacement = (TensorSpec(DISPLACEMENT_NAME, "int32", (1, "H/4", "W/4")),) if self.has_motion else ()
        return (
            TensorSpec(OUTPUT_NAME, "uint8", (1, "H", "W", 3)),
            *(state.output for state in self.states),
            *displacement,
        )

    def to_metadata(self, graph: GraphName) -> dict[str, str]:
        """ONNX `metadata_props` of a graph: `mtu.interface` is enough to rebuild this object, the rest is for readers
        that do not have it (a Triton configuration, a shell script)."""
        fields = dataclasses.asdict(self)
        if not self.int8_layers:
            del fields["int8_layers"]  # no bundle had it before there was int8
        tensors = {
            "inputs": [dataclasses.asdict(spec) for spec in self.inputs(graph)],
            "outputs": [dataclasses.asdict(spec) for spec in self.outputs],
            "states": [{"input": state.input.name, "output": state.output.name} for state in self.states],
        }
        return {
            "mtu.format_version": FORMAT_VERSION,
            "mtu.graph": graph,
            "mtu.preset": self.preset,
            "mtu.interface": json.dumps(fields, sort_keys=True),
            "mtu.tensors": json.dumps(tensors, sort_keys=True),
            "mtu.window": json.dumps(WINDOW),
            "mtu.look_ahead": str(LOOK_AHEAD),
            "mtu.size_multiple": str(SIZE_MULTIPLE),
            "mtu.op": f"mtu::{_OP} {self.op_version}",
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], graph: GraphName, source: str) -> Interface:
        """The interface a file says it has.

        `source` names the file in messages. Raises InvalidInputError if the file is no MTU graph, is of another format
        version, is the other graph of its bundle, or says two things that contradict each other.
        """
        version = metadata.get("mtu.format_version")
        if version is None:
            raise InvalidInputError(
                f"{source} is not an MTU model: it has no mtu.format_version; make one with mtu-export onnx"
            )
        if version != FORMAT_VERSION:
            raise InvalidInputError(
                f"{source} has metadata version {version}, this release reads {FORMAT_VERSION}: export the model again"
            )
        try:
            fields = json.loads(metadata["mtu.interface"])
            interface = cls(**{**fields, "config": NetworkConfig(**fields["config"])})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"{source} has a broken mtu.interface ({error}): export the model again") from None
        if interface.op_version != _OP_VERSION:
            raise InvalidInputError(
                f"{source} uses version {interface.op_version} of {_OP}, this release has {_OP_VERSION}:"
                " export the model again"
            )
        expected = interface.to_metadata(graph)
        for key in expected:
            if metadata.get(key) != expected[key]:
                raise InvalidInputError(
                    f"{source}: {key} is {metadata.get(key)!r}, its interface says {expected[key]!r};"
                    " export the model again"
                )
        return interface
