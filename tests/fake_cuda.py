"""A GPU for tests without one: the driver, pycuda, the graphs of cuda-bindings and TensorRT, as far as we use them.

Nothing runs when it is enqueued. A stream keeps its operations until somebody waits for them, and then only those run
that the waiting depends on, as late as a real GPU ever could; or, given a seed, some run earlier, in a random order
that the events allow. On top, every operation says which bytes it reads and writes, and two operations that touch the
same bytes, one of them writing, without an order between them raise `Race`, whatever the order was this time. Memory of
the device is memory of the host at made-up addresses, full of rubbish at first; an execution context runs the ONNX
graph that is the content of the "engine" with onnxruntime. The library also works on streams of its own: it loads the
weights when it reads an engine, prepares kernels when it makes a context, and loads them at the first run with new
addresses. What a real GPU would forgive or do silently wrong, without any result that shows it, is in `Gpu.faults`.

Nothing here is a test.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.machinery
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mtu.models.interface import GRAPHS
from mtu.plugins.correlation_argmax_warp import cuda_op
from mtu.runtime import backends, tensorrt_library
from mtu.runtime import gpu as gpu_module
from mtu.runtime.backends.ort_backend import OrtBackend
from mtu.runtime.bundle import Bundle
from mtu.runtime.engine import Engine, EngineManifest, Profile, file_digest, open_engine

NAME, CAPABILITY = "Fake GPU", (9, 0)
VERSIONS = {"tensorrt": "10.16.1.11", "tensorrt-8": "8.6.1", "tensorrt-rtx": "1.7.1"}
MAGIC = b"FAKE"
SCRATCH = 4096


class Race(AssertionError):  # noqa: N818
    """Two operations that nothing orders touch the same memory."""


@dataclass
class Access:
    """Bytes that an operation touches."""

    start: int
    end: int
    writes: bool


@dataclass
class Work:
    """What an operation does."""

    name: str
    accesses: list[Access]
    run: Callable[[], None]


@dataclass(eq=False)
class Operation:
    """Work in a stream."""

    work: Work
    stream: int
    number: int
    after: list[Operation]
    clock: dict[int, int]
    """The number of the last operation of each stream that is over before this one begins; itself included."""
    done: bool = False

    def is_before(self, other: dict[int, int]) -> bool:
        return other.get(self.stream, -1) >= self.number


@dataclass
class Gpu:
    """The device and everything that has been put on it."""

    total: int = 1 << 30
    seed: int | None = None
    flavour: str = "tensorrt"
    capturable: bool = True
    used: int = 0
    executions: list[str] = field(default_factory=list)
    """What the host made the library enqueue: "first", "step", "capture step"."""
    replays: int = 0
    uploads: int = 0
    freed_outside: int = 0
    """Allocations freed without a context: in another thread, pycuda could not."""
    registered: bool = False
    addresses_set: int = 0
    compilations: int = 0
    """What TensorRT-RTX had to compile, because no runtime cache had it."""
    faults: list[str] = field(default_factory=list)
    failing_captures: int = 0
    """So many captures become void."""
    in_capture: Callable[[], None] = lambda: None
    """Called whenever something is put on a stream that is being captured."""
    forget: Callable[[int, int | None], bool] = lambda recorded, waiting: False
    """Whether a wait is left out: the stream that recorded the event, the stream that waits (None: the host)."""
    forgotten: int = 0

    def __post_init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.streams: MutableMapping[int, Stream] = weakref.WeakValueDictionary()
        self.streams_made = 0
        self.threads: dict[int, list[object]] = {}
        """The contexts that are current, by thread."""
        self.is_detached = False
        self.has_stale_error = False
        """In the CUDA runtime inside the library, after a capture that failed: it fails the next call."""
        self.lock = threading.RLock()
        self.next_address = 0x7F0000000000
        self.clock: dict[int, int] = {}
        self.live: list[Operation] = []
        self.random = random.Random(self.seed)
        self.stack.append(self)
        self.legacy = Stream(self)
        """The default stream: it waits for every blocking stream, and they wait for it."""
        self.setting_up, self.loading = Stream(self, NON_BLOCKING), Stream(self, NON_BLOCKING)
        """Streams of the library."""
        self.stack.pop()

    @property
    def contexts(self) -> list[object]:
        """Those that are current in any thread."""
        return [context for stack in self.threads.values() for context in stack]

    @property
    def stack(self) -> list[object]:
        return self.threads.setdefault(threading.get_ident(), [])

    def capturing(self) -> list[Stream]:
        """What this thread captures."""
        me = threading.get_ident()
        return [stream for stream in list(self.streams.values()) if stream.captured is not None and stream.thread == me]

    # Memory

    def allocate(self, size: int) -> int:
        self.check_context()
        self.void_captures("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        if self.used + size > self.total:
            raise CudaMemoryError("cuMemAlloc failed: out of memory")
        self.used += size
        address = self.next_address
        self.next_address += size + 4096 - size % 512
        self.blocks[address] = np.full(size, 0x7F, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.destroy("memory")
        for stream in self.capturing():
            stream.void = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        size = self.blocks.pop(address).size
        self.used -= size
        for operation in self.live:
            for access in operation.work.accesses:
                if access.start < address + size and address < access.end and not operation.is_before(self.clock):
                    self.faults.append(f"{operation.work.name} is under way while its memory is freed")

    def destroy(self, what: str) -> None:
        """Memory, a stream, an event or a module goes."""
        self.freed_outside += not self.stack
        if self.is_detached:
            self.faults.append(f"{what} is freed after the context")

    def void_captures(self, code: str) -> None:
        """What this thread captures is void after a call that is not allowed."""
        for stream in self.capturing():
            stream.void = code
            raise LogicError("operation not permitted when stream is capturing")

    def view(self, address: int, size: int) -> np.ndarray:
        for base, block in self.blocks.items():
            if base <= address and address + size <= base + block.size:
                return block[address - base : address - base + size]
        raise LogicError(f"an illegal memory access was encountered: {address:#x} + {size}")

    def check_context(self) -> None:
        if not self.stack:
            raise LogicError("invalid device context")

    # Order

    def enqueue(self, stream: Stream, work: Work) -> Operation | None:
        self.check_context()
        if stream.captured is not None:
            if gc.isenabled():
                gc.collect()  # it may run at any time
            self.in_capture()
            stream.captured.append(work)
            return None
        with self.lock:
            return self.append(stream, work, [])

    def append(self, stream: Stream, work: Work, after: list[Operation]) -> Operation:
        before = [stream]
        if stream is self.legacy:
            before += [other for other in list(self.streams.values()) if other.is_blocking]
            for other in before:
                if other.captured is not None:
                    other.void = "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"
        elif stream.is_blocking:
            before.append(self.legacy)
        after = [*after, *(other.last for other in before if other.last is not None)]
        stream.count += 1
        clock = dict(self.clock)
        for operation in after:
            merge(clock, operation.clock)
        clock[stream.handle] = stream.count
        operation = Operation(work, stream.handle, stream.count, after, clock)
        self.find_race(operation)
        self.live.append(operation)
        stream.last = operation
        if self.seed is not None:
            ready = [o for o in self.live if not o.done]
            for _ in range(self.random.randrange(3)):
                if ready:
                    self.execute(self.random.choice(ready))
        return operation

    def find_race(self, operation: Operation) -> None:
        for other in self.live:
            if not other.work.accesses or other.is_before(operation.clock):
                continue
            for mine in operation.work.accesses:
                for its in other.work.accesses:
                    if (mine.writes or its.writes) and mine.start < its.end and its.start < mine.end:
                        raise Race(f"{operation.work.name} is not ordered after {other.work.name}")

    def execute(self, operation: Operation) -> None:
        stack = [operation]
        while stack:
            top = stack[-1]
            missing = [before for before in top.after if not before.done]
            if missing and not top.done:
                stack += missing
                continue
            stack.pop()
            if not top.done:
                top.work.run()
                top.done = True
                top.after = []

    def wait(self, operation: Operation | None) -> None:
        """The host waits."""
        self.check_context()
        if operation is None:
            return
        with self.lock:
            self.execute(operation)
            merge(self.clock, operation.clock)
            self.live = [other for other in self.live if not (other.done and other.is_before(self.clock))]

    def wait_for_all(self) -> None:
        for stream in list(self.streams.values()):
            if stream.captured is not None:
                stream.void = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
                raise LogicError("operation not permitted when stream is capturing")
        for stream in list(self.streams.values()):
            self.wait(stream.last)


def merge(clock: dict[int, int], other: dict[int, int]) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, -1), number)


def address_of(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


# pycuda


class CudaError(Exception):
    pass


class LogicError(CudaError):
    pass


class CudaMemoryError(CudaError):
    pass


NON_BLOCKING = 1
BLOCKING_SYNC, DISABLE_TIMING = 1, 2


class Stream:
    def __init__(self, gpu: Gpu, flags: int = 0) -> None:
        gpu.check_context()
        self.gpu = gpu
        self.is_blocking = not flags & NON_BLOCKING
        gpu.streams_made += 1
        self.handle = 0x1000 + gpu.streams_made
        self.last: Operation | None = None
        self.count = 0
        self.captured: list[Work] | None = None
        self.thread = 0
        """That captures."""
        self.void: str | None = None
        """Why the capture is."""
        gpu.streams[self.handle] = self

    def wait_for_event(self, event: Event) -> None:
        if self.captured is not None:
            raise LogicError("dependency created on uncaptured work in another stream")
        self.gpu.check_context()
        if event.operation is None:
            return
        if self.gpu.forget(event.operation.stream, self.handle):
            self.gpu.forgotten += 1
            return
        self.gpu.append(self, Work("wait", [], lambda: None), [event.operation])

    def synchronize(self) -> None:
        self.gpu.wait(self.last)


class OurStream(Stream):
    """A stream that pycuda made."""

    def __del__(self) -> None:
        self.gpu.destroy("a stream")
        if self.last is not None and not self.last.is_before(self.gpu.clock):
            self.gpu.faults.append("a stream is destroyed while work is under way")


class Event:
    def __init__(self, gpu: Gpu, flags: int = 0) -> None:
        gpu.check_context()
        self.gpu, self.flags = gpu, flags
        self.operation: Operation | None = None

    def record(self, stream: Stream) -> None:
        if stream.captured is not None:
            raise LogicError("an event of a capture")
        self.operation = self.gpu.enqueue(stream, Work("record", [], lambda: None))

    def synchronize(self) -> None:
        if not self.flags & BLOCKING_SYNC:
            self.gpu.faults.append("the host spins while it waits for an event")
        if self.operation is not None and self.gpu.forget(self.operation.stream, None):
            self.gpu.forgotten += 1
            return
        self.gpu.wait(self.operation)

    def __del__(self) -> None:
        self.gpu.destroy("an event")


class Allocation:
    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.address = gpu, gpu.allocate(size)

    def __int__(self) -> int:
        return self.address

    __index__ = __int__

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self.gpu.free(self.address)


class Kernel:
    """The guard, by what it says it does."""

    def __init__(self, gpu: Gpu, name: str) -> None:
        assert name == "non_finite"
        self.gpu = gpu

    def prepare(self, arguments: str) -> None:
        assert arguments == "PQIIP"

    def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *arguments: int) -> None:
        values, count, low, high, flag = arguments
        assert all(type(argument) is int for argument in arguments)
        assert 1 <= grid[0] < 2**31 and block[0] <= 1024

        def run() -> None:
            words = self.gpu.view(values, 16 * count).view(np.uint32)
            if (((words & low) == low) | ((words & high) == high)).any():
                self.gpu.view(flag, 4).view(np.int32)[0] = 1

        accesses = [Access(values, values + 16 * count, False), Access(flag, flag + 4, True)]
        self.gpu.enqueue(stream, Work("guard", accesses, run))

    def __del__(self) -> None:
        self.gpu.destroy("a module")


def pycuda_driver(gpu: Gpu) -> types.ModuleType:
    """The part of `pycuda.driver` that `cuda_device` uses."""
    driver = new_module("pycuda.driver")

    class Context:
        def push(self) -> None:
            assert not gpu.is_detached
            gpu.stack.append(self)

        @staticmethod
        def pop() -> None:
            gpu.stack.pop()

        @staticmethod
        def synchronize() -> None:
            gpu.wait_for_all()

        def detach(self) -> None:
            gpu.is_detached = True

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return NAME

        def compute_capability(self) -> tuple[int, int]:
            return CAPABILITY

        def retain_primary_context(self) -> Context:
            return Context()

    def upload(target: Any, source: np.ndarray, stream: Stream) -> None:
        assert source.flags.c_contiguous
        gpu.uploads += 1
        size, start, to = source.nbytes, address_of(source), int(target)
        pinned = weakref.ref(source)

        def run() -> None:  # like the driver, it keeps addresses, not the memory
            array = pinned()
            if array is None:
                gpu.faults.append("pinned memory is freed before it has been uploaded")
            else:
                gpu.view(to, size)[:] = array.reshape(-1).view(np.uint8)

        accesses = [Access(start, start + size, False), Access(to, to + size, True)]
        gpu.enqueue(stream, Work("upload", accesses, run))

    def download(target: np.ndarray, source: Any, stream: Stream) -> None:
        size, start, begin = target.nbytes, address_of(target), int(source)

        def run() -> None:
            target.reshape(-1).view(np.uint8)[:] = gpu.view(begin, size)

        accesses = [Access(begin, begin + size, False), Access(start, start + size, True)]
        gpu.enqueue(stream, Work("download", accesses, run))

    def copy(target: Any, source: Any, size: int, stream: Stream) -> None:
        to, begin = int(target), int(source)

        def run() -> None:
            gpu.view(to, size)[:] = gpu.view(begin, size)

        accesses = [Access(begin, begin + size, False), Access(to, to + size, True)]
        gpu.enqueue(stream, Work("copy", accesses, run))

    def clear(target: Any, value: int, words: int, stream: Stream) -> None:
        to = int(target)

        def run() -> None:
            gpu.view(to, 4 * words).view(np.uint32)[:] = value

        gpu.enqueue(stream, Work("clear", [Access(to, to + 4 * words, True)], run))

    driver.init = lambda: None
    driver.Error, driver.LogicError, driver.MemoryError = CudaError, LogicError, CudaMemoryError
    driver.Context, driver.Device = Context, Device
    driver.Stream = lambda flags=0: OurStream(gpu, flags)
    driver.Event = lambda flags=0: Event(gpu, flags)
    driver.event_flags = types.SimpleNamespace(BLOCKING_SYNC=BLOCKING_SYNC, DISABLE_TIMING=DISABLE_TIMING)
    driver.mem_alloc = lambda size: Allocation(gpu, size)
    driver.mem_get_info = lambda: (gpu.total - gpu.used, gpu.total)
    driver.pagelocked_empty = lambda shape, dtype: np.full(shape, 99, dtype)
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = upload, download
    driver.memcpy_dtod_async, driver.memset_d32_async = copy, clear
    driver.module_from_buffer = lambda cubin: types.SimpleNamespace(get_function=lambda name: Kernel(gpu, name))
    return driver


# cuda-bindings


@dataclass(frozen=True)
class Result:
    name: str
    value: int = 0

    def __int__(self) -> int:
        return self.value


SUCCESS = Result("CUDA_SUCCESS")


def cuda_bindings(gpu: Gpu) -> types.ModuleType:
    """The graph calls of `cuda.bindings.driver`."""
    driver = new_module("cuda.bindings.driver")

    def begin(stream: int, mode: str) -> tuple[Any, ...]:
        assert mode == "thread local" and gpu.streams[stream].captured is None
        gpu.check_context()
        gpu.streams[stream].captured, gpu.streams[stream].thread = [], threading.get_ident()
        return (SUCCESS,)

    def end(stream: int) -> tuple[Any, ...]:
        captured = gpu.streams[stream]
        if gpu.failing_captures:
            gpu.failing_captures -= 1
            captured.void = captured.void or "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        works, captured.captured = captured.captured, None
        void, captured.void = captured.void, None
        if void is None:
            return SUCCESS, works
        gpu.has_stale_error = True
        return Result(void, 901), None

    def launch(works: list[Work], stream: int) -> tuple[Any, ...]:
        gpu.replays += 1
        for work in works:
            gpu.enqueue(gpu.streams[stream], work)
        return (SUCCESS,)

    driver.CUstream = int
    driver.CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    driver.cuStreamBeginCapture, driver.cuStreamEndCapture = begin, end
    driver.cuGraphInstantiate = lambda works, flags: (SUCCESS, list(works))
    driver.cuGraphLaunch = launch
    driver.cuGraphDestroy = lambda works: (SUCCESS,)
    driver.cuGraphExecDestroy = lambda works: (works.clear(), (SUCCESS,))[1]
    return driver


# TensorRT

TYPES = {"tensor(uint8)": "UINT8", "tensor(int32)": "INT32", "tensor(float)": "FLOAT", "tensor(float16)": "HALF"}
NUMPY = {"UINT8": np.uint8, "INT32": np.int32, "FLOAT": np.float32, "HALF": np.float16}


class ExecutionContext:
    """Runs the graph with onnxruntime on the memory that it was given addresses of."""

    def __init__(self, gpu: Gpu, engine: FakeEngine) -> None:
        self.gpu, self.engine = gpu, engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.scratch = 0
        self.is_warm = False
        self.loaded: Operation | None = None
        """The loading of what the first run needs."""
        self.compiled: RuntimeCache | None = None
        self.kernels, self.tables = Allocation(gpu, 64), Allocation(gpu, 64)
        gpu.append(gpu.setting_up, Work("prepare kernels", [touched(self.kernels, True)], lambda: None), [])

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH and address % 256 == 0
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return name in self.engine.inputs

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.addresses.get(name) == address:
            self.gpu.faults.append(f"the address of {name} is set though it has it")
        self.addresses[name] = address
        self.gpu.addresses_set += 1
        self.is_warm = False
        return name in self.engine.types

    def is_stream_capturable(self, stream: int) -> bool:
        return self.gpu.capturable

    def execute_async_v3(self, handle: int) -> bool:
        stream = self.gpu.streams[handle]
        if not self.scratch or set(self.addresses) != set(self.engine.types) or set(self.shapes) != self.engine.inputs:
            self.engine.log("something is not set")
            return False
        if self.gpu.has_stale_error:
            self.gpu.has_stale_error = False
            self.engine.log("CUDA runtime: an error of an earlier call")
            return False
        if self.compiled is not None and self.compiled.add(f"{self.engine.graph} {sorted(self.shapes.items())}"):
            self.gpu.compilations += 1
        if stream.captured is not None:
            is_loaded = self.loaded is not None and self.loaded.is_before(self.gpu.clock)
            if not self.gpu.capturable or not self.is_warm or not is_loaded:  # it would have to wait for what it loads
                stream.void = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
                self.engine.log("operation not permitted when stream is capturing")
                return False
        elif self.loaded is None:
            work = Work("load tables", [touched(self.tables, True)], lambda: None)
            self.loaded = self.gpu.append(self.gpu.loading, work, [])
            self.gpu.append(stream, Work("wait for tables", [], lambda: None), [self.loaded])
        self.is_warm = True
        self.gpu.executions.append(("capture " if stream.captured is not None else "") + self.engine.graph)
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        height, width = shapes["frame"][1:3]
        sizes = {"H": height, "W": width, "H/4": height // 4, "W/4": width // 4}
        accesses = [Access(self.scratch, self.scratch + SCRATCH, True)]
        accesses += [touched(memory, False) for memory in (self.engine.weights, self.kernels, self.tables)]
        for name, kind in self.engine.types.items():
            if name not in shapes:
                free = self.engine.shapes[name]
                shapes[name] = tuple(size if isinstance(size, int) else sizes[size] for size in free)
            size = int(np.prod(shapes[name])) * np.dtype(NUMPY[kind]).itemsize
            accesses.append(Access(addresses[name], addresses[name] + size, name not in self.engine.inputs))

        def run() -> None:
            def tensor(name: str) -> np.ndarray:
                kind = np.dtype(NUMPY[self.engine.types[name]])
                size = int(np.prod(shapes[name])) * kind.itemsize
                return self.gpu.view(addresses[name], size).view(kind).reshape(shapes[name])

            outputs = [name for name in self.engine.types if name not in self.engine.inputs]
            values = self.engine.session.run(outputs, {name: tensor(name).copy() for name in self.engine.inputs})
            for name, value in zip(outputs, values, strict=True):
                tensor(name)[...] = value

        self.gpu.enqueue(stream, Work(self.engine.graph, accesses, run))
        return True


def touched(memory: Allocation, writes: bool) -> Access:
    return Access(memory.address, memory.address + 64, writes)


class OldExecutionContext(ExecutionContext):
    """As in TensorRT 8.6."""

    set_device_memory = None  # type: ignore[assignment]
    is_stream_capturable = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name in ("set_device_memory", "is_stream_capturable"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("scratch" if name == "device_memory" else name, value)


@functools.cache
def open_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class FakeEngine:
    """A deserialised engine."""

    def __init__(self, gpu: Gpu, content: bytes, log: Callable[[str], None]) -> None:
        self.gpu, self.log = gpu, log
        self.session = open_session(content)
        self.graph = self.session.get_modelmeta().custom_metadata_map["mtu.graph"]
        nodes = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.inputs = {node.name for node in self.session.get_inputs()}
        self.types = {node.name: TYPES[node.type] for node in nodes}
        self.shapes = {node.name: node.shape for node in nodes}
        self.num_io_tensors = len(nodes)
        self.weights = Allocation(gpu, 64)
        gpu.append(gpu.setting_up, Work("load weights", [touched(self.weights, True)], lambda: None), [])

    def get_tensor_name(self, number: int) -> str:
        return list(self.types)[number]

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=self.types[name])


class NewEngine(FakeEngine):
    """Of TensorRT 10 and later."""

    device_memory_size_v2 = SCRATCH

    def create_execution_context(self, strategy: Any) -> ExecutionContext:
        assert strategy == "user managed"
        return ExecutionContext(self.gpu, self)


class OldEngine(FakeEngine):
    """Of TensorRT 8.6."""

    device_memory_size = SCRATCH

    def create_execution_context_without_device_memory(self) -> ExecutionContext:
        return OldExecutionContext(self.gpu, self)


class RtxEngine(NewEngine):
    """Of TensorRT-RTX."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.gpu)

    def create_execution_context(self, config: Any) -> ExecutionContext:
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        context = super().create_execution_context(config.strategy)
        context.compiled = config.cache
        return context


