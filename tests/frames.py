"""Frames that move, and how a backend gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtu.core.window import Window


def moving_frames(count: int, height: int, width: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """`count` views [height, width, 3] of one smooth random picture that moves by three pixels a frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 2 + 2 * count + 2, width // 2 + 2 * count + 2, 3)).astype(np.uint8)
    large = coarse.repeat(2, 0).repeat(2, 1)
    smooth = ((large[1:, 1:].astype(np.uint16) + large[:-1, :-1] + large[1:, :-1] + large[:-1, 1:]) // 4).astype(
        np.uint8
    )
    return [np.ascontiguousarray(smooth[2 * i : 2 * i + height, 3 * i : 3 * i + width]) for i in range(count)]


def write_clip(directory: Path, count: int, height: int, width: int) -> Path:
    """Writes `moving_frames` as pictures into `directory`."""
    from mtu.runtime.video import write_png

    directory.mkdir(exist_ok=True)
    for number, frame in enumerate(moving_frames(count, height, width)):
        write_png(directory / f"{number}.png", frame)
    return directory


def windows(interface, frames):
    """What `Window.take` gives for each frame of a sequence, in order."""
    window = Window(interface)
    for frame in frames:
        window.push(frame)
        if window.is_ready:
            yield window.take()
    while window.next < window.end:
        yield window.take()


def submit(backend, frames, states=None):
    """A frame with the states of the one before, through the graph that is for them."""
    return backend.submit(backend.interface.graph_for(states or {}).name, frames, states or {})
