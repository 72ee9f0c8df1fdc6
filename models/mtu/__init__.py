"""The multi-task-unit network, a family (`mtu.models.families`). Importing this package imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtu.models.mtu.config import PRESETS, NetworkConfig, describe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtu.models.mtu.architecture import Network

__all__ = ["KEYS", "PRESETS", "TRAINING_ONLY", "describe", "graphs", "network", "settings_of"]

KEYS = ("base_conv.0.weight", "HGs.0.enc1.0.weight")
"""What tells a checkpoint of this family from others."""
TRAINING_ONLY = re.compile(r"deblur_layer\.\d+\.(weight|bias)")
"""Weights that inference does without."""


def settings_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
    """See `Family`."""
    structure = tensors.get("base_conv.0.weight")
    if "HGs.0.enc1.0.weight" not in tensors or structure is None or structure.dim() != 4 or not structure.shape[0]:
        return None
    units = _count(r"HGs\.(\d{1,3})\.", tensors)
    return {"units": units, "channels": structure.shape[0], "blocks": _count(r"HGs\.\d+\.RBs\.(\d{1,3})\.", tensors)}


def _count(pattern: str, keys: Mapping[str, Any]) -> int:
    """How many there are: the largest number, below 1000, that `pattern` finds in a key, and one."""
    return max((int(match[1]) + 1 for key in keys if (match := re.match(pattern, key))), default=0)


def network(settings: Mapping[str, Any]) -> Network:
    """See `Family`."""
    from mtu.models.mtu.architecture import Network

    return Network(NetworkConfig(**settings))


def graphs(network: Network) -> Mapping[str, nn.Module]:
    """See `Family`."""
    from mtu.models.mtu.architecture import FrameGraph

    return {"first": FrameGraph(network, "first"), "step": FrameGraph(network, "step")}
