"""A family as a user writes one: it gives a map and no picture, and looks back one frame."""

import torch
from torch import nn

from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor
from mtu.models.pictures import to_float

PRESETS = {"mask": {"layers": [3, 4]}}
KEYS = ("mask.weight",)


class Mask(nn.Module):
    def __init__(self, layers):
        super().__init__()
        sizes = [6, *layers]
        self.inner = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, layers))  # noqa: B905
        self.mask = nn.Conv2d(sizes[-1], 1, 3, 2, 1)

    def forward(self, before, frame):
        dtype = self.mask.weight.dtype
        x = torch.cat((to_float(before, dtype), to_float(frame, dtype)), 1)
        for layer in self.inner:
            x = torch.relu(layer(x))
        return torch.sigmoid(3 * self.mask(x))[:, 0]


def describe(settings):
    frames = tuple(
        Input(Tensor(name, "uint8", (1, "H", "W", 3)), Frame("image", offset))
        for name, offset in (("before", -1), ("frame", 0))
    )
    output = Output(Tensor("mask", "float32", (1, "H/2", "W/2")), "map")
    return Interface("mask", "custom", settings, (Graph("mask", frames, (output,)),), size=Size(2, 2))


def settings_of(tensors):
    if "mask.weight" not in tensors:
        return None
    return {
        "layers": [len(value) for name, value in sorted(tensors.items()) if name.endswith(".bias") and "inner" in name]
    }


def network(settings):
    return Mask(**settings)


def graphs(network):
    return {"mask": network}
