"""What networks share: between the uint8 frames of a graph and their floats, and twice the size. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def to_float(frame: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A frame, uint8 RGB [1, H, W, 3], as [1, 3, H, W] in [0, 1]."""
    return frame.to(dtype).permute(0, 3, 1, 2) / 255


def to_frame(picture: Tensor) -> Tensor:
    """A picture [1, 3, H, W] in [0, 1] as uint8 RGB [1, H, W, 3], rounded to nearest (half to even)."""
    return (picture.float() * 255).round().permute(0, 2, 3, 1).to(torch.uint8)


def doubled(x: Tensor) -> Tensor:
    """Every row and column of [B, C, H, W] twice."""
    return interpolate(x, scale_factor=2.0, mode="nearest")
