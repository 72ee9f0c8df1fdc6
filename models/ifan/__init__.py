"""IFAN, a family (`mtu.models.families`): a defocused picture in, a sharp one out. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor

if TYPE_CHECKING:
    import torch
    from torch import nn

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ifan-8": {"iterations": 8, "channels": 32, "streams": 1},
    "ifan": {"iterations": 17, "channels": 32, "streams": 1},
    "ifan-26": {"iterations": 26, "channels": 32, "streams": 1},
    "ifan-35": {"iterations": 35, "channels": 32, "streams": 1},
    "ifan-44": {"iterations": 44, "channels": 32, "streams": 1},
    "ifan-dual": {"iterations": 17, "channels": 32, "streams": 3},
}
"""The published variants: filters applied one after the other, channels at the whole size, pictures that are read."""
KEYS = ("kconv1_1.0.weight", "F.3.weight")
"""What tells a checkpoint of this family from others."""
TRAINING_ONLY = re.compile(r"reblurNet\..*")
"""The network that blurs again, for a loss."""
ROWS = 7
"""Rows of F.3 for each channel and iteration in a released file: three taps, three that nothing uses, and a bias."""
STREAMS = ("image", "right", "left")
"""With three, the sharp picture is of the first, and the blur is found from the two views of a dual-pixel sensor."""


def describe(settings: Mapping[str, Any]) -> Interface:
    """One graph without states. See `Family`."""
    allowed = {"iterations": range(1, 1000), "channels": range(1, 1000), "streams": (1, 3)}
    if settings.keys() != allowed.keys() or any(type(n) is not int or n not in allowed[k] for k, n in settings.items()):
        raise InvalidInputError(
            f"no such network: {dict(settings)}; iterations and channels are numbers from 1, streams is 1 or 3"
        )
    shape, streams = (1, "H", "W", 3), STREAMS[: settings["streams"]]
    names = ("frame", *streams[1:])
    inputs = (
        Input(Tensor(name, "uint8", shape), Frame(stream, 0)) for name, stream in zip(names, streams, strict=True)
    )
    return Interface(
        family="ifan",
        variant="custom",
        settings=dict(settings),
        graphs=(Graph("picture", tuple(inputs), (Output(Tensor("output", "uint8", shape), "picture"),)),),
        size=Size(multiple=8, minimum=8, smallest=8),
        streams=streams,
    )


def settings_of(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, Any] | None:
    """See `Family`; of a released file and of the network's own weights. A released file that lacks some is claimed
    too, so that a message can name them."""
    first, filters = tensors.get(KEYS[0]), tensors.get(KEYS[1])
    if first is None or first.dim() != 4 or not first.shape[0] or not any(name.startswith("F.3.") for name in tensors):
        return None
    channels, views = first.shape[:2]
    if filters is not None and filters.dim():
        iterations = filters.shape[0] // (ROWS * 4 * channels)
    else:
        iterations = next(n for n in count() if f"F.3.{n}.weight" not in tensors)
    return {"iterations": min(max(iterations, 1), 999), "channels": channels, "streams": 3 if views == 6 else 1}


def network(settings: Mapping[str, Any]) -> nn.Module:
    """See `Family`."""
    from mtu.models.ifan.architecture import Network

    describe(settings)  # refuses settings of no network
    return Network(**settings)


def graphs(network: Any) -> Mapping[str, nn.Module]:
    """See `Family`."""
    from mtu.models.ifan.architecture import PictureGraph

    return {"picture": PictureGraph(network)}


def released(settings: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """See `Family`."""
    from mtu.models.ifan.arrays import shapes

    return shapes(settings)


def from_released(arrays: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """See `Family`."""
    from mtu.models.ifan.arrays import weights

    return weights(arrays)
