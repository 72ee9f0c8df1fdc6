"""The runtime: restores frames and videos with an exported model. Imports numpy only; video needs av, models a backend.

from mtu.runtime import deblur, read_frames

for sharp in deblur(read_frames("blurred.mp4")):  # uint8 [H, W, 3], RGB, one for each frame
    ...
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mtu.core.errors import (
    InvalidInputError,
    MissingExtraError,
    MissingFileError,
    MtuError,
    NonFiniteError,
    OutputError,
)
from mtu.core.window import Moment, Picture
from mtu.runtime.backends import Backend, Build, open_backend, open_model
from mtu.runtime.bundle import Bundle, open_bundle
from mtu.runtime.chain import Chain, open_session, restore
from mtu.runtime.engine import Engine, open_engine
from mtu.runtime.gate import GatedBackend
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import Restored, Session, check_frame
from mtu.runtime.stacked import push_together, stacked
from mtu.runtime.tiles import TiledSession, Tiling

__all__ = [
    "SCENE_THRESHOLD",
    "Backend",
    "Bundle",
    "Chain",
    "Engine",
    "GatedBackend",
    "InvalidInputError",
    "MissingExtraError",
    "MissingFileError",
    "Moment",
    "MtuError",
    "NonFiniteError",
    "OutputError",
    "Picture",
    "Restored",
    "Session",
    "TiledSession",
    "Tiling",
    "deblur",
    "open_backend",
    "open_bundle",
    "open_engine",
    "open_model",
    "open_session",
    "push_together",
    "read_frames",
    "restore",
    "stacked",
]


def deblur(
    frames: Iterable[Moment],
    *,
    model: Path | str | None = None,
    backend: str = "auto",
    device: str = "auto",
    scene_threshold: float | None = SCENE_THRESHOLD,
    build: Build | None = None,
) -> Iterator[Picture]:
    """Restores a stream of frames: uint8 [H, W, 3], RGB, in and out, same number, same size, in order; of a model that
    reads several streams, mappings with a frame of each go in.

    `model` is the directory of a bundle, an engine or a chain (None: the bundle inside the package); `backend`,
    `device` and `build` as in `open_backend`; `scene_threshold` None switches scene-cut detection off. Raises MtuError
    for what the caller can put right. The model is loaded at the first frame and freed when the generator ends. A
    frame's array is not to be changed until the frames two later are restored: an iterator that uses one array again
    and again gives copies.
    """
    source = iter(frames)
    opening = list(itertools.islice(source, 1))
    if not opening:
        return
    size, first = None, opening[0]
    for frame in first.values() if isinstance(first, Mapping) else (first,):
        size = check_frame(frame, 0, size)
    with contextlib.closing(open_backend(backend, open_model(model), device, size=size, build=build)) as executor:
        for result in restore(itertools.chain(opening, source), executor, scene_threshold=scene_threshold):
            yield result.rgb


def read_frames(source: Path | str) -> Iterator[Picture]:
    """The frames of a video or a directory of images, uint8 [H, W, 3], RGB. Raises MtuError if it cannot be read."""
    from mtu.runtime.video import Frame, open_reader

    with open_reader(str(source)) as reader:
        for item in reader:
            if isinstance(item, Frame):
                yield item.rgb
