"""Renders a scene at many instants within each exposure: blurred frames, sharp ones, and where every pixel went.

The instants are averaged in linear light, then seen through a sensor's noise, a camera curve, 8 bits and perhaps a
codec. Imports torch and PyAV when used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mtu.training.data.camera import add_noise, compressed
from mtu.training.data.scene import DENSITY, Clip, Layer, Scene
from mtu.training.data.textures import Array, need_torch

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 11
"""Sub-exposures of a frame in which anything moves."""

SPACING = 2 / 3
"""Pixels between two sub-exposures that need none between them: closer ones change no pixel by more than a step."""


_MOMENT = 0.05
"""In frame intervals: short enough for a speed."""


def render(scene: Scene, frames: int, height: int, width: int, rng: np.random.Generator) -> Clip:
    """The first `frames` exposures of a scene, centred on times 0, 1, ...; rng is for the noise alone."""
    torch = need_torch()
    shape = (frames, height, width)
    blurred, sharp = (np.empty((*shape, 3), np.uint8) for _ in range(2))
    motion = np.empty((*shape, 2), np.float16)
    with torch.no_grad():
        _, _, before = _expose(scene, np.array((-1,), np.float32), height, width)
        for t in range(frames):
            mean, middle, front = _expose(scene, _instants(scene, t, height, width), height, width)
            add_noise(mean, scene.noise, rng)
            blurred[t], sharp[t] = scene.curve.pixels(mean), scene.curve.pixels(middle)
            motion[t] = _motion(scene, t, front, before)
            before = front
    return Clip(blurred if scene.crf is None else compressed(blurred, scene.crf), sharp, motion)


def _instants(scene: Scene, frame: int, height: int, width: int) -> Array:
    """Times [N] of the sub-exposures of a frame, N odd; the middle one is the frame's own."""

    def spread(count: int) -> Array:
        return (frame + (np.arange(count) - count // 2) / count * scene.shutter).astype(np.float32)

    times = spread(scene.samples)
    travel = 0.0
    for layer in scene.layers:
        matrices = scene.transforms(layer, times)
        if layer.endless:
            corners = np.linalg.inv(matrices[len(times) // 2]) @ _corners(width, height)
        elif _box(layer, matrices, height, width):
            corners = _corners(layer.texture.shape[2] / DENSITY, layer.texture.shape[1] / DENSITY)
        else:
            continue
        steps = np.diff((matrices @ corners)[:, :2], axis=0)
        travel = max(travel, float(np.hypot(steps[:, 0], steps[:, 1]).sum(0).max()))
    if travel == 0:
        return spread(1)
    return spread(min(scene.samples, max(FEWEST, math.ceil(travel / SPACING) // 2 * 2 + 1)))


def _corners(width: float, height: float) -> NDArray[np.float64]:
    """The corners of a rectangle about the origin, [3, 4]."""
    x, y = width / 2, height / 2
    return np.array(((-x, x, -x, x), (-y, -y, y, y), (1, 1, 1, 1)))


def _box(layer: Layer, matrices: NDArray[np.float64], height: int, width: int) -> tuple[range, range] | None:
    """Rows and columns of the frame that a layer can reach under any of the matrices, or None."""
    if layer.endless:
        return range(height), range(width)
    h, w = layer.texture.shape[1:]
    corners = (matrices @ _corners((w + 1) / DENSITY, (h + 1) / DENSITY))[:, :2]
    low, high = corners.min((0, 2)), corners.max((0, 2))
    columns = range(max(0, math.floor(low[0] + width / 2)), min(width, math.ceil(high[0] + width / 2)))
    rows = range(max(0, math.floor(low[1] + height / 2)), min(height, math.ceil(high[1] + height / 2)))
    return (rows, columns) if rows and columns else None


def _expose(scene: Scene, times: Array, height: int, width: int) -> tuple[Array, Array, NDArray[np.int8]]:
    """Mean light over the times and light at the middle one, [H, W, 3], and the number of the front layer then."""
    torch = need_torch()
    parts = []
    for number, layer in enumerate(scene.layers):
        matrices = scene.by_row(layer, times, height)
        if box := _box(layer, matrices.reshape(-1, 3, 3), height, width):
            still = (matrices == matrices[0, 0]).all()
            parts.append((number, layer, _to_texture(layer, matrices[:1, :1] if still else matrices), *box))
    mean, middle = (np.empty((height, width, 3), np.float32) for _ in range(2))
    front = np.zeros((height, width), np.int8)
    # A band of rows at a time, so that its sub-exposures stay in the processor's cache.
    step = max(8, 8192 // width)
    for top in range(0, height, step):
        band = range(top, min(top + step, height))
        total = torch.empty(len(times), 3, len(band), width)
        for number, layer, theta, rows, columns in parts:
            rows = range(max(rows.start, band.start), min(rows.stop, band.stop))
            if not rows:
                continue
            part = _sample(layer, theta, rows, columns, height, width)
            if layer.endless:
                total[:] = part
                continue
            below = total[:, :, rows.start - top : rows.stop - top, columns.start : columns.stop]
            below.mul_(1 - part[:, 3:]).add_(part[:, :3])
            opaque = part[len(part) // 2, 3].numpy() > 0.5
            front[rows.start : rows.stop, columns.start : columns.stop][opaque] = number
        light = total[0].clone()
        for one in total[1:]:
            light += one
        light /= len(times)
        mean[band.start : band.stop] = light.permute(1, 2, 0).numpy()
        middle[band.start : band.stop] = total[len(times) // 2].permute(1, 2, 0).numpy()
    return mean, middle, front


def _to_texture(layer: Layer, matrices: NDArray[np.float64]) -> Tensor:
    """From pixels from the frame's centre to texture coordinates in [-1, 1], [N, R, 1, 2, 3], by those of
    `Scene.by_row`, [N, R, 3, 3]."""
    h, w = layer.texture.shape[1:]
    inverse = np.diag((2 * DENSITY / w, 2 * DENSITY / h, 1)) @ np.linalg.inv(matrices)
    theta: Tensor = need_torch().from_numpy(inverse[:, :, None, :2].astype(np.float32))
    return theta


def _sample(layer: Layer, theta: Tensor, rows: range, columns: range, height: int, width: int) -> Tensor:
    """The layer in a box of the frame, [N, 4, h, w] or without alpha [N, 3, h, w]; theta comes from `_to_texture`."""
    torch = need_torch()
    y = (torch.arange(rows.start, rows.stop) + (0.5 - height / 2))[:, None, None]
    x = (torch.arange(columns.start, columns.stop) + (0.5 - width / 2))[:, None]
    if theta.shape[1] > 1:
        theta = theta[:, rows.start : rows.stop]
    # Complex numbers only to add pairs, which is several times as fast as a sum with a last dimension of 2.
    pairs = (x * theta[..., 0], y * theta[..., 1] + theta[..., 2])
    across, down = (torch.view_as_complex(pair.contiguous()) for pair in pairs)
    texture = (layer.texture[:3] if layer.endless else layer.texture).expand(len(theta), -1, -1, -1)
    padding = "reflection" if layer.endless else "zeros"
    sampled: Tensor = torch.nn.functional.grid_sample(
        texture, torch.view_as_real(across + down), "bilinear", padding, align_corners=False
    )
    return sampled


def _motion(scene: Scene, frame: int, front: NDArray[np.int8], before: NDArray[np.int8]) -> Array:
    """The field `Clip.motion` of one frame, float32, from the front layers in it and one frame earlier."""
    height, width = front.shape
    field = np.full((height, width, 2), np.nan, np.float32)
    times = np.array((frame, frame - 1, frame - 1 + _MOMENT), np.float32)
    for number, layer in enumerate(scene.layers):
        now, then, later = scene.by_row(layer, times, height)
        box = _box(layer, now, height, width)
        if box is None:
            continue
        part = tuple(slice(r.start, r.stop) for r in box)
        y, x = np.arange(height, dtype=np.float32)[part[0], None], np.arange(width, dtype=np.float32)[part[1]]
        across, down = x + np.float32(0.5 - width / 2), y + np.float32(0.5 - height / 2)
        back = np.linalg.inv(now)
        move_x, move_y = _moved(then @ back - np.eye(3), part[0], across, down)
        if scene.readout:
            # It is exposed later or earlier in the row where it was.
            speed_x, speed_y = _moved((later - then) @ back / _MOMENT, part[0], across, down)
            late = scene.readout / height * move_y
            move_x, move_y = move_x + speed_x * late, move_y + speed_y * late
        column, row = np.rint(x + move_x).astype(np.int32), np.rint(y + move_y).astype(np.int32)
        known = (front[part] == number) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        known &= before[row.clip(0, height - 1), column.clip(0, width - 1)] == number
        field[part][known] = np.stack((move_y, move_x), -1)[known]
    return field


def _moved(matrices: NDArray[np.float64], rows: slice, across: Array, down: Array) -> tuple[Array, Array]:
    """x and y of what matrices [R, 3, 3], one or one for each row, make of pixels counted from the frame's centre."""
    chosen = matrices[rows] if len(matrices) > 1 else matrices
    (a, b, dx), (c, d, dy) = chosen[:, :2].transpose(1, 2, 0)[..., None].astype(np.float32)
    return a * across + (b * down + dx), c * across + (d * down + dy)
