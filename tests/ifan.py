"""IFAN's files as its authors save them, with random weights, and the facts line by line. Nothing here is a test."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtu.models.ifan import released

TINY = {"iterations": 3, "channels": 2, "streams": 1}
DUAL = {"iterations": 2, "channels": 2, "streams": 3}
LAYOUTS = ("module.Network, reblurNet", "module.Network", "Network")
"""As the authors' training writes a file, and two ways in which their script saves it again."""


def arrays(settings: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """What inference needs of a released file. Values stay near 1, and every layer counts."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in released(settings).items():
        value = torch.randn(shape, generator=random)
        if name.startswith("F.3."):  # some iterations make values larger, others smaller
            value *= 0.45 if len(shape) == 1 else 0.6 / shape[1] ** 0.5
        elif len(shape) == 4:
            inputs, overlaps = (shape[0], 4) if "_u." in name else (shape[1], 1)
            value *= (1.2 if name.startswith("k") else 0.95) / (inputs * shape[2] * shape[3] / overlaps) ** 0.5
        else:
            value *= 0.1
        found[name] = value
    return found


def calm(settings: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Likewise, of a network that is more like a trained one: filters that blur or sharpen a little, so that values
    stay what they are over all iterations on pictures too, and a result that is the picture, changed by some tenths."""
    random = torch.Generator().manual_seed(seed)
    found = arrays(settings, seed)
    weight, bias = found["F.3.weight"], found["F.3.bias"]
    iterations, channels = settings["iterations"], weight.shape[1]
    found["F.3.weight"] = weight * 0.15
    taps = torch.tensor([0.1, 0.75, 0.1]) + 0.1 * torch.randn(2 * iterations * channels, 3, generator=random)
    found["F.3.bias"] = torch.cat((taps.flatten(), 0.2 * bias[taps.numel() :]))
    found["out_res.0.weight"] *= 0.2
    return found


def save(path: Path, weights: Mapping[str, Tensor], layout: str) -> Path:
    """A file in one of `LAYOUTS`."""
    prefix = "module.Network." if layout.startswith("module") else "Network."
    whole = OrderedDict((prefix + name, value) for name, value in weights.items())
    if "reblurNet" in layout:
        whole |= {f"module.reblurNet.RBF.{layer}.weight": torch.zeros(2, 2, 1, 1) for layer in range(20)}
    torch.save(whole, path)
    return path


def reference(weights: Mapping[str, Tensor], picture: Tensor, *views: Tensor, mistake: str = "") -> Tensor:
    """The facts page over the arrays of a released file; clipped, before rounding. `mistake`: one of `MISTAKES`."""

    def plain(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.leaky_relu(plain(f"{name}.0", x, stride), 0.1)

    def res_block(name: str, n: int, x: Tensor) -> Tensor:
        y = x
        for i in range(n):
            inner = F.leaky_relu(plain(f"{name}.stem.{i}.0", y), 0.1)
            y = F.leaky_relu(y + plain(f"{name}.stem.{i}.2", inner), 0.1)
        return y + x if n > 1 and mistake != "no outer skip" else y

    def encode(prefix: str, x: Tensor) -> list[Tensor]:
        found = []
        for stage in (1, 2, 3, 4):
            x = conv(f"{prefix}{stage}_1", x, 1 if stage == 1 else 2)
            x = conv(f"{prefix}{stage}_3", conv(f"{prefix}{stage}_2", x))
            found.append(x)
        return found

    def trunk(name: str, x: Tensor) -> Tensor:
        return res_block(f"{name}.2", 2, res_block(f"{name}.1", 2, conv(f"{name}.0", x)))

    f1, f2, f3, e = encode("conv", picture)
    k = encode("kconv", torch.cat(views, 1) if views else picture)[-1]
    disparity = plain("DME.3", trunk("DME", k))
    k = torch.cat([k, conv("conv_DME", disparity)], 1)
    rows = plain("F.3", trunk("F", conv("conv4_4.3", trunk("conv4_4", k))))[0]
    c = e.shape[1]
    iterations = len(rows) // (7 * c)
    for n in range(iterations):
        first, second = (rows[n * 6 * c + part * 3 * c :][: 3 * c].view(c, 3, *e.shape[2:]) for part in (0, 1))
        bias = rows[6 * c * iterations + n * c :][:c]
        if mistake == "second filter":
            down, across = first, second
        else:
            down, across = (first.flip(1),) * 2 if mistake == "taps flipped" else (first, first)
        mode = "constant" if mistake == "zero padding" else "replicate"
        for vertical in (False, True) if mistake == "horizontal first" else (True, False):
            padded = F.pad(e, (0, 0, 1, 1) if vertical else (1, 1, 0, 0), mode)
            windows = padded.unfold(2 if vertical else 3, 3, 1)[0]  # [c, h, w, 3]
            e = (windows.movedim(-1, 1) * (down if vertical else across)).sum(1)[None]
        e = F.leaky_relu(e + bias, 0.1)
    e = conv("conv_res.2", res_block("conv_res.1", 3, conv("conv_res.0", e)))
    for level, skip in ((3, f3), (2, f2), (1, f1)):
        name = f"upconv{level}"
        e = F.conv_transpose2d(e, weights[f"{name}_u.0.weight"], weights[f"{name}_u.0.bias"], 2, 1)
        e = res_block(f"{name}_2", 1, res_block(f"{name}_1", 1, F.leaky_relu(e, 0.1) + skip))
    last = plain("out_res.0", e) if mistake == "no LeakyReLU at the end" else conv("out_res", e)
    return (last + picture).clamp(0, 1)


MISTAKES = (
    "second filter",
    "zero padding",
    "taps flipped",
    "horizontal first",
    "no outer skip",
    "no LeakyReLU at the end",
)
"""What could be taken for right."""
