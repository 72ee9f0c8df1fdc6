"""IFAN as it is trained: the arrays of its files as parameters, the network that blurs again, first weights. Imports
torch.

The inference network is made of the arrays anew in each step, by what reads a released file. So weights that were
trained are those of a file, whatever form inference has them in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtu.models.ifan import KEYS, from_released, network, released
from mtu.models.ifan.architecture import Network, ResBlock, conv
from mtu.plugins.iterative_filters.rules import SLOPE, parts
from mtu.plugins.iterative_filters.torch_op import filtered, iterative_filters

SHRINK = 8
"""Features, filters and disparity are of this part of the picture's size."""


class Reblurring(nn.Module):
    """The filters that sharpen, [B, 4 * C * N, h, w] -> the sharp picture out of focus again, [B, 3, h, w].

    Predicts as many filters, of the colours, each for every position and with one of its own for either direction; the
    last is not followed by LeakyReLU, and the sharp picture is added.
    """

    def __init__(self, iterations: int, channels: int) -> None:
        super().__init__()
        self.iterations, most = iterations, 4 * channels
        last = nn.Conv2d(most, iterations * parts(shared_taps=0) * 3, 3, 1, 1)
        self.RBF = nn.Sequential(conv(parts(1) * most * iterations, most), ResBlock(most, 2), ResBlock(most, 2), last)

    def forward(self, filters: Tensor, sharp: Tensor) -> Tensor:
        """See the class; `sharp` is of the filters' size."""
        *before, last = self.RBF(filters).chunk(self.iterations, 1)
        blurred = sharp
        for each in before:
            blurred = iterative_filters(blurred, each, shared_taps=0)
        return filtered(blurred, last, shared_taps=0) + sharp


class TrainedNetwork(nn.Module):
    """The network with what only training uses. Names of parameters are those of a released file."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.Network = nn.Module()
        for name, shape in released(settings).items():
            *path, last = name.split(".")
            place = self.Network
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(torch.empty(shape)))
        self.reblurNet = Reblurring(settings["iterations"], settings["channels"])
        with torch.device("meta"):
            # No parameters of its own: not among the submodules.
            self._form = (_Step(network(settings)),)

    @property
    def arrays(self) -> dict[str, Tensor]:
        """Those of a file, without what only training uses."""
        return dict(self.Network.named_parameters())

    def inference_network(self) -> Network:
        """The network of inference with these weights, on their device, in evaluation mode."""
        with torch.no_grad():
            weights = from_released(self.arrays)
        made = network(self.settings)
        made.load_state_dict(weights)
        assert isinstance(made, Network)
        return made.to(self.arrays[KEYS[0]].device).eval()

    def train_step(self, sharp: Tensor, *pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B, 3, H, W] in [0, 1], the sharp one and what the network reads -> the restored one, the
        disparity [B, 1, H/8, W/8], and the sharp one made small, out of focus again."""
        weights = {f"network.{name}": value for name, value in from_released(self.arrays).items()}
        restored, disparity, filters = torch.func.functional_call(self._form[0], weights, pictures)
        small = F.interpolate(sharp, scale_factor=1 / SHRINK, mode="nearest")
        return restored, disparity, self.reblurNet(torch.cat(filters, 1), small)


class _Step(nn.Module):
    """`Network.train_step` as a forward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *pictures: Tensor) -> Any:
        """See the class."""
        return self.network.train_step(*pictures)  # type: ignore[operator]


@torch.no_grad()
def initialise(trained: TrainedNetwork, generator: torch.Generator) -> None:
    """He's normal weights and zero biases; ends of residual branches and of the whole are scaled down.

    The filters begin as ones that change nothing: features would vanish, or explode, on their way through many of them.
    So the network starts near the identity, yet every layer has a gradient.
    """
    filters = KEYS[1].removesuffix("weight")
    iterations, channels = trained.settings["iterations"], 4 * trained.settings["channels"]
    for name, value in trained.named_parameters():
        if value.dim() == 1:
            value.zero_()
            continue
        # A transposed convolution of stride 2 reaches each output pixel with a quarter of its kernel.
        transposed = "_u." in name
        fan_in = value[:, 0].numel() / 4 if transposed else value[0].numel()
        scale = 1.0
        if name.endswith((f"{filters}weight", "RBF.3.weight")):
            scale = 0.005
        elif name.endswith("out_res.0.weight"):
            scale = 0.01
        elif name.endswith("DME.3.weight"):
            scale = 0.1
        elif ".stem." in name and name.endswith(".2.weight"):
            scale = 0.3
        value.normal_(0, scale * math.sqrt(2 / (1 + SLOPE**2) / fan_in), generator=generator)
    taps = trained.arrays[f"{filters}bias"][: 6 * channels * iterations]
    taps.view(-1, 3)[:, 1] = 1  # the middle of each
    middle = trained.get_parameter("reblurNet.RBF.3.bias").view(iterations, parts(0), 3)
    middle[:, (1, 4)] = 1
    middle[-1, 4] = 0  # the sharp picture is added to these
