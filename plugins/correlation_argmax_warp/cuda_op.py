"""The op on the GPU for Python: what the kernels can do, what is to be started. Needs no GPU.

The counterpart of cuda/launch.cu; both start cuda/kernel.cu, and a test holds them together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.kernel import CUDA_TYPES, INT, POINTER, ElementType, Kernel, Layout, divide_up, refuse
from mtu.plugins.nvrtc import Launch

# As in cuda/common.cuh and cuda/launch.cu.
WARPS = 6
MATCH_THREADS = WARPS * 32
PREPARE_THREADS = 256
CHUNK_BYTES = 32
POSITIONS = 32
WINDOW = 24
STRIP = 4
MIN_ROWS, MAX_ROWS = 4, 32


@dataclass(frozen=True)
class Problem:
    """One call of the op: sizes of `motion` [batch, motion_channels, height, width], of detail, attributes, layouts.

    detail_prev and warped are [batch, detail_channels, scale*height, scale*width]. Raises InvalidInputError for what
    the kernel cannot do.
    """

    batch: int
    motion_channels: int
    height: int
    width: int
    detail_channels: int
    max_displacement: int = 10
    pool_size: int = 5
    scale: int = 4
    motion_type: ElementType = "float16"
    detail_type: ElementType = "float16"
    motion_layout: Layout = "linear"
    detail_layout: Layout = "linear"

    def __post_init__(self) -> None:
        reason = self._refusal()
        if reason is not None:
            motion = [self.batch, self.motion_channels, self.height, self.width]
            got = f"motion {motion}, max_displacement {self.max_displacement}, pool_size {self.pool_size}"
            raise refuse(OP, reason, f"{got}, scale {self.scale}")

    def _refusal(self) -> str | None:
        """The counterpart of `check` in launch.cu."""
        if min(self.batch, self.motion_channels, self.height, self.width, self.detail_channels) < 1:
            return "batch, channels, height and width must be at least 1"
        for name, limit in OP.limits.items():
            if not limit.allows(getattr(self, name)):
                return limit.refusal
        if (self.motion_layout == "hwc8" and self.motion_type != "float16") or (
            self.detail_layout == "hwc8" and self.detail_type != "float16"
        ):
            return "the layout HWC8 is for half only"
        if self.height * self.width > 2**31 - 1 or self.width > 2**24 - 1:
            return "motion must have at most 2147483647 positions, 16777215 in a row"
        if self.height > 65535 or 2 * self.batch > 65535 or self.batch * _plan(self).groups > 65535:
            return "height and batch exceed what a launch can have"
        return None


def problem_of(
    attributes: Mapping[str, int],
    shapes: Sequence[Sequence[int]],
    types: Sequence[ElementType],
    layouts: Sequence[Layout] = ("linear", "linear", "linear"),
) -> Problem:
    """The problem of a node, by its inputs; raises InvalidInputError for what the kernel cannot do.

    Sizes may be bounds, which need not fit each other.
    """
    motion, _, detail = shapes
    return Problem(
        batch=motion[0],
        motion_channels=motion[1],
        height=motion[2],
        width=motion[3],
        detail_channels=detail[1],
        motion_type=types[0],
        detail_type=types[2],
        motion_layout=layouts[0],
        detail_layout=layouts[2],
        **attributes,
    )


class _Plan(NamedTuple):
    chunks: int
    """Parts of 32 bytes that the channels of a position take."""
    columns: int
    """Blocks of `match` side by side."""
    outputs: int
    """Positions of a row that such a block has."""
    groups: int
    """Blocks that share the displacements of the same positions."""
    pitch: int
    """Positions of a row of motion_prev with what is beside the map."""
    sizes: tuple[int, ...]
    """Bytes of the four parts of the workspace."""


@functools.lru_cache(maxsize=64)
def _plan(problem: Problem) -> _Plan:
    p = problem
    span, lines = 2 * p.max_displacement + 1, p.batch * p.height
    windows = divide_up(span, WINDOW)
    outputs = (POSITIONS + 1 - p.pool_size) // STRIP * STRIP
    chunks = divide_up(p.motion_channels, CHUNK_BYTES // (2 if p.motion_type == "float16" else 4))
    columns = divide_up(p.width, outputs)
    pitch = (columns - 1) * outputs + windows * WINDOW + POSITIONS
    sizes = (
        lines * columns * POSITIONS * (chunks * CHUNK_BYTES + 4),
        lines * divide_up(pitch * (chunks * CHUNK_BYTES + 8), 128) * 128,
        lines * p.width * 8,
        p.batch * columns * divide_up(p.height, MIN_ROWS) * 4,
    )
    groups = divide_up(span * windows, WARPS)
    return _Plan(chunks, columns, outputs, groups, pitch, tuple(divide_up(size, 256) * 256 for size in sizes))


def workspace_bytes(problem: Problem) -> int:
    """See `Kernel`."""
    return sum(_plan(problem).sizes)


@functools.lru_cache(maxsize=64)
def rows_per_block(problem: Problem, multiprocessors: int) -> int:
    """Rows of the map for each block of `match`: enough blocks to fill the GPU, few rows done twice."""
    plan, at_once = _plan(problem), multiprocessors * (1 if problem.pool_size > 5 else 2)

    def cost(rows: int) -> int:
        blocks = plan.columns * divide_up(problem.height, rows) * problem.batch * plan.groups
        return divide_up(blocks, at_once) * (min(rows, problem.height) + problem.pool_size - 1)

    return min(range(MAX_ROWS, MIN_ROWS - 1, -1), key=cost)


def launches(problem: Problem, pointers: Sequence[int], multiprocessors: int) -> tuple[Launch, Launch]:
    """What to start for one call, in order. The pointers are those of motion, motion_prev, detail_prev, warped,
    displacement (int32 [batch, height, width]) and a workspace of `workspace_bytes(problem)`.
    """
    motion, motion_prev, detail_prev, warped, displacement, workspace = pointers
    p, plan = problem, _plan(problem)
    rows = rows_per_block(p, multiprocessors)
    down = divide_up(p.height, rows)
    parts = [workspace + sum(plan.sizes[:i]) for i in range(len(plan.sizes))]
    prepare = Launch(
        "mtu_prepare",
        (max(plan.columns, divide_up(plan.pitch, POSITIONS)), p.height, 2 * p.batch),
        PREPARE_THREADS,
        (
            *(motion, motion_prev, *parts),
            *(p.batch * plan.columns * down, p.batch, p.motion_channels, p.height, p.width),
            *(plan.columns, plan.outputs, p.pool_size // 2, p.max_displacement, plan.pitch),
            int(p.motion_layout == "hwc8"),
        ),
        (POINTER,) * 6 + (INT,) * 11,
    )
    match = Launch(
        "mtu_match",
        (plan.columns, down, p.batch * plan.groups),
        MATCH_THREADS,
        (
            *(*parts, detail_prev, warped, displacement),
            *(plan.chunks, p.height, p.width, plan.pitch, p.max_displacement, rows, plan.groups),
            *(p.detail_channels, p.scale, 2 if p.detail_type == "float16" else 4, int(p.detail_layout == "hwc8")),
        ),
        (POINTER,) * 7 + (INT,) * 11,
    )
    return prepare, match


def defines(problem: Problem) -> dict[str, str]:
    """The macros that make kernel.cu the kernels of one problem."""
    return {"MTU_POOL": str(problem.pool_size), "MTU_TYPE": CUDA_TYPES[problem.motion_type]}


KERNEL = Kernel(
    source=Path(__file__).parent / "cuda" / "kernel.cu",
    names=("mtu_prepare", "mtu_match"),
    defines=defines,
    launches=launches,
    problem_of=problem_of,
    workspace_bytes=workspace_bytes,
)
