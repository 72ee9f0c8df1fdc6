"""Frames as a model's graphs get them: windows of padded frames, and with the states that a model makes. Imports numpy.

What compares, calibrates and feeds other tools goes over clips by this module. Scene cuts are not looked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import FRAME_NAMES, LOOK_AHEAD, WINDOW, GraphName
from mtu.runtime import Picture
from mtu.runtime.backends import Backend
from mtu.runtime.session import pad_to_multiple

Array = NDArray[Any]


def windows(frames: Iterable[Picture]) -> Iterator[tuple[int, tuple[int, int], dict[str, Picture]]]:
    """For each frame its number, its height and width, and the window of padded frames around it, by input name.

    `frames` are uint8 [H, W, 3] of one size; InvalidInputError if they are not. Numbers outside the clip are clamped.
    """
    held: dict[int, Picture] = {}
    size = (0, 0)

    def window(index: int, last: int) -> tuple[int, tuple[int, int], dict[str, Picture]]:
        places = (min(max(index + offset, 0), last) for offset in WINDOW)
        return index, size, {name: held[place] for name, place in zip(FRAME_NAMES, places, strict=True)}

    last = -1
    for last, frame in enumerate(frames):
        if last and frame.shape[:2] != size:
            raise InvalidInputError(
                f"frame {last} is {frame.shape[1]}x{frame.shape[0]}, the frames before are {size[1]}x{size[0]}: a clip"
                " has frames of one size"
            )
        size = (frame.shape[0], frame.shape[1])
        held[last] = pad_to_multiple(frame)[None]
        if last >= LOOK_AHEAD:
            yield window(last - LOOK_AHEAD, last)
            held.pop(last - LOOK_AHEAD + WINDOW[0], None)
    for index in range(max(last - LOOK_AHEAD + 1, 0), last + 1):
        yield window(index, last)


def feeds(backend: Backend, frames: Iterable[Picture]) -> Iterator[tuple[GraphName, dict[str, Array]]]:
    """For each frame the graph that restores it and everything that graph takes, by input name.

    `backend` runs the model over the frames, uint8 [H, W, 3]: the states are those that it made of the frame before.
    The arrays stay valid. Raises InvalidInputError for frames of different sizes, NonFiniteError with the frame's
    number if the model overflows.
    """
    states: Any = {}
    for index, _, inputs in windows(frames):
        graph: GraphName = "step" if states else "first"
        yield graph, {**inputs, **(backend.read_states(states) if states else {})}
        pending = backend.submit({**inputs, **states})
        try:
            pending.result()
        except NonFiniteError as error:
            raise NonFiniteError(error.states, index) from None
        states = pending.states


def first_frames(source: Path | str, count: int | None) -> Iterator[Picture]:
    """The first `count` frames of a video or directory of images; None takes all.

    Raises InvalidInputError at the end of a clip that has fewer, or none, or was found to be damaged.
    """
    from mtu.runtime.video import Frame, open_reader

    taken = 0
    with open_reader(str(source)) as reader:
        for frame in itertools.islice((item.rgb for item in reader if isinstance(item, Frame)), count):
            taken += 1
            yield frame
        if reader.damage is not None:
            raise InvalidInputError(
                f"{source} is damaged ({reader.damage}), and {taken} frames of it can be read: ask for no more than the"
                " first of them, or give a whole clip"
            )
    if taken == 0 or (count is not None and taken < count):
        raise InvalidInputError(
            f"{source} has {taken} frames, fewer than the {count or 1} asked for: ask for fewer or give a longer clip"
        )
