"""Makes clips of blurred frames, sharp frames and motion from a seed. Imports torch, scikit-image and PyAV when used.

Training, validation and the demo take their frames from here. A clip is a `Scene` (flat layers, each with a texture and
a path, before a moving camera) rendered at many instants within each exposure and averaged in linear light, then seen
through a sensor's noise, a camera curve, 8 bits and perhaps a codec. The paths say where every pixel went. Source of
the recipe: GoPro, DVD and REDS average the frames of a fast camera; here the sub-exposures are rendered, so no
frame-rate artefacts and no camera are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.training.data.camera import SRGB, Curve, add_noise, compressed, to_linear
from mtu.training.data.textures import (
    Array,
    Photographs,
    Split,
    log_uniform,
    need_torch,
    random_mask,
    random_texture,
    sample_photographs,
)

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 2.0
"""Texture pixels per frame pixel at zoom 1. Textures are low-passed once, so one sample a frame pixel is enough."""

FEWEST = 11
"""Sub-exposures of a frame in which anything moves."""

SPACING = 2 / 3
"""Pixels between two sub-exposures that need none between them: closer ones change no pixel by more than a step."""


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

    def transforms(self, layer: Layer, times: Array) -> NDArray[np.float64]:
        """Matrices [N, 3, 3] from a layer's plane to the frame (pixels from its centre), for times [N] in frames."""
        return self.camera.at(times, layer.parallax) @ layer.path.at(times)


def make_clip(
    seed: int,
    frames: int,
    height: int,
    width: int,
    *,
    split: Split = "train",
    photographs: Photographs | None = None,
) -> Clip:
    """A clip of `frames` frames of height x width pixels, the same for the same arguments, whatever torch's threads.

    Another release of torch, numpy or x264 or another kind of processor may change some pixels by a step. The two
    splits share no random numbers and, with scikit-image's `photographs` (None), no photograph. Raises
    InvalidInputError for a negative seed, an empty size or a photograph that cannot be read, and MissingExtraError
    without torch or scikit-image.
    """
    if seed < 0 or min(frames, height, width) < 1:
        raise InvalidInputError(f"seed {seed}, {frames} frames of {width}x{height}: the seed is at least 0, the rest 1")
    rng = np.random.default_rng((seed, 0 if split == "train" else 1))
    scene = random_scene(rng, height, width, photographs or sample_photographs(split))
    return render(scene, frames, height, width, rng)


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


def random_scene(rng: np.random.Generator, height: int, width: int, photographs: Photographs) -> Scene:
    """A background, up to four objects and a camera, drawn at random for frames of height x width pixels."""
    shutter = float(rng.uniform(0.3, 1.0))
    size = math.hypot(height, width)
    # Length of the blur in pixels at the fastest moment: some cameras stand still or nearly so, as on a tripod.
    kind = rng.random()
    blur = 0.0 if kind < 0.1 else log_uniform(rng, 0.5, 5) if kind < 0.25 else log_uniform(rng, 5, 30)
    camera = random_path(rng, blur / shutter, size)
    side = math.ceil(DENSITY * size * 1.1)
    background = object_layer(random_texture(rng, side, side, photographs), None, random_path(rng, 0, size))
    count = _object_count(rng)
    objects = [_random_object(rng, height, width, photographs, camera, blur, shutter) for _ in range(count)]
    objects.sort(key=lambda layer: layer.parallax)
    noise = float(rng.uniform(0, 1.5) if rng.random() < 0.9 else rng.uniform(1.5, 4))
    curve = Curve(
        None if rng.random() < 0.7 else float(rng.uniform(1.8, 2.4)),
        0.0 if rng.random() < 0.7 else float(rng.uniform(0, 0.6)),
    )
    crf = int(rng.integers(16, 31)) if rng.random() < 0.2 else None
    return Scene((background, *objects), camera, shutter, 31, noise, curve, crf)


def _object_count(rng: np.random.Generator) -> int:
    return int(rng.choice(5, p=(0.2, 0.25, 0.25, 0.2, 0.1)))


