"""The frames that are on the device: each is uploaded once and stays while it is in a window."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.interface import Interface
from mtu.runtime.backends.cuda_device import Device, new_event

FRAMES_KEPT = 64
"""Frames on the device, where no more are at work; others are uploaded again."""


def frames_of_a_stream(interface: Interface) -> int:
    """What a session has alive at most: a window, the oldest frame of the window under way, and the frame to come; of
    each stream that the model reads."""
    return len(interface.streams) * (interface.look_back + 1 + interface.look_ahead + 2)


@dataclass(frozen=True)
class Frame:
    """A frame's slot on the device, and the pinned memory that it is uploaded from."""

    memory: Any
    staging: NDArray[np.uint8]
    arrived: Any
    used: Any


class Frames:
    """The frames on the device. A slot is free again when nobody holds the array any more that it was filled from."""

    def __init__(self, device: Device, shape: tuple[int, ...], of_a_stream: int) -> None:
        """`of_a_stream` is how many frames of a stream are in use at a time."""
        self._device, self._shape, self._of_a_stream = device, shape, of_a_stream
        self._held: OrderedDict[int, tuple[weakref.ref[Any], Frame]] = OrderedDict()
        self._free: deque[Frame] = deque()

    def find(self, array: NDArray[np.uint8]) -> Frame | None:
        """Where `array` is, if it has been uploaded."""
        found = self._held.get(id(array))
        if found is None:
            return None
        self._held.move_to_end(id(array))
        return found[1]

    def add(self, array: NDArray[np.uint8], streams: int) -> Frame:
        """A slot for `array`, which may still be in use for another. `streams` is how many there may be, or more."""
        if len(self._held) >= max(FRAMES_KEPT, self._of_a_stream * streams):
            self._release(next(iter(self._held)))
        if self._free:
            frame = self._free.popleft()
        else:
            size = math.prod(self._shape)
            staging = self._device.pinned(self._shape, "uint8")
            frame = Frame(self._device.memory(size), staging, new_event(), new_event())
        key = id(array)
        self._held[key] = weakref.ref(array, lambda _: self._release(key)), frame
        return frame

    def close(self) -> None:
        """On the device that is current."""
        self._held.clear()
        self._free.clear()

    def _release(self, key: int) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._free.append(held[1])
