"""What mtu-build-plugin builds, and what a TensorRT would ask of that; needs headers, see cpp_library.py."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.plugins.cpp_library import ARCHITECTURE, FOLDER, PLUGINS, headers, opened

from mtu.core.errors import InvalidInputError
from mtu.plugins import build
from mtu.plugins.build import build_plugin

LIBRARY_DIRS = [Path(part) for part in os.environ.get("TENSORRT_LIBRARY_DIR", "").split(os.pathsep) if part]


def test_the_libraries_are_named_for_their_tensorrt(library):
    major = library.tensorrt[0]
    assert library.path.name == f"libmtu_plugin_trt{major}.so"
    assert library.architectures == ARCHITECTURE
    beside = None if major == 8 else library.path.parent / f"libmtu_plugin_trt{major}_register.so"
    assert library.registers == beside
    assert set(library.path.parent.iterdir()) == {library.path, beside} - {None}


def check_symbols(path: Path, expected: set[str]) -> None:
    """The library exports `expected` and needs nothing but what every system has."""
    listed = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split() for line in listed.splitlines()]
    assert {words[-1] for words in symbols if words[-2] not in "Uw"} == expected
    undefined = {words[-1] for words in symbols if words[-2] == "U"}
    # Each comes from a system library, which gives its symbols versions.
    assert undefined and not [
        name for name in undefined if not ("@GLIBC" in name or "@CXXABI" in name or "@GCC" in name)
    ]
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]").split(".so")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    system = {
        "libstdc++",
        "libgcc_s",
        "libc",
        "libm",
        "libdl",
        "librt",
        "libpthread",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }
    assert needed <= system


def test_it_exports_the_two_entry_points_and_needs_no_tensorrt(library):
    entry = "getPluginCreators" if library.tensorrt[0] == 8 else "getCreators"
    check_symbols(library.path, {entry, "setLoggerFinder"})


def test_the_library_that_registers_it_exports_nothing_and_needs_no_tensorrt(registers):
    check_symbols(registers, set())


def test_a_host_program_finds_every_method_right(library, host):
    done = subprocess.run([host, library.path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "all well\n"), done.stderr
    for reason in (
        "unknown attribute 'radius'",
        "attribute scale has type 1 and length 1; it must be one 32-bit integer",
        "the engine was built with kernel revision 0, this library has revision",
        "motion and motion_prev must have one shape; got motion 1x52x9x16, motion_prev 1x52x9x17",
        "detail_prev must have motion's batch, and scale times its height and width; got motion 1x52x9x16",
        "motion and motion_prev must both be fp32 or both fp16",
    ):
        assert f"[mtu] CorrelationArgmaxWarp: {reason}" in done.stderr
    assert "could not be launched" not in done.stderr  # everything was refused before


def test_a_call_reaches_the_kernel_as_it_was_meant(library, include, host, tmp_path):
    """The adapter alone, linked with a launcher that writes down what it is called with."""
    adapter = build.SOURCE / ("v2.cpp" if library.tensorrt[0] == 8 else "v3.cpp")
    command = [
        build.find_nvcc(),
        "-std=c++17",
        "-shared",
        "-cudart",
        "none",
        "-Xcompiler=-fPIC,-w",
        "-isystem",
        include,
    ]
    command += ["-I", PLUGINS, "-o", tmp_path / "plugin.so", adapter, FOLDER / "plugin_launch.cpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([host, tmp_path / "plugin.so", "--recorded"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "all well\n"), done.stderr
    assert "the kernel could not be launched: an error of the test" in done.stderr


@pytest.fixture(scope="module")
def tensorrts(library) -> list[Path]:
    """With TENSORRT_LIBRARY_DIR, directories of libnvinfer.so.N or libnvinfer_lean.so.N; needs no GPU."""
    major = library.tensorrt[0]
    names = (f"libnvinfer.so.{major}", f"libnvinfer_lean.so.{major}")
    found = [folder / name for folder in LIBRARY_DIRS for name in names if (folder / name).exists()]
    if not found:
        pytest.skip(f"no library of TensorRT {major} in TENSORRT_LIBRARY_DIR")
    return found


def test_the_registry_of_tensorrt_loads_it(library, host, tensorrts):
    for path in tensorrts:
        done = subprocess.run([host, library.path, path], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "all well\n"), done.stderr


def test_opening_the_second_library_registers_it_once_in_tensorrt(registers, host, tensorrts):
    for path in tensorrts:
        done = subprocess.run([host, registers, "--opened", path], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "all well\n", "")


def test_without_any_tensorrt_the_second_library_says_so(registers):
    if any(map(ctypes.util.find_library, ("nvinfer", "nvinfer_lean", "tensorrt_rtx"))):
        pytest.skip("TensorRT is installed where every program finds it")
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = opened("ctypes.CDLL(sys.argv[1])", registers, environment)
    assert done.returncode == 0 and done.stdout == ""
    assert re.fullmatch(r"\[mtu\] .*: not registered: no TensorRT 1\d.* after TensorRT.*\n", done.stderr)


def test_the_default_is_every_gpu_that_nvcc_knows(include, tmp_path):
    command = ["cmake", "-S", build.SOURCE, "-B", tmp_path, f"-DTENSORRT_INCLUDE_DIR={include}"]
    command.append(f"-DCMAKE_CUDA_COMPILER={build.find_nvcc()}")
    for _ in range(2):  # what the first run leaves in its cache is not taken for a wish
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        listed = next(line for line in said.splitlines() if ", GPUs " in line).split(", GPUs ")[1].split()
        assert {"80-real", "86-real", "89-real", "90-real"} <= set(listed)
        assert [name for name in listed if name.endswith("-virtual")] == [listed[-2].replace("real", "virtual")]


def test_cmake_refuses_other_headers(include, tmp_path):
    old = headers(tmp_path / "include", "#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 5\n")
    command = ["cmake", "-S", build.SOURCE, "-B", tmp_path / "b", f"-DTENSORRT_INCLUDE_DIR={old}"]
    command.append(f"-DCMAKE_CUDA_COMPILER={build.find_nvcc()}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "needed is 8.6, or 10 and later" in " ".join(done.stderr.split())


def test_fetched_headers(include, tmp_path, monkeypatch):
    """The download, from a repository on this machine that stands for NVIDIA's."""
    major, minor = build.header_version(include)
    origin = tmp_path / "origin"
    origin.mkdir()
    shutil.copytree(include, origin / "include")
    git = ["git", "-C", origin, "-c", "user.name=n", "-c", "user.email=e@e", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"], ["tag", f"v{major}.{minor}.9"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{origin}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/NVIDIA/TensorRT.git")
    options = {"architectures": [ARCHITECTURE], "fetch_tensorrt": f"{major}.{minor}.9"}
    built = build_plugin(tmp_path / "out", **options)
    assert built.tensorrt == (major, minor) and built.path.exists()
    with pytest.raises(InvalidInputError, match=r"v99\.9"):
        build_plugin(tmp_path / "out", fetch_tensorrt="99.9")
