"""A GPU as the TensorRT backends use it: a thin layer over pycuda. Imports pycuda; cuda-bindings for graphs alone.

pycuda owns the memory, the streams and the events. It has no graphs, which come from cuda-bindings, and takes the
streams of pycuda by their address.

Note [primary context]
    TensorRT and the CUDA runtime work in the device's primary context, so pycuda has to as well: addresses and streams
    of one context are not valid in another (`pycuda.autoinit` makes another). Every call of this module needs it
    current in the calling thread: `with device:`. It is taken off again each time, because pycuda ends the process if
    a context is still on its stack at exit, and because several threads may use a backend in turn. Memory has to be
    freed with the context current too: pycuda leaks it, with a warning, in another thread than the one that opened the
    device. The context itself is kept to the end of the process. It is given up before Python takes pycuda apart, and
    whatever still works in it is closed before that.

Note [failed captures]
    A capture is void after a single call that is not allowed in it, in the thread that captures: memory freed by the
    garbage collector is enough, which is therefore off meanwhile. The stream is as it was once the capture has been
    ended. The driver keeps no error, but the CUDA runtime inside TensorRT does, and fails the next call with it; it is
    linked into the library, where nobody else can take the error away. So a failed capture is followed at once by a
    call whose answer counts for nothing. No other call is made twice: what fails there is real.
"""

from __future__ import annotations

import atexit
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.runtime.gpu import driver_library

driver_library()  # pycuda may need it loaded
try:
    import pycuda.driver as driver
except ImportError as error:  # the package is there: `open_backend` has looked
    raise InvalidInputError(
        f"pycuda cannot be loaded ({error}): it needs the NVIDIA driver (libcuda.so.1) and the CUDA it was built with;"
        ' mtu-doctor says which is missing; pip install --force-reinstall --no-binary pycuda "mtu-trt[gpu]" builds it'
        " again"
    ) from None

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for what anybody puts on the legacy default stream."""


class CaptureError(Exception):
    """The work put on a stream cannot become a graph."""


class Closes(Protocol):
    """What works in a device's context."""

    def close(self) -> None:
        """Frees everything that it has on the device; may be called again."""
        ...


