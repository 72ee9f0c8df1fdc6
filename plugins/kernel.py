"""The CUDA kernels of an op for Python: what its folder says of them, and what starts them.

Imports cuda.bindings late. Pointers and streams are plain integers, so that TensorRT, torch and pycuda can all call it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtu.core.errors import InvalidInputError
from mtu.plugins import nvrtc
from mtu.plugins.nvrtc import Launch
from mtu.plugins.op import Op

ElementType = Literal["float32", "float16"]
Layout = Literal["linear", "hwc8"]
"""[N, C, H, W]; for float16, [N, H, W, C rounded up to 8]."""
CUDA_TYPES: Mapping[str, str] = {"float16": "mtu::Half", "float32": "float"}
POINTER, INT = ctypes.c_void_p, ctypes.c_int


def divide_up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def refuse(op: Op, reason: str, got: str) -> InvalidInputError:
    """What to raise for a problem that the kernel cannot do."""
    return InvalidInputError(
        f"the CUDA kernel of {op.name} cannot do this: {reason}; got {got}; use --no-plugin: it builds the op from"
        " standard layers"
    )


@dataclass(frozen=True)
class Kernel:
    """The kernels of an op. A `problem` is one call of it, a frozen dataclass of the op's folder."""

    source: Path
    names: tuple[str, ...]
    """Of the kernels in `source`."""
    defines: Callable[[Any], dict[str, str]]
    """The macros that make `source` the kernels of a problem."""
    launches: Callable[[Any, Sequence[int], int], Sequence[Launch]]
    """What to start, in order, for a problem, the pointers (inputs, outputs, workspace), so many multiprocessors."""
    problem_of: Callable[..., Any]
    """`f(attributes, shapes, types, layouts)`; raises InvalidInputError for what the kernel cannot do."""
    workspace_bytes: Callable[[Any], int] = lambda problem: 0
    """Bytes of device memory that a launch needs beside its arguments, aligned to 16 bytes, uninitialised."""

    def text(self) -> str:
        """`source` with its headers."""
        return nvrtc.read_source(self.source)


class Launcher:
    """Starts an op on one device, whose primary context must be current in the calling thread."""

    def __init__(self, kernel: Kernel, device: int) -> None:
        self._kernel = kernel
        self._device = nvrtc.Device(device)
        self._loaded: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def prepare(self, problem: Any) -> None:
        """Compiles and loads the kernels of a problem; quick when they are. To be called before a capture."""
        self._functions(problem)

    def _functions(self, problem: Any) -> dict[str, Any]:
        macros = self._kernel.defines(problem)
        key = tuple(macros.items())
        if key not in self._loaded:
            self._loaded[key] = self._device.load(self._kernel.text(), macros, self._kernel.names)
        return self._loaded[key]

    def launch(self, problem: Any, pointers: Sequence[int], stream: int, count: int | None = None) -> None:
        """Enqueues the op: asynchronous launches on `stream`, nothing else, so it can be captured into a graph.

        Device pointers of the inputs, the outputs and the workspace, aligned to their element. Pad channels of "hwc8"
        are not read, and written as zeros. `count`: only so many of its launches. Raises RuntimeError if CUDA refuses.
        """
        functions = self._functions(problem)
        for launch in self._kernel.launches(problem, pointers, self._device.multiprocessors)[:count]:
            nvrtc.start(functions, launch, stream)


@functools.cache
def launcher(kernel: Kernel, device: int) -> Launcher:
    """The launcher of an op on a device, one for the process."""
    return Launcher(kernel, device)