def _random_object(
    rng: np.random.Generator,
    height: int,
    width: int,
    photographs: Photographs,
    camera: Path4,
    blur: float,
    shutter: float,
) -> Layer:
    """An object that stands still nearer than the background, moves by itself or is followed by the camera."""
    size = math.hypot(height, width)
    h, w = (int(DENSITY * size * rng.uniform(0.12, 0.5)) + 8 for _ in range(2))
    kind = rng.random()
    if kind < 0.35:
        # Its blur is `parallax` times the background's; more than 45 pixels would be a mere veil.
        speed, parallax = 0.0, log_uniform(rng, 1.1, float(np.clip(45 / max(blur, 1), 1.2, 3)))
    else:
        speed = log_uniform(rng, 2, 26) / shutter
        parallax = 1.0 if kind < 0.8 else 0.0
    path = random_path(rng, speed, size)
    # It is in view at some time in the first 16 frames.
    time = np.array((rng.uniform(0, 16),), np.float32)
    there = np.array((*(rng.uniform(-0.4, 0.4, 2) * (width, height)), 1))
    start = path.start.copy()
    start[:2] += (np.linalg.inv(camera.at(time, parallax)[0]) @ there)[:2] - path.at(time)[0, :2, 2]
    path = Path4(start, path.velocity, path.amplitude, path.frequency, path.phase)
    return object_layer(random_texture(rng, h, w, photographs), random_mask(rng, h, w), path, parallax)


def random_path(rng: np.random.Generator, speed: float, size: float) -> Path4:
    """A path whose peak speed is about `speed` frame pixels a frame, over a plane about `size` pixels wide."""
    # Shares of drift, shake, rotation and zoom; turning by 1 / (size / 4) moves a point halfway to the corner by one.
    drift, shake, turn, zoom = speed * rng.dirichlet((1.0, 1.2, 0.5, 0.25))
    heading, count = rng.uniform(0, 2 * np.pi), 3
    rate = np.array((shake, shake, turn / (size / 4), zoom / (size / 4)))[:, None] * rng.dirichlet((1,) * count, 4)
    frequency = 2 * np.pi / np.exp(rng.uniform(np.log(5), np.log(40), (4, count)))
    initial = (0, 0, rng.normal() * 0.1, rng.normal() * 0.08)
    velocity = (drift * np.cos(heading), drift * np.sin(heading), 0, 0)
    parts = (initial, velocity, rate / frequency, frequency, rng.uniform(0, 2 * np.pi, (4, count)))
    return Path4(*(np.asarray(part, np.float32) for part in parts))


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
        matrices = scene.transforms(layer, times)
        if box := _box(layer, matrices, height, width):
            still = (matrices == matrices[0]).all()
            parts.append((number, layer, _to_texture(layer, matrices[:1] if still else matrices), *box))
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
    """From pixels from the frame's centre to texture coordinates in [-1, 1], [N, 1, 1, 2, 3], by matrices [N, 3, 3]."""
    h, w = layer.texture.shape[1:]
    inverse = np.diag((2 * DENSITY / w, 2 * DENSITY / h, 1)) @ np.linalg.inv(matrices)
    theta: Tensor = need_torch().from_numpy(inverse[:, None, None, :2].astype(np.float32))
    return theta


def _sample(layer: Layer, theta: Tensor, rows: range, columns: range, height: int, width: int) -> Tensor:
    """The layer in a box of the frame, [N, 4, h, w] or without alpha [N, 3, h, w]; theta comes from `_to_texture`."""
    torch = need_torch()
    y = (torch.arange(rows.start, rows.stop) + (0.5 - height / 2))[:, None, None]
    x = (torch.arange(columns.start, columns.stop) + (0.5 - width / 2))[:, None]
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
    times = np.array((frame, frame - 1), np.float32)
    for number, layer in enumerate(scene.layers):
        now, then = scene.transforms(layer, times)
        box = _box(layer, now[None], height, width)
        if box is None:
            continue
        part = tuple(slice(r.start, r.stop) for r in box)
        y, x = np.arange(height, dtype=np.float32)[part[0], None], np.arange(width, dtype=np.float32)[part[1]]
        (a, b, dx), (c, d, dy) = (then @ np.linalg.inv(now) - np.eye(3))[:2].astype(np.float32)
        across, down = x + np.float32(0.5 - width / 2), y + np.float32(0.5 - height / 2)
        move_x, move_y = a * across + (b * down + dx), c * across + (d * down + dy)
        column, row = np.rint(x + move_x).astype(np.int32), np.rint(y + move_y).astype(np.int32)
        known = (front[part] == number) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        known &= before[row.clip(0, height - 1), column.clip(0, width - 1)] == number
        field[part][known] = np.stack((move_y, move_x), -1)[known]
    return field
