"""What clips are made of: photographs or footage of a user's own, or what comes with the clip maker. Imports torch."""

from __future__ import annotations

from mtu.training.data.clips import make_clip
from mtu.training.data.footage import Footage, footage_clip
from mtu.training.data.scene import Clip
from mtu.training.data.textures import Photographs, Split

Material = Photographs | Footage | None
"""None: the photographs that come with the clip maker."""


def made_clip(seed: int, frames: int, side: int, split: Split, material: Material) -> Clip:
    """A clip of `frames` frames of side x side pixels, the same for the same arguments. Raises as `footage_clip`."""
    if isinstance(material, Footage):
        return footage_clip(seed, frames, side, side, material)
    return make_clip(seed, frames, side, side, split=split, photographs=material)
