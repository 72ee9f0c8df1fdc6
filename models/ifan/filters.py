"""The layer that predicts the filters, F.3: one of all iterations in a released file, here one for each. Imports torch.

As one tensor the filters of all iterations would take 837 MB for a frame of 1280x720; of one iteration, without the
rows that nothing uses, they take 28 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtu.models.ifan import KEYS, ROWS, network

WHOLE = KEYS[1].removesuffix(".weight")


def shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a released file that inference needs."""
    with torch.device("meta"):
        own = network(settings).state_dict()
    found = {name: tuple(value.shape) for name, value in own.items() if not name.startswith(f"{WHOLE}.")}
    channels = 4 * settings["channels"]
    rows = settings["iterations"] * ROWS * channels
    return found | {f"{WHOLE}.weight": (rows, channels, 1, 1), f"{WHOLE}.bias": (rows,)}


def split(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights of the arrays that `shapes` lists.

    In the file stand, for each iteration, six rows for each channel, of which the first half are taps, channel by
    channel, and the second half unused; behind them all, the biases of all iterations. An iteration of its own has its
    taps tap by tap, then its biases: the blocks that IterativeFilters takes.
    """
    found = {name: value for name, value in arrays.items() if not name.startswith(f"{WHOLE}.")}
    for kind in ("weight", "bias"):
        rows = arrays[f"{WHOLE}.{kind}"]
        channels = arrays[f"{WHOLE}.weight"].shape[1]
        iterations = rows.shape[0] // (ROWS * channels)
        taps, biases = torch.split(rows, [iterations * 6 * channels, iterations * channels])
        for index, (own, bias) in enumerate(zip(taps.chunk(iterations), biases.chunk(iterations), strict=True)):
            used = own[: 3 * channels].view(channels, 3, *own.shape[1:]).transpose(0, 1).flatten(0, 1)
            found[f"{WHOLE}.{index}.{kind}"] = torch.cat((used, bias))
    return found