ENGINES = {"tensorrt": NewEngine, "tensorrt-8": OldEngine, "tensorrt-rtx": RtxEngine}


class RuntimeCache:
    """TensorRT-RTX's: what it has compiled."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.kernels: set[str] = set()

    def add(self, kernel: str) -> bool:
        """Whether it was not there yet."""
        is_new = kernel not in self.kernels
        self.kernels.add(kernel)
        return is_new

    def serialize(self) -> bytes:
        return "\n".join(["cache", *sorted(self.kernels)]).encode()

    def deserialize(self, content: bytes) -> bool:
        self.gpu.check_context()
        magic, *kernels = content.decode().split("\n")
        if magic == "cache":
            self.kernels |= set(kernels)
        return magic == "cache"


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


def tensorrt(gpu: Gpu) -> types.ModuleType:
    """The part of `tensorrt` or `tensorrt_rtx` that the backend uses, as the flavour has it."""
    name = "tensorrt_rtx" if gpu.flavour == "tensorrt-rtx" else "tensorrt"
    module = new_module(name)
    module.__version__ = VERSIONS[gpu.flavour]  # type: ignore[attr-defined]

    class Logger:
        pass

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def log(self, text: str) -> None:
            self.logger.log(types.SimpleNamespace(name="ERROR"), text)

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            gpu.check_context()
            if not content.startswith(MAGIC):
                self.log("Serialization assertion magicTagRead == kMAGIC_TAG failed")
                return None
            if not gpu.registered:
                self.log("Cannot find plugin: CorrelationArgmaxWarp, version: 1, namespace: mtu")
                return None
            return ENGINES[gpu.flavour](gpu, content[len(MAGIC) :], self.log)

    module.ILogger, module.Runtime = Logger, Runtime  # type: ignore[attr-defined]
    if gpu.flavour != "tensorrt-8":
        module.ExecutionContextAllocationStrategy = types.SimpleNamespace(  # type: ignore[attr-defined]
            USER_MANAGED="user managed"
        )
    if gpu.flavour == "tensorrt-rtx":
        module.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(  # type: ignore[attr-defined]
            EAGER="eager"
        )
    return module


# Installing it all


def new_module(name: str) -> Any:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


class Libcuda:
    """What `mtu.runtime.gpu` asks libcuda for."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0 if index == 0 else 101

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = NAME.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: CAPABILITY[0], 76: CAPABILITY[1]}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 1 << 30
        return 0

    def cuDriverGetVersion(self, value: Any) -> int:
        value._obj.value = 13000
        return 0


