"""The shape of a multi-task-unit network, its published variants, and its description. Plain Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor
from mtu.plugins.correlation_argmax_warp import OP

SIZE_MULTIPLE = 4
"""Height and width fed to the network are multiples of this."""
MAX_DISPLACEMENT = 10
"""Search radius D of the published networks, in positions of the quarter-size map."""
POOL_SIZE = 5
"""Pooling of the cost volume in the published networks."""
OP_ATTRIBUTES = {"max_displacement": MAX_DISPLACEMENT, "pool_size": POOL_SIZE, "scale": SIZE_MULTIPLE}
WINDOW = {"frame_prev2": -2, "frame_prev1": -1, "frame": 0, "frame_next1": 1, "frame_next2": 2}
"""The frames that the network sees at once, by name of the input, and their offsets."""
LOOK_AHEAD = 2
"""Frames that must arrive after a frame before it can be restored."""


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


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mtu1": {"units": 1, "channels": 26, "blocks": 8},
    "mtu2": {"units": 2, "channels": 26, "blocks": 8},
    "mtu4": {"units": 4, "channels": 26, "blocks": 8},
    "mtu10": {"units": 10, "channels": 26, "blocks": 8},
    "mtu10-large": {"units": 10, "channels": 48, "blocks": 6},
}
"""The published variants."""


def preset_config(name: str) -> NetworkConfig:
    """The network of a published variant; raises InvalidInputError naming those that exist."""
    if name not in PRESETS:
        raise InvalidInputError(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}")
    return NetworkConfig(**PRESETS[name])


def describe(settings: Mapping[str, Any]) -> Interface:
    """Two graphs: `first` restores the first frame of a sequence, `step` every later one from the states of the one
    before. A single unit compensates no motion at inference.

    States: `restored`, the restored frame, RGB in [0, 1]; `motion`, features matched by the next frame, >= 0; `detail`,
    detail features of the last unit, warped by the next frame.
    """
    config = NetworkConfig(**settings)
    c = config.channels
    shapes: dict[str, tuple[int | str, ...]] = {"restored": (1, 3, "H", "W")}
    if config.units > 1:
        shapes |= {"motion": (1, 2 * c, "H/4", "W/4"), "detail": (1, c, "H", "W")}
    frames = tuple(
        Input(Tensor(name, "uint8", (1, "H", "W", 3)), Frame("image", offset)) for name, offset in WINDOW.items()
    )
    states = tuple(
        Input(Tensor(f"{name}_in", "float32", shape), State(f"{name}_out")) for name, shape in shapes.items()
    )
    outputs = (
        Output(Tensor("output", "uint8", (1, "H", "W", 3)), "picture"),
        *(Output(Tensor(f"{name}_out", "float32", shape), "state") for name, shape in shapes.items()),
    )
    if config.units > 1:
        displacement = Tensor("displacement", "int32", (1, "H/4", "W/4"))
        outputs += (Output(displacement, "displacement", radius=MAX_DISPLACEMENT),)
    return Interface(
        family="mtu",
        variant="custom",
        settings=dataclasses.asdict(config),
        graphs=(Graph("first", frames, outputs), Graph("step", frames + states, outputs)),
        size=Size(SIZE_MULTIPLE, SIZE_MULTIPLE),
        ops={OP.name: {"version": OP.version, **OP_ATTRIBUTES}} if config.units > 1 else {},
    )
