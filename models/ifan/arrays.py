"""What a released file of IFAN holds, and the network's weights that are made of it. Imports torch.

The layer that predicts the filters, F.3, is one of all iterations there and one for each here. As one tensor the
filters would take 837 MB for a frame of 1280x720; of one iteration, without the rows that nothing uses, 28 MB.

The transposed convolutions are convolutions to four times the channels here, one for each of the pixels that one
becomes: executors have them as fast, and without workspaces of hundreds of MB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtu.models.ifan import KEYS, ROWS, network

WHOLE = KEYS[1].removesuffix(".weight")
DOUBLING = re.compile(r"upconv\d_u\.0\.")
"""Layers that are transposed convolutions in the file, 4x4 with stride 2 and padding 1."""


def shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a released file that inference needs."""
    with torch.device("meta"):
        own = network(settings).state_dict()
    found: dict[str, tuple[int, ...]] = {}
    for name, value in own.items():
        if DOUBLING.match(name):
            outputs = value.shape[0] // 4
            found[name] = (value.shape[1], outputs, 4, 4) if value.dim() == 4 else (outputs,)
        elif not name.startswith(f"{WHOLE}."):
            found[name] = tuple(value.shape)
    channels = 4 * settings["channels"]
    rows = settings["iterations"] * ROWS * channels
    return found | {f"{WHOLE}.weight": (rows, channels, 1, 1), f"{WHOLE}.bias": (rows,)}


def weights(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights of the arrays that `shapes` lists."""
    found = {name: value for name, value in arrays.items() if not name.startswith(f"{WHOLE}.")}
    for name in filter(DOUBLING.match, list(found)):
        found[name] = _pixels(found[name]) if found[name].dim() == 4 else found[name].repeat_interleave(4)
    return found | _filters(arrays)


def _filters(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """F.3 by iteration.

    In the file stand, for each iteration, six rows for each channel, of which the first half are taps, channel by
    channel, and the second half unused; behind them all, the biases of all iterations. An iteration of its own has its
    taps tap by tap, then its biases: the blocks that IterativeFilters takes.
    """
    found = {}
    for kind in ("weight", "bias"):
        rows = arrays[f"{WHOLE}.{kind}"]
        channels = arrays[f"{WHOLE}.weight"].shape[1]
        iterations = rows.shape[0] // (ROWS * channels)
        taps, biases = torch.split(rows, [iterations * 6 * channels, iterations * channels])
        for index, (own, bias) in enumerate(zip(taps.chunk(iterations), biases.chunk(iterations), strict=True)):
            used = own[: 3 * channels].view(channels, 3, *own.shape[1:]).transpose(0, 1).flatten(0, 1)
            found[f"{WHOLE}.{index}.{kind}"] = torch.cat((used, bias))
    return found


def _pixels(kernel: Tensor) -> Tensor:
    """[inputs, outputs, 4, 4] of a transposed convolution -> [4 * outputs, inputs, 3, 3] of a convolution.

    Row 2y + p of the result is made of rows y - 1 to y + 1: of row y + d by row p + 1 - 2d of the kernel, if it has
    one; columns likewise.
    """
    inputs, outputs = kernel.shape[:2]
    found = kernel.new_zeros(outputs, 2, 2, inputs, 3, 3)
    taps = [(pixel, shift, pixel + 1 - 2 * shift) for pixel in (0, 1) for shift in (-1, 0, 1)]
    for p, d, row in taps:
        for q, e, column in taps:
            if row in range(4) and column in range(4):
                found[:, p, q, :, d + 1, e + 1] = kernel[:, :, row, column].T
    return found.flatten(0, 2)
