"""Draws the scenes of made clips from a seed. Imports torch, scikit-image and PyAV when used.

Training, validation and the demo take their frames from here: a scene (`mtu.training.data.scene`), rendered
(`mtu.training.data.render`). Source of the recipe: GoPro, DVD and REDS average the frames of a fast camera; here the
sub-exposures are rendered, so no frame-rate artefacts and no camera are needed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.training.data.camera import Curve
from mtu.training.data.render import render
from mtu.training.data.scene import DENSITY, Clip, Layer, Path4, Scene, object_layer
from mtu.training.data.textures import (
    Photographs,
    Split,
    log_uniform,
    random_mask,
    random_texture,
    sample_photographs,
)


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


def random_scene(rng: np.random.Generator, height: int, width: int, photographs: Photographs) -> Scene:
    """A background, up to four objects and a camera, drawn at random for frames of height x width pixels."""
    shutter = float(rng.uniform(0.3, 1.0))
    size = math.hypot(height, width)
    # Length of the blur in pixels at the fastest moment: some cameras stand still or nearly so, as on a tripod.
    kind = rng.random()
    blur = 0.0 if kind < 0.1 else log_uniform(rng, 0.5, 5) if kind < 0.25 else log_uniform(rng, 5, 30)
    camera = (handheld_path if rng.random() < 0.4 else random_path)(rng, blur / shutter, size)
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
    readout = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.3, 0.95))
    return Scene((background, *objects), camera, shutter, 31, noise, curve, crf, readout)


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
    periods = np.exp(rng.uniform(np.log(5), np.log(40), (4, 3)))
    # Shares of drift, shake, rotation and zoom.
    return _path(rng, speed * rng.dirichlet((1.0, 1.2, 0.5, 0.25)), size, periods, rng.dirichlet((1,) * 3, 4))


def handheld_path(rng: np.random.Generator, speed: float, size: float) -> Path4:
    """As `random_path`, of a camera held by hand: at 30 frames a second its speed has all frequencies alike up to 2 Hz,
    then falls with them, and a tremor of 8 to 12 Hz lies on it; it turns more than it moves, which shifts the frame."""
    periods = np.exp(rng.uniform(np.log(4), np.log(60), (4, 7)))
    periods[:, -1] = rng.uniform(2.5, 3.75, 4)
    weights = np.minimum(1, periods / 15) * np.exp(0.3 * rng.normal(size=periods.shape))
    shares = rng.dirichlet((0.6, 4.0, 0.6, 0.2))
    return _path(rng, speed * shares, size, periods, weights / weights.sum(1, keepdims=True))


def _path(
    rng: np.random.Generator,
    speeds: NDArray[np.float64],
    size: float,
    periods: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Path4:
    """A path that drifts, shakes, turns and zooms at these peak speeds; waves of x, y, angle and zoom have periods
    [4, K] in frames and those shares of the speed."""
    drift, shake, turn, zoom = speeds
    heading = rng.uniform(0, 2 * np.pi)
    # Turning by 1 / (size / 4) moves a point halfway to the corner by one.
    rate = np.array((shake, shake, turn / (size / 4), zoom / (size / 4)))[:, None] * weights
    frequency = 2 * np.pi / periods
    initial = (0, 0, rng.normal() * 0.1, rng.normal() * 0.08)
    velocity = (drift * np.cos(heading), drift * np.sin(heading), 0, 0)
    parts = (initial, velocity, rate / frequency, frequency, rng.uniform(0, 2 * np.pi, periods.shape))
    return Path4(*(np.asarray(part, np.float32) for part in parts))
