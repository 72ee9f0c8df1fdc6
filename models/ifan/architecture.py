"""IFAN in torch, for inference. Attribute names are those of the released checkpoints, but for F.3 (arrays.py).

Source of the architecture: "Iterative Filter Adaptive Network for Single Image Defocus Deblurring" (Lee et al., 2021),
with the details that docs/networks/ifan.md lists. Features have one of four sizes: whole, half, quarter, eighth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtu.models.pictures import to_float, to_frame
from mtu.plugins.iterative_filters.rules import SLOPE, parts
from mtu.plugins.iterative_filters.torch_op import iterative_filters

STAGES = (1, 2, 3, 4)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, then LeakyReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(SLOPE))


def upsample(inputs: int, outputs: int) -> nn.Sequential:
    """Doubles the size by a convolution to four times the channels (arrays.py), with LeakyReLU."""
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, 1, 1), nn.LeakyReLU(SLOPE), nn.PixelShuffle(2))


class ResBlock(nn.Module):
    """Pairs of convolutions, each beside the identity and followed by LeakyReLU; around several of them another
    identity, followed by nothing."""

    def __init__(self, channels: int, pairs: int) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            nn.Sequential(*conv(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1)) for _ in range(pairs)
        )
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        y = x
        for pair in self.stem:
            y = self.activation(torch.add(y, pair(y)))
        return torch.add(x, y) if len(self.stem) > 1 else y


class Network(nn.Module):
    """RGB in [0, 1], [B, 3, H, W] with H and W multiples of 8 -> the restored picture, not clamped.

    With three streams the picture comes first, then the right and the left view.
    """

    def __init__(self, iterations: int, channels: int, streams: int) -> None:
        super().__init__()
        whole, half, most = channels, 2 * channels, 4 * channels
        sizes = (whole, half, most, most)
        for prefix, inputs in (("conv", 3), ("kconv", 3 * max(1, streams - 1))):
            for stage, before, outputs in zip(STAGES, (inputs, *sizes), sizes, strict=False):
                self.add_module(f"{prefix}{stage}_1", conv(before, outputs, 1 if stage == 1 else 2))
                self.add_module(f"{prefix}{stage}_2", conv(outputs, outputs))
                self.add_module(f"{prefix}{stage}_3", conv(outputs, outputs))
        self.DME = nn.Sequential(conv(most, most), ResBlock(most, 2), ResBlock(most, 2), nn.Conv2d(most, 1, 3, 1, 1))
        self.conv_DME = conv(1, most)
        self.conv4_4 = nn.Sequential(conv(2 * most, most), ResBlock(most, 2), ResBlock(most, 2), conv(most, most))
        rows = parts(shared_taps=1) * most
        filters = nn.ModuleList(nn.Conv2d(most, rows, 1) for _ in range(iterations))
        self.F = nn.ModuleList([conv(most, most), ResBlock(most, 2), ResBlock(most, 2), filters])
        self.conv_res = nn.Sequential(conv(most, most), ResBlock(most, 3), conv(most, most))
        for level, before, outputs in ((3, most, most), (2, most, half), (1, half, whole)):
            self.add_module(f"upconv{level}_u", upsample(before, outputs))
            self.add_module(f"upconv{level}_1", ResBlock(outputs, 1))
            self.add_module(f"upconv{level}_2", ResBlock(outputs, 1))
        self.out_res = conv(whole, 3)

    def forward(self, picture: Tensor, *views: Tensor) -> Tensor:
        """See the class."""
        return self._restore(picture, views)[0]

    def train_step(self, picture: Tensor, *views: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """For training: the restored picture, the disparity [B, 1, H/8, W/8], and the filters of each iteration, as
        IterativeFilters takes them."""
        filters: list[Tensor] = []
        return *self._restore(picture, views, filters), filters

    def _restore(
        self, picture: Tensor, views: Sequence[Tensor], kept: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The restored picture and the disparity; the filters are appended to `kept`, if it is there."""
        # What the filters are predicted from comes first: the features that wait for the end are not there yet.
        blur = self._encoded("kconv", torch.cat(tuple(views), 1) if views else picture)[-1]
        disparity = self.DME(blur)
        prepared = self.conv4_4(torch.cat((blur, self.conv_DME(disparity)), 1))
        for layer in self.F[:3]:
            prepared = layer(prepared)
        *skips, features = self._encoded("conv", picture)
        for predict in self.F[3].children():
            filters = predict(prepared)
            features = iterative_filters(features, filters)
            if kept is not None:
                kept.append(filters)
        features = self.conv_res(features)
        for level, skip in zip((3, 2, 1), reversed(skips), strict=True):
            features = torch.add(self.get_submodule(f"upconv{level}_u")(features), skip)
            features = self.get_submodule(f"upconv{level}_2")(self.get_submodule(f"upconv{level}_1")(features))
        return torch.add(self.out_res(features), picture), disparity

    def _encoded(self, prefix: str, x: Tensor) -> list[Tensor]:
        """What each stage gives: whole, half, quarter and eighth of the size."""
        found = []
        for stage in STAGES:
            for layer in (1, 2, 3):
                x = self.get_submodule(f"{prefix}{stage}_{layer}")(x)
            found.append(x)
        return found


class PictureGraph(nn.Module):
    """The graph `picture`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *frames: Tensor) -> Tensor:
        """uint8 RGB [1, H, W, 3], one for each stream -> the first, restored."""
        dtype = next(self.network.parameters()).dtype
        return to_frame(self.network(*(to_float(frame, dtype) for frame in frames)).clamp(0, 1))
