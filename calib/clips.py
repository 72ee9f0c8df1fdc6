"""Makes clips of blurred frames and their sharp frames from a seed. Imports torch and scikit-image when used.

Training, validation and the demo take their frames from here. A clip is a `Scene` (flat layers, each with a texture and
a path) rendered at many instants within each exposure and averaged in linear light. The paths stay in the scene, so the
true displacement of every pixel can be worked out from it. Source of the recipe: GoPro, DVD and REDS average the frames
of a fast camera; here the sub-exposures are rendered, so no frame-rate artefacts and no camera are needed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtu.models.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation"]
Array = NDArray[np.float32]

HELD_OUT = ("chelsea.png", "coffee.png", "rocket.jpg")
"""Photographs of scikit-image that only validation and the demo use."""

TRAINED_ON = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "coins.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "text.png",
)
"""Photographs of scikit-image that training uses."""

DENSITY = 2.0
"""Texture pixels per frame pixel at zoom 1. Textures are low-passed once, so one sample a frame pixel is enough."""


@dataclass(frozen=True)
class Clip:
    """Consecutive frames, uint8 sRGB [T, H, W, 3]: `blurred` and, at the middle of each exposure, `sharp`."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]


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

    def at(self, times: Array) -> NDArray[np.float64]:
        """Matrices [N, 3, 3] from the layer's plane to the plane it lies in, for times [N]; origin at the centre."""
        waves = self.amplitude * np.sin(self.frequency * times[:, None, None] + self.phase)
        x, y, angle, zoom = (self.start + self.velocity * times[:, None] + waves.sum(-1)).T.astype(np.float64)
        c, s, zero = np.cos(angle) * np.exp(zoom), np.sin(angle) * np.exp(zoom), np.zeros_like(x)
        return np.stack((c, -s, x, s, c, y, zero, zero, zero + 1), -1).reshape(-1, 3, 3)


@dataclass(frozen=True)
class Layer:
    """A flat picture on a path."""

    texture: Tensor
    """float32 [4, h, w]: linear light times alpha, then alpha; `DENSITY` pixels a frame pixel."""
    path: Path4
    endless: bool
    """Mirrored at its borders (a background) or transparent outside (an object)."""


@dataclass(frozen=True)
class Scene:
    """Layers from back to front before a moving camera."""

    layers: tuple[Layer, ...]
    camera: Path4
    shutter: float
    """Share of the frame interval during which the shutter is open, (0, 1]."""
    samples: int
    """Sub-exposures a frame, odd."""
    noise: float
    """Standard deviation of the sensor noise on a blurred frame, in 8-bit steps."""

    def transforms(self, layer: Layer, times: Array) -> NDArray[np.float64]:
        """Matrices [N, 3, 3] from a layer's plane to the frame (pixels from its centre), for times [N] in frames."""
        return self.camera.at(times) @ layer.path.at(times)


def make_clip(seed: int, frames: int, height: int, width: int, *, split: Split = "train") -> Clip:
    """A clip of `frames` frames of height x width pixels, the same for the same arguments on the same torch version.

    The two splits share no photograph and no random numbers. Raises InvalidInputError for a negative seed or an empty
    size and MissingExtraError without torch or scikit-image.
    """
    if seed < 0 or min(frames, height, width) < 1:
        raise InvalidInputError(f"seed {seed}, {frames} frames of {width}x{height}: the seed is at least 0, the rest 1")
    rng = np.random.default_rng((seed, 0 if split == "train" else 1))
    return render(random_scene(rng, height, width, split), frames, height, width, rng)


