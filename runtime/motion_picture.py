"""Displacement index to colour picture, for people to look at. Imports numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtu.core.interface import Output
from mtu.core.window import spread
from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors


def motion_picture(index: NDArray[np.int32], output: Output, height: int, width: int) -> NDArray[np.uint8]:
    """Colours a displacement index [h, w], what a model gave as `output`, as uint8 RGB [height, width, 3].

    The usual colours of optical flow: the hue is the direction towards the match in the previous frame (red right,
    yellow-green down, cyan left, violet up), the saturation its length relative to the radius; white is no
    displacement. Every position becomes a block of pixels, cropped to the frame.
    """
    dy, dx = displacement_vectors(index, output.radius)
    return spread(motion_colours(dy / output.radius, dx / output.radius), output.tensor, height, width)


def motion_colours(dy: NDArray[np.floating], dx: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The colours of `motion_picture`, uint8 RGB [h, w, 3], of vectors [h, w] whose length 1 is a full colour."""
    saturation = np.minimum(np.hypot(dy, dx), 1)
    hue = np.arctan2(dy, dx) / (2 * np.pi) % 1
    # HSV to RGB at full value: each channel is a trapezoid in the hue.
    ramps = np.abs((hue[..., None] * 6 + np.array([0, 4, 2], np.float32)) % 6 - 3) - 1
    colour = 1 - saturation[..., None] * (1 - np.clip(ramps, 0, 1))
    picture: NDArray[np.uint8] = (colour * 255 + 0.5).astype(np.uint8)
    return picture
