"""MIMO-UNet in torch, for inference. Attribute names are those of the released checkpoints, which load unchanged.

Source of the architecture: "Rethinking Coarse-to-Fine Approach in Single Image Deblurring" (Cho et al., 2021), with
the details that docs/networks/mimo_unet.md lists. Pictures and features have one of three sizes: whole, half, quarter.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mtu.models.pictures import doubled, to_float, to_frame


def named(name: str, *layers: nn.Module) -> nn.Sequential:
    """Layers in a row, whose weights the checkpoint calls `name`.0, `name`.1 and so on."""
    return nn.Sequential(OrderedDict({name: nn.Sequential(*layers)}))


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution."""
    return named("main", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))


def conv_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, then ReLU."""
    return named("main", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU())


def upsample_relu(inputs: int, outputs: int) -> nn.Sequential:
    """A transposed convolution that doubles the size, then ReLU."""
    return named("main", nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU())


class ResBlock(nn.Module):
    """Two convolutions beside the identity; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(conv_relu(channels, channels), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        return torch.add(x, self.main(x))


class ShallowFeatures(nn.Module):
    """SCM: features of a smaller picture, straight from its pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few, some = channels // 4, channels // 2
        self.main = nn.Sequential(
            conv_relu(3, few), conv_relu(few, some, 1), conv_relu(some, some), conv_relu(some, channels - 3, 1)
        )
        self.conv = conv(channels, channels, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, channels, h, w]."""
        features: Tensor = self.conv(torch.cat((picture, self.main(picture)), 1))
        return features


class Attention(nn.Module):
    """FAM: features of the encoder, changed by their products with the shallow ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = conv(channels, channels)

    def forward(self, features: Tensor, shallow: Tensor) -> Tensor:
        """Keeps the shape."""
        return torch.add(features, self.merge(features * shallow))


class Network(nn.Module):
    """RGB in [0, 1], [B, 3, H, W] with H and W multiples of 4 -> the restored picture, not clamped.

    `ConvsOut` gives the smaller pictures that training alone looks at; it is there because the checkpoints have it.
    """

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        whole, half, quarter = channels, 2 * channels, 4 * channels
        up, every = (quarter, half, whole), whole + half + quarter
        self.Encoder, self.Decoder = (
            nn.ModuleList(named("layers", *(ResBlock(c) for _ in range(blocks))) for c in order)
            for order in (up[::-1], up)
        )
        down = (conv_relu(3, whole), conv_relu(whole, half, stride=2), conv_relu(half, quarter, stride=2))
        self.feat_extract = nn.ModuleList(
            (*down, upsample_relu(quarter, half), upsample_relu(half, whole), conv(whole, 3))
        )
        self.Convs = nn.ModuleList((conv_relu(2 * half, half, 1), conv_relu(2 * whole, whole, 1)))
        self.ConvsOut = nn.ModuleList((conv(quarter, 3), conv(half, 3)))
        self.AFFs = nn.ModuleList(named("conv", conv_relu(every, c, 1), conv(c, c)) for c in (whole, half))
        self.FAM1, self.SCM1 = Attention(quarter), ShallowFeatures(quarter)
        self.FAM2, self.SCM2 = Attention(half), ShallowFeatures(half)

    def forward(self, picture: Tensor) -> Tensor:
        """See the class."""
        half_picture = _halved(picture)
        whole = self.Encoder[0](self.feat_extract[0](picture))
        half = self.Encoder[1](self.FAM2(self.feat_extract[1](whole), self.SCM2(half_picture)))
        z = self.Encoder[2](self.FAM1(self.feat_extract[2](half), self.SCM1(_halved(half_picture))))
        z_half = doubled(z)
        fused_half = self.AFFs[1](torch.cat((_halved(whole), half, z_half), 1))
        fused = self.AFFs[0](torch.cat((whole, doubled(half), doubled(z_half)), 1))
        z = self.feat_extract[3](self.Decoder[0](z))
        z = self.feat_extract[4](self.Decoder[1](self.Convs[0](torch.cat((z, fused_half), 1))))
        z = self.feat_extract[5](self.Decoder[2](self.Convs[1](torch.cat((z, fused), 1))))
        return torch.add(picture, z)


def _halved(x: Tensor) -> Tensor:
    """Every second row and column, from the first."""
    return x[:, :, ::2, ::2]


class PictureGraph(nn.Module):
    """The graph `picture`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor) -> Tensor:
        """uint8 RGB [1, H, W, 3] -> the same, restored."""
        picture = to_float(frame, next(self.network.parameters()).dtype)
        return to_frame(self.network(picture).clamp(0, 1))