def render(scene: Scene, frames: int, height: int, width: int, rng: np.random.Generator) -> Clip:
    """The first `frames` exposures of a scene, centred on times 0, 1, ...; rng is for the noise alone."""
    torch = _torch()
    offsets = (np.arange(scene.samples) - scene.samples // 2) / scene.samples * scene.shutter
    pairs = []
    with torch.no_grad():
        for frame in range(frames):
            total = torch.zeros(scene.samples, 3, height, width)
            for layer in scene.layers:
                part = _sample(layer, scene.transforms(layer, (frame + offsets).astype(np.float32)), height, width)
                total = total.mul_(1 - part[:, 3:]).add_(part[:, :3])
            pair = torch.stack((total.mean(0), total[scene.samples // 2]))
            pairs.append(to_srgb(pair.permute(0, 2, 3, 1).numpy()))
    blurred, sharp = np.stack(pairs, 1) * np.float32(255)
    blurred += rng.standard_normal(blurred.shape, np.float32) * np.float32(scene.noise)
    return Clip(*(np.rint(part).clip(0, 255).astype(np.uint8) for part in (blurred, sharp)))


def to_linear(srgb: Array) -> Array:
    """Linear light [0, 1] of sRGB values [0, 1]. Source: IEC 61966-2-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(linear: Array) -> Array:
    """sRGB values [0, 1] of linear light [0, 1]. Source: IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def random_scene(rng: np.random.Generator, height: int, width: int, split: Split) -> Scene:
    """A background, up to four objects and a camera, drawn at random for frames of height x width pixels."""
    shutter = float(rng.uniform(0.3, 1.0))
    size = math.hypot(height, width)
    # Length of the blur in pixels at the fastest moment; a few cameras stand still.
    blur = 0.0 if rng.random() < 0.05 else _log_uniform(rng, 5, 30)
    blurs = [_log_uniform(rng, 2, 26) for _ in range(int(rng.choice(5, p=(0.25, 0.25, 0.25, 0.15, 0.1))))]
    side = int(DENSITY * size * 1.3)
    layers = [object_layer(random_texture(rng, side, side, split), None, random_path(rng, 0, size))]
    for object_blur in blurs:
        h, w = (int(DENSITY * size * rng.uniform(0.12, 0.5)) + 8 for _ in range(2))
        start = rng.uniform(-0.4, 0.4, 2) * (width, height)
        path = random_path(rng, object_blur / shutter, size, start=(float(start[0]), float(start[1])))
        layers.append(object_layer(random_texture(rng, h, w, split), random_mask(rng, h, w), path))
    samples = 2 * int(np.clip(0.35 * (blur + max(blurs, default=0)), 5, 15)) + 1
    noise = float(rng.uniform(0, 1.5))
    return Scene(tuple(layers), random_path(rng, blur / shutter, size), shutter, samples, noise)


def random_path(rng: np.random.Generator, speed: float, size: float, start: tuple[float, float] = (0.0, 0.0)) -> Path4:
    """A path whose peak speed is about `speed` frame pixels a frame, over a plane about `size` pixels wide."""
    # Shares of drift, shake, rotation and zoom; turning by 1 / (size / 4) moves a point halfway to the corner by one.
    drift, shake, turn, zoom = speed * rng.dirichlet((1.0, 1.2, 0.5, 0.25))
    heading, count = rng.uniform(0, 2 * np.pi), 3
    rate = np.array((shake, shake, turn / (size / 4), zoom / (size / 4)))[:, None] * rng.dirichlet((1,) * count, 4)
    frequency = 2 * np.pi / np.exp(rng.uniform(np.log(5), np.log(40), (4, count)))
    initial = (*start, rng.normal() * 0.1, rng.normal() * 0.08)
    velocity = (drift * np.cos(heading), drift * np.sin(heading), 0, 0)
    parts = (initial, velocity, rate / frequency, frequency, rng.uniform(0, 2 * np.pi, (4, count)))
    return Path4(*(np.asarray(part, np.float32) for part in parts))


def object_layer(picture: Array, mask: Array | None, path: Path4) -> Layer:
    """A layer of an sRGB picture [h, w, 3] in [0, 1], cut out by mask [h, w] or endless without one."""
    torch, endless = _torch(), mask is None
    alpha = np.ones(picture.shape[:2], np.float32) if mask is None else mask
    planes = np.concatenate((to_linear(picture) * alpha[..., None], alpha[..., None]), -1).transpose(2, 0, 1)
    texture = torch.from_numpy(np.ascontiguousarray(planes))[None]
    # The box of a frame pixel, slightly rounded, as a lens and a sensor would.
    kernel = torch.tensor((0.0545, 0.2442, 0.4026, 0.2442, 0.0545))
    kernel = (kernel[:, None] * kernel).expand(4, 1, 5, 5)
    padded = torch.nn.functional.pad(texture, (2,) * 4, "reflect" if endless else "constant")
    return Layer(torch.nn.functional.conv2d(padded, kernel, groups=4)[0], path, endless)


def random_texture(rng: np.random.Generator, height: int, width: int, split: Split) -> Array:
    """A picture [height, width, 3], sRGB in [0, 1]: a photograph of the split or a procedural texture."""
    if rng.random() < 0.5:
        picture = _photograph_part(rng, height, width, split)
    else:
        maker = (_dead_leaves, _fractal, _glyphs, _lines, _gradient)[int(rng.choice(5, p=(0.4, 0.2, 0.2, 0.15, 0.05)))]
        picture = maker(rng, height, width)
        if rng.random() < 0.4:
            picture = picture + 0.4 * (_fractal(rng, height, width) - 0.5)
    gain, gamma = rng.uniform(0.6, 1.15), np.exp(rng.normal() * 0.2)
    result: Array = (gain * picture.clip(0, 1) ** gamma).clip(0, 1).astype(np.float32)
    return result


def random_mask(rng: np.random.Generator, height: int, width: int) -> Array:
    """The outline of an object, [height, width], 0 or 1: an ellipse, a box, a polygon or a blob; 0 at the border."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (height, width))
    angle, radius = np.arctan2(y[:, None], x), np.hypot(y[:, None], x)
    kind = rng.integers(4)
    if kind == 0:
        limit = np.full_like(radius, 0.95)
    elif kind == 1:
        limit = 0.9 * radius / np.maximum(np.abs(y[:, None]), np.abs(x)).clip(1e-6)
    elif kind == 2:
        corners = int(rng.integers(3, 8))
        sector = (angle + rng.uniform(0, 6)) % (2 * np.pi / corners) - np.pi / corners
        limit = 0.95 * np.cos(np.pi / corners) / np.cos(sector)
    else:
        waves = [rng.uniform(0, 0.3 / k) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in range(1, 7)]
        limit = 0.65 + 0.5 * np.sum(waves, 0)
    mask: Array = ((radius < limit) & (np.abs(y[:, None]) < 0.95) & (np.abs(x) < 0.95)).astype(np.float32)
    return mask


@functools.cache
def photograph(name: str) -> Array:
    """A sample photograph that comes with scikit-image, [h, w, 3], sRGB in [0, 1]. Raises MissingExtraError."""
    try:
        import skimage
        from skimage.io import imread
    except ImportError:
        raise MissingExtraError("scikit-image", "train", "making clips") from None
    picture: NDArray[np.uint8] = imread(Path(skimage.__file__).parent / "data" / name)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, -1)
    return picture[..., :3].astype(np.float32) / np.float32(255)


def _photograph_part(rng: np.random.Generator, height: int, width: int, split: Split) -> Array:
    torch = _torch()
    names = TRAINED_ON if split == "train" else HELD_OUT
    picture = photograph(names[int(rng.integers(len(names)))])
    h, w = picture.shape[:2]
    scale = float(np.clip(rng.uniform(0.5, 1.5), min(1.0, 0.6 * height / h), None))
    part_h, part_w = min(h, math.ceil(height / scale)), min(w, math.ceil(width / scale))
    top, left = int(rng.integers(h - part_h + 1)), int(rng.integers(w - part_w + 1))
    part = torch.from_numpy(picture[top : top + part_h, left : left + part_w].transpose(2, 0, 1).copy())[None]
    size = (max(1, round(part_h * scale)), max(1, round(part_w * scale)))
    part = torch.nn.functional.interpolate(part, size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    filled: Array = part.permute(1, 2, 0).numpy()
    pad = ((0, max(0, height - size[0])), (0, max(0, width - size[1])), (0, 0))
    filled = np.pad(filled, pad, "symmetric")[:height, :width]
    colours = (1, 1, 1) if rng.random() < 0.6 else rng.uniform(0.6, 1.2, 3)
    return (filled * np.asarray(colours, np.float32)).astype(np.float32)


def _colour(rng: np.random.Generator) -> Array:
    grey = rng.uniform(0, 1)
    return (grey + rng.uniform(0, 0.6) * (rng.random(3) - grey)).astype(np.float32)


def _dead_leaves(rng: np.random.Generator, height: int, width: int) -> Array:
    """Overlapping discs and boxes, radii by a power law: the statistics of natural images (Lee et al., 2001)."""
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = _colour(rng)
    smallest, largest = 3.0, max(8.0, 0.3 * max(height, width))
    count = int(min(900, 0.02 * height * width))
    radii = (smallest**-1.5 + rng.random(count) * (largest**-1.5 - smallest**-1.5)) ** (-1 / 1.5)
    for radius in radii:
        y0, x0 = rng.uniform(0, height), rng.uniform(0, width)
        top, left = max(0, int(y0 - radius)), max(0, int(x0 - radius))
        bottom, right = min(height, int(y0 + radius) + 1), min(width, int(x0 + radius) + 1)
        window, colour = picture[top:bottom, left:right], _colour(rng)
        if rng.random() < 0.3:
            window[:] = colour
        else:
            y, x = np.arange(top, bottom)[:, None] - y0, np.arange(left, right) - x0
            window[y * y + x * x < radius * radius] = colour
    return picture


def _noise(rng: np.random.Generator, height: int, width: int, slope: float) -> Array:
    """Gaussian noise with amplitude spectrum 1 / f^slope, mean 0, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), np.float32)) / frequency**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (height, width))
    result: Array = (noise / (noise.std() + 1e-9)).astype(np.float32)
    return result


