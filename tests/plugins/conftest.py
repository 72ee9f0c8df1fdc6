"""The C++ plugin and the program that calls it, built once for all tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.plugins.cpp_library import ARCHITECTURE, FOLDER, INCLUDES, PLUGINS
from tests.processes import need

from mtu.plugins import build
from mtu.plugins.build import PluginLibrary, build_plugin


@pytest.fixture(scope="session", params=INCLUDES or [None], ids=lambda path: path.parent.name if path else "none")
def include(request) -> Path:
    if request.param is None:
        pytest.skip("TENSORRT_INCLUDE_DIR is not set: there are no TensorRT headers to compile with")
    need("cmake", "g++", "git", "nm", "nvcc", "readelf")
    return request.param


@pytest.fixture(scope="session")
def library(include, tmp_path_factory) -> PluginLibrary:
    """The plugin, compiled for one GPU with warnings as errors."""
    return build_plugin(
        tmp_path_factory.mktemp("plugin"),
        tensorrt_include=include,
        architectures=[ARCHITECTURE],
        cmake_arguments=["-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"],
    )


@pytest.fixture(scope="session")
def registers(library) -> Path:
    """The library that registers the plugin when it is opened."""
    if library.registers is None:
        pytest.skip("there is none for TensorRT 8.6")
    return library.registers


@pytest.fixture(scope="session")
def host(include, tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("host") / "plugin_host"
    # nvcc knows where CUDA's headers are; the compiler is g++.
    warnings = "-Xcompiler=-Wall,-Wextra,-Werror,-Wno-deprecated-declarations"
    command = [build.find_nvcc(), "-std=c++17", warnings, "-isystem", include, "-I", PLUGINS, "-o", program]
    command += [FOLDER / "plugin_host.cpp", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program
