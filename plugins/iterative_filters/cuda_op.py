"""The op on the GPU for Python: what the kernels can do, what is to be started. Needs no GPU.

The counterpart of cuda/launch.cu; both start cuda/kernel.cu, and a test holds them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtu.plugins.iterative_filters import OP
from mtu.plugins.kernel import CUDA_TYPES, INT, POINTER, ElementType, Kernel, Layout, divide_up, refuse
from mtu.plugins.nvrtc import Launch

# As in cuda/planes.cuh and cuda/pixels.cuh.
PLANE_THREADS = 128
PIXEL_THREADS = 256
PIXELS_WRITTEN = 30
CHANNELS_OF_BLOCK = 64


@dataclass(frozen=True)
class Problem:
    """One call of the op: sizes of `x` [batch, channels, height, width], the attribute; type and layout of all tensors.

    Raises InvalidInputError for what the kernel cannot do.
    """

    batch: int
    channels: int
    height: int
    width: int
    shared_taps: int = 1
    type: ElementType = "float16"
    layout: Layout = "linear"

    def __post_init__(self) -> None:
        reason = self._refusal()
        if reason is not None:
            x = [self.batch, self.channels, self.height, self.width]
            raise refuse(OP, reason, f"x {x}, shared_taps {self.shared_taps}")

    def _refusal(self) -> str | None:
        """The counterpart of `check` in launch.cu."""
        if min(self.batch, self.channels, self.height, self.width) < 1:
            return "batch, channels, height and width must be at least 1"
        for name, limit in OP.limits.items():
            if not limit.allows(getattr(self, name)):
                return limit.refusal
        if self.layout == "hwc8" and self.type != "float16":
            return "the layout HWC8 is for half only"
        if self.height * self.width > 2**31 - 1 or self.width > 2**24 - 1:
            return "x must have at most 2147483647 positions, 16777215 in a row"
        return None


def problem_of(
    attributes: Mapping[str, int],
    shapes: Sequence[Sequence[int]],
    types: Sequence[ElementType],
    layouts: Sequence[Layout] = ("linear", "linear"),
) -> Problem:
    """The problem of a node, by its inputs; raises InvalidInputError for what the kernel cannot do.

    Sizes may be bounds, which need not fit each other.
    """
    batch, channels, height, width = shapes[0]
    return Problem(batch, channels, height, width, type=types[0], layout=layouts[0], **attributes)


def launches(problem: Problem, pointers: Sequence[int], multiprocessors: int) -> tuple[Launch]:
    """What to start for one call. The pointers are those of x, filters and filtered; a workspace is not needed."""
    p, tensors, pixels = problem, pointers[:3], problem.layout == "hwc8"
    vector = 8 if p.type == "float16" else 4
    vectors = (p.channels if pixels else p.width) % vector == 0 and not any(pointer % 16 for pointer in tensors)
    if pixels:
        blocks = divide_up(p.width, PIXELS_WRITTEN) * divide_up(p.channels, CHANNELS_OF_BLOCK)
        name, grid, threads = "mtu_pixels", (blocks, p.height, p.batch), PIXEL_THREADS
    else:
        blocks = divide_up(p.height * p.width // (vector if vectors else 1), PLANE_THREADS)
        name, grid, threads = "mtu_planes", (blocks, p.channels, p.batch), PLANE_THREADS
    arguments = (*tensors, p.channels, p.height, p.width, int(vectors))
    return (Launch(name, grid, threads, arguments, (POINTER,) * 3 + (INT,) * 4),)


def defines(problem: Problem) -> dict[str, str]:
    """The macros that make kernel.cu the kernels of one problem."""
    return {"MTU_SHARED_TAPS": str(bool(problem.shared_taps)).lower(), "MTU_TYPE": CUDA_TYPES[problem.type]}


KERNEL = Kernel(
    source=Path(__file__).parent / "cuda" / "kernel.cu",
    names=("mtu_planes", "mtu_pixels"),
    defines=defines,
    launches=launches,
    problem_of=problem_of,
)
