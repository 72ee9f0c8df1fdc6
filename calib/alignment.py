"""Aligns a picture to the truth by one translation of the whole picture, before they are compared.

Imports numpy; scikit-image and SciPy inside the functions. Source: Koehler et al. 2012 (the benchmark of camera shake),
whose MATLAB code registers by the cross-correlation of Guizar-Sicairos et al. 2008, as scikit-image does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtu.calib.quality import SMALLEST
from mtu.core.errors import InvalidInputError
from mtu.runtime import Picture

STEPS = 20
"""A shift is a whole number of steps, of which a pixel has so many."""
ROUNDS = 5
"""A registration is repeated at the shift it found at most so often."""
LARGEST = 16
"""Shifts of more pixels than this are no offset between two takes of one picture, but a failed registration."""


def find_shift(picture: Picture, truth: Picture) -> tuple[float, float]:
    """How far down and to the right `picture` lies of where `truth` has the same things, in pixels.

    Both are uint8 [H, W, 3]. The peak of the cross-correlation of their grey values, each under a Hann window, since
    the Fourier transform would otherwise see borders that do not meet; repeated on the parts that this makes shared,
    until whole pixels no longer change. (0, 0) where a shift comes out that is larger
    than `LARGEST`, or leaves less than the window of SSIM. Raises InvalidInputError for pictures of different sizes.
    """
    from skimage.registration import phase_cross_correlation

    if picture.shape != truth.shape:
        raise InvalidInputError(
            f"pictures of different sizes cannot be aligned: {list(picture.shape)}, {list(truth.shape)}"
        )
    height, width = truth.shape[:2]
    whole, found = (0, 0), (0.0, 0.0)
    for _ in range(ROUNDS):
        # The windows lie on the same things only where the pictures do, so whole pixels are taken away first.
        rows, columns = (_shared(shift, size) for shift, size in zip(whole, (height, width), strict=True))
        fixed = _windowed(truth[slice(*rows), slice(*columns)])
        moving = _windowed(np.roll(picture, (-whole[0], -whole[1]), (0, 1))[slice(*rows), slice(*columns)])
        if not moving.any() or not fixed.any():
            return 0.0, 0.0
        # Not the phase alone: where blur has left only noise, its phase would count as much as the picture's.
        rest = phase_cross_correlation(fixed, moving, upsample_factor=STEPS, normalization=None)[0]
        down, right = (round((start - float(step)) * STEPS) / STEPS for start, step in zip(whole, rest, strict=True))
        if abs(down) > min(LARGEST, height - SMALLEST) or abs(right) > min(LARGEST, width - SMALLEST):
            return 0.0, 0.0
        found, before, whole = (down, right), whole, (round(down), round(right))
        if whole == before:
            break
    return found


def align(picture: Picture, truth: Picture) -> tuple[Picture, Picture, tuple[float, float]]:
    """The parts of `picture` and `truth` that show the same, pixel on pixel, and the shift that was between them.

    uint8 [H, W, 3] in; out uint8 [h, w, 3] without the rows and columns that have no counterpart. The picture is moved
    by cubic splines, which leave its values as they are where the shift is of whole pixels. Raises as `find_shift`.
    """
    from scipy import ndimage

    down, right = find_shift(picture, truth)
    if down or right:
        channels = [
            ndimage.shift(picture[..., channel].astype(np.float32), (-down, -right), order=3, mode="nearest")
            for channel in range(3)
        ]
        picture = np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)
    (top, bottom), (left, edge) = _shared(down, truth.shape[0]), _shared(right, truth.shape[1])
    return picture[top:bottom, left:edge], truth[top:bottom, left:edge], (down, right)


def _shared(shift: float, size: int) -> tuple[int, int]:
    """The first position of the truth that the picture has too, and the one behind the last."""
    whole = math.ceil(abs(shift))
    return (0, size - whole) if shift > 0 else (whole, size)


def _windowed(frame: Picture) -> NDArray[np.float64]:
    grey = frame.mean(axis=2)
    window = np.outer(*map(np.hanning, grey.shape))
    windowed: NDArray[np.float64] = (grey - grey.mean()) * window
    return windowed
