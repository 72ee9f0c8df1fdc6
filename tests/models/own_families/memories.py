"""A family as a user writes one: it looks ahead and back, and has two states of different sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate

from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor
from mtu.models.pictures import to_float, to_frame


@dataclass(frozen=True)
class Shape:
    """A dataclass in a family's file, which looks its own module up."""

    channels: int


PRESETS = {"memories": {"channels": 4}}
KEYS = ("fine.weight", "coarse.weight")


class Memories(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.fine = nn.Conv2d(9, shape.channels, 3, padding=1)
        self.coarse = nn.Conv2d(shape.channels, 2 * shape.channels, 5, 3, 2)
        self.out = nn.Conv2d(3 * shape.channels, 3, 3, padding=1)


class Step(nn.Module):
    def __init__(self, network: Memories):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        net = self.network
        frames = [to_float(frame, net.fine.weight.dtype) for frame in inputs[:3]]
        fine = torch.relu(net.fine(torch.cat(frames, 1)))
        coarse = torch.relu(net.coarse(fine))
        if inputs[3:]:
            fine, coarse = 0.5 * fine + 0.5 * inputs[4], torch.maximum(coarse, inputs[3])
        features = torch.cat((fine, interpolate(coarse, scale_factor=3.0)), 1)
        return coarse, to_frame((frames[1] + net.out(features)).clamp(0, 1)), fine


def describe(settings):
    c = settings["channels"]
    frame = (1, "H", "W", 3)
    frames = tuple(Input(Tensor(f"frame{offset + 1}", "uint8", frame), Frame("image", offset)) for offset in (-1, 0, 1))
    fine, coarse = (1, c, "H", "W"), (1, 2 * c, "H/3", "W/3")
    states = (
        Input(Tensor("coarse_in", "float32", coarse), State("coarse")),
        Input(Tensor("fine_in", "float32", fine), State("fine")),
    )
    outputs = (
        Output(Tensor("coarse", "float32", coarse), "state"),
        Output(Tensor("restored", "uint8", frame), "picture"),
        Output(Tensor("fine", "float32", fine), "state"),
    )
    graphs = (Graph("begin", frames, outputs), Graph("go_on", frames + states, outputs))
    return Interface("memories", "custom", settings, graphs, size=Size(3, 6))


def settings_of(tensors):
    return {"channels": len(tensors["fine.weight"])} if set(KEYS) <= set(tensors) else None


def network(settings):
    return Memories(Shape(**settings))


def graphs(network):
    return {"begin": Step(network), "go_on": Step(network)}
