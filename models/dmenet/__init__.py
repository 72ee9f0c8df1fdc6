"""DMENet, a family (`mtu.models.families`): a picture in, a map of its blur out. Nothing heavy. See README.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor, Unit

if TYPE_CHECKING:
    import torch
    from torch import nn

PRESETS: Mapping[str, Mapping[str, Any]] = {"dmenet": {"blocks": 7, "channels": 64}}
"""The released network: residual blocks at the whole size, and the channels there."""
PART = "main_net/defocus_net/"
"""What the names of this network's arrays begin with, in a released file."""
SIGMA = Unit("sigma", factor=7.5, offset=-0.5)
"""What the map stands for: of the Gaussian that blurs as much, in pixels of the frame."""
KEYS = (f"{PART}encoder/conv1_1/kernel:0", f"{PART}decoder/uf/c3/kernel:0")
"""What tells a checkpoint of this family from others."""
TRAINING_ONLY = re.compile(
    f"discriminator/.*|main_net/binary_net/.*|{PART}encoder/(conv6_1|c_logits_[12])/.*|{PART}decoder/u[0-4]_aux/.*"
)
"""The networks and heads that a released file holds for the losses."""
_BLOCK = re.compile(r"decoder[./]u0[./][cb](?:_res(\d+)|(\d+)_[12])[./].*")


def describe(settings: Mapping[str, Any]) -> Interface:
    """One graph without states, which gives a map. See `Family`."""
    least = {"blocks": 1, "channels": 2}
    if settings.keys() != least.keys() or any(type(n) is not int or n < least[key] for key, n in settings.items()):
        raise InvalidInputError(f"no such network: {dict(settings)}; blocks is a number from 1, channels one from 2")
    frame = Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0))
    output = Output(Tensor("map", "float32", (1, "H", "W")), "map", unit=SIGMA)
    return Interface(
        family="dmenet",
        variant="custom",
        settings=dict(settings),
        graphs=(Graph("map", (frame,), (output,)),),
        size=Size(multiple=16, minimum=16, smallest=16),
    )


def settings_of(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, Any] | None:
    """See `Family`; of a released file and of the network's own weights. A file that lacks some is claimed too, so that
    a message can name them."""
    is_own = {"encoder.conv1_1.weight", "decoder.uf.c3.weight"} <= set(tensors)
    if not is_own and not any(name.startswith(PART) for name in tensors):
        return None
    biases = "encoder.conv1_{}.bias" if is_own else f"{PART}encoder/conv1_{{}}/bias:0"
    first = next((tensors[name] for name in map(biases.format, (1, 2)) if name in tensors), None)
    found = (_BLOCK.fullmatch(name.removeprefix(PART)) for name in tensors)
    counts = Counter(each[1] or each[2] for each in found if each)
    blocks = [block for block, count in counts.items() if count > 1]  # one array alone is a stray
    published = PRESETS["dmenet"]
    channels = first.shape[0] if first is not None and first.dim() == 1 else published["channels"]
    if not is_own and channels == published["channels"]:
        return published  # a file that lacks a whole block is no other network
    return {"blocks": max(len(blocks), 1), "channels": max(channels, 2)}


def network(settings: Mapping[str, Any]) -> nn.Module:
    """See `Family`."""
    from mtu.models.dmenet.architecture import Network

    describe(settings)  # refuses settings of no network
    return Network(**settings)


def graphs(network: Any) -> Mapping[str, nn.Module]:
    """See `Family`."""
    from mtu.models.dmenet.architecture import MapGraph

    return {"map": MapGraph(network)}


def released(settings: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """See `Family`."""
    from mtu.models.dmenet.arrays import shapes

    return shapes(settings)


def from_released(arrays: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """See `Family`."""
    from mtu.models.dmenet.arrays import weights

    return weights(arrays)
