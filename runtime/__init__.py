"""The runtime: restores frames and videos with an exported model. Imports numpy only; video needs av, models a backend.

from mtu.runtime import deblur, read_frames

for sharp in deblur(read_frames("blurred.mp4")):  # uint8 [H, W, 3], RGB, one for each frame
    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mtu.models.errors import InvalidInputError, MissingExtraError, MissingFileError, MtuError, OutputError
from mtu.runtime.backends import Backend, open_backend
from mtu.runtime.bundle import Bundle, open_bundle
from mtu.runtime.session import SCENE_THRESHOLD, Picture, Restored, Session, restore

__all__ = [
    "SCENE_THRESHOLD",
    "Backend",
    "Bundle",
    "InvalidInputError",
    "MissingExtraError",
    "MissingFileError",
    "MtuError",
    "OutputError",
    "Picture",
    "Restored",
    "Session",
    "deblur",
    "open_backend",
    "open_bundle",
    "read_frames",
    "restore",
]


def deblur(
    frames: Iterable[Picture],
    *,
    model: Path | str | None = None,
    backend: str = "auto",
    device: str = "auto",
    scene_threshold: float | None = SCENE_THRESHOLD,
) -> Iterator[Picture]:
    """Restores a stream of frames: uint8 [H, W, 3], RGB, in and out, same number, same size, two frames behind.

    `model` is a bundle directory (None: the one inside the package); `backend` and `device` as in `open_backend`;
    `scene_threshold` None switches scene-cut detection off. Raises MtuError for what the caller can put right. The
    model is loaded at the first frame and freed when the generator ends.
    """
    executor = open_backend(backend, open_bundle(model), device)
    try:
        for result in restore(frames, executor, scene_threshold=scene_threshold):
            yield result.rgb
    finally:
        executor.close()


def read_frames(source: Path | str) -> Iterator[Picture]:
    """The frames of a video or a directory of images, uint8 [H, W, 3], RGB. Raises MtuError if it cannot be read."""
    from mtu.runtime.video import Frame, open_reader

    with open_reader(str(source)) as reader:
        for item in reader:
            if isinstance(item, Frame):
                yield item.rgb