def install(patch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Makes this process believe that it has `gpu` and the library of its flavour."""
    pycuda, cuda, bindings = new_module("pycuda"), new_module("cuda"), new_module("cuda.bindings")
    pycuda.driver, bindings.driver = pycuda_driver(gpu), cuda_bindings(gpu)
    cuda.bindings, cuda.core = bindings, new_module("cuda.core")
    plugin = new_module("mtu.plugins.correlation_argmax_warp.trt_plugin")

    def register(library: Any) -> None:
        gpu.registered = True

    plugin.register = register
    patch.setattr(cuda_op, "compiled", lambda source, arch: b"cubin")
    library = tensorrt(gpu)
    for module in (pycuda, pycuda.driver, cuda, bindings, bindings.driver, cuda.core, plugin, library):
        patch.setitem(sys.modules, module.__name__, module)
    patch.setattr(gpu_module, "driver_library", Libcuda)
    uninstall()


def uninstall() -> None:
    """Forgets what was imported or found out with a GPU that is no longer there, or not yet."""
    for name in ("cuda_device", "tensorrt_backend"):
        sys.modules.pop(f"mtu.runtime.backends.{name}", None)
        if hasattr(backends, name):
            delattr(backends, name)
    gpu_module.find_gpu.cache_clear()
    tensorrt_library.load_library.cache_clear()


def write_engine(bundle: Bundle, directory: Path, profile: Profile, **changes: Any) -> Engine:
    """The directory that mtu-build-engine would write for the fake library."""
    directory.mkdir(parents=True)
    engines = {}
    for graph in GRAPHS:
        path = directory / f"{graph}.engine"
        path.write_bytes(MAGIC + bundle.graph(graph).read_bytes())
        engines[graph] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = EngineManifest(
        interface=OrtBackend(bundle, "cpu").interface,
        library="tensorrt",
        library_version=VERSIONS["tensorrt"],
        precision="fp32",
        plugin=True,
        plugin_revision=1,
        gpu=NAME,
        compute_capabilities=(".".join(map(str, CAPABILITY)),),
        hardware_compatibility="none",
        version_compatible=False,
        profile=profile,
        onnx={graph: file_digest(bundle.graph(graph)) for graph in GRAPHS},
        engines=engines,
        device_memory={"first": SCRATCH, "step": SCRATCH},
        command=f"mtu-build-engine BUNDLE -o {directory}",
        release="0",
    )
    (directory / "engine.json").write_text(replace(manifest, **changes).to_json())
    return open_engine(directory)
