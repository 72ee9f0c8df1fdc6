"""The part of pycuda and of cuda-bindings that `cuda_device` uses, over a `fake_device`. Nothing here is a test."""

from __future__ import annotations

import threading
import types
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fake_device import (
    BLOCKING_SYNC,
    DISABLE_TIMING,
    Access,
    Allocation,
    CudaError,
    CudaMemoryError,
    Event,
    Gpu,
    Kernel,
    LogicError,
    OurStream,
    Stream,
    Work,
    address_of,
    new_module,
)

NAME, CAPABILITY = "Fake GPU", (9, 0)


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

    def pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = np.full(shape, 99, dtype)
        if not array.size:
            raise LogicError("cuMemHostAlloc failed: invalid argument")
        return array

    driver.init = lambda: None
    driver.Error, driver.LogicError, driver.MemoryError = CudaError, LogicError, CudaMemoryError
    driver.Context, driver.Device = Context, Device
    driver.Stream = lambda flags=0: OurStream(gpu, flags)
    driver.Event = lambda flags=0: Event(gpu, flags)
    driver.event_flags = types.SimpleNamespace(BLOCKING_SYNC=BLOCKING_SYNC, DISABLE_TIMING=DISABLE_TIMING)
    driver.mem_alloc = lambda size: Allocation(gpu, size)
    driver.mem_get_info = lambda: (gpu.total - gpu.used, gpu.total)
    driver.pagelocked_empty = pinned
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
