"""What the NVIDIA driver says of a GPU, asked without any package: ctypes alone."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """Number of the device, as CUDA_VISIBLE_DEVICES leaves it."""
    name: str
    """As NVIDIA calls it: "NVIDIA H200"."""
    compute_capability: str
    """ "9.0"."""
    memory: int
    """Total bytes."""


def driver_library() -> ctypes.CDLL | None:
    """NVIDIA's driver, or None where it is not installed.

    Its functions are there for libraries loaded later too: a pycuda that was built where there is no driver may look
    for them without saying where they are.
    """
    try:
        name = "nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1"
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


@functools.cache
def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU `index`, or None where there is no driver or no such device."""
    driver = driver_library()
    if driver is None:
        return None
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    error = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    )
    if error:
        return None
    return Gpu(index, name.value.decode(), f"{major.value}.{minor.value}", memory.value)
