"""The multi-task-unit network in torch, for inference and training. Imports torch and the custom op's torch version.

Attribute names are those of the released checkpoints, so a state dict loads without renaming. Source of the
architecture: "Real-Time Video Deblurring via Lightweight Motion Compensation" (Son et al., 2022), section 3 and
appendix, corrected by the released weights where the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtu.models.mtu.config import MAX_DISPLACEMENT, OP_ATTRIBUTES, POOL_SIZE, SIZE_MULTIPLE, NetworkConfig
from mtu.models.pictures import to_float, to_frame
from mtu.plugins.correlation_argmax_warp.torch_op import correlation_argmax_warp, cost_volume, warp_by_costs


def conv_relu(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    """A convolution with bias, then ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True))


def upsample_relu(inputs: int, outputs: int) -> nn.Sequential:
    """A transposed convolution that doubles the size, then ReLU."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU(inplace=True))


class Unit(nn.Module):
    """The detail network of one multi-task unit: a small U-Net, [B, 2c, H, W] -> detail features [B, c, H, W]."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        c = channels
        self.enc1 = conv_relu(2 * c, c, 5, 1, 2)
        self.enc2 = conv_relu(c, c, 3, 2, 1)
        self.enc3 = conv_relu(c, 2 * c, 3, 2, 1)
        self.RBs = nn.ModuleList(
            nn.Sequential(*conv_relu(2 * c, 2 * c, 3, 1, 1), *conv_relu(2 * c, 2 * c, 3, 1, 1)) for _ in range(blocks)
        )
        self.RB_end = conv_relu(2 * c, 2 * c, 3, 1, 1)
        self.dec1 = upsample_relu(2 * c, c)
        self.dec2 = upsample_relu(c, c)

    def forward(self, x: Tensor) -> Tensor:
        """Detail features of x; height and width are multiples of 4."""
        full = self.enc1(x)
        half = self.enc2(full)
        quarter = self.enc3(half)
        r = quarter
        for block in self.RBs:
            r = r + block(r)
        r = quarter + self.RB_end(r)
        detail: Tensor = self.dec2(self.dec1(r) + half) + full
        return detail


class Inner(NamedTuple):
    """Of a unit but the last, what training takes losses of (paper, section 3.5)."""

    image: Tensor
    """[B, 3, H, W]."""
    motion: Tensor
    """Its motion features, [B, 2c, H/4, W/4]."""
    costs: Tensor | None
    """The `cost_volume` that the matching was made with; None where the op made it, or this unit's matched nothing."""


class Network(nn.Module):
    """N stacked units, one motion layer, one output layer.

    `first` and `step` are the two forward passes of inference: frames are float RGB in [0, 1],
    [B, 3, H, W], in window order t-2 .. t+2; H and W are multiples of 4. Both return (restored, states, displacement)
    with the states in the order of the description and the displacement None for one unit.
    """

    def __init__(self, config: NetworkConfig, *, auxiliary: bool = False) -> None:
        """`auxiliary` adds the deblur layers of the inner units, which only training uses."""
        super().__init__()
        c = config.channels
        self.config = config
        self.base_conv = conv_relu(3, c, 3, 1, 1)
        self.inp_prev_conv = conv_relu(15, c, 3, 1, 1)
        self.HGs = nn.ModuleList(Unit(c, config.blocks) for _ in range(config.units))
        # One motion layer even for one unit: the released checkpoints have it, inference of one unit does not use it.
        self.motion_layer = nn.ModuleList([conv_relu(c, 2 * c, 5, 4, 1)])
        if auxiliary:
            self.deblur_layer = nn.ModuleList(nn.Conv2d(2 * c, 3, 3, 1, 1) for _ in range(config.units - 1))
        self.out = nn.Conv2d(c, 3, 3, 1, 1)

    def first(self, frames: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Restores the first frame of a sequence: it stands in for its predecessor in every recurrent input."""
        return self._restore(frames, None)

    def step(
        self, frames: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Restores a later frame from the states of the frame before it."""
        return self._restore(frames, states)

    def compensate(self, motion: Tensor, motion_prev: Tensor, detail: Tensor) -> tuple[Tensor, Tensor]:
        """The custom op with the attributes of the published networks: the moved `detail` and the displacement."""
        return correlation_argmax_warp(motion, motion_prev, detail, **OP_ATTRIBUTES)

    def train_step(
        self, frames: Sequence[Tensor], states: Sequence[Tensor] | None, *, with_costs: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Inner]]:
        """As `first` (states None) or `step`, for training: needs the auxiliary layers and does not clamp the output.

        In place of the displacement stands what the losses are taken of. Only unit 1's displacement moves anything;
        `with_costs` matches by costs that have a gradient, once for both.
        """
        inner: list[Inner] = []
        out, new_states, _ = self._restore(frames, states, inner, with_costs)
        return out, new_states, inner

    def _restore(
        self,
        frames: Sequence[Tensor],
        states: Sequence[Tensor] | None,
        inner: list[Inner] | None = None,
        with_costs: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Appends to `inner`, if it is there, what `train_step` says."""
        prev2, prev1, frame, next1, next2 = frames
        restored = frame if states is None else states[0]
        structure = self.base_conv(frame)
        x = torch.cat((structure, self.inp_prev_conv(torch.cat((prev2, prev1, restored, next1, next2), 1))), 1)
        motion = warped = displacement = costs = None
        for index, unit in enumerate(self.HGs):
            detail = unit(x)
            if index == self.config.units - 1:
                break
            if motion is None:
                features = motion = self.motion_layer[0](structure + detail)
                if states is not None and with_costs:
                    costs = cost_volume(motion, states[1], MAX_DISPLACEMENT, POOL_SIZE)
                    warped, displacement = warp_by_costs(costs, states[2], MAX_DISPLACEMENT, SIZE_MULTIPLE)
                elif states is not None:
                    warped, displacement = self.compensate(motion, states[1], states[2])
            elif inner is not None:
                features, costs = self.motion_layer[0](structure + detail), None
            if states is None:
                # The motion is the same in every unit; the map that it moves is the unit's own.
                warped, first_displacement = self.compensate(motion, motion, detail)
                displacement = first_displacement if displacement is None else displacement
            assert warped is not None
            if inner is not None:
                # The op gives rows of planes; training keeps channels last, and would convert both four times over.
                warped = warped.contiguous(memory_format=torch.channels_last)
            x = torch.cat((detail, warped), 1)
            if inner is not None:
                inner.append(Inner(self.deblur_layer[index](x) + frame, features, costs))
        out = self.out(detail) + frame
        if inner is None:
            out = out.clamp(0, 1)
        new_states = (out,) if motion is None else (out, motion, detail)
        return out, new_states, displacement


class FrameGraph(nn.Module):
    """One of the two graphs, `first` or `step`: from uint8 window and states to the outputs of the description."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__()
        self.network = network
        self.run = network.first if name == "first" else network.step

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Takes and gives the tensors of the graph, in order."""
        frames = [to_float(frame, self.network.out.weight.dtype) for frame in inputs[:5]]
        restored, states, displacement = self.run(frames, *([inputs[5:]] if inputs[5:] else []))
        return (to_frame(restored), *states, *([] if displacement is None else [displacement]))
