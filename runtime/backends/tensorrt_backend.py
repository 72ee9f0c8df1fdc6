"""TensorRT and TensorRT-RTX: the library is an argument. Imports it, pycuda and cuda-bindings (extras [gpu], [rtx]).

No tensor leaves the device between frames. A frame is uploaded once and stays there while it is in a window; the states
of one frame are read where they were written. Tuning notes: an engine for one size is the fastest; `cuda_graph` saves
the host the launch of every layer; sessions that share a backend should have one frame size.

Note [three streams]
    Upload, computation and download have a stream each, so that frame t+1 comes up and frame t-1 goes down while frame
    t is computed. What one stream must not do before another is said by events, and there are four such things:

    1. a frame is computed with after it has arrived;            (upload -> compute, `_Frame.arrived`)
    2. a place is filled anew after it has been read;            (compute -> upload, `_Frame.used`)
    3. a result goes down after it has been computed;            (compute -> download, `_Buffers.computed`)
    4. a buffer is written anew after its result has gone down.  (download -> compute, `_Buffers.downloaded`)

    The host waits in two places: before it overwrites pinned memory that is still being uploaded, and for a result.
    Everything else is ordered by being on one stream. What the library does on streams of its own, while it makes a
    context and when it runs one for the first time, is waited for by waiting for the whole device: after the contexts
    are made, before a capture, and before anything is freed. tests/fake_cuda.py sees each missing wait.

Note [fixed places]
    A CUDA graph has the addresses of its tensors baked in. The five frames of a window move on by one with each frame,
    which would need a graph for each position of the ring, times two for the states. Instead the five frames are copied
    to five fixed places at the start of each step, outside the graph. That reads and writes 5 frames, 10 x 3 bytes for
    each pixel: 28 MB at 1280x720, some 10 microseconds on an H200 and 40 on a GPU with 700 GB/s, and much less than the
    step itself. The states are too large to copy; a graph for each pair of buffers is captured instead, and a session
    alternates between two buffers.

Note [non-finite values]
    A kernel at the end of each step looks at the exponent of every value of every state, and sets a flag for each state
    that has an infinity or a NaN. The flags go down with the picture. It reads the states once (59 MB at 1280x720, 26
    channels, fp16) and is part of the graph.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.models.errors import InvalidInputError, NonFiniteError
from mtu.models.interface import FRAME_NAMES, GRAPHS, GraphName, Interface, TensorSpec
from mtu.plugins.correlation_argmax_warp.cuda_op import compiled
from mtu.runtime.backends import Gate, Request
from mtu.runtime.backends.cuda_device import (
    CaptureError,
    Device,
    Graph,
    clear,
    copy,
    download,
    load_kernel,
    new_event,
    new_stream,
    open_device,
    upload,
)
from mtu.runtime.backends.rtx_cache import RuntimeCache
from mtu.runtime.engine import Engine, Host, check_files, refusals
from mtu.runtime.engine_cache import cached_engine
from mtu.runtime.gpu import find_gpu
from mtu.runtime.plugin import register_plugin
from mtu.runtime.tensorrt_library import Library, load_library

TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT", "float16": "HALF"}
"""TensorRT's names of the element types."""
GRAPHS_KEPT = 32
"""Captured graphs; the one longest unused goes first. A session needs two, n sessions at most n * (n + 1)."""
CAPTURES_TRIED = 2
"""Captures that may fail one after the other; then everything runs plainly."""
FRAMES_KEPT = 64
"""Frames on the device; more are uploaded again. A session has seven alive at most."""

GUARD = r"""
// Sets *flag if one of the values has all bits of its exponent set: an infinity or a NaN. `low` and `high` are those
// bits within a word of 32: of one float, or of the two halves.
extern "C" __global__ void non_finite(const uint4* values, unsigned long long count, unsigned low, unsigned high,
                                      int* flag) {
    bool found = false;
    auto bad = [&](unsigned word) { return (word & low) == low || (word & high) == high; };
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
         i += (unsigned long long)gridDim.x * blockDim.x) {
        const uint4 four = values[i];
        found = found || bad(four.x) || bad(four.y) || bad(four.z) || bad(four.w);
    }
    if (found) *flag = 1;
}
"""
EXPONENTS = {"float32": (0x7F800000, 0x7F800000), "float16": (0x00007C00, 0x7C000000)}
PIECE = 16
"""The kernel reads the states in pieces of so many bytes; their buffers are a multiple of it, the rest of them zero."""
GUARD_THREADS, GUARD_BLOCKS = 256, 1024


