"""Which frames a graph gets: padded to the size rule, clamped at the ends of a sequence. Imports numpy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface, Size, Tensor

Picture = NDArray[np.uint8]
Moment = Picture | Mapping[str, Picture]
"""What a model gets at one time: a frame; of a model that reads several streams a frame of each, by name."""
LARGE = 5040
"""A side that every size rule in use divides."""


class Window:
    """The frames of a sequence that are still needed. A frame is the same array object each time that it is given."""

    def __init__(self, interface: Interface, first: int = 0) -> None:
        """`first` is the number of the first frame to come."""
        self._interface = interface
        self._held: dict[int, dict[str, Picture]] = {}
        self._first = self.next = self.end = first
        """`next` is the frame that `take` is for, `end` the one that `push` is for."""

    def push(self, frame: Moment) -> None:
        """Adds the next frame, uint8 [H, W, 3], of the size of those before. Raises as `by_stream`."""
        frames = by_stream(frame, self._interface.streams)
        self._held[self.end] = {name: pad(each, self._interface.size)[None] for name, each in frames.items()}
        self.end += 1

    @property
    def is_ready(self) -> bool:
        """Whether the frames after `next` that it needs are there."""
        return self.end - self.next > self._interface.look_ahead

    def take(self) -> dict[str, Picture]:
        """The frames around frame `next`, uint8 [1, H, W, 3], padded, by name of the input; moves on by one.

        Frames before the first and after the last one pushed are these themselves, so it is right where the window
        `is_ready`, and at the end of the sequence.
        """
        index, last = self.next, self.end - 1
        taken = {
            name: self._held[min(max(index + frame.offset, self._first), last)][frame.stream]
            for name, frame in self._interface.frames.items()
        }
        self.next += 1
        self._held.pop(self.next - self._interface.look_back - 1, None)
        return taken


def by_stream(frame: Moment, streams: Sequence[str]) -> dict[str, Picture]:
    """The frames of all `streams`, in their order. Raises InvalidInputError where one is missing or unknown."""
    given = frame if isinstance(frame, Mapping) else {streams[0]: frame}
    if set(given) != set(streams):
        reads = f"{len(streams)} streams ({', '.join(streams)})" if len(streams) > 1 else f"one stream ({streams[0]})"
        raise InvalidInputError(
            f"the model reads {reads}, and gets {', '.join(map(str, given)) or 'none'}: a frame of each is needed, as"
            " --stream NAME=PATH of mtu-run and mtu-compare gives them; other commands have no such option"
        )
    return {name: given[name] for name in streams}


def check_streams(given: Collection[str], interface: Interface) -> None:
    """Raises InvalidInputError unless `given` are the streams that a model reads, but for the first."""
    first, *others = interface.streams
    if set(given) == set(others):
        return
    if not others:
        raise InvalidInputError(
            f"--stream {next(iter(given))}: the model {interface.variant} reads one stream, which is the input: leave"
            " the option out, or use a model that reads several"
        )
    found = f", and there is {' and '.join(given)}" if given else ""
    raise InvalidInputError(
        f"the model {interface.variant} reads {len(interface.streams)} streams: the input is {first}; the others are"
        f" given with {' '.join(f'--stream {name}=PATH' for name in others)}{found}"
    )


def pad(frame: Picture, size: Size) -> Picture:
    """`frame` [H, W, 3] with its last row and column repeated up to what the rule asks; itself where it fits."""
    height, width = size.padded(*frame.shape[:2])
    if (height, width) != frame.shape[:2]:
        return np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)


def spread(picture: NDArray[Any], tensor: Tensor, height: int, width: int) -> NDArray[Any]:
    """`picture` [h, w, ...], made of the values of `tensor` [1, h, w], at the size of the frame that they are of: every
    pixel of height x width gets the value at its place."""
    for axis, (size, side) in enumerate(zip(tensor.shape[1:], (height, width), strict=True)):
        # A fixed number of values is spread over whatever there is, others are blocks of pixels.
        values, pixels = (tensor.at(LARGE, LARGE)[1 + axis], LARGE) if isinstance(size, str) else (size, side)
        if values != pixels:
            picture = picture.take(np.arange(side) * values // pixels, axis)
    return picture


def cut(array: NDArray[Any], tensor: Tensor, height: int, width: int) -> NDArray[Any]:
    """What belongs to a frame of height x width before it was padded: `array` is `tensor`, without the batch."""
    result: NDArray[Any] = array[tuple(map(slice, tensor.at(height, width)))][0]
    return result
