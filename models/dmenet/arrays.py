"""What a released file holds, TensorFlow's arrays, and the network's weights that are made of it. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtu.models.dmenet import PART, network

MEANS = (103.939, 116.779, 123.68)
"""Of the pictures that VGG19 was trained on, in the order blue, green, red; the encoder takes what is above them."""
EPSILON = 1e-5
"""Added to the variances."""
NORM = ("beta", "moving_mean", "moving_variance")
"""The arrays of a batch normalisation, which has no factor of its own (gamma)."""


def norm_of(layer: str) -> str | None:
    """The batch normalisation behind a convolution, both named as in the file: u3/b1 of u3/c1."""
    if layer.startswith(f"{PART}encoder/") or layer == f"{PART}decoder/uf/c3":
        return None
    return re.sub(r"/c([^/]*)$", r"/b\1", layer)


def shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that inference needs. Kernels are [height, width, inputs, outputs]."""
    with torch.device("meta"):
        own = network(settings).state_dict()
    found: dict[str, tuple[int, ...]] = {}
    for name, value in own.items():
        if name.endswith(".weight"):
            layer = PART + name.removesuffix(".weight").replace(".", "/")
            outputs, inputs, height, width = value.shape
            found |= {f"{layer}/kernel:0": (height, width, inputs, outputs), f"{layer}/bias:0": (outputs,)}
            if norm := norm_of(layer):
                found |= {f"{norm}/{each}:0": (outputs,) for each in NORM}
    return found


def weights(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights, fp32, of the arrays that `shapes` lists.

    Into the convolution before it goes each batch normalisation, (x - mean) / sqrt(variance + epsilon) + beta, and into
    the first one what becomes of a picture before: RGB in 0..255 is turned to BGR, less the means. At the borders too
    that is exact, because there pixels are repeated.
    """
    found: dict[str, Tensor] = {}
    for kernel in (name for name in arrays if name.endswith("/kernel:0")):
        layer = kernel.removesuffix("/kernel:0")
        weight = arrays[kernel].double().permute(3, 2, 0, 1)
        bias = arrays[f"{layer}/bias:0"].double()
        if norm := norm_of(layer):
            beta, mean, variance = (arrays[f"{norm}/{each}:0"].double() for each in NORM)
            factor = (variance + EPSILON).rsqrt()
            weight, bias = weight * factor[:, None, None, None], (bias - mean) * factor + beta
        if layer == f"{PART}encoder/conv1_1":
            bias = bias - torch.einsum("oihw,i->o", weight, torch.tensor(MEANS, dtype=torch.float64))
            weight = weight.flip(1)
        name = layer.removeprefix(PART).replace("/", ".")
        found |= {f"{name}.weight": weight.float().contiguous(), f"{name}.bias": bias.float()}
    return found
