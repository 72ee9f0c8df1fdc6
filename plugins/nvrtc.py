"""CUDA for all ops: source to machine code by NVRTC, kept on disk; launches through the driver.

Needs no nvcc, no header, no C++ compiler. Imports cuda.core and cuda.bindings late. Pointers and streams are plain
integers, so that TensorRT, torch and pycuda can all call it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mtu.core.cache import cache_directory, keep, read_kept
from mtu.core.errors import InvalidInputError, MissingExtraError

STANDARD = "c++17"


def read_source(path: Path) -> str:
    """A .cu file with the headers that it includes by "..." in their places, each once."""
    seen: set[Path] = set()

    def text(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        content = path.read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(
            r'^#include "(.+)"\n', lambda found: text((path.parent / found[1]).resolve()), content, flags=re.M
        )

    return text(path.resolve())


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


def check(result: tuple[Any, ...]) -> Any:
    """The value of a driver call. Raises RuntimeError with CUDA's own words."""
    from cuda.bindings import driver

    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        raise RuntimeError(f"CUDA: {text.decode() if text else status}")
    return values[0] if values else None


def current_device() -> int:
    """Number of the device whose CUDA context is current in this thread; raises InvalidInputError if there is none."""
    from cuda.bindings import driver

    try:
        return int(check(driver.cuCtxGetDevice()))
    except RuntimeError:  # no driver at all, too
        raise InvalidInputError(
            "no CUDA context is current in this thread: make one before running the engine"
        ) from None


class Launch(NamedTuple):
    """One kernel to start: its name, how many blocks of how many threads, its arguments."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[int, ...]
    types: tuple[Any, ...]
    """Of the arguments, of ctypes."""


def start(functions: Mapping[str, Any], launch: Launch, stream: int) -> None:
    """Enqueues one launch of kernels that `Device.load` gave. Raises RuntimeError if CUDA refuses."""
    from cuda.bindings import driver

    arguments = (launch.arguments, launch.types)
    check(driver.cuLaunchKernel(functions[launch.kernel], *launch.grid, launch.threads, 1, 1, 0, stream, arguments, 0))


@dataclass(frozen=True)
class Device:
    """One GPU by its number. Its primary context must be current in the calling thread."""

    number: int

    @functools.cached_property
    def arch(self) -> str:
        """Its architecture: "sm_90"."""
        major = self._attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR")
        return f"sm_{major}{self._attribute('CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR')}"

    @functools.cached_property
    def multiprocessors(self) -> int:
        """How many it has."""
        return self._attribute("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT")

    def load(self, source: str, macros: Mapping[str, str], kernels: Sequence[str]) -> dict[str, Any]:
        """The named kernels of `source`, compiled or taken from disk, and loaded. Raises what `compiled` raises."""
        from cuda.bindings import driver

        module = check(driver.cuModuleLoadData(compiled(source, self.arch, macros)))
        return {name: check(driver.cuModuleGetFunction(module, name.encode())) for name in kernels}

    def _attribute(self, name: str) -> int:
        from cuda.bindings import driver

        check(driver.cuInit(0))
        kind = getattr(driver.CUdevice_attribute, name)
        return int(check(driver.cuDeviceGetAttribute(kind, check(driver.cuDeviceGet(self.number)))))
