"""The clip of the demo, calib/demo. Imports torch and scikit-image; writes nothing.

A print of a cat and a card with letters are moved about over a table filmed by hand. Both photographs (scikit-image's
coffee and chelsea, CC0) are held out of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtu.training.data.render import render
from mtu.training.data.scene import DENSITY, Clip, Path4, Scene, object_layer
from mtu.training.data.textures import Array, photograph, resized, sample_photographs

WIDTH, HEIGHT, FRAMES = 384, 216, 48
PHOTOGRAPHS = ("coffee.png", "chelsea.png")
LINES = (("MTU", 30), ("sharp again", 17), ("letters tell sooner", 11), ("than numbers do", 11))
"""On the card: text and its size in frame pixels."""


def demo_scene() -> Scene:
    """The scene of the demo, WIDTH x HEIGHT pixels. Raises MissingExtraError without scikit-image or torch."""
    found = {path.name: path for path in sample_photographs("validation").paths}
    table, cat = (photograph(found[name]).astype(np.float32) / np.float32(255) for name in PHOTOGRAPHS)
    # Hand-shake, a slow swing of the camera and a little turning; pixels, radians, log zoom and periods in frames.
    camera = _path(
        (8, 4, 0.01, 0.05),
        x=((30, 46, 2.2), (7, 9.5, 0.3), (2.5, 5.3, 1.0)),
        y=((16, 38, 0.4), (7, 12.5, 1.9), (2.5, 6.1, 0.2)),
        angle=((0.035, 31, 0.0), (0.012, 10.5, 1.2)),
        zoom=((0.05, 50, 0.7),),
    )
    layers = [object_layer(_enlarge(table, 0.82), None, _path((0, 0, 0, 0)))]
    first = _path((-85, 28, -0.15, 0), x=((50, 44, -0.4), (5, 13, 0)), y=((12, 29, 1),), angle=((0.16, 34, 0.5),))
    second = _path((98, -22, 0.12, 0), x=((18, 36, 2.5),), y=((26, 40, 3.6), (4, 14, 0)), angle=((0.14, 47, 2),))
    for picture, path in ((_letters(), second), (cat[:, 20:440], first)):
        card, mask = _print(_enlarge(picture, 150 / picture.shape[1]))
        layers.append(object_layer(card, mask, path))
    return Scene(tuple(layers), camera, shutter=0.75, samples=31, noise=0.8)


def demo_clip() -> Clip:
    """The clip of the demo. Raises as `demo_scene` does."""
    return render(demo_scene(), FRAMES, HEIGHT, WIDTH, np.random.default_rng(0))


def _path(
    start: tuple[float, float, float, float],
    x: Sequence[tuple[float, float, float]] = (),
    y: Sequence[tuple[float, float, float]] = (),
    angle: Sequence[tuple[float, float, float]] = (),
    zoom: Sequence[tuple[float, float, float]] = (),
) -> Path4:
    """A path without drift; each wave is an amplitude, a period in frames and a phase."""
    waves = np.zeros((4, 3, 3), np.float32)
    waves[:, :, 1] = 1
    for row, given in enumerate((x, y, angle, zoom)):
        for column, wave in enumerate(given):
            waves[row, column] = wave
    amplitude, period, phase = waves.transpose(2, 0, 1)
    zero = np.zeros(4, np.float32)
    return Path4(np.asarray(start, np.float32), zero, amplitude, (2 * np.pi / period).astype(np.float32), phase)


def _enlarge(picture: Array, scale: float) -> Array:
    """The picture [h, w, 3] at `scale` frame pixels a pixel, as a texture."""
    height, width, _ = picture.shape
    return resized(picture, (round(height * scale * DENSITY), round(width * scale * DENSITY)))


def _letters() -> Array:
    """A card with `LINES`, four pixels a frame pixel, 150 frame pixels wide."""
    from PIL import Image, ImageDraw, ImageFont

    card = Image.new("RGB", (600, 424), (236, 231, 218))
    draw, top = ImageDraw.Draw(card), 24
    for text, size in LINES:
        font = ImageFont.load_default(4 * size)
        draw.text((300, top), text, (32, 36, 58), font, anchor="ma")
        top += round(4.9 * size) + 6
    draw.line((60, 400, 540, 400), (178, 44, 32), 10)
    return np.asarray(card, np.float32) / np.float32(255)


def _print(picture: Array) -> tuple[Array, Array]:
    """The picture as a print with a white border, and its outline; clear at the edge."""
    border, clear = round(5 * DENSITY), round(2 * DENSITY)
    card = np.pad(picture, ((border,) * 2, (border,) * 2, (0, 0)), constant_values=np.float32(0.93))
    card = np.pad(card, ((clear,) * 2, (clear,) * 2, (0, 0)))
    mask = np.zeros(card.shape[:2], np.float32)
    mask[clear:-clear, clear:-clear] = 1
    return card, mask