@dataclass(frozen=True)
class _Frame:
    """A frame's place on the device, and the pinned memory that it is uploaded from."""

    memory: Any
    staging: NDArray[np.uint8]
    arrived: Any
    used: Any


class _Frames:
    """The frames on the device. A place is free again when nobody holds the array any more that it was filled from."""

    def __init__(self, device: Device, shape: tuple[int, ...]) -> None:
        self._device, self._shape = device, shape
        self._held: OrderedDict[int, tuple[weakref.ref[Any], _Frame]] = OrderedDict()
        self._free: deque[_Frame] = deque()

    def find(self, array: NDArray[np.uint8]) -> _Frame | None:
        """Where `array` is, if it has been uploaded."""
        found = self._held.get(id(array))
        if found is None:
            return None
        self._held.move_to_end(id(array))
        return found[1]

    def place(self, array: NDArray[np.uint8]) -> _Frame:
        """A place for `array`, which may still be in use for another."""
        if len(self._held) >= FRAMES_KEPT:
            self._release(next(iter(self._held)))
        if self._free:
            frame = self._free.popleft()
        else:
            size = math.prod(self._shape)
            staging = self._device.pinned(self._shape, "uint8")
            frame = _Frame(self._device.memory(size), staging, new_event(), new_event())
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


class _Buffers:
    """What one step writes: states, picture, displacement, a flag for each state; and where the host gets them."""

    def __init__(self, device: Device, interface: Interface, height: int, width: int, stream: Any) -> None:
        names = {state.output.name for state in interface.states}
        self.size = height, width
        self.memory = {spec.name: device.memory(_size(spec, height, width)) for spec in interface.outputs}
        for spec in interface.outputs:
            if spec.name in names:  # what lies behind the last value is looked at too
                clear(self.memory[spec.name], _size(spec, height, width) // 4, stream)
        self.flags = device.memory(4 * len(names))
        self.results = {
            spec.name: device.pinned(spec.at(height, width), spec.dtype)
            for spec in interface.outputs
            if spec.name not in names
        }
        self.result_flags = device.pinned((len(names),), "int32")
        self.computed, self.downloaded = new_event(), new_event()


class _Pool:
    """Buffers that nobody uses. The device may still be busy with them: see Note [three streams]."""

    def __init__(self, device: Device, make: Callable[[], _Buffers]) -> None:
        self._device, self._make = device, make
        self._free: list[_Buffers] = []
        self._is_closed = False

    def lease(self) -> _Lease:
        """On the device that is current. The buffers that came back last: fewer pairs, fewer graphs."""
        return _Lease(self, self._free.pop() if self._free else self._make())

    def take_back(self, buffers: _Buffers) -> None:
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


class _Lease:
    """Buffers that a state or a result not yet fetched is in. With the last of them they go back to the pool."""

    def __init__(self, pool: _Pool, buffers: _Buffers) -> None:
        self._pool, self.buffers = pool, buffers

    def __del__(self) -> None:
        self._pool.take_back(self.buffers)


class _Submitted:
    """See `mtu.runtime.backends.Pending`. Every state is the lease of the buffers that it is in."""

    def __init__(self, device: Device, interface: Interface, lease: _Lease) -> None:
        self.states: Mapping[str, _Lease] = {state.input.name: lease for state in interface.states}
        self._device, self._interface = device, interface
        self._lease: _Lease | None = lease
        self._results: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        """See `Pending.result`."""
        if self._lease is not None:
            buffers = self._lease.buffers
            with self._device:
                buffers.downloaded.synchronize()
            if buffers.result_flags.any():
                states = zip(self._interface.states, buffers.result_flags, strict=True)
                raise NonFiniteError([state.output.name for state, flag in states if flag])
            self._results = {name: value.copy() for name, value in buffers.results.items()}
            self._lease = None
        return self._results


class _Setup:
    """Everything that depends on the size of the frames: contexts, fixed places, buffers, captured graphs."""

    def __init__(self, owner: TensorrtBackend, height: int, width: int) -> None:
        """Holds nothing yet: see `allocate`."""
        device, interface, compute = owner.gpu, owner.interface, owner.compute
        self.size = height, width
        self._owner: TensorrtBackend = weakref.proxy(owner)  # no cycle: a backend that nobody holds is closed at once
        self.frames = _Frames(device, interface.frames[0].at(height, width))
        self.places: dict[str, Any] = {}
        self.pool = _Pool(device, lambda: _Buffers(device, interface, height, width, compute))
        self._graphs: OrderedDict[tuple[_Buffers, _Buffers], Graph] = OrderedDict()
        self._failed_captures = 0
        self._bound: dict[GraphName, dict[str, int]] = {graph: {} for graph in GRAPHS}
        self._contexts: dict[GraphName, Any] = {}

    def allocate(self) -> None:
        """On the device that is current. Raises InvalidInputError; `free` is to be called even so."""
        owner, interface = self._owner, self._owner.interface
        for spec in interface.frames:
            self.places[spec.name] = owner.gpu.memory(_size(spec, *self.size))
        for graph in GRAPHS:
            self._contexts[graph] = owner.new_context(graph, *self.size)
            shapes = {spec.name: spec.at(*self.size) for spec in interface.inputs(graph)}
            if not all(self._contexts[graph].set_input_shape(name, shape) for name, shape in shapes.items()):
                raise owner.failure("be set", graph, *self.size)
        # What the library did on other streams while it made the contexts has to be over.
        owner.gpu.synchronize()

    def run(self, graph: GraphName, before: _Buffers | None, after: _Buffers) -> None:
        """Enqueues a graph that reads the states in `before` and writes `after`, and then the check of these.

        The first step with a pair of buffers runs plainly, which is the warm-up that capture needs: the library loads
        kernels then, and plugins compile theirs. It is captured after that, and replayed from the second on. `first` is
        never captured: it is run once for each scene.
        """
        owner = self._owner
        key = None if before is None else (before, after)
        if key is not None and key in self._graphs:
            self._graphs.move_to_end(key)
            self._graphs[key].launch(owner.compute)
            return
        self._bind(graph, before, after)
        # After a failed capture the first call may report that and nothing else.
        attempts = 2 if self._failed_captures else 1
        if not any(self._enqueue(graph, after) for _ in range(attempts)):
            raise owner.failure("run", graph, *self.size)
        if key is not None and owner.cuda_graph:
            self._capture(graph, key)

    def _bind(self, graph: GraphName, before: _Buffers | None, after: _Buffers) -> None:
        """Tells the library the addresses that are not those of the last time: after each it looks at them all anew."""
        interface, bound = self._owner.interface, self._bound[graph]
        addresses = {**self.places, **after.memory}
        if before is not None:
            addresses |= {state.input.name: before.memory[state.output.name] for state in interface.states}
        for name, memory in addresses.items():
            address = int(memory)
            if bound.get(name) == address:
                continue
            self._owner.forget_errors()
            if not self._contexts[graph].set_tensor_address(name, address):
                raise self._owner.failure(f"take an address for {name} of", graph, *self.size)
            bound[name] = address

    def _enqueue(self, graph: GraphName, after: _Buffers) -> bool:
        """Whether the library has taken it; if not, it may be done again."""
        owner, interface = self._owner, self._owner.interface
        owner.forget_errors()
        if not self._contexts[graph].execute_async_v3(owner.compute.handle):
            return False
        clear(after.flags, len(interface.states), owner.compute)
        for number, state in enumerate(interface.states):
            count = _size(state.output, *self.size) // PIECE
            owner.guard.prepared_async_call(
                (min(GUARD_BLOCKS, -(-count // GUARD_THREADS)), 1),
                (GUARD_THREADS, 1, 1),
                owner.compute,
                int(after.memory[state.output.name]),
                count,
                *EXPONENTS[state.dtype],
                int(after.flags) + 4 * number,
            )
        return True

    def _capture(self, graph: GraphName, key: tuple[_Buffers, _Buffers]) -> None:
        """A capture that fails is tried once more, at the next step with these buffers."""
        owner, context = self._owner, self._contexts[graph]

        def work() -> None:
            if not self._enqueue(graph, key[1]):
                raise CaptureError(f"{owner.name} could not put {graph}.engine into a graph: {owner.reason()}")

        try:
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(owner.compute.handle):
                raise CaptureError(f"{owner.name} says that {graph}.engine cannot be captured")
            owner.gpu.synchronize()  # with what is loaded at the first run and must not be waited for in a capture
            with owner.gpu.alone:
                self._graphs[key] = Graph(owner.compute, work)
        except CaptureError as error:
            self._failed_captures += 1
            if self._failed_captures == CAPTURES_TRIED:
                owner.cuda_graph = False
                owner.remarks.append(f"without CUDA graphs, so each step cost more time of the host: {error}")
            return
        self._failed_captures = 0
        if len(self._graphs) > GRAPHS_KEPT:
            self._graphs.popitem(last=False)[1].free()

    def free(self) -> None:
        """On the device that is current, with nothing under way."""
        for graph in self._graphs.values():
            graph.free()
        self._graphs.clear()
        self._contexts.clear()
        self._bound.clear()
        self.frames.close()
        self.places.clear()
        self.pool.close()


class TensorrtBackend:
    """See `mtu.runtime.backends.Backend`."""

    in_flight = 1

    def __init__(self, engine: Engine, library: Library, gpu: Device, *, cuda_graph: bool) -> None:
        """`engine` fits the host and its files are whole. Raises InvalidInputError if it cannot be loaded even so."""
        manifest = engine.manifest
        self.name = library.name
        self.device = f"cuda:{gpu.index} ({gpu.name})"
        self.interface = manifest.interface
        self.remarks: list[str] = []
        self._gate = Gate(self.name)
        self.gpu, self.cuda_graph = gpu, cuda_graph
        self._engine, self._library = engine, library
        self._setup: _Setup | None = None
        self._runtime: Any = None
        self._engines: dict[GraphName, Any] = {}
        self._compiled: dict[GraphName, RuntimeCache] = {}
        self._scratch: Any = None
        gpu.outlives(self)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        gpu, library = self.gpu, self._library
        with gpu, gpu.alone:
            self.upload, self.compute, self.download = new_stream(), new_stream(), new_stream()
            arch = f"sm_{gpu.compute_capability.replace('.', '')}"
            self.guard = load_kernel(compiled(GUARD, arch), "non_finite", "PQIIP")
            self._runtime = library.module.Runtime(library.logger)
            if self._engine.manifest.version_compatible:
                self._runtime.engine_host_code_allowed = True  # it may bring the runtime of its own version
            for graph in GRAPHS:
                self._deserialise(graph)
            self._scratch = gpu.memory(max(map(_scratch_size, self._engines.values())))

    def _deserialise(self, graph: GraphName) -> None:
        """Nothing but `_engines` holds it, no frame of an error either: the device has to be current when it goes."""
        path = self._engine.file(graph)
        self.forget_errors()
        self._engines[graph] = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engines[graph] is None:
            raise InvalidInputError(
                f"{self._library.name} {self._library.version} cannot load {path}: {self.reason()};"
                f" build it again: {self._engine.manifest.command}"
            )
        found = _tensors(self._engines[graph])
        expected = {spec.name: TYPES[spec.dtype] for spec in (*self.interface.inputs(graph), *self.interface.outputs)}
        if found != expected:
            raise InvalidInputError(
                f"{path}: its tensors are {found}, its manifest says {expected};"
                f" build it again: {self._engine.manifest.command}"
            )

    def new_context(self, graph: GraphName, height: int, width: int) -> Any:
        """An execution context for one size. All of them work in one memory, one after the other on one stream."""
        trt, engine = self._library.module, self._engines[graph]
        self.forget_errors()
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX: compile for the size now, not in the background while a stand-in is being captured.
            config = engine.create_runtime_config()
            if graph not in self._compiled:
                self._compiled[graph] = RuntimeCache(config, self._compiled_for(graph))
            config.set_runtime_cache(self._compiled[graph].cache)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            context = engine.create_execution_context(config)
        elif hasattr(trt, "ExecutionContextAllocationStrategy"):
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise self.failure("prepare", graph, height, width)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(int(self._scratch), _scratch_size(engine))
        else:
            context.device_memory = int(self._scratch)
        return context

    def failure(self, what: str, graph: GraphName, height: int, width: int) -> InvalidInputError:
        """The error for something that the library would not do."""
        return InvalidInputError(
            f"{self.name} could not {what} {self._engine.file(graph)} for frames of {width}x{height}:"
            f" {self.reason()}; build it again: {self._engine.manifest.command}"
        )

    def forget_errors(self) -> None:
        """Before whatever the library is asked to do: `reason` is of that, not of something before."""
        self._library.logger.forget()

    def reason(self) -> str:
        """What the library said last."""
        return str(self._library.logger.last_error())

    def _compiled_for(self, graph: GraphName) -> tuple[str, ...]:
        """What TensorRT-RTX compiles an engine for, and its own version: the key of its runtime cache."""
        return self._engine.manifest.engines[graph], self._library.version, self.gpu.name, self.gpu.compute_capability

    def prepare(self, height: int, width: int) -> None:
        """Makes ready for frames of this size; what was ready for another size is freed.

        Raises InvalidInputError if the engine is not for this size or the memory is too small.
        """
        if self._setup is not None and self._setup.size == (height, width):
            return
        check_size(self._engine, height, width)
        with self.gpu:
            if self._setup is not None:
                self.gpu.synchronize()
                self._free_setup()
            needed, free = working_memory(self.interface, height, width), self.gpu.free_memory()
            if needed > free:
                raise self.gpu.out_of_memory(needed, free)
            self._setup = _Setup(self, height, width)
            try:
                with self.gpu.alone:
                    self._setup.allocate()
            except BaseException:
                self.gpu.synchronize()
                self._free_setup()
                raise

    def submit(self, inputs: Mapping[str, Any]) -> _Submitted:
        """See `Backend.submit`."""
        with self._gate:
            return self._submit(inputs)

    def _submit(self, inputs: Mapping[str, Any]) -> _Submitted:
        height, width = inputs[FRAME_NAMES[0]].shape[1:3]
        self.prepare(height, width)
        setup = self._setup
        assert setup is not None
        previous: _Lease | None = next(
            (inputs[s.input.name] for s in self.interface.states if s.input.name in inputs), None
        )
        with self.gpu:
            window = [self._uploaded(setup.frames, inputs[name]) for name in FRAME_NAMES]
            # See Note [fixed places].
            for name, frame in zip(FRAME_NAMES, window, strict=True):
                copy(setup.places[name], frame.memory, frame.staging.nbytes, self.compute)
            for frame in window:
                frame.used.record(self.compute)
            lease = setup.pool.lease()
            after = lease.buffers
            self.compute.wait_for_event(after.downloaded)
            if previous is None:
                setup.run("first", None, after)
            else:
                setup.run("step", previous.buffers, after)
            after.computed.record(self.compute)
            self.download.wait_for_event(after.computed)
            for name, result in after.results.items():
                download(result, after.memory[name], self.download)
            download(after.result_flags, after.flags, self.download)
            after.downloaded.record(self.download)
        return _Submitted(self.gpu, self.interface, lease)

    def _uploaded(self, frames: _Frames, array: NDArray[np.uint8]) -> _Frame:
        """Where `array` is on the device, or will be before the compute stream goes on."""
        frame = frames.find(array)
        if frame is None:
            frame = frames.place(array)
            frame.arrived.synchronize()  # the pinned memory is read until then
            np.copyto(frame.staging, array)
            self.upload.wait_for_event(frame.used)
            upload(frame.memory, frame.staging, self.upload)
            frame.arrived.record(self.upload)
            self.compute.wait_for_event(frame.arrived)
        return frame

    def read_states(self, states: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """See `Backend.read_states`."""
        arrays = {}
        with self._gate, self.gpu:
            for state in self.interface.states:
                buffers: _Buffers = states[state.input.name].buffers
                staging = self.gpu.pinned(state.output.at(*buffers.size), state.dtype)
                download(staging, buffers.memory[state.output.name], self.download)
                self.download.synchronize()
                arrays[state.input.name] = np.array(staging)
                del staging  # freed while the device is current
        return arrays

    def write_states(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """See `Backend.write_states`. They are in buffers as a frame's results have them."""
        with self._gate:
            return self._write_states(arrays)

    def _write_states(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        self.prepare(*arrays[self.interface.states[0].input.name].shape[2:])
        setup = self._setup
        assert setup is not None
        with self.gpu:
            lease = setup.pool.lease()
            for state in self.interface.states:
                array = arrays[state.input.name]
                staging = self.gpu.pinned(array.shape, state.dtype)
                np.copyto(staging, array)
                upload(lease.buffers.memory[state.output.name], staging, self.compute)
                self.compute.synchronize()
                del staging
        return {state.input.name: lease for state in self.interface.states}

    def _free_setup(self) -> None:
        """On the device that is current, with nothing under way."""
        if self._setup is not None:
            self._setup.free()
            self._setup = None
            for cache in self._compiled.values():
                cache.keep()

    def close(self) -> None:
        """See `Backend.close`."""
        if not self._gate.close():
            return
        with self.gpu:
            self.gpu.synchronize()
            self._free_setup()
            # In this order: the library's objects need those that made them.
            self._compiled.clear()
            self._engines.clear()
            self._runtime = self._scratch = self.guard = None
            self.upload = self.compute = self.download = None

    def __del__(self) -> None:
        """What nobody closed. At the end of the process the device does."""
        if not sys.is_finalizing():
            self.close()


def _size(spec: TensorSpec, height: int, width: int) -> int:
    """Bytes of device memory for a tensor, a multiple of PIECE."""
    size = math.prod(spec.at(height, width)) * np.dtype(spec.dtype).itemsize
    return size + -size % PIECE


def _tensors(engine: Any) -> dict[str, str]:
    """Names of inputs and outputs, with TensorRT's names of their types."""
    names = (engine.get_tensor_name(number) for number in range(engine.num_io_tensors))
    return {name: engine.get_tensor_dtype(name).name for name in names}


def _scratch_size(engine: Any) -> int:
    """Bytes that a context of `engine` needs to work in, at the largest size of its profile."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def working_memory(interface: Interface, height: int, width: int) -> int:
    """Bytes of device memory for the frames and buffers of one session: seven frames and five fixed places, and three
    sets of outputs, of which the third is for a frame that is redone."""
    frame = _size(interface.frames[0], height, width)
    outputs = sum(_size(spec, height, width) for spec in interface.outputs)
    return (7 + len(FRAME_NAMES)) * frame + 3 * outputs


def check_size(engine: Engine, height: int, width: int) -> None:
    """Raises InvalidInputError if frames of this size, a multiple of 4, are outside the engine's profile."""
    manifest = engine.manifest
    if manifest.profile.holds(height, width):
        return
    half = " --fp16" if manifest.precision == "fp16" else ""
    raise InvalidInputError(
        f"frames of {width}x{height} do not fit engine {engine.directory}, which is for"
        f" {manifest.profile}: build one with mtu-build-engine BUNDLE -o DIR --size {width}x{height}{half}"
        f" --runtime {manifest.library}"
    )


def open_backend(request: Request) -> TensorrtBackend:
    """For the library that `request.name` names. "auto" is the first GPU.

    Whatever can be said without the library is said before it sees the files.
    """
    index = int(request.device.partition(":")[2] or 0)
    found = find_gpu(index)
    assert found is not None  # `mtu.runtime.backends.open_backend` has looked
    library = load_library(request.name)
    engine = request.model
    if not isinstance(engine, Engine):
        if request.size is None:
            raise InvalidInputError(
                f"backend {request.name} builds an engine for one size of frames: give"
                " open_backend(..., size=(height, width)), or an engine made by mtu-build-engine"
            )
        engine = cached_engine(engine, library, found, request.size, request.plugin_library, request.say)
    if engine.manifest.library != request.name:
        raise InvalidInputError(
            f"engine {engine.directory} was built with {engine.manifest.library}: use --backend"
            f" {engine.manifest.library}, or build one with --runtime {request.name}"
        )
    reasons = refusals(engine.manifest, Host(library.version, found.name, found.compute_capability))
    if reasons:
        raise InvalidInputError(f"engine {engine.directory}: {'; '.join(reasons)}")
    if request.size is not None:
        check_size(engine, *request.size)
    check_files(engine)
    gpu = open_device(index)
    with gpu:
        weights = sum(engine.file(graph).stat().st_size for graph in GRAPHS)
        needed = weights + max(engine.manifest.device_memory.values())
        needed += working_memory(engine.manifest.interface, *request.size) if request.size is not None else 0
        if needed > gpu.free_memory():
            raise gpu.out_of_memory(needed, gpu.free_memory())
    if engine.manifest.plugin:
        register_plugin(library, request.plugin_library)
    backend = TensorrtBackend(engine, library, gpu, cuda_graph=request.cuda_graph)
    if request.size is not None:
        try:
            backend.prepare(*request.size)
        except BaseException:
            backend.close()
            raise
    return backend
