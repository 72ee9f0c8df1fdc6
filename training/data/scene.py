"""What a made clip shows, as data: flat layers, each with a texture and a path, before a moving camera.

Imports torch when used. `mtu.training.data.clips` draws scenes at random, `mtu.training.data.render` makes clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mtu.training.data.camera import SRGB, Curve, to_linear
from mtu.training.data.textures import Array, need_torch

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 2.0
"""Texture pixels per frame pixel at zoom 1. Textures are low-passed once, so one sample a frame pixel is enough."""


@dataclass(frozen=True)
class Clip:
    """Consecutive frames, uint8 [T, H, W, 3]: `blurred` and, at the middle of each exposure, `sharp`; and `motion`."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    motion: NDArray[np.float16]
    """[T, H, W, 2], (dy, dx) in pixels: what sharp frame t shows at (y, x) was at (y + dy, x + dx) one frame earlier.

    NaN where it was out of the frame or behind another layer then. Frame 0 is compared with time -1.
    """


@dataclass(frozen=True)
class Path4:
    """A smooth path of x, y (frame pixels), angle (radians) and log zoom over time (frames): a line plus sines."""

    start: Array
    """[4]"""
    velocity: Array
    """[4] per frame."""
    amplitude: Array
    """[4, K]"""
    frequency: Array
    """[4, K] radians per frame."""
    phase: Array
    """[4, K] radians."""

    def at(self, times: Array, parallax: float = 1.0) -> NDArray[np.float64]:
        """Matrices [N, 3, 3] from the layer's plane to the plane it lies in, for times [N]; origin at the centre.

        `parallax` is a factor on x, y and log zoom.
        """
        waves = self.amplitude * np.sin(self.frequency * times[:, None, None] + self.phase)
        x, y, angle, zoom = (self.start + self.velocity * times[:, None] + waves.sum(-1)).T.astype(np.float64)
        x, y, zoom = parallax * x, parallax * y, parallax * zoom
        c, s = np.cos(angle) * np.exp(zoom), np.sin(angle) * np.exp(zoom)
        matrices = np.zeros((len(x), 3, 3))
        matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 0, 2] = c, -s, x
        matrices[:, 1, 0], matrices[:, 1, 1], matrices[:, 1, 2] = s, c, y
        matrices[:, 2, 2] = 1
        return matrices


@dataclass(frozen=True)
class Layer:
    """A flat picture on a path."""

    texture: Tensor
    """float32 [4, h, w]: linear light times alpha, then alpha; `DENSITY` pixels a frame pixel."""
    path: Path4
    endless: bool
    """Mirrored at its borders (a background) or transparent outside (an object)."""
    parallax: float = 1.0
    """How much of the camera's translation and log zoom it shows: 1 at the background's depth, more where it is nearer,
    0 for something that the camera follows."""


@dataclass(frozen=True)
class Scene:
    """Layers from back to front before a moving camera. The first fills the frame (it is endless)."""

    layers: tuple[Layer, ...]
    camera: Path4
    shutter: float
    """Share of the frame interval during which the shutter is open, (0, 1]."""
    samples: int
    """The most sub-exposures a frame gets, odd. It gets fewer while they are less than `SPACING` apart."""
    noise: float
    """Of the blurred frames, as `add_noise` takes it."""
    curve: Curve = SRGB
    crf: int | None = None
    """Constant rate factor at which the blurred frames went through H.264, or None where they did not."""
    readout: float = 0.0
    """Share of the frame interval by which the last row is exposed later than the first one (a rolling shutter); the
    middle of a frame is exposed at its own time."""

    def transforms(self, layer: Layer, times: Array) -> NDArray[np.float64]:
        """Matrices [N, 3, 3] from a layer's plane to the frame (pixels from its centre), for times [N] in frames."""
        return self.camera.at(times, layer.parallax) @ layer.path.at(times)

    def by_row(self, layer: Layer, times: Array, height: int) -> NDArray[np.float64]:
        """`transforms` for each row of a frame, [N, height, 3, 3]; of a frame exposed at once [N, 1, 3, 3]."""
        if not self.readout:
            return self.transforms(layer, times)[:, None]
        late = self.readout * ((np.arange(height) + 0.5) / height - 0.5)
        each = (times[:, None] + late).ravel().astype(np.float32)
        return self.transforms(layer, each).reshape(len(times), height, 3, 3)


def object_layer(picture: Array, mask: Array | None, path: Path4, parallax: float = 1.0) -> Layer:
    """A layer of an sRGB picture [h, w, 3] in [0, 1], cut out by mask [h, w] or endless without one."""
    torch = need_torch()
    light = to_linear(picture)
    alpha = np.ones(picture.shape[:2], np.float32) if mask is None else mask
    planes = np.concatenate((light * alpha[..., None], alpha[..., None]), -1).transpose(2, 0, 1).copy()
    padded = torch.nn.functional.pad(
        torch.from_numpy(planes)[None], (2,) * 4, "reflect" if mask is None else "constant"
    )[0]
    # The box of a frame pixel, slightly rounded, as a lens and a sensor would; as sums, which no thread reorders.
    for dim in (1, 2):
        n = padded.shape[dim] - 4
        outer, inner, middle = (
            padded.narrow(dim, a, n) + padded.narrow(dim, 4 - a, n) if a < 2 else padded.narrow(dim, 2, n)
            for a in range(3)
        )
        padded = middle.mul(0.4026).add_(inner, alpha=0.2442).add_(outer, alpha=0.0545)
    return Layer(padded.contiguous(), path, mask is None, parallax)
