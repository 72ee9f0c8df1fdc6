"""Finds values that are not finite in states and maps, on the device. Imports pycuda through `cuda_device`.

Note [non-finite values]
    A kernel at the end of each frame looks at the exponent of every value of every state and map, and sets a flag for
    each that has an infinity or a NaN. The flags go down with the results. It reads the states once (59 MB for mtu2 at
    1280x720 in fp16) and is part of the CUDA graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtu.plugins.nvrtc import compiled, read_source
from mtu.runtime.backends.cuda_device import Device, load_kernel

SOURCE = Path(__file__).with_name("tensorrt_finite.cu")
EXPONENTS = {"float32": (0x7F800000, 0x7F800000), "float16": (0x00007C00, 0x7C000000)}
PIECE = 16
"""The kernel reads tensors in pieces of so many bytes; their buffers are a multiple of it, the rest of them zero."""
THREADS, BLOCKS = 256, 1024


class NonFiniteCheck:
    """The kernel, loaded on one device; made with it current, and freed so."""

    def __init__(self, device: Device) -> None:
        arch = f"sm_{device.compute_capability.replace('.', '')}"
        self._kernel = load_kernel(compiled(read_source(SOURCE), arch), "non_finite", "PQIIP")

    def enqueue(self, memory: Any, size: int, dtype: str, flag: int, stream: Any) -> None:
        """Sets the int32 at address `flag` to 1 if one of the values in `size` bytes is not finite.

        `size` is a multiple of PIECE, `dtype` a key of EXPONENTS.
        """
        count = size // PIECE
        self._kernel.prepared_async_call(
            (min(BLOCKS, -(-count // THREADS)), 1), (THREADS, 1, 1), stream, int(memory), count, *EXPONENTS[dtype], flag
        )
