"""Everything of the TensorRT backends that depends on the size of the frames.

Note [fixed places]
    A CUDA graph has the addresses of its tensors baked in. The five frames of a window move on by one with each frame,
    which would need a graph for each position of the ring, times two for the states. Instead the five frames are copied
    to five fixed places at the start of each step, outside the graph. That reads and writes 5 frames, 10 x 3 bytes for
    each pixel: 28 MB at 1280x720, some 10 microseconds on an H200 and 40 on a GPU with 700 GB/s, and much less than the
    step itself. The states are too large to copy; a graph for each pair of buffers is captured instead, and a session
    alternates between two buffers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mtu.core.interface import GRAPHS, GraphName, Interface
from mtu.runtime.backends.cuda_device import CaptureError, Device, clear
from mtu.runtime.backends.non_finite import NonFiniteCheck
from mtu.runtime.backends.tensorrt_buffers import Buffers, Pool, size_of
from mtu.runtime.backends.tensorrt_engines import LoadedEngines
from mtu.runtime.backends.tensorrt_frames import Frames
from mtu.runtime.backends.tensorrt_graphs import GraphCache


class Setup:
    """Contexts, fixed places, frames, buffers and captured graphs for frames of one size."""

    def __init__(
        self,
        device: Device,
        interface: Interface,
        engines: LoadedEngines,
        check: NonFiniteCheck,
        graphs: GraphCache,
        stream: Any,
        size: tuple[int, int],
    ) -> None:
        """Holds nothing yet: see `allocate`. `stream` is the one that computes, `size` height and width."""
        self.size = size
        self._device, self._interface, self._stream = device, interface, stream
        self._engines, self._check, self._graphs = engines, check, graphs
        self.frames = Frames(device, interface.frames[0].at(*size))
        self.places: dict[str, Any] = {}
        self.pool = Pool(device, lambda: Buffers(device, interface, *size, stream))
        self._bound: dict[GraphName, dict[str, int]] = {graph: {} for graph in GRAPHS}
        self._contexts: dict[GraphName, Any] = {}

    def allocate(self) -> None:
        """On the device that is current. Raises InvalidInputError; `free` is to be called even so."""
        for spec in self._interface.frames:
            self.places[spec.name] = self._device.memory(size_of(spec, *self.size))
        for graph in GRAPHS:
            self._contexts[graph] = self._engines.new_context(graph, *self.size)
            shapes = {spec.name: spec.at(*self.size) for spec in self._interface.inputs(graph)}
            if not all(self._contexts[graph].set_input_shape(name, shape) for name, shape in shapes.items()):
                raise self._engines.failure("be set", graph, *self.size)
        # What the library did on other streams while it made the contexts has to be over.
        self._device.synchronize()

    def run(self, graph: GraphName, before: Buffers | None, after: Buffers) -> None:
        """Enqueues a graph that reads the states in `before` and writes `after`, and then the check of these.

        The first step with a pair of buffers runs plainly, which is the warm-up that capture needs: the library loads
        kernels then, and plugins compile theirs. It is captured after that, and replayed from the second on. `first` is
        never captured: it is run once for each scene.
        """
        if before is not None and self._graphs.replay((before, after)):
            return
        self._bind(graph, before, after)
        if not self._enqueue(graph, after):
            raise self._engines.failure("run", graph, *self.size)
        if before is not None and self._graphs.is_on:
            work = partial(self._captured, graph, after)
            self._graphs.capture((before, after), work, self._refusal(graph), self.pool.made)

    def _bind(self, graph: GraphName, before: Buffers | None, after: Buffers) -> None:
        """Tells the library the addresses that are not those of the last time: after each it looks at them all anew."""
        interface, bound = self._interface, self._bound[graph]
        addresses = {**self.places, **after.memory}
        if before is not None:
            addresses |= {state.input.name: before.memory[state.output.name] for state in interface.states}
        for name, memory in addresses.items():
            address = int(memory)
            if bound.get(name) == address:
                continue
            self._engines.forget_errors()
            if not self._contexts[graph].set_tensor_address(name, address):
                raise self._engines.failure(f"take an address for {name} of", graph, *self.size)
            bound[name] = address

    def _enqueue(self, graph: GraphName, after: Buffers) -> bool:
        """Whether the library has taken it. The same may be enqueued again: nothing that is read is written."""
        self._engines.forget_errors()
        if not self._contexts[graph].execute_async_v3(self._stream.handle):
            return False
        clear(after.flags, len(self._interface.states), self._stream)
        for number, state in enumerate(self._interface.states):
            memory, flag = after.memory[state.output.name], int(after.flags) + 4 * number
            self._check.enqueue(memory, size_of(state.output, *self.size), state.dtype, flag, self._stream)
        return True

    def _refusal(self, graph: GraphName) -> str | None:
        """Why the library says beforehand that it cannot be captured."""
        context = self._contexts[graph]
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream.handle):
            return f"{self._engines.name} says that {graph}.engine cannot be captured"
        return None

    def _captured(self, graph: GraphName, after: Buffers) -> None:
        if not self._enqueue(graph, after):
            reason = self._engines.reason()
            raise CaptureError(f"{self._engines.name} could not put {graph}.engine into a graph: {reason}")

    def free(self) -> None:
        """On the device that is current, with nothing under way."""
        self._graphs.clear()
        self._contexts.clear()
        self._bound.clear()
        self.frames.close()
        self.places.clear()
        self.pool.close()
        # The frame of an error may hold this object for longer than the device is there.
        del self._graphs, self._check, self._stream
