"""The kernels on a GPU: by the launcher in Python, by the one in C++, and as TensorRT's C++ plugin.

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
from tests.plugins.emulated import c_problem, cuda_folder
from tests.plugins.subjects import FILTERS, SUBJECTS, WARP, every_case

from mtu.benchmarks.gpu_cases import Cuda, is_right
from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.plugins import build
from mtu.runtime import open_backend, restore
from mtu.runtime.backends import FACTORIES
from mtu.runtime.tensorrt_library import LIBRARIES, load_library

WRAPPER = """
#include "launch.cu"
using namespace mtu::{folder};
extern "C" int mtu_launch(const Problem* problem, void** p) {{ return launch(*problem, {arguments}, nullptr); }}
extern "C" void mtu_leave_an_error() {{ cudaSetDevice(-1); }}
"""
ARGUMENTS = {WARP: "p[0], p[1], p[2], p[3], static_cast<int*>(p[4]), p[5]", FILTERS: "p[0], p[1], p[2]"}
every_layout = pytest.mark.parametrize("layout", ["linear", "hwc8"])


@pytest.fixture(scope="module")
def python():
    needs.library("cuda.bindings", "cuda.core")
    return Cuda()


def wrapped(subject, folder):
    """launch.cu of an op as a library, compiled for the GPU that is there."""
    try:
        nvcc = build.find_nvcc()
    except MissingFileError as error:
        needs.skip("nvcc", str(error))
    wrapper, library = folder / f"{subject.folder}.cu", folder / f"{subject.folder}.so"
    wrapper.write_text(WRAPPER.format(folder=subject.folder, arguments=ARGUMENTS[subject]))
    command = [nvcc, "-std=c++17", "-arch=native", "-shared", "-Xcompiler=-fPIC", "-I", cuda_folder(subject)]
    done = subprocess.run([*command, "-o", library, wrapper], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def cpp(python, tmp_path_factory):
    """The launchers in C++, started as the plugins do."""
    folder = tmp_path_factory.mktemp("launch")
    libraries = {subject.kernel: wrapped(subject, folder) for subject in SUBJECTS}

    class Cpp(Cuda):
        def launch(self, kernel, problem, pointers, count=None):
            addresses = (ctypes.c_void_p * len(pointers))(*pointers)
            status = libraries[kernel].mtu_launch(c_problem(problem), addresses)
            assert status == 0, f"cudaError {status}"

    machine = Cpp()
    machine.leave_an_error = libraries[WARP.kernel].mtu_leave_an_error
    return machine


def check(machine, subject, case, layout):
    if layout == "hwc8" and case.dtype != "float16":
        pytest.skip("HWC8 is for fp16")
    assert is_right(machine, subject.op, case, layout) and is_right(machine, subject.op, case, layout, unaligned=True)


@pytest.mark.needs_cuda
@every_layout
@every_case
def test_the_python_launcher(python, subject, case, layout):
    check(python, subject, case, layout)


@pytest.mark.needs_cuda
@every_layout
@every_case
def test_the_cpp_launcher(cpp, subject, case, layout):
    check(cpp, subject, case, layout)


@pytest.mark.needs_cuda
def test_an_error_of_an_earlier_call_fails_no_launch(cpp):
    for subject in SUBJECTS:
        cpp.leave_an_error()
        assert is_right(cpp, subject.op, subject.part("cases").CASES[0])


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
