"""The truth: what the op means, in numpy, slow and obvious. Imports numpy only.

Every other executor is held to this one. The matching is computed in double precision, so that the truth has no
rounding of its own; executors compute it in single precision. The warp copies elements and rounds nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.plugins.correlation_argmax_warp.rules import check_attributes, check_shapes

Array = NDArray[Any]


def normalised(motion: Array) -> NDArray[np.float64]:
    """Each position's vector divided by its length, or by 1e-12 if it is shorter. [B, C, h, w] -> the same, float64."""
    x = motion.astype(np.float64)
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    unit: NDArray[np.float64] = x / np.maximum(length, 1e-12)
    return unit


def shifted(x: Array, dy: int, dx: int) -> Array:
    """out[..., y, x] = x[..., y + dy, x + dx], zero where that is outside."""
    h, w = x.shape[-2:]
    out = np.zeros_like(x)
    rows, columns = range(max(0, -dy), min(h, h - dy)), range(max(0, -dx), min(w, w - dx))
    if rows and columns:
        out[..., rows.start : rows.stop, columns.start : columns.stop] = x[
            ..., rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx
        ]
    return out


def pooled_costs(motion: Array, motion_prev: Array, max_displacement: int, pool_size: int) -> NDArray[np.float64]:
    """Similarity of every position with every displaced one, averaged over a square: [(2D+1)**2, B, h, w], float64.

    The average always divides by pool_size**2: positions outside the map count as zeros.
    """
    a, b = normalised(motion), normalised(motion_prev)
    reach, r = range(-max_displacement, max_displacement + 1), pool_size // 2
    costs = []
    for dy in reach:
        for dx in reach:
            cost = (a * shifted(b, dy, dx)).sum(axis=1)
            total = sum(shifted(cost, j, i) for j in range(-r, r + 1) for i in range(-r, r + 1))
            costs.append(total / pool_size**2)
    return np.stack(costs)


def displacement_vectors(index: Array, max_displacement: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The displacements an index map stands for: (dy, dx), int32, in positions of the map, each of index's shape.

    `index` holds (dy + D) * (2D + 1) + (dx + D). Times `scale`, the results are in pixels of detail_prev.
    """
    span = 2 * max_displacement + 1
    rows, columns = np.divmod(np.asarray(index, np.int32), np.int32(span))
    return (rows - max_displacement).astype(np.int32), (columns - max_displacement).astype(np.int32)


def warp(detail_prev: Array, dy: Array, dx: Array, scale: int) -> Array:
    """Moves blocks of scale x scale elements: block (y, x) of the result is block (y + dy, x + dx), or zeros outside.

    detail_prev [B, c, scale*h, scale*w]; dy, dx integers [B, h, w]. Type and shape of the result are detail_prev's.
    """
    batch, h, w = dy.shape
    out = np.zeros_like(detail_prev)
    for n in range(batch):
        for y in range(h):
            for x in range(w):
                from_y, from_x = y + int(dy[n, y, x]), x + int(dx[n, y, x])
                if 0 <= from_y < h and 0 <= from_x < w:
                    out[n, :, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = detail_prev[
                        n, :, from_y * scale : (from_y + 1) * scale, from_x * scale : (from_x + 1) * scale
                    ]
    return out


def correlation_argmax_warp(
    motion: Array,
    motion_prev: Array,
    detail_prev: Array,
    max_displacement: int = 10,
    pool_size: int = 5,
    scale: int = 4,
) -> tuple[Array, NDArray[np.int32]]:
    """The op: (warped, displacement index), of detail_prev's type and shape, and int32 [B, h, w].

    motion, motion_prev [B, C, h, w] and detail_prev [B, c, scale*h, scale*w] are float16 or float32. Raises
    InvalidInputError for shapes or attributes outside the rules. Source: "Real-Time Video Deblurring via Lightweight
    Motion Compensation" (Son et al., 2022), with the pooling of the released implementation.
    """
    check_attributes(max_displacement, pool_size, scale)
    check_shapes(motion.shape, motion_prev.shape, detail_prev.shape, scale)
    costs = pooled_costs(motion, motion_prev, max_displacement, pool_size)
    index = costs.argmax(axis=0).astype(np.int32)  # numpy's argmax gives the first of equals
    return warp(detail_prev, *displacement_vectors(index, max_displacement), scale), index
