"""The kernel on a GPU: by the launcher in Python, by the one in C++, and as TensorRT's C++ plugin.

Skipped without a GPU; a failure under MTU_REQUIRE_CUDA=1. The C++ ones need nvcc and, for the plugin, cmake and the
headers of the TensorRT that is installed: those of 8.6 give the one adapter, those of 10 and later the other.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from tests import needs
from tests.conftest import ROOT
from tests.frames import moving_frames
from tests.plugins.emulated import CUDA, CProblem

from mtu.benchmarks.gpu_cases import Cuda, is_right
from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.plugins import build
from mtu.plugins.correlation_argmax_warp.cases import CASES
from mtu.runtime import open_backend, restore
from mtu.runtime.backends import FACTORIES
from mtu.runtime.tensorrt_library import LIBRARIES, load_library

VARIANTS = [(case, "linear") for case in CASES] + [(case, "hwc8") for case in CASES if case.dtype == "float16"]
IDS = [f"{case.name}-{layout}" for case, layout in VARIANTS]
WRAPPER = """
#include "launch.cu"
extern "C" int mtu_launch(const mtu::Problem* problem, const void* motion, const void* motion_prev, const void* detail,
                          void* warped, std::int32_t* displacement, void* workspace) {
    return mtu::launch(*problem, motion, motion_prev, detail, warped, displacement, workspace, nullptr);
}
extern "C" void mtu_leave_an_error() { cudaSetDevice(-1); }
"""


@pytest.fixture(scope="module")
def python():
    needs.library("cuda.bindings", "cuda.core")
    return Cuda()


@pytest.fixture(scope="module")
def cpp(python, tmp_path_factory):
    """launch.cu, started as the plugins do."""
    try:
        nvcc = build.find_nvcc()
    except MissingFileError as error:
        needs.skip("nvcc", str(error))
    folder = tmp_path_factory.mktemp("launch")
    (folder / "wrapper.cu").write_text(WRAPPER)
    command = [nvcc, "-std=c++17", "-arch=native", "-shared", "-Xcompiler=-fPIC", "-I", CUDA]
    command += ["-o", folder / "launch.so", folder / "wrapper.cu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "launch.so"))

    class Cpp(Cuda):
        def launch(self, problem, *pointers):
            status = library.mtu_launch(ctypes.byref(CProblem(problem)), *map(ctypes.c_void_p, pointers))
            assert status == 0, f"cudaError {status}"

    machine = Cpp()
    machine.leave_an_error = library.mtu_leave_an_error
    return machine


@pytest.mark.needs_cuda
@pytest.mark.parametrize(("case", "layout"), VARIANTS, ids=IDS)
def test_the_python_launcher(python, case, layout):
    assert is_right(python, case, layout) and is_right(python, case, layout, unaligned=True)


@pytest.mark.needs_cuda
@pytest.mark.parametrize(("case", "layout"), VARIANTS, ids=IDS)
def test_the_cpp_launcher(cpp, case, layout):
    assert is_right(cpp, case, layout) and is_right(cpp, case, layout, unaligned=True)


@pytest.mark.needs_cuda
def test_an_error_of_an_earlier_call_fails_no_launch(cpp):
    cpp.leave_an_error()
    assert is_right(cpp, CASES[0])


# In a process of its own: what the process has registered already, in Python, would be taken instead.
PLUGIN_RUN = """
import sys
from pathlib import Path
import numpy as np
from mtu.export.engine import BuildOptions, build_engine
from mtu.runtime import open_backend, open_bundle, restore
from mtu.runtime.engine import Profile
name, bundle, plugin, folder = sys.argv[1:]
folder, plugin, frames = Path(folder), Path(plugin), np.load(Path(folder) / "frames.npy")
options = BuildOptions(Profile.fixed(*frames.shape[1:3]), runtime=name, plugin_library=plugin)
engine = build_engine(open_bundle(bundle), folder / "engine", options)
assert engine.manifest.plugin
assert not [module for module in sys.modules if module.endswith("trt_plugin")]
backend = open_backend(name, engine, plugin_library=plugin)
frames = list(restore(list(frames), backend, scene_threshold=None))
assert backend.remarks == [], backend.remarks
backend.close()
np.savez(folder / "restored.npz", rgb=[f.rgb for f in frames], displacement=[f.displacement for f in frames])
"""


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_cpp_plugin_in_an_engine(small, tmp_path, name):
    needs.library("onnx", "onnxruntime", *FACTORIES[name][1])
    library = load_library(name)
    major = 11 if library.is_rtx else library.major
    try:
        plugin = build.build_plugin(tmp_path, architectures=["native"])
    except MissingFileError as error:
        needs.skip("nvcc, cmake or headers", str(error))
    if plugin.tensorrt[0] != major:
        needs.skip(f"headers of tensorrt {major}", f"nvcc has those of {plugin.tensorrt[0]}")
    frames = moving_frames(12, 64, 96)
    np.save(tmp_path / "frames.npy", frames)
    command = [sys.executable, "-c", PLUGIN_RUN, name, small.directory, plugin.path, tmp_path]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT / ".links", timeout=280
    )
    if "does not support" in done.stderr and InvalidInputError.__name__ in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "restored.npz") as restored:
        rgb, displacement = restored["rgb"], restored["displacement"]
    expected = list(restore(frames, open_backend("onnxruntime", small, "cpu"), scene_threshold=None))
    assert np.abs(rgb.astype(int) - [frame.rgb for frame in expected]).mean() < 0.01
    assert np.mean(displacement == np.stack([frame.displacement for frame in expected])) > 0.999
