"""DMENet in torch, for inference: batch normalisation is part of the convolutions, and so is the preprocessing.

Source of the architecture: "Deep Defocus Map Estimation using Domain Adaptation" (Lee et al., 2019), with the details
that docs/networks/dmenet.md lists. Names of layers are those of the released arrays, with dots for slashes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, max_pool2d, relu

from mtu.models.pictures import doubled

SLOPE = 0.2
"""Of the leaky ReLU behind every convolution of the decoder but the last."""
STAGES = (2, 2, 4, 4, 4)
"""Convolutions of the encoder at the whole size, a half, a quarter, an eighth and a sixteenth."""


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, over a frame whose outermost rows and columns are repeated."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")


class Encoder(nn.ModuleDict):
    """VGG19's convolutions: RGB in 0..255, [B, 3, H, W] -> features of the five sizes, the whole one first."""

    def __init__(self, channels: int) -> None:
        layers, inputs = {}, 3
        for stage, count in enumerate(STAGES):
            outputs = channels * min(2**stage, 8)
            for number in range(count):
                layers[f"conv{stage + 1}_{number + 1}"] = conv(inputs if number == 0 else outputs, outputs)
            inputs = outputs
        super().__init__(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        found = []
        for stage, count in enumerate(STAGES):
            x = max_pool2d(x, 2) if stage else x
            for number in range(count):
                x = relu(self[f"conv{stage + 1}_{number + 1}"](x))
            found.append(x)
        return found


class Decoder(nn.ModuleDict):
    """Features of the five sizes -> the map, [B, 1, H, W] in [0, 1]."""

    def __init__(self, channels: int, blocks: int) -> None:
        whole, levels = channels, dict[str, nn.ModuleDict]()
        for name, inputs, outputs in (("u3", 16, 4), ("u2", 8, 2), ("u1", 4, 1)):
            levels[name] = nn.ModuleDict(
                {
                    "c1": conv(inputs * whole, outputs * whole),
                    "c2": conv(outputs * whole, outputs * whole),
                    "c3": conv(outputs * whole, outputs * whole),
                }
            )
        levels["u0"] = nn.ModuleDict({"c_init": conv(2 * whole, whole)})
        for block in range(blocks):
            levels["u0"][f"c_res{block}"] = nn.Conv2d(whole, whole, 1)
            levels["u0"][f"c{block}_1"] = conv(whole, whole)
            levels["u0"][f"c{block}_2"] = conv(whole, whole)
        few = whole // 2
        levels["uf"] = nn.ModuleDict({"c1": conv(whole, whole), "c2": conv(whole, few), "c3": conv(few, 1)})
        super().__init__(levels)
        self.blocks = blocks

    def forward(self, features: list[Tensor]) -> Tensor:
        """See the class."""
        *skips, x = features
        for name, skip in zip(("u3", "u2", "u1"), reversed(skips), strict=False):
            x, level = torch.cat((doubled(x), skip), 1), self._level(name)
            for layer in level.values():
                x = leaky_relu(layer(x), SLOPE)
        last, tail = self._level("u0"), self._level("uf")
        x = leaky_relu(last["c_init"](torch.cat((doubled(x), skips[0]), 1)), SLOPE)
        for block in range(self.blocks):
            inside = leaky_relu(last[f"c{block}_1"](x), SLOPE)
            inside = leaky_relu(last[f"c{block}_2"](inside), SLOPE)
            x = inside + leaky_relu(last[f"c_res{block}"](x), SLOPE)
        x = leaky_relu(tail["c2"](leaky_relu(tail["c1"](x), SLOPE)), SLOPE)
        return torch.sigmoid(tail["c3"](x))

    def _level(self, name: str) -> nn.ModuleDict:
        level = self[name]
        assert isinstance(level, nn.ModuleDict)
        return level


class Network(nn.Module):
    """RGB in 0..255, [B, 3, H, W] with H and W multiples of 16 -> the map, [B, 1, H, W] in [0, 1]."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels), Decoder(channels, blocks)

    def forward(self, picture: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.decoder(self.encoder(picture))
        return found


class MapGraph(nn.Module):
    """The graph `map`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor) -> Tensor:
        """uint8 RGB [1, H, W, 3] -> the map, [1, H, W]. Whole numbers up to 255 are exact in fp16 too."""
        dtype = next(self.network.parameters()).dtype
        found: Tensor = self.network(frame.to(dtype).permute(0, 3, 1, 2))
        return found.squeeze(1)
