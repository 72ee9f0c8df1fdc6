"""Makes pictures out of focus, their sharp originals and the two views of a dual-pixel sensor, from a seed.

A scene is a stack of flat layers (`mtu.training.data.textures`), each at a depth. A thin lens blurs a layer by a disc
whose radius grows with the distance, in diopters, to the plane in focus. Layers are composited from back to front in
linear light, each with its own alpha blurred, so an edge in front is soft over what is behind it. That is done for each
half of the aperture: these are the views, and the picture is their mean. Imports torch and scikit-image when used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.training.data.camera import SRGB, Curve, add_noise, to_linear
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

LARGEST_RADIUS = 12.0
"""Of a disc, in pixels of the frame."""
MARGIN = int(LARGEST_RADIUS) + 1
"""Pixels of a plane outside the frame on every side: what a disc at the border reaches."""
FINENESS = 16
"""Parts of a pixel, across and down, that a disc is drawn with."""


@dataclass(frozen=True)
class DefocusedStill:
    """A picture, uint8 [H, W, 3] each: out of focus, sharp, and seen by the left and the right half of the lens."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """A flat layer at one depth."""

    light: Array
    """[H + 2 * MARGIN, W + 2 * MARGIN, 4]: linear light times alpha, then alpha."""
    radius: float
    """Of its disc in pixels; negative beyond the plane in focus, where the halves of the lens change places."""


def make_still(
    seed: int, height: int, width: int, *, split: Split = "train", photographs: Photographs | None = None
) -> DefocusedStill:
    """A picture of height x width pixels, the same for the same arguments; the splits are those of `make_clip`.

    Raises InvalidInputError for a negative seed, an empty size or a photograph that cannot be read, and
    MissingExtraError without torch or scikit-image.
    """
    if seed < 0 or min(height, width) < 1:
        raise InvalidInputError(f"seed {seed}, {width}x{height} pixels: the seed is at least 0, the rest 1")
    rng = np.random.default_rng((seed, 2 if split == "train" else 3))  # 0 and 1 are those of clips
    planes = random_planes(rng, height, width, photographs or sample_photographs(split))
    noise = float(rng.uniform(0, 1.5) if rng.random() < 0.9 else rng.uniform(1.5, 4))
    gamma = None if rng.random() < 0.7 else float(rng.uniform(1.8, 2.4))
    return photographed(planes, noise, SRGB if gamma is None else Curve(gamma), rng)


def photographed(planes: Sequence[Plane], noise: float, curve: Curve, rng: np.random.Generator) -> DefocusedStill:
    """What a camera makes of planes from back to front; rng is for the noise, which the sharp picture has none of.

    `noise` is as `add_noise` takes it.
    """
    left, right = (exposed(planes, half) for half in (-1, 1))
    for view in (left, right):
        add_noise(view, noise * 2**0.5, rng)  # so much that their mean has what was asked for
    sharp = exposed([Plane(plane.light, 0.0) for plane in planes], 0)
    return DefocusedStill(*map(curve.pixels, ((left + right) / np.float32(2), sharp, left, right)))


def exposed(planes: Sequence[Plane], half: int) -> Array:
    """The light of planes from back to front through one half of the lens (-1: left, 1: right; 0: all of it as one).

    float32 [H, W, 3], linear.
    """
    total: Array | None = None
    for plane in planes:
        seen = _blurred(plane, half)
        light, alpha = seen[..., :3], seen[..., 3:]
        total = light if total is None else total * (1 - alpha) + light
    assert total is not None, "a scene has a background"
    return np.ascontiguousarray(total)


@functools.lru_cache(512)
def disc(radius: float, half: int) -> Array:
    """A disc, or the left (-1) or right (1) half of one: the share of each pixel in it, [n, n], its sum 1.

    A radius of 0 is a single pixel; one below 0 is the disc of its size with the halves changed.
    """
    half, radius = (half if radius >= 0 else -half), abs(radius)
    reach = max(0, int(np.ceil(radius - 0.5)))
    fine = (np.arange((2 * reach + 1) * FINENESS) + 0.5) / FINENESS - reach - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2) & (fine * half >= 0)
    size = 2 * reach + 1
    shares = inside.reshape(size, FINENESS, size, FINENESS).sum((1, 3)).astype(np.float64)
    if not shares.any():
        shares[reach, reach] = 1
    kernel: Array = (shares / shares.sum()).astype(np.float32)
    return kernel


def _blurred(plane: Plane, half: int) -> Array:
    """The part of a plane that is in the frame, [H, W, 4], through a half of the lens."""
    kernel = disc(plane.radius, half)
    edge = MARGIN - kernel.shape[0] // 2
    light = plane.light[edge : len(plane.light) - edge, edge : plane.light.shape[1] - edge]
    if kernel.size == 1:
        return light  # what is in focus stays as it is, bit for bit
    torch = need_torch()
    with torch.no_grad():
        planes = torch.from_numpy(np.ascontiguousarray(light.transpose(2, 0, 1)))[:, None]
        found = torch.nn.functional.conv2d(planes, torch.from_numpy(kernel)[None, None])[:, 0]
    # Rounding may leave an alpha a little above 1, and what is behind it would be subtracted.
    result: Array = np.minimum(found.permute(1, 2, 0).numpy(), 1)
    return result


def random_planes(rng: np.random.Generator, height: int, width: int, photographs: Photographs) -> list[Plane]:
    """A background and up to five objects before it, drawn at random for frames of height x width pixels.

    In seven scenes of ten one of them is exactly in focus; in one of ten everything is.
    """
    count = int(rng.integers(0, 6))
    nearness = np.sort(rng.random(count + 1))  # in diopters, from the farthest to the nearest
    kind = rng.random()
    focus = float(nearness[int(rng.integers(count + 1))]) if kind < 0.7 else float(rng.random())
    strength = 0.0 if kind > 0.9 else log_uniform(rng, 2, 24)
    planes = []
    for number, near in enumerate(nearness):
        radius = float(np.clip(strength * (near - focus), -LARGEST_RADIUS, LARGEST_RADIUS))
        sides = height + 2 * MARGIN, width + 2 * MARGIN
        light = np.ones((*sides, 4), np.float32)
        light[..., :3] = to_linear(random_texture(rng, *sides, photographs))
        if number:
            light *= _object_mask(rng, *sides)[..., None]
        planes.append(Plane(light, radius))
    return planes


def _object_mask(rng: np.random.Generator, height: int, width: int) -> Array:
    """An outline somewhere in an empty plane, its edge a pixel wide."""
    h, w = (max(8, int(side * rng.uniform(0.2, 0.8))) for side in (height, width))
    fine = random_mask(rng, 2 * h, 2 * w)
    shape = fine.reshape(h, 2, w, 2).mean((1, 3))
    top, left = int(rng.integers(-h // 4, height - h // 2)), int(rng.integers(-w // 4, width - w // 2))
    mask = np.zeros((height, width), np.float32)
    inner = mask[max(0, top) : top + h, max(0, left) : left + w]
    inner[:] = shape[max(0, -top) :, max(0, -left) :][: inner.shape[0], : inner.shape[1]]
    return mask
