"""MIMO-UNet, a family (`mtu.models.families`): a picture in, a picture out. Imports nothing heavy. See README.md."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor

if TYPE_CHECKING:
    import torch
    from torch import nn

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mimo-unet": {"blocks": 8, "channels": 32},
    "mimo-unet-plus": {"blocks": 20, "channels": 32},
}
"""The published variants: residual blocks of a stage, channels at the whole size. Blur2Blur has both."""
KEYS = ("AFFs.0.conv.0.main.0.weight", "Encoder.0.layers.0.main.0.main.0.weight")
"""What tells a checkpoint of this family from others."""


def describe(settings: Mapping[str, Any]) -> Interface:
    """One graph without states. See `Family`."""
    least = {"blocks": 1, "channels": 2}
    if settings.keys() != least.keys() or any(type(n) is not int or n < least[key] for key, n in settings.items()):
        raise InvalidInputError(f"no such network: {dict(settings)}; blocks is a number from 1, channels one from 2")
    shape = (1, "H", "W", 3)
    frame = Input(Tensor("frame", "uint8", shape), Frame("image", 0))
    output = Output(Tensor("output", "uint8", shape), "picture")
    return Interface(
        family="mimo_unet",
        variant="custom",
        settings=dict(settings),
        graphs=(Graph("picture", (frame,), (output,)),),
        size=Size(multiple=4, minimum=4),
    )


def settings_of(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, Any] | None:
    """See `Family`."""
    if not set(KEYS) <= set(tensors) or tensors[KEYS[0]].dim() != 4:
        return None
    blocks = next(n for n in count(1) if KEYS[1].replace("layers.0", f"layers.{n}") not in tensors)
    return {"blocks": blocks, "channels": tensors[KEYS[0]].shape[0]}


def network(settings: Mapping[str, Any]) -> nn.Module:
    """See `Family`."""
    from mtu.models.mimo_unet.architecture import Network

    describe(settings)  # refuses settings of no network
    return Network(**settings)


def graphs(network: Any) -> Mapping[str, nn.Module]:
    """See `Family`."""
    from mtu.models.mimo_unet.architecture import PictureGraph

    return {"picture": PictureGraph(network)}
