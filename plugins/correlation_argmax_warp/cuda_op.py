"""The CUDA kernel for Python: compiled by NVRTC, launched through the driver. Imports cuda.core and cuda.bindings late.

The counterpart of cuda/launch.cu; both start cuda/kernel.cu, and a test holds them together. There is no need for nvcc,
a header or a C++ compiler. Pointers and streams are plain integers, so that TensorRT, torch and pycuda can all call it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.core.files import write_whole
from mtu.core.interface import OP_NAME

# As in cuda/kernel.cu and cuda/launch.cu.
WARPS = 6
MATCH_THREADS = WARPS * 32
PREPARE_THREADS = 256
CHUNK_BYTES = 32
POSITIONS = 32
WINDOW = 24
STRIP = 4
MIN_ROWS, MAX_ROWS = 4, 32
POOL_SIZES = (1, 3, 5, 7)

ElementType = Literal["float32", "float16"]
Layout = Literal["linear", "hwc8"]


@dataclass(frozen=True)
class Problem:
    """One call of the op: sizes of `motion` [batch, motion_channels, height, width], of detail, attributes, layouts.

    detail_prev and warped are [batch, detail_channels, scale*height, scale*width]. Layout "linear" is [N, C, H, W];
    "hwc8", for float16, is [N, H, W, C rounded up to 8]. Raises InvalidInputError for what the kernel cannot do.
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
            raise InvalidInputError(
                f"the CUDA kernel of {OP_NAME} cannot do this: {reason}; got motion {motion}, max_displacement"
                f" {self.max_displacement}, pool_size {self.pool_size}, scale {self.scale}; use --no-plugin: it builds"
                " the op from standard layers"
            )

    def _refusal(self) -> str | None:
        """The counterpart of `check` in launch.cu."""
        if min(self.batch, self.motion_channels, self.height, self.width, self.detail_channels) < 1:
            return "batch, channels, height and width must be at least 1"
        if not 1 <= self.max_displacement <= 20:
            return "max_displacement must be from 1 to 20"
        if self.pool_size not in POOL_SIZES:
            return "pool_size must be 1, 3, 5 or 7"
        if not 1 <= self.scale <= 64:
            return "scale must be from 1 to 64"
        if self.motion_channels > 128:
            return "motion must have at most 128 channels"
        if (self.motion_layout == "hwc8" and self.motion_type != "float16") or (
            self.detail_layout == "hwc8" and self.detail_type != "float16"
        ):
            return "the layout HWC8 is for half only"
        if self.height * self.width > 2**31 - 1 or self.width > 2**24 - 1:
            return "motion must have at most 2147483647 positions, 16777215 in a row"
        if self.height > 65535 or 2 * self.batch > 65535 or self.batch * _plan(self).groups > 65535:
            return "height and batch exceed what a launch can have"
        return None


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


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