class Device:
    """One GPU; a context manager that makes it current in the calling thread. See Note [primary context].

    To be had from `open_device`.
    """

    def __init__(self, index: int) -> None:
        try:
            driver.init()
            count = driver.Device.count()
        except driver.Error as error:
            raise InvalidInputError(
                f"no NVIDIA GPU answers ({error}): check the driver with nvidia-smi, or use --backend onnxruntime"
            ) from None
        if index >= count:
            there = "there is none" if count == 0 else f"there {'is' if count == 1 else 'are'} {count}, from cuda:0"
            raise InvalidInputError(f"--device cuda:{index}: no such NVIDIA GPU, {there}")
        device = driver.Device(index)
        self.index = index
        self.name: str = device.name()
        self.compute_capability = ".".join(map(str, device.compute_capability()))
        self.is_open = True
        """False when the process ends: nothing can be freed any more."""
        self.alone = threading.RLock()
        """Held by who captures, and by who waits for the device or has the library do so: CUDA allows no thread to wait
        for a device while a stream of it is captured."""
        self._context = device.retain_primary_context()
        self._users: weakref.WeakSet[Closes] = weakref.WeakSet()
        atexit.register(self._give_up)

    def outlives(self, user: Closes) -> None:
        """`user` is closed at the end of the process, if it is still there, before the context is given up."""
        self._users.add(user)

    def _give_up(self) -> None:
        for user in list(self._users):
            user.close()
        self.is_open = False
        self._context.detach()

    def __enter__(self) -> Device:
        self._context.push()
        return self

    def __exit__(self, *_: object) -> None:
        driver.Context.pop()

    def free_memory(self) -> int:
        """Bytes of device memory that nobody holds now."""
        return int(driver.mem_get_info()[0])

    def synchronize(self) -> None:
        """Waits for everything on this device."""
        with self.alone:
            driver.Context.synchronize()

    def memory(self, size: int) -> Any:
        """`size` bytes of device memory, aligned to 256; `int()` of it is the address, and it is freed with its last
        reference. Raises InvalidInputError if there is not enough."""
        try:
            return driver.mem_alloc(max(size, 1))
        except driver.MemoryError:
            raise self.out_of_memory(size, driver.mem_get_info()[0]) from None

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array in host memory that the device reads and writes by itself."""
        try:
            pinned: NDArray[Any] = driver.pagelocked_empty(shape, np.dtype(dtype))
        except driver.MemoryError:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise InvalidInputError(
                f"the host has no {size / 2**20:.0f} MiB of memory left that the GPU could read: use smaller frames, or"
                " raise the limit of locked memory (ulimit -l)"
            ) from None
        return pinned

    def out_of_memory(self, needed: int, free: int) -> InvalidInputError:
        """The error for `needed` bytes of device memory where `free` are left."""
        return InvalidInputError(
            f"not enough memory on {self.name}: {needed / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free;"
            " end other programs on it, use smaller frames or tiles (mtu-run --tile WIDTHxHEIGHT), or an fp16 engine"
        )


@functools.cache
def open_device(index: int) -> Device:
    """The GPU with this number, one object for the process. Raises InvalidInputError if there is none."""
    return Device(index)


def new_stream() -> Any:
    """A stream of its own; `.handle` is its address."""
    return driver.Stream(NON_BLOCKING)


def new_event() -> Any:
    """An event that measures no time. Before its first record, everything that waits for it goes on at once. A thread
    of the host that waits for it sleeps; without the flag it would keep a core busy."""
    return driver.Event(driver.event_flags.DISABLE_TIMING | driver.event_flags.BLOCKING_SYNC)


def upload(target: Any, source: NDArray[Any], stream: Any) -> None:
    """Copies a pinned array to device memory."""
    driver.memcpy_htod_async(target, source, stream)


def download(target: NDArray[Any], source: Any, stream: Any) -> None:
    """Copies device memory to a pinned array."""
    driver.memcpy_dtoh_async(target, source, stream)


def copy(target: Any, source: Any, size: int, stream: Any) -> None:
    """Copies `size` bytes on the device."""
    driver.memcpy_dtod_async(target, source, size, stream)


def clear(target: Any, words: int, stream: Any) -> None:
    """Zeroes `words` times four bytes on the device."""
    driver.memset_d32_async(target, 0, words, stream)


def load_kernel(cubin: bytes, name: str, arguments: str) -> Any:
    """A kernel of a compiled module. `arguments` are their types as in `struct`: P pointer, Q 64 bits, I 32 bits."""
    kernel = driver.module_from_buffer(cubin).get_function(name)
    kernel.prepare(arguments)
    return kernel


class Graph:
    """Work that was put on a stream once and can be put there again by one call."""

    def __init__(self, stream: Any, work: Callable[[], None]) -> None:
        """Captures what `work` puts on `stream`, without running it. Raises CaptureError if that is impossible.

        Other threads may allocate and copy meanwhile; this one must not. See Note [failed captures].
        """
        from cuda.bindings import driver as bindings

        self._bindings = bindings
        collects = gc.isenabled()
        gc.disable()
        try:
            graph = self._captured(bindings.CUstream(stream.handle), work)
        finally:
            if collects:
                gc.enable()
        try:
            self._executable = self._checked("cuGraphInstantiate", bindings.cuGraphInstantiate(graph, 0))
        finally:
            bindings.cuGraphDestroy(graph)

    def _captured(self, handle: Any, work: Callable[[], None]) -> Any:
        bindings = self._bindings
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._checked("cuStreamBeginCapture", bindings.cuStreamBeginCapture(handle, mode))
        try:
            work()
        except BaseException as error:  # an interrupt too: capture has to end, or the stream can never be used again
            code, graph = bindings.cuStreamEndCapture(handle)
            if int(code) == 0:
                bindings.cuGraphDestroy(graph)
            if not isinstance(error, Exception):
                raise
            raise CaptureError(str(error)) from error
        return self._checked("cuStreamEndCapture", bindings.cuStreamEndCapture(handle))

    def _checked(self, call: str, answer: tuple[Any, ...]) -> Any:
        if int(answer[0]) != 0:
            raise CaptureError(f"{call} answered {answer[0].name}")
        return answer[1] if len(answer) > 1 else None

    def launch(self, stream: Any) -> None:
        """Puts the work on `stream`."""
        (code,) = self._bindings.cuGraphLaunch(self._executable, self._bindings.CUstream(stream.handle))
        if int(code) != 0:
            raise RuntimeError(f"cuGraphLaunch answered {code.name}")

    def free(self) -> None:
        """The graph cannot be launched any more; what is under way is finished."""
        self._bindings.cuGraphExecDestroy(self._executable)
