"""Finds values that are not finite in a step's states, on the device. Imports pycuda through `cuda_device`.

Note [non-finite values]
    A kernel at the end of each step looks at the exponent of every value of every state, and sets a flag for each state
    that has an infinity or a NaN. The flags go down with the picture. It reads the states once (59 MB at 1280x720, 26
    channels, fp16) and is part of the graph.
"""

from __future__ import annotations

from typing import Any

from mtu.plugins.nvrtc import compiled
from mtu.runtime.backends.cuda_device import Device, load_kernel

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
THREADS, BLOCKS = 256, 1024


class NonFiniteCheck:
    """The kernel, loaded on one device; made with it current, and freed so."""

    def __init__(self, device: Device) -> None:
        arch = f"sm_{device.compute_capability.replace('.', '')}"
        self._kernel = load_kernel(compiled(GUARD, arch), "non_finite", "PQIIP")

    def enqueue(self, memory: Any, size: int, dtype: str, flag: int, stream: Any) -> None:
        """Sets the int32 at address `flag` to 1 if one of the values in `size` bytes is not finite.

        `size` is a multiple of PIECE, `dtype` a key of EXPONENTS.
        """
        count = size // PIECE
        self._kernel.prepared_async_call(
            (min(BLOCKS, -(-count // THREADS)), 1), (THREADS, 1, 1), stream, int(memory), count, *EXPONENTS[dtype], flag
        )
