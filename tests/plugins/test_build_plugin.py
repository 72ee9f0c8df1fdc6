"""What mtu-build-plugin says: no tool has to be here, those that it looks for only pretend."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli import run
from tests.conftest import ROOT
from tests.plugins.cpp_library import PLUGINS, headers
from tests.processes import LIMIT, wait_until

from mtu.plugins import build
from mtu.plugins.op import OPS, find_op

PYTHON = sys.executable


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


SLOW = """
import subprocess, time
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        time.sleep(1)
subprocess.Popen = Popen
"""


@pytest.mark.parametrize("start", ["", SLOW], ids=["running", "being started"])
def test_ending_the_command_ends_the_compilers(toolchain, bare, tmp_path, start):
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)

    def can_read() -> bool:
        return bool(select.select([fifo], [], [], 0)[0])

    script(bare / "cmake", f"/bin/sh -c 'echo; exec /bin/sleep 600' > {tmp_path}/fifo & wait")
    code = f"{start}\nimport sys\nfrom mtu.plugins.cli import main\nmain()"
    command = [PYTHON, "-c", code, "-o", "out", *map(str, toolchain)]
    environment = {"PYTHONPATH": str(ROOT / ".links"), "PATH": str(bare), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: can_read() and os.read(fifo, 1), process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=LIMIT)[1].splitlines()[-1] == "mtu-build-plugin: terminated"
    assert process.returncode == 143
    wait_until(can_read)  # its end: the compiler has closed it
    assert os.read(fifo, 1) == b""
    os.close(fifo)
    assert not Path("out").exists() and not list(Path().glob("mtu-build-plugin-*"))


@pytest.mark.parametrize("name", OPS)
def test_the_kernel_revision_is_one_number(name):
    said = re.search(r"kKernelRevision = (\d+);", (PLUGINS / OPS[name] / "cuda" / "launch.h").read_text())
    assert said is not None and int(said[1]) == find_op(name).revision
