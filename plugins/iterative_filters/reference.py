"""The truth: what the op means, in numpy, slow and obvious. Imports numpy only.

Every other executor is held to this one. It computes in double precision, so that it has no rounding of its own but
the last; executors compute in single precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.plugins.iterative_filters.rules import SLOPE, check_attributes, check_shapes, parts

Array = NDArray[Any]


def iterative_filters(x: Array, filters: Array, shared_taps: int = 1) -> Array:
    """x [B, C, h, w] filtered down, then across, each position and channel by taps of its own; plus its own bias;
    LeakyReLU. See README.md. The result has the shape and the type of x.

    Raises InvalidInputError for shapes or attributes outside the rules.
    """
    check_attributes(shared_taps)
    check_shapes(x.shape, filters.shape, shared_taps)
    blocks = np.split(filters.astype(np.float64), parts(shared_taps), axis=1)
    down, across, bias = blocks[:3], blocks[:3] if shared_taps else blocks[3:6], blocks[-1]
    filtered = weighted(weighted(x.astype(np.float64), down, axis=2), across, axis=3) + bias
    with np.errstate(over="ignore"):
        result: Array = np.where(filtered >= 0, filtered, SLOPE * filtered).astype(x.dtype)
    return result


def weighted(x: Array, taps: list[Array], axis: int) -> Array:
    """The sum of the element before, the element and the element after along an axis, each times its tap; what is
    outside is the element at the edge."""
    size = x.shape[axis]
    out = np.zeros_like(x)
    for i in range(size):
        here = (slice(None),) * axis + (i,)
        for step, tap in zip((-1, 0, 1), taps, strict=True):
            there = (slice(None),) * axis + (min(max(i + step, 0), size - 1),)
            out[here] += tap[here] * x[there]
    return out
