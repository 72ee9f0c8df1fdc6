"""Makes the pictures and outlines that clips are made of, from a random generator. Imports scikit-image when used.

Some of them are parts of photographs: scikit-image's samples, shared out between training and validation, or a user's
own (`Photographs`). The others are drawn here: dead leaves (Lee et al., 2001), 1/f noise, glyphs, lines and shades.
They know nothing of motion.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import MissingExtraError
from mtu.runtime.video import read_picture

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

PLACES = 3
"""Places in a photograph, drawn at random, of which the part with most texture is taken: sky and walls teach little."""

LARGEST = 2400
"""Photographs with a longer side in pixels are reduced to it: cameras' own pictures are soft at full size."""


@dataclass(frozen=True)
class Photographs:
    """The photographs that textures are cut from."""

    paths: tuple[Path, ...]
    share: float = 0.5
    """Of the textures; the others are drawn."""


@functools.cache
def sample_photographs(split: Split) -> Photographs:
    """Those that come with scikit-image. Raises MissingExtraError."""
    try:
        import skimage
    except ImportError:
        raise MissingExtraError("scikit-image", "train", "making clips") from None
    names = TRAINED_ON if split == "train" else HELD_OUT
    return Photographs(tuple(Path(skimage.__file__).parent / "data" / name for name in names))


def random_texture(rng: np.random.Generator, height: int, width: int, photographs: Photographs) -> Array:
    """A picture [height, width, 3], sRGB in [0, 1]: a part of a photograph or a procedural texture.

    One in six is enlarged 2.5 to 8 times, so soft as an object out of focus. Raises MissingExtraError, and
    InvalidInputError for a photograph that cannot be read.
    """
    if rng.random() < 0.17:
        factor = log_uniform(rng, 2.5, 8)
        small = _texture(rng, math.ceil(height / factor), math.ceil(width / factor), photographs)
        return resized(small, (height, width))
    return _texture(rng, height, width, photographs)


def _texture(rng: np.random.Generator, height: int, width: int, photographs: Photographs) -> Array:
    if rng.random() < photographs.share:
        picture = _photograph_part(rng, height, width, photographs)
    else:
        maker = (_dead_leaves, _fractal, _glyphs, _lines, _gradient)[int(rng.choice(5, p=(0.4, 0.2, 0.2, 0.15, 0.05)))]
        picture = maker(rng, height, width)
        if rng.random() < 0.4:
            picture = picture + 0.4 * (_fractal(rng, height, width) - 0.5)
    gain, gamma = rng.uniform(0.6, 1.15), np.exp(rng.normal() * 0.2)
    result: Array = (gain * picture.clip(0, 1) ** gamma).clip(0, 1).astype(np.float32)
    return result


def roughness(picture: NDArray[np.uint8]) -> float:
    """How much neighbouring pixels of a picture [h, w, 3] differ, in steps: 0 in a plain one."""
    green = picture[..., 1].astype(np.float32)
    return float(np.abs(np.diff(green, axis=0)).sum() + np.abs(np.diff(green, axis=1)).sum()) / green.size


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


@functools.lru_cache(40)
def photograph(path: Path) -> NDArray[np.uint8]:
    """A photograph, [h, w, 3], sRGB, its longer side at most `LARGEST`. Raises what `read_picture` does."""
    picture = read_picture(path)
    h, w = picture.shape[:2]
    if max(h, w) <= LARGEST:
        return picture
    scale = LARGEST / max(h, w)
    reduced = resized(
        picture.astype(np.float32) / np.float32(255), (max(1, round(h * scale)), max(1, round(w * scale)))
    )
    pixels: NDArray[np.uint8] = np.rint(reduced * 255).astype(np.uint8)
    return pixels


def _photograph_part(rng: np.random.Generator, height: int, width: int, photographs: Photographs) -> Array:
    picture = photograph(photographs.paths[int(rng.integers(len(photographs.paths)))])
    h, w = picture.shape[:2]
    scale = float(np.clip(rng.uniform(0.5, 1.5), min(1.0, 0.6 * height / h), None))
    part_h, part_w = min(h, math.ceil(height / scale)), min(w, math.ceil(width / scale))
    size = (max(1, round(part_h * scale)), max(1, round(part_w * scale)))
    corners = rng.integers((h - part_h + 1, w - part_w + 1), size=(PLACES, 2)).tolist()
    part = max((picture[y : y + part_h, x : x + part_w] for y, x in corners), key=roughness)
    filled = resized(part.astype(np.float32) / np.float32(255), size)
    pad = ((0, max(0, height - size[0])), (0, max(0, width - size[1])), (0, 0))
    filled = np.pad(filled, pad, "symmetric")[:height, :width]
    colours = (1, 1, 1) if rng.random() < 0.6 else rng.uniform(0.6, 1.2, 3)
    return (filled * np.asarray(colours, np.float32)).astype(np.float32)


def resized(picture: Array, size: tuple[int, int]) -> Array:
    """A picture [h, w, 3] of another height and width. Raises MissingExtraError without torch."""
    torch = need_torch()
    planes = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
    planes = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    result: Array = planes.permute(1, 2, 0).contiguous().numpy()
    return result


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
    # A multiple of 64 is quick to transform; the border that is cut off also ends the repetition.
    size = (-(-height // 64) * 64, -(-width // 64) * 64)
    across, down = (f(n).astype(np.float32) for f, n in ((np.fft.rfftfreq, size[1]), (np.fft.fftfreq, size[0])))
    power = down[:, None] ** 2 + across**2
    power[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal(size, np.float32)) * power ** np.float32(-slope / 2)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, size)[:height, :width]
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
    angle, period, share = rng.uniform(0, np.pi), log_uniform(rng, 10, 80), rng.uniform(0.08, 0.5)
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


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high whose logarithm is evenly spread."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def need_torch() -> Any:
    """The module torch. Raises MissingExtraError."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "train", "making clips") from None
    return torch
