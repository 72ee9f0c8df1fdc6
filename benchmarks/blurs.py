"""Clips of one kind of blur each, of a known length, for `weights_cli --by-blur`. Imports torch and scikit-image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from mtu.benchmarks.weights import gain
from mtu.training.data.clips import handheld_path, random_path
from mtu.training.data.render import render
from mtu.training.data.scene import DENSITY, Clip, Layer, Path4, Scene, object_layer
from mtu.training.data.textures import Photographs, random_mask, random_texture, sample_photographs

if TYPE_CHECKING:
    from mtu.models.mtu.architecture import Network

LENGTHS = (3, 6, 12, 24)
"""Of the blur in pixels, at the fastest moment and place."""

SHUTTER = 0.8
FRAMES = 7


def _line(x: float = 0, y: float = 0, angle: float = 0, zoom: float = 0) -> Path4:
    """A path that goes on at one speed a frame."""
    zero = np.zeros((4, 1), np.float32)
    return Path4(np.zeros(4, np.float32), np.array((x, y, angle, zoom), np.float32), zero, zero + 1, zero)


def _shift(rng: np.random.Generator, speed: float, size: float) -> Path4:
    heading = rng.uniform(0, 2 * np.pi)
    return _line(speed * math.cos(heading), speed * math.sin(heading))


CAMERAS: Mapping[str, Callable[[np.random.Generator, float, float], Path4]] = {
    "shift": _shift,
    "hand": handheld_path,
    "turn": lambda rng, speed, size: _line(angle=speed / (size / 2)),
    "zoom": lambda rng, speed, size: _line(zoom=speed / (size / 2)),
    "rolling shutter": _shift,
    "object": lambda rng, speed, size: _line(),
}
"""Kind: the path of the camera, which moves corners of a frame of diagonal `size` by `speed` pixels a frame."""


def blurred_clip(kind: str, length: float, seed: int, side: int) -> Clip:
    """A clip of `FRAMES` frames of side x side pixels whose blur is of one of `CAMERAS`; pictures are those of the
    validation split, the same for every kind and length of a seed."""
    photographs = replace(sample_photographs("validation"), share=1.0)
    rng, size = np.random.default_rng((seed, 77)), side * math.sqrt(2)
    pixels = math.ceil(DENSITY * size * 1.1)
    layers = [object_layer(random_texture(rng, pixels, pixels, photographs), None, random_path(rng, 0, size))]
    speed = length / SHUTTER
    if kind == "object":
        layers.append(_object(rng, speed, side, photographs))
    camera = CAMERAS[kind](rng, speed, size)
    scene = Scene(tuple(layers), camera, SHUTTER, 31, 0.8, readout=0.9 if kind == "rolling shutter" else 0.0)
    return render(scene, FRAMES, side, side, rng)


def _object(rng: np.random.Generator, speed: float, side: int, photographs: Photographs) -> Layer:
    """Something of half the frame's size that crosses it, in its middle at half of the clip."""
    half = int(DENSITY * side * 0.55)
    path = _shift(rng, speed, side)
    begin = replace(path, start=-path.velocity * np.float32(FRAMES // 2))
    return object_layer(random_texture(rng, half, half, photographs), random_mask(rng, half, half), begin)


def table(network: Network, seeds: Sequence[int], side: int) -> Iterator[str]:
    """The lines of a table of what a network gains, in dB, a line a kind, a column a length."""
    yield "| blur | " + " | ".join(f"{length} pixels" for length in LENGTHS) + " |"
    yield "|---" * (len(LENGTHS) + 1) + "|"
    for kind in CAMERAS:
        gains = (fmean(gain(network, blurred_clip(kind, length, seed, side)) for seed in seeds) for length in LENGTHS)
        yield f"| {kind} | " + " | ".join(f"{value:+.2f}" for value in gains) + " |"
