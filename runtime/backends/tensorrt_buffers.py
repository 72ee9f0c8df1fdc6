"""What graphs write on the device, and where the host gets it: sets of buffers that are lent and come back.

The order in which streams may use them is in `tensorrt_backend`, Note [three streams].
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mtu.core.interface import Interface, Tensor
from mtu.runtime.backends.cuda_device import Device, clear, new_event
from mtu.runtime.backends.tensorrt_finite import PIECE


def size_of(tensor: Tensor, height: int, width: int) -> int:
    """Bytes of device memory for a tensor, a multiple of PIECE."""
    size = math.prod(tensor.at(height, width)) * np.dtype(tensor.dtype).itemsize
    return size + -size % PIECE


def checked(interface: Interface) -> list[Tensor]:
    """The outputs that are looked at for values that are not finite, in the order of their flags."""
    return [output.tensor for output in interface.with_role("state", "map")]


class Buffers:
    """What a graph writes: all outputs, and a flag for each that is checked; and where the host gets them."""

    def __init__(self, device: Device, interface: Interface, height: int, width: int, stream: Any) -> None:
        self.size = height, width
        tensors = [output.tensor for output in interface.outputs]
        self.memory = {tensor.name: device.memory(size_of(tensor, height, width)) for tensor in tensors}
        for tensor in checked(interface):  # what lies behind the last value is looked at too
            clear(self.memory[tensor.name], size_of(tensor, height, width) // 4, stream)
        count = max(len(checked(interface)), 1)  # pinned memory cannot be empty
        self.flags = device.memory(4 * count)
        self.results = {
            tensor.name: device.pinned(tensor.at(height, width), tensor.dtype)
            for tensor in tensors
            if tensor.name not in interface.states
        }
        self.result_flags = device.pinned((count,), "int32")
        self.computed, self.downloaded = new_event(), new_event()


class Pool:
    """Buffers that nobody uses. The device may still be busy with them: see Note [three streams]."""

    def __init__(self, device: Device, make: Callable[[], Buffers]) -> None:
        self._device, self._make = device, make
        self._free: list[Buffers] = []
        self._is_closed = False
        self.made = 0
        """Buffers that there are; each stream at work has one at least."""

    def lease(self) -> Lease:
        """On the device that is current. The buffers that came back last: fewer pairs, fewer graphs."""
        if self._free:
            return Lease(self, self._free.pop())
        self.made += 1
        return Lease(self, self._make())

    def take_back(self, buffers: Buffers) -> None:
        """Called with the last reference to a lease, in whatever thread that is."""
        if not self._is_closed:
            self._free.append(buffers)
        elif self._device.is_open and not sys.is_finalizing():
            with self._device:
                del buffers.memory, buffers.flags, buffers.results, buffers.result_flags
                del buffers.computed, buffers.downloaded

    def close(self) -> None:
        """On the device that is current. What is leased is freed when it comes back."""
        self._is_closed = True
        self._free.clear()
        del self._make  # it has a stream


class Lease:
    """Buffers that a state or a result not yet fetched is in. With the last of them they go back to the pool."""

    def __init__(self, pool: Pool, buffers: Buffers) -> None:
        self._pool, self.buffers = pool, buffers

    def __del__(self) -> None:
        self._pool.take_back(self.buffers)