def _fractal(rng: np.random.Generator, height: int, width: int) -> Array:
    shades = np.stack([_noise(rng, height, width, rng.uniform(0.7, 1.8)) for _ in range(2)], -1)
    mix = rng.normal(0, 0.12, (1, 3)) * 0.5 + rng.normal(0, 0.15, (2, 3))
    return (_colour(rng) * 0.5 + 0.25 + shades @ mix.astype(np.float32)).clip(0, 1).astype(np.float32)


def _glyphs(rng: np.random.Generator, height: int, width: int) -> Array:
    """Rows of random letter-like shapes on a plain or shaded ground."""
    unit, ink = int(rng.integers(2, 6)), np.zeros((height, width), np.float32)
    for top in range(unit, height - 7 * unit, int(rng.integers(8, 13)) * unit):
        left = int(rng.integers(0, 12)) * unit
        while left + 6 * unit < width:
            glyph = np.zeros((7, 5), np.float32)
            for _ in range(int(rng.integers(2, 5))):
                if rng.random() < 0.5:
                    glyph[rng.choice((0, 3, 6)), int(rng.integers(2)) : int(rng.integers(3, 6))] = 1
                else:
                    glyph[int(rng.integers(3)) : int(rng.integers(4, 8)), rng.choice((0, 2, 4))] = 1
            ink[top : top + 7 * unit, left : left + 5 * unit] = np.kron(glyph, np.ones((unit, unit), np.float32))
            left += (6 if rng.random() < 0.85 else 10) * unit
    ground, paint = _colour(rng), _colour(rng)
    if np.abs(ground - paint).max() < 0.4:
        paint = np.float32(1) - np.round(ground)
    return (ground + ink[..., None] * (paint - ground)).astype(np.float32)