@functools.lru_cache(maxsize=64)
def _plan(problem: Problem) -> _Plan:
    p = problem
    span, lines = 2 * p.max_displacement + 1, p.batch * p.height
    windows = _divide_up(span, WINDOW)
    outputs = (POSITIONS + 1 - p.pool_size) // STRIP * STRIP
    chunks = _divide_up(p.motion_channels, CHUNK_BYTES // (2 if p.motion_type == "float16" else 4))
    columns = _divide_up(p.width, outputs)
    pitch = (columns - 1) * outputs + windows * WINDOW + POSITIONS
    sizes = (
        lines * columns * POSITIONS * (chunks * CHUNK_BYTES + 4),
        lines * _divide_up(pitch * (chunks * CHUNK_BYTES + 8), 128) * 128,
        lines * p.width * 8,
        p.batch * columns * _divide_up(p.height, MIN_ROWS) * 4,
    )
    groups = _divide_up(span * windows, WARPS)
    return _Plan(chunks, columns, outputs, groups, pitch, tuple(_divide_up(size, 256) * 256 for size in sizes))


def workspace_bytes(problem: Problem) -> int:
    """Bytes of device memory that a launch needs beside its arguments, aligned to 16 bytes, uninitialised."""
    return sum(_plan(problem).sizes)


@functools.lru_cache(maxsize=64)
def rows_per_block(problem: Problem, multiprocessors: int) -> int:
    """Rows of the map for each block of `match`: enough blocks to fill the GPU, few rows done twice."""
    plan, at_once = _plan(problem), multiprocessors * (1 if problem.pool_size > 5 else 2)

    def cost(rows: int) -> int:
        blocks = plan.columns * _divide_up(problem.height, rows) * problem.batch * plan.groups
        return _divide_up(blocks, at_once) * (min(rows, problem.height) + problem.pool_size - 1)

    return min(range(MAX_ROWS, MIN_ROWS - 1, -1), key=cost)


class Launch(NamedTuple):
    """One kernel to start: its name, how many blocks of how many threads, its arguments."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[int, ...]
    types: tuple[Any, ...]


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


def launches(
    problem: Problem,
    motion: int,
    motion_prev: int,
    detail_prev: int,
    warped: int,
    displacement: int,
    workspace: int,
    multiprocessors: int,
) -> tuple[Launch, Launch]:
    """What to start for one call, in order; see `Launcher.launch`."""
    p, plan = problem, _plan(problem)
    rows = rows_per_block(p, multiprocessors)
    down = _divide_up(p.height, rows)
    parts = [workspace + sum(plan.sizes[:i]) for i in range(len(plan.sizes))]
    prepare = Launch(
        "mtu_prepare",
        (max(plan.columns, _divide_up(plan.pitch, POSITIONS)), p.height, 2 * p.batch),
        PREPARE_THREADS,
        (
            *(motion, motion_prev, *parts),
            *(p.batch * plan.columns * down, p.batch, p.motion_channels, p.height, p.width),
            *(plan.columns, plan.outputs, p.pool_size // 2, p.max_displacement, plan.pitch),
            int(p.motion_layout == "hwc8"),
        ),
        (_POINTER,) * 6 + (_INT,) * 11,
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
        (_POINTER,) * 7 + (_INT,) * 11,
    )
    return prepare, match


# --- compiling ------------------------------------------------------------------------------------------------------


def kernel_source() -> str:
    """cuda/kernel.cu."""
    return (Path(__file__).parent / "cuda" / "kernel.cu").read_text(encoding="utf-8")


def defines(problem: Problem) -> dict[str, str]:
    """The macros that make kernel.cu the kernels of one problem."""
    return {
        "MTU_POOL": str(problem.pool_size),
        "MTU_TYPE": "mtu::Half" if problem.motion_type == "float16" else "float",
    }


def cache_directory() -> Path:
    """Where kernels and engines are kept: MTU_CACHE_DIR, else mtu in the user's cache directory."""
    if directory := os.environ.get("MTU_CACHE_DIR"):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtu"


STANDARD = "c++17"


def compiler_version() -> str:
    """NVRTC's, as it says itself: whether it came by pip, by conda or with the toolkit. Empty without one."""
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except Exception:  # cuda-bindings has no base class for what it raises where a library is missing
        return ""
    return f"{major}.{minor}"


def compile_source(source: str, arch: str, macros: Mapping[str, str], log: Any = None) -> bytes:
    """CUDA C++ to a cubin for `arch` ("sm_90") by NVRTC; needs no GPU. `log`: a text stream for the compiler's report.

    Raises MissingExtraError without cuda-core or NVRTC, InvalidInputError for an architecture NVRTC does not know.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError:
        raise MissingExtraError("cuda-core", "gpu", "compiling the CUDA kernel") from None
    options = ProgramOptions(
        arch=arch,
        std=STANDARD,
        define_macro=list(macros.items()) or None,
        ptxas_options=["-v"] if log is not None else None,
    )
    try:
        return bytes(Program(source, "c++", options).compile("cubin", logs=log).code)
    except Exception as error:  # cuda.core has no base class for its errors
        if "invalid value for --gpu-architecture" in str(error):
            raise InvalidInputError(
                f"this NVRTC cannot compile for {arch}: install a newer nvidia-cuda-nvrtc, or use another GPU"
            ) from None
        if "nvrtc" in str(error).lower() and "NVRTC_ERROR" not in str(error):
            raise MissingExtraError("nvidia-cuda-nvrtc", "gpu", "compiling the CUDA kernel") from None
        raise


def compiled(source: str, arch: str, macros: Mapping[str, str] | None = None) -> bytes:
    """As `compile_source`, but kept on disk by a digest of all that goes in; a damaged file is compiled again."""
    macros = macros or {}
    defined = [f"{name}={value}" for name, value in sorted(macros.items())]
    parts = [source, "cubin", f"NVRTC {compiler_version()}", f"arch={arch}", f"std={STANDARD}", *defined]
    path = cache_directory() / "kernels" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.cubin"
    cubin = read_kept(path)
    if cubin is None:
        cubin = compile_source(source, arch, macros)
        keep(path, cubin, "the compiled CUDA kernel")
    return cubin


def read_kept(path: Path) -> bytes | None:
    """What `keep` wrote, or None if there is nothing or it is damaged."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def keep(path: Path, content: bytes, what: str) -> None:
    """Writes `content` to a file of the cache, with its digest; warns if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        warnings.warn(f"{what} cannot be kept in {path.parent} ({error.strerror})", stacklevel=3)


# --- launching ------------------------------------------------------------------------------------------------------


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a driver call. Raises RuntimeError with CUDA's own words."""
    from cuda.bindings import driver

    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        raise RuntimeError(f"CUDA: {text.decode() if text else status}")
    return values[0] if values else None


@dataclass
class Launcher:
    """Starts the op on one device, whose primary context must be current in the calling thread."""

    device: int
    _functions: dict[tuple[tuple[str, str], ...], dict[str, Any]] = field(default_factory=dict)

    @functools.cached_property
    def arch(self) -> str:
        """Of the device: "sm_90"."""
        from cuda.bindings import driver

        kinds = driver.CUdevice_attribute
        major = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        return f"sm_{major}{self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)}"

    @functools.cached_property
    def multiprocessors(self) -> int:
        """Of the device."""
        from cuda.bindings import driver

        return self._attribute(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)

    def _attribute(self, kind: Any) -> int:
        from cuda.bindings import driver

        _check(driver.cuInit(0))
        return int(_check(driver.cuDeviceGetAttribute(kind, _check(driver.cuDeviceGet(self.device)))))

    def prepare(self, problem: Problem) -> None:
        """Compiles and loads the kernels of a problem; quick when they are. To be called before a capture."""
        self._kernels(problem)

    def _kernels(self, problem: Problem) -> dict[str, Any]:
        from cuda.bindings import driver

        macros = defines(problem)
        key = tuple(macros.items())
        if key not in self._functions:
            module = _check(driver.cuModuleLoadData(compiled(kernel_source(), self.arch, macros)))
            self._functions[key] = {
                name: _check(driver.cuModuleGetFunction(module, name.encode())) for name in ("mtu_prepare", "mtu_match")
            }
        return self._functions[key]

    def start(self, problem: Problem, launch: Launch, stream: int) -> None:
        """Enqueues one of the launches of a problem. Raises RuntimeError if CUDA refuses."""
        from cuda.bindings import driver

        function, arguments = self._kernels(problem)[launch.kernel], (launch.arguments, launch.types)
        _check(driver.cuLaunchKernel(function, *launch.grid, launch.threads, 1, 1, 0, stream, arguments, 0))

    def launch(
        self,
        problem: Problem,
        motion: int,
        motion_prev: int,
        detail_prev: int,
        warped: int,
        displacement: int,
        workspace: int,
        stream: int,
    ) -> None:
        """Enqueues the op: two asynchronous launches on `stream`, nothing else, so it can be captured into a graph.

        Device pointers, aligned to their element; `displacement` is int32 [batch, height, width]; `workspace` has
        `workspace_bytes(problem)`. Pad channels of "hwc8" are not read, and written as zeros. Raises RuntimeError if
        CUDA refuses.
        """
        pointers = (motion, motion_prev, detail_prev, warped, displacement, workspace)
        for launch in launches(problem, *pointers, self.multiprocessors):
            self.start(problem, launch, stream)


@functools.cache
def launcher(device: int) -> Launcher:
    """The launcher of a device, one for the process."""
    return Launcher(device)
