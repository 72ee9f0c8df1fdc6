"""The device of `fake_cuda`: memory, streams, events, and the order of what is put on them. Nothing here is a test."""

from __future__ import annotations

import gc
import importlib.machinery
import random
import threading
import types
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
    """What the host made the library enqueue, by name of the graph: "first", "step", "capture step"."""
    replays: int = 0
    uploads: int = 0
    freed_outside: int = 0
    """Allocations freed without a context: in another thread, pycuda could not."""
    registered: set[str] = field(default_factory=set)
    """The ops whose plugins the library knows."""
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


def new_module(name: str) -> Any:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module