def _lines(rng: np.random.Generator, height: int, width: int) -> Array:
    """Stripes, bars or a grid of two colours, turned at random, or square with thin lines."""
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    angle, period, share = rng.uniform(0, np.pi), _log_uniform(rng, 10, 80), rng.uniform(0.08, 0.5)
    along = (x * np.cos(angle) + y * np.sin(angle)) / period
    across = (y * np.cos(angle) - x * np.sin(angle)) / (period * rng.uniform(0.5, 2))
    mask = (along % 1 < share).astype(np.float32)
    if rng.random() < 0.6:
        second = (across % 1 < share).astype(np.float32)
        mask = np.maximum(mask, second) if rng.random() < 0.6 else np.abs(mask - second)
    ground, paint = _gradient(rng, height, width), _colour(rng)
    striped: Array = (ground + mask[..., None] * (paint - ground)).astype(np.float32)
    return striped


def _gradient(rng: np.random.Generator, height: int, width: int) -> Array:
    y, x = (
        np.linspace(0, 1, height, dtype=np.float32)[:, None, None],
        np.linspace(0, 1, width, dtype=np.float32)[:, None],
    )
    a, b, c, d = (_colour(rng) for _ in range(4))
    return ((a * (1 - y) + b * y) * (1 - x) + (c * (1 - y) + d * y) * x).astype(np.float32)


def _sample(layer: Layer, transforms: NDArray[np.float64], height: int, width: int) -> Tensor:
    """The layer in frames [N, 4, height, width] under transforms [N, 3, 3]."""
    torch = _torch()
    h, w = layer.texture.shape[1:]
    # From normalised frame coordinates to pixels from the centre, to the layer's plane, to normalised texture ones.
    inverse = (
        np.diag((2 * DENSITY / w, 2 * DENSITY / h, 1)) @ np.linalg.inv(transforms) @ np.diag((width / 2, height / 2, 1))
    )
    theta = torch.from_numpy(inverse[:, :2].astype(np.float32))
    grid = torch.nn.functional.affine_grid(theta, (len(theta), 4, height, width), align_corners=False)
    texture = layer.texture.expand(len(theta), -1, -1, -1)
    padding = "reflection" if layer.endless else "zeros"
    sampled: Tensor = torch.nn.functional.grid_sample(texture, grid, "bilinear", padding, align_corners=False)
    return sampled


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "train", "making clips") from None
    return torch
