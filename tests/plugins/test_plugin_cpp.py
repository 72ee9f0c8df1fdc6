"""The C++ plugin: what mtu-build-plugin says, what it builds, what a TensorRT would ask of that, an RTX engine with it.

TENSORRT_INCLUDE_DIR names directories of TensorRT headers, separated as in PATH; with one each of 8.6, 10 and 11
everything is covered. Without it only the errors are tested.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli import run
from tests.conftest import ROOT
from tests.processes import LIMIT, need, wait_until

from mtu.core.errors import InvalidInputError
from mtu.plugins import build
from mtu.plugins.build import PluginLibrary, build_plugin
from mtu.plugins.correlation_argmax_warp import OP

INCLUDES = [Path(part) for part in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if part]
KERNEL = ROOT / "plugins" / "correlation_argmax_warp" / "cuda"
ARCHITECTURE = "86"
PYTHON = sys.executable
LIBRARY_DIRS = [Path(part) for part in os.environ.get("TENSORRT_LIBRARY_DIR", "").split(os.pathsep) if part]


# What the command says.


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with nothing on it: no tools on PATH, no CUDA, no headers. Returns its PATH, and works in tmp_path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    for variable in ("TENSORRT_INCLUDE_DIR", "TENSORRT_ROOT", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(build, "CUDA", tmp_path / "no-cuda")
    monkeypatch.setattr(build, "INCLUDES", (tmp_path / "no-headers",))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tools


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def headers(
    path: Path, version: str = "#define NV_TENSORRT_MAJOR 10 //!< x\n#define NV_TENSORRT_MINOR 3 //!< x\n"
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "NvInferRuntime.h").touch()
    (path / "NvInferVersion.h").write_text(version)
    return path


FAKE_CMAKE = """case "$1" in
-S) echo "-- TensorRT 10.3, IPluginV3, GPUs 86-real 86-virtual" ;;
--build) echo library > libmtu_plugin_trt10.so; echo second > libmtu_plugin_trt10_register.so ;;
esac
"""


def ended_badly(capsys, *arguments: object) -> str:
    ended = run(capsys, "mtu-build-plugin", "-o", "out", *arguments)
    assert ended.code == 2, ended
    assert ended.out == "" and not Path("out").exists()
    line = ended.err.splitlines()[-1]
    assert line.startswith("mtu-build-plugin: error: ")
    return line


def test_without_headers(bare, capsys):
    said = ended_badly(capsys)
    assert "--tensorrt-include" in said and "--fetch-tensorrt" in said


@pytest.mark.parametrize("way", ["--tensorrt-include", "TENSORRT_INCLUDE_DIR", "TENSORRT_ROOT"])
def test_headers_are_not_where_they_should_be(bare, capsys, monkeypatch, way):
    monkeypatch.setattr(build, "INCLUDES", (headers(Path("usual")),))  # not a substitute for what was asked for
    if way.startswith("--"):
        said = ended_badly(capsys, way, "empty")
    else:
        monkeypatch.setenv(way, "empty")
        said = ended_badly(capsys)
    assert f"{way} empty: has no NvInferRuntime.h" in said


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 5\n", "TensorRT 8.5 cannot be used"),
        ("#define NV_TENSORRT_MAJOR 9\n#define NV_TENSORRT_MINOR 3\n", "the plugin is for 8.6, and for 10 and later"),
        ("#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 7\n", "--fetch-tensorrt 11.1"),
        ("", "does not say which TensorRT"),
    ],
)
def test_headers_of_another_tensorrt(bare, capsys, version, said):
    assert said in ended_badly(capsys, "--tensorrt-include", headers(Path("include"), version))


def test_headers_are_found_above_include_and_in_usual_places(bare, monkeypatch):
    above = headers(Path("trt/include")).parent.absolute()
    assert build.find_headers(above) == above / "include"
    monkeypatch.setenv("TENSORRT_ROOT", str(above))
    assert build.find_headers() == above / "include"
    monkeypatch.setattr(build, "INCLUDES", (headers(Path("usual")),))
    assert build.find_headers() == above / "include"
    monkeypatch.delenv("TENSORRT_ROOT")
    assert build.find_headers() == Path("usual")


@pytest.mark.parametrize("text", ["10", "latest", "8.5.1", "10.16; rm"])
def test_a_release_that_cannot_be_fetched(bare, capsys, text):
    assert text.split(";")[0] in ended_badly(capsys, "--fetch-tensorrt", text)


def test_contradictions(bare, capsys):
    said = ended_badly(capsys, "--fetch-tensorrt", "10.16", "--tensorrt-include", headers(Path("include")))
    assert "give one of them" in said
    assert "sm_86" in ended_badly(capsys, "--tensorrt-include", "include", "--arch", "80,sm_86")


def test_without_nvcc_or_cmake(bare, capsys, monkeypatch):
    include = headers(Path("include"))
    assert "nvcc is not on PATH" in ended_badly(capsys, "--tensorrt-include", include)
    assert "--nvcc /nowhere: is no program" in ended_badly(capsys, "--tensorrt-include", include, "--nvcc", "/nowhere")
    home = Path("cuda")
    (home / "bin").mkdir(parents=True)
    script(home / "bin" / "nvcc", "")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build.find_nvcc() == (home / "bin" / "nvcc").absolute()
    assert "pip install cmake" in ended_badly(capsys, "--tensorrt-include", include)


@pytest.fixture
def toolchain(bare):
    """A machine whose nvcc and cmake only pretend. Returns the arguments with which it builds."""
    script(bare / "nvcc", "")
    script(bare / "cmake", FAKE_CMAKE)
    return ["--tensorrt-include", headers(Path("include"))]


def test_says_what_it_built(toolchain, capsys):
    ended = run(capsys, "mtu-build-plugin", "-o", "a/b", *toolchain)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        "a/b/libmtu_plugin_trt10.so: for TensorRT 10, headers 10.3, GPUs 86-real 86-virtual",
        "use it with: trtexec --dynamicPlugins=a/b/libmtu_plugin_trt10.so ...",
        "programs that only open a file (Triton, DeepStream, Polygraphy): a/b/libmtu_plugin_trt10_register.so",
    ]
    built = {path.name: path.read_text() for path in Path("a/b").iterdir()}
    assert built == {"libmtu_plugin_trt10.so": "library\n", "libmtu_plugin_trt10_register.so": "second\n"}
    assert not list(Path().glob("mtu-build-plugin-*"))


@pytest.mark.parametrize(("name", "new"), [("", "library\n"), ("_register", "second\n")])
def test_an_existing_library_stays_without_overwrite(toolchain, capsys, name, new):
    Path("a").mkdir()
    library = Path(f"a/libmtu_plugin_trt10{name}.so")
    library.write_text("old")
    ended = run(capsys, "mtu-build-plugin", "-o", "a", *toolchain)
    assert (ended.code, library.read_text()) == (2, "old")
    assert "--overwrite" in ended.err and list(Path("a").iterdir()) == [library]
    assert run(capsys, "mtu-build-plugin", "-o", "a", "--overwrite", *toolchain).code == 0
    assert library.read_text() == new


def test_a_file_as_output(toolchain, capsys):
    Path("file").touch()
    ended = run(capsys, "mtu-build-plugin", "-o", "file", *toolchain)
    assert ended.code == 2 and "is a file" in ended.err


@pytest.mark.parametrize(
    ("stage", "output", "said"),
    [
        (
            "-S",
            "CMake Error at CMakeLists.txt:3 (project):\n  No CUDA toolset\n  found.\n\n-- Configuring incomplete",
            "No CUDA toolset found;",
        ),
        ("-S", "fatal: Remote branch v10.99 not found\nCMake Error: step failed", "Remote branch v10.99 not found;"),
        ("--build", "building\nx.cpp:3:1: error: no such thing\nmake: *** Error 1", "x.cpp:3:1: error: no such thing;"),
        ("--build", "", "it said nothing;"),
    ],
)
def test_a_failed_build_gives_the_first_error_and_the_log(toolchain, bare, capsys, stage, output, said):
    script(bare / "cmake", f'if [ "$1" = {stage} ]; then\ncat <<END\n{output}\nEND\nexit 1\nfi\n{FAKE_CMAKE}')
    (bare / "cat").symlink_to("/bin/cat")
    line = ended_badly(capsys, *toolchain)
    assert said in line
    log = Path(line.split()[-1])
    assert output in log.read_text()
    assert [path.name for path in Path().glob("mtu-build-plugin-*")] == [log.name]


def has_ended(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def test_ending_the_command_ends_the_compilers(toolchain, bare, tmp_path):
    script(bare / "cmake", f"/bin/sh -c 'echo $$ > {tmp_path}/pid; exec /bin/sleep 600' & wait")
    code = "import sys\nfrom mtu.plugins.cli import main\nmain()"
    command = [PYTHON, "-c", code, "-o", "out", *map(str, toolchain)]
    environment = {"PYTHONPATH": str(ROOT / ".links"), "PATH": str(bare), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    pid_file = tmp_path / "pid"
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=LIMIT)[1].splitlines()[-1] == "mtu-build-plugin: terminated"
    assert process.returncode == 143
    wait_until(lambda: has_ended(int(pid_file.read_text())))
    assert not Path("out").exists() and not list(Path().glob("mtu-build-plugin-*"))


def test_the_kernel_revision_is_one_number():
    said = re.search(r"kKernelRevision = (\d+);", (KERNEL / "launch.h").read_text())
    assert said is not None and int(said[1]) == OP.revision


# What it builds.


@pytest.fixture(scope="module", params=INCLUDES or [None], ids=lambda path: path.parent.name if path else "none")
def include(request) -> Path:
    if request.param is None:
        pytest.skip("TENSORRT_INCLUDE_DIR is not set: there are no TensorRT headers to compile with")
    need("cmake", "g++", "git", "nm", "nvcc", "readelf")
    return request.param


@pytest.fixture(scope="module")
def library(include, tmp_path_factory) -> PluginLibrary:
    """The plugin, compiled for one GPU with warnings as errors."""
    return build_plugin(
        tmp_path_factory.mktemp("plugin"),
        tensorrt_include=include,
        architectures=[ARCHITECTURE],
        cmake_arguments=["-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"],
    )


@pytest.fixture(scope="module")
def registers(library) -> Path:
    """The library that registers the plugin when it is opened."""
    if library.registers is None:
        pytest.skip("there is none for TensorRT 8.6")
    return library.registers


@pytest.fixture(scope="module")
def host(include, tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("host") / "plugin_host"
    # nvcc knows where CUDA's headers are; the compiler is g++.
    warnings = "-Xcompiler=-Wall,-Wextra,-Werror,-Wno-deprecated-declarations"
    command = [build.find_nvcc(), "-std=c++17", warnings, "-isystem", include, "-I", KERNEL, "-o", program]
    command += [ROOT / "tests" / "plugin_host.cpp", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


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
    command += ["-I", KERNEL, "-o", tmp_path / "plugin.so", adapter, ROOT / "tests" / "plugin_launch.cpp"]
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


def opened(code: str, path: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own; `path` is its sys.argv[1]."""
    command = [PYTHON, "-c", f"import ctypes, sys\n{code}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


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


# What TensorRT-RTX makes of it. In a process of its own: a library stays loaded.


RTX = """
import json, sys
import numpy as np
from mtu.plugins.correlation_argmax_warp import OP
from mtu.runtime.tensorrt_library import check_plugin_import, load_library

library = load_library("tensorrt-rtx")
check_plugin_import(library)
trt = library.module
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[1]) is not None
creator = registry.get_creator("CorrelationArgmaxWarp", "1", "mtu")

def restored(revision):
    # As an engine that the Python plugin was built into keeps it.
    values = {"max_displacement": 10, "pool_size": 5, "scale": 4, "revision": revision}
    data = [np.array([value], np.int32) for value in values.values()]
    fields = [trt.PluginField(name, each, trt.PluginFieldType.INT32) for name, each in zip(values, data)]
    return creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME)

assert restored(OP.revision) is not None
assert restored(OP.revision + 1) is None
results = []
for job in json.loads(sys.argv[2]):
    builder = trt.Builder(library.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, library.logger)
    parsed = parser.parse_from_file(job["onnx"])
    result = {"errors": [str(parser.get_error(i)) for i in range(parser.num_errors)], "plan": 0}
    results.append(result)
    if not parsed:
        continue
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    result["plugins"] = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    result["outputs"] = {each.name: [each.dtype.name, list(each.shape)] for each in outputs}
    config = builder.create_builder_config()
    if job["profile"]:
        profile = builder.create_optimization_profile()
        for name, shapes in job["profile"].items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if job["workspace"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace"])
    plan = builder.build_serialized_network(network, config)
    result["plan"] = 0 if plan is None else plan.nbytes
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def rtx(library):
    """Builds ONNX files with the plugin: a function from jobs to results, as in `RTX`, and what was said on stderr."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("the package tensorrt-rtx is not installed")
    if library.tensorrt[0] != 11:
        pytest.skip("TensorRT-RTX takes the library of TensorRT 11")

    def build_all(jobs: list[dict[str, object]]) -> tuple[list[dict[str, object]], str]:
        command = [sys.executable, "-c", RTX, str(library.path), json.dumps(jobs)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / ".links")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return build_all


COUNT = """
import tensorrt_rtx
names = [creator.name for creator in tensorrt_rtx.get_plugin_registry().all_creators]
print(names.count("CorrelationArgmaxWarp"))
"""


def test_opening_the_second_library_registers_it_in_rtx(rtx, library, registers, tmp_path):
    load = "tensorrt_rtx.get_plugin_registry().load_library(sys.argv[1].replace('_register', ''))\n"
    open_it = "ctypes.CDLL(sys.argv[1])\n"
    link = tmp_path / "elsewhere.so"
    link.symlink_to(registers)
    for code, path in (
        (COUNT + open_it + COUNT, registers),
        (COUNT + open_it + open_it + COUNT, link),
        (COUNT + load + open_it + COUNT, registers),
        (COUNT + open_it + load + COUNT, registers),
    ):
        done = opened(code, path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n", "")


def test_opening_the_second_library_first_loads_the_rtx_that_follows(rtx, registers):
    if any(map(ctypes.util.find_library, ("nvinfer", "nvinfer_lean", "tensorrt_rtx"))):
        pytest.skip("TensorRT is installed where every program finds it")
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    path = os.pathsep.join(found.submodule_search_locations)
    done = opened("ctypes.CDLL(sys.argv[1])" + COUNT, registers, {**os.environ, "LD_LIBRARY_PATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(("plugin", "said"), [(None, "No such file"), (b"nothing", "file too short")])
def test_the_second_library_says_why_it_does_not_register(rtx, library, registers, tmp_path, plugin, said):
    alone = Path(shutil.copy(registers, tmp_path))
    beside = tmp_path / library.path.name
    if plugin is not None:
        beside.write_bytes(plugin)
    done = opened(COUNT + "ctypes.CDLL(sys.argv[1])" + COUNT, alone)
    assert (done.returncode, done.stdout) == (0, "0\n0\n")
    assert done.stderr.startswith(f"[mtu] CorrelationArgmaxWarp: not registered: {beside}: ")
    assert said in done.stderr and done.stderr.count("\n") == 1


def job(model, path: Path, profile: dict[str, list[tuple[int, ...]]] | None = None, workspace: int = 0):
    import onnx

    onnx.save(model, path)
    return {"onnx": str(path), "profile": profile, "workspace": workspace}


def test_rtx_builds_the_op_in_every_type_and_size(rtx, tmp_path):
    from onnx import TensorProto

    from mtu.plugins.correlation_argmax_warp import onnx_function

    names = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF"}
    sizes = ((16, 16), (90, 160), (180, 320))
    profile = {
        name: [(1, channels, h * times, w * times) for h, w in sizes]
        for name, channels, times in (("motion", 52, 1), ("motion_prev", 52, 1), ("detail_prev", 26, 4))
    }
    jobs, expected = [], []
    for motion in names:
        for detail in names:
            for shapes, bounds in (
                (((1, 52, 90, 160), (1, 26, 360, 640)), None),
                (((1, 52, "h", "w"), (1, 26, "H", "W")), profile),
            ):
                model = onnx_function.model(*shapes, motion_type=motion, detail_type=detail)
                jobs.append(job(model, tmp_path / f"{len(jobs)}.onnx", bounds))
                fixed = bounds is None
                expected.append(
                    {
                        "warped": [names[detail], [1, 26, 360, 640] if fixed else [1, 26, -1, -1]],
                        "displacement": ["INT32", [1, 90, 160] if fixed else [1, -1, -1]],
                    }
                )
    results, said = rtx(jobs)
    assert said.count("[mtu]") == 1  # the other revision
    for result, outputs in zip(results, expected, strict=True):
        assert result["plugins"] == ["compensation"], said
        assert result["outputs"] == outputs
        assert result["plan"] > 0, said


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_builds_both_exported_graphs_with_it(rtx, tmp_path, precision):
    import onnx

    from mtu.core.interface import GRAPHS, Interface, NetworkConfig
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    checkpoint = random_checkpoint(NetworkConfig(2, 8, 1))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", precision=precision)
    interface = Interface(checkpoint.config, "float16" if precision == "fp16" else "float32")
    jobs, nodes = [], []
    for graph in GRAPHS:
        model = onnx.load(bundle.graph(graph))
        nodes.append([node.name for node in model.graph.node if node.op_type == "CorrelationArgmaxWarp"])
        for sizes in (((32, 48), (64, 96), (720, 1280)), ((64, 96),) * 3):
            profile = {spec.name: [spec.at(*size) for size in sizes] for spec in interface.inputs(graph)}
            jobs.append({"onnx": str(bundle.graph(graph)), "profile": profile, "workspace": 0})
    results, said = rtx(jobs)
    for i, result in enumerate(results):
        assert result["plugins"] == nodes[i // 2] != [], said
        assert result["plan"] > 0, said


def test_the_workspace_is_what_the_plugin_asks_for(rtx, tmp_path):
    from mtu.plugins.correlation_argmax_warp import onnx_function

    shapes = (1, 52, 90, 160), (1, 26, 360, 640)
    limits = (1 << 16, 1 << 25)
    jobs = [job(onnx_function.model(*shapes), tmp_path / f"{each}.onnx", workspace=each) for each in limits]
    results, said = rtx(jobs)
    assert [result["plugins"] for result in results] == [["compensation"]] * 2
    assert results[0]["plan"] == 0 and results[1]["plan"] > 0, said


def test_rtx_refuses_what_the_plugin_refuses(rtx, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    from mtu.plugins.correlation_argmax_warp import onnx_function

    shapes = (1, 52, 90, 160), (1, 26, 360, 640)

    def changed(name: str, value: object) -> onnx.ModelProto:
        model = onnx_function.model(*shapes)
        attributes = model.graph.node[0].attribute
        attributes.remove(next(each for each in attributes if each.name == name))
        if value is not None:
            attributes.append(helper.make_attribute(name, value))
        return model

    wrong_types = onnx_function.model(*shapes)
    wrong_types.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    wrong_sizes = onnx_function.model((1, 52, 90, 160), (1, 26, 360, 644))
    models = [
        changed("pool_size", None),
        changed("pool_size", 5.0),
        changed("pool_size", [5, 5]),
        changed("max_displacement", 0),
        wrong_types,
        wrong_sizes,
    ]
    results, said = rtx([job(model, tmp_path / f"{i}.onnx") for i, model in enumerate(models)])
    assert results[0]["plugins"] == ["compensation"] and results[0]["plan"] > 0  # the default stands in
    assert [result["plan"] for result in results[1:]] == [0] * 5
    for reason in (
        "attribute pool_size has type 1 and length 1",
        "attribute pool_size has type 5 and length 2",
        "got max_displacement 0",
        "motion and motion_prev must both be fp32 or both fp16",
        "detail_prev the same batch and 4 times the height and width",
    ):
        assert reason in said
