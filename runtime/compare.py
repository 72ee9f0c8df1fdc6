"""Before and after in one picture. Imports numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtu.core.window import Picture
from mtu.runtime.video.colour import quarter_turn, swaps_sides

Comparison = Literal["side-by-side", "split"]
DisplayMatrix = tuple[int, ...]
"""Nine integers in FFmpeg's layout: how a stored picture is turned when it is shown."""


def compared_size(
    height: int, width: int, compare: Comparison | None, display_matrix: DisplayMatrix | None
) -> tuple[int, int]:
    """Height and width of what `compose` gives for pictures of height x width."""
    if compare != "side-by-side":
        return height, width
    axis, _ = _across(display_matrix)
    return (height, 2 * width) if axis == 1 else (2 * height, width)


def compose(
    before: Picture, after: Picture, compare: Comparison | None, display_matrix: DisplayMatrix | None = None
) -> Picture:
    """The picture to write: the restored frame, both side by side, or the left half before and the right half after.

    All are uint8 [H, W, 3]; side by side is 2W wide. A white line of two pixels marks the split. Left and right are
    those of the picture as `display_matrix` shows it.
    """
    if compare is None:
        return after
    if before.shape != after.shape:  # of a model that enlarges
        down, across = (large // small for large, small in zip(after.shape[:2], before.shape[:2], strict=True))
        before = before.repeat(down, 0).repeat(across, 1)
    axis, backwards = _across(display_matrix)
    low, high = (after, before) if backwards else (before, after)
    if compare == "side-by-side":
        return np.concatenate((low, high), axis=axis)
    size = before.shape[axis]
    middle = size - size // 2 if backwards else size // 2
    both = np.concatenate((low.take(range(middle), axis), high.take(range(middle, size), axis)), axis)
    np.moveaxis(both, axis, 0)[max(middle - 1, 0) : middle + 1] = 255
    return both


def _across(display_matrix: DisplayMatrix | None) -> tuple[int, bool]:
    """The axis of a stored picture that is shown from left to right, and whether it runs backwards there."""
    if display_matrix is None or not quarter_turn(display_matrix):
        return 1, False
    if swaps_sides(display_matrix):
        return 0, display_matrix[3] < 0
    return 1, display_matrix[0] < 0
