"""The kernel by an emulator on the CPU; see cuda_emulator/. Nothing here is a test."""

import ctypes
import dataclasses
import subprocess

import pytest
from tests.conftest import ROOT
from tests.processes import need

from mtu.plugins.correlation_argmax_warp import cuda_op

CUDA = ROOT / "plugins" / "correlation_argmax_warp" / "cuda"
EMULATOR = ROOT / "tests" / "plugins" / "cuda_emulator"
LAYOUTS = {"linear": 0, "hwc8": 1}


class CProblem(ctypes.Structure):
    """mtu::Problem of launch.h."""

    _fields_ = [(field.name, ctypes.c_int32) for field in dataclasses.fields(cuda_op.Problem)]

    def __init__(self, problem: cuda_op.Problem) -> None:
        values = {**dataclasses.asdict(problem)}
        for name in ("motion_type", "detail_type"):
            values[name] = int(values[name] == "float16")
        for name in ("motion_layout", "detail_layout"):
            values[name] = LAYOUTS[values[name]]
        super().__init__(**values)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> ctypes.CDLL:
    """kernel.cu and launch.cu as a library for this processor; see cuda_emulator/."""
    need("g++")
    library = tmp_path_factory.mktemp("emulator") / "emulator.so"
    options = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing"]
    options += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    source = ["-shared", "-fPIC", f"-I{EMULATOR}", f"-I{CUDA}", str(EMULATOR / "emulator.cpp"), "-o", str(library)]
    subprocess.run(["g++", *options, *source], check=True)
    result = ctypes.CDLL(str(library))
    result.emulator_check.restype = ctypes.c_char_p
    result.emulator_workspace_bytes.restype = ctypes.c_size_t
    return result
