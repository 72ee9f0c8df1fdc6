"""A family as a user writes one: a picture in, one of twice the size out."""

import torch
from torch import nn

from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor
from mtu.models.pictures import to_float, to_frame

PRESETS = {"twice": {"channels": 6}}
KEYS = ("enlarge.weight",)


class Twice(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Conv2d(3, channels, 3, padding=1)
        self.enlarge = nn.Conv2d(channels, 12, 3, padding=1)

    def forward(self, frame):
        picture = to_float(frame, self.inner.weight.dtype)
        large = nn.functional.interpolate(picture, scale_factor=2.0)
        features = torch.relu(self.inner(picture))
        return to_frame((large + nn.functional.pixel_shuffle(self.enlarge(features), 2)).clamp(0, 1))


def describe(settings):
    frame = Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0))
    output = Output(Tensor("large", "uint8", (1, "2*H", "2*W", 3)), "picture")
    return Interface("twice", "custom", settings, (Graph("only", (frame,), (output,)),), size=Size(6, 12), scale=2)


def settings_of(tensors):
    return {"channels": len(tensors["inner.weight"])} if "enlarge.weight" in tensors else None


def network(settings):
    return Twice(**settings)


def graphs(network):
    return {"only": network}
