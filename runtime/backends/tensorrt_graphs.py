"""CUDA graphs of the work for a frame, one for each pair of buffers, and what happens where it cannot be captured."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from mtu.runtime.backends.cuda_device import CaptureError, Device, Graph

GRAPHS_KEPT = 32
"""Captured graphs, where there are few buffers; the one longest unused goes first. A session needs two, n sessions that
take turns n + 1, others at most n * (n + 1)."""
CAPTURES_TRIED = 2
"""Captures that may fail one after the other; then everything runs plainly."""


class GraphCache:
    """To be used with the device current."""

    def __init__(self, device: Device, stream: Any, remarks: list[str], *, is_on: bool) -> None:
        """`remarks` is told when graphs turn out to be impossible, and `is_on` is False then."""
        self._device, self._stream, self._remarks = device, stream, remarks
        self.is_on = is_on
        self._failures = 0
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def replay(self, key: Hashable) -> bool:
        """Enqueues what was captured for `key`; False if nothing was."""
        if key not in self._graphs:
            return False
        self._graphs.move_to_end(key)
        self._graphs[key].launch(self._stream)
        return True

    def capture(self, key: Hashable, work: Callable[[], None], refusal: str | None, buffers: int) -> None:
        """Captures what `work` enqueues, which has run plainly just before and may run again. `buffers` is how many
        there are.

        A capture that fails is tried once more, the next time that `key` is not there.
        `work` raises CaptureError if the library would not enqueue it; `refusal` says why that is known before.
        """
        try:
            if refusal is not None:
                raise CaptureError(refusal)
            self._device.synchronize()  # with what is loaded at the first run and must not be waited for in a capture
            with self._device.alone:
                self._graphs[key] = Graph(self._stream, work)
        except CaptureError as error:
            self._failures += 1
            if refusal is None:
                with contextlib.suppress(CaptureError):
                    work()  # once more, for nothing: the library may answer with what is left of the failed capture
            if self._failures == CAPTURES_TRIED:
                self.is_on = False
                self._remarks.append(f"without CUDA graphs, so each step cost more time of the host: {error}")
            return
        self._failures = 0
        if len(self._graphs) > max(GRAPHS_KEPT, 2 * buffers):
            self._graphs.popitem(last=False)[1].free()

    def clear(self) -> None:
        """With nothing under way."""
        for graph in self._graphs.values():
            graph.free()
        self._graphs.clear()
        self._failures = 0
