"""Maps for people: in colours, and what is to be said of each frame's. Imports numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.interface import Output
from mtu.core.window import Picture, spread

COLOURS = ((0, 0, 0), (42, 12, 92), (118, 28, 110), (190, 54, 84), (236, 104, 38), (250, 178, 32), (252, 252, 180))
"""Red, green, blue of 0, 1/6, ... 1; each brighter than the one before, so that a gray print still shows the order."""


def heat_picture(values: NDArray[np.floating], output: Output, height: int, width: int) -> Picture:
    """A map [h, w], what a model gave as `output`, in colours: uint8 RGB [height, width, 3].

    From black for 0 over violet, red and orange to pale yellow for 1, the same for all frames; what lies outside is
    taken for 0 or 1.
    """
    index = np.rint(np.clip(values, 0, 1).astype(np.float32) * 255).astype(np.uint8)
    return spread(_colours()[index], output.tensor, height, width)


@functools.cache
def _colours() -> NDArray[np.uint8]:
    """Of 0, 1/255, ... 1: uint8 [256, 3]."""
    steps = np.linspace(0, 1, len(COLOURS))
    levels = [np.interp(np.linspace(0, 1, 256), steps, channel) for channel in np.transpose(COLOURS)]
    table: NDArray[np.uint8] = np.rint(np.stack(levels, 1)).astype(np.uint8)
    return table


def in_unit(values: NDArray[np.floating], output: Output) -> NDArray[np.float32]:
    """A map's values as the quantity that they stand for, where the output says one; themselves elsewhere."""
    found: NDArray[Any] = values.astype(np.float32)
    if output.unit is not None:
        found = np.maximum(output.unit.factor * found + output.unit.offset, 0)
    return found


def figures(values: NDArray[np.floating], output: Output) -> dict[str, float]:
    """Mean and 95th percentile over a frame, in the unit of the output where it has one."""
    found = in_unit(values, output)
    return {"mean": round(float(found.mean()), 4), "p95": round(float(np.percentile(found, 95)), 4)}
