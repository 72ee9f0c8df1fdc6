"""Everything of the TensorRT backends that depends on the size of the frames.

Note [fixed slots]
    A CUDA graph has the addresses of its tensors baked in. The frames of a window move on by one with each frame, which
    would need a graph for each position of the ring, times two for the states. Instead they are copied to fixed slots,
    one for each input, before the work for a frame begins, outside the graph. For the five frames of mtu2 that reads
    and writes 10 x 3 bytes for each pixel: 28 MB at 1280x720, some 10 microseconds on an H200 and 40 on a GPU with
    700 GB/s, and much less than the network itself. The states are too large to copy; a graph for each pair of buffers
    is captured instead, and a session alternates between two buffers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mtu.core.interface import Graph, Interface
from mtu.runtime.backends.cuda_device import CaptureError, Device, clear
from mtu.runtime.backends.tensorrt_buffers import Buffers, Pool, checked, size_of
from mtu.runtime.backends.tensorrt_engines import LoadedEngines
from mtu.runtime.backends.tensorrt_finite import NonFiniteCheck
from mtu.runtime.backends.tensorrt_frames import Frames, frames_of_a_stream
from mtu.runtime.backends.tensorrt_graphs import GraphCache


class Setup:
    """Contexts, fixed slots, frames, buffers and captured graphs for frames of one size."""

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
        self._captured_graph = interface.graph_for(interface.states)
        self.frames = Frames(device, (1, *size, 3), frames_of_a_stream(interface))
        self.slots: dict[str, Any] = {}
        """Where a graph finds its frames, by name of the input."""
        self.pool = Pool(device, lambda: Buffers(device, interface, *size, stream))
        self._contexts: dict[str, Any] = {}
        self._bound: dict[str, dict[str, int]] = {}

    def allocate(self) -> None:
        """On the device that is current. Raises InvalidInputError; `free` is to be called even so."""
        height, width = self.size
        for name in self._interface.frames:
            self.slots[name] = self._device.memory(height * width * 3)
        for graph in self._interface.graphs:
            self._bound[graph.name] = {}
            # Nothing but `_contexts` holds it, no frame of an error either: the device has to be current when it goes.
            self._contexts[graph.name] = self._engines.new_context(graph.name, *self.size)
            shapes = {given.tensor.name: given.tensor.at(*self.size) for given in graph.inputs}
            if not all(self._contexts[graph.name].set_input_shape(name, shape) for name, shape in shapes.items()):
                raise self._engines.failure("be set", graph.name, *self.size)
        # What the library did on other streams while it made the contexts has to be over.
        self._device.synchronize()

    def run(self, graph: Graph, before: Buffers | None, after: Buffers) -> None:
        """Enqueues a graph that reads the states in `before` and writes `after`, and then the check of these.

        The first time with a pair of buffers it runs plainly, which is the warm-up that capture needs: the library
        loads kernels then, and plugins compile theirs. It is captured after that, and replayed from the second time on.
        So is the graph that frames in the middle of a stream go through; others are run once for each scene.
        """
        is_captured = graph is self._captured_graph
        if is_captured and self._graphs.replay((before, after)):
            return
        self._bind(graph, before, after)
        if not self._enqueue(graph.name, after):
            raise self._engines.failure("run", graph.name, *self.size)
        if is_captured and self._graphs.is_on:
            work = partial(self._captured, graph.name, after)
            self._graphs.capture((before, after), work, self._refusal(graph.name), self.pool.made)

    def _bind(self, graph: Graph, before: Buffers | None, after: Buffers) -> None:
        """Tells the library the addresses that are not those of the last time: after each it looks at them all anew."""
        bound = self._bound[graph.name]
        addresses = {**{name: self.slots[name] for name in graph.frames}, **after.memory}
        if before is not None:
            addresses |= {name: before.memory[state] for name, state in graph.states.items()}
        for name, memory in addresses.items():
            address = int(memory)
            if bound.get(name) == address:
                continue
            self._engines.forget_errors()
            if not self._contexts[graph.name].set_tensor_address(name, address):
                raise self._engines.failure(f"take an address for {name} of", graph.name, *self.size)
            bound[name] = address

    def _enqueue(self, graph: str, after: Buffers) -> bool:
        """Whether the library has taken it. The same may be enqueued again: nothing that is read is written."""
        self._engines.forget_errors()
        if not self._contexts[graph].execute_async_v3(self._stream.handle):
            return False
        clear(after.flags, after.result_flags.size, self._stream)
        for number, tensor in enumerate(checked(self._interface)):
            memory, flag = after.memory[tensor.name], int(after.flags) + 4 * number
            self._check.enqueue(memory, size_of(tensor, *self.size), tensor.dtype, flag, self._stream)
        return True

    def _refusal(self, graph: str) -> str | None:
        """Why the library says beforehand that it cannot be captured."""
        context = self._contexts[graph]
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream.handle):
            return f"{self._engines.name} says that {graph}.engine cannot be captured"
        return None

    def _captured(self, graph: str, after: Buffers) -> None:
        if not self._enqueue(graph, after):
            reason = self._engines.reason()
            raise CaptureError(f"{self._engines.name} could not put {graph}.engine into a graph: {reason}")

    def free(self) -> None:
        """On the device that is current, with nothing under way."""
        self._graphs.clear()
        self._contexts.clear()
        self._bound.clear()
        self.frames.close()
        self.slots.clear()
        self.pool.close()
        # The frame of an error may hold this object for longer than the device is there.
        del self._graphs, self._check, self._stream
