"""What a camera makes of the light in a clip: noise, a response curve, 8 bits and H.264. Imports PyAV when used.

Opens no files; everything is in memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mtu.training.data.textures import Array


def to_linear(srgb: Array) -> Array:
    """Linear light [0, 1] of sRGB values [0, 1]. Source: IEC 61966-2-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(linear: Array) -> Array:
    """sRGB values [0, 1] of linear light [0, 1]. Source: IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


@dataclass(frozen=True)
class Curve:
    """What a camera makes of linear light: a gamma, then contrast."""

    gamma: float | None = None
    """The inverse of the exponent, or None for the sRGB curve."""
    contrast: float = 0.0
    """Share of an S-shaped curve, [0, 1]."""

    @functools.cached_property
    def table(self) -> NDArray[np.uint8]:
        """uint8 [65536]: the pixel value of light (i / 65535) ** 2. The square root keeps the dark steps fine."""
        root = np.linspace(0, 1, 65536)
        value = to_srgb((root**2).astype(np.float32)) if self.gamma is None else root ** (2 / self.gamma)
        value = value + self.contrast * (value * value * (3 - 2 * value) - value)
        return np.rint(255 * value).astype(np.uint8)

    def pixels(self, light: Array) -> NDArray[np.uint8]:
        """uint8 pixels of linear light (float32, clipped to [0, 1]), of the same shape."""
        index = (np.sqrt(light.clip(0, 1)) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)
        pixels: NDArray[np.uint8] = self.table[index]
        return pixels


SRGB = Curve()


def add_noise(light: Array, strength: float, rng: np.random.Generator) -> None:
    """Adds shot noise, its variance proportional to the light, and a little read noise to linear light, in place.

    `strength` is the standard deviation in mid grey, in 8-bit steps of the sRGB curve; 0 draws no numbers.
    """
    if not strength:
        return
    mid_grey = 0.214
    deviation = np.sqrt(light * np.float32(0.98 / mid_grey) + np.float32(0.02))
    # The slope of the sRGB curve is 1.08 there.
    deviation *= np.float32(strength / 255 / 1.08)
    light += deviation * rng.standard_normal(light.shape, np.float32)


def compressed(frames: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    """RGB frames uint8 [T, H, W, 3] after H.264 (4:2:0, BT.709, TV range) at constant rate factor `crf`, [0, 51].

    Of the same shape and type.
    """
    import av

    from mtu.runtime.video.colour import LIMITED, Colour, FromRGB, ToRGB

    _, height, width, _ = frames.shape
    # Even sizes, for its planes of colour are half as large, and at least one block.
    pad = [(0, max(16, n + n % 2) - n) for n in (height, width)]
    encoder, decoder = av.CodecContext.create("libx264", "w"), av.CodecContext.create("h264", "r")
    encoder.width, encoder.height, encoder.pix_fmt = width + pad[1][1], height + pad[0][1], "yuv420p"
    encoder.time_base = Fraction(1, 25)
    # Without these x264's bits depend on where its buffers lie, on the processor and on the number of threads.
    repeatable = {"tune": "zerolatency", "x264-params": "cpu-independent=1"}
    encoder.options = {"crf": str(crf), "preset": "veryfast", **repeatable}
    encoder.thread_count = decoder.thread_count = 1
    bt709 = Colour(matrix=1, range=LIMITED)
    from_rgb, to_rgb = FromRGB("yuv420p", bt709), ToRGB(bt709)
    packets = []
    for number, picture in enumerate(np.pad(frames, ((0, 0), *pad, (0, 0)), "edge")):
        frame = from_rgb(picture)
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = [to_rgb(frame) for packet in (*packets, None) for frame in decoder.decode(packet)]
    return np.stack(decoded)[:, :height, :width]
