"""OpenVINO and bad input: one message and exit code 2; a cache in any state costs time at most."""

# ruff: noqa: E402
from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests import cli, fake_cuda, needs
from tests.frames import moving_frames, write_clip
from tests.processes import LIMIT, environment

needs.library("openvino", "onnx")

import onnx
from onnx import helper
from onnx.external_data_helper import set_external_data

from mtu.core import cache
from mtu.core.errors import InvalidInputError
from mtu.runtime import Session, open_backend, open_bundle
from mtu.runtime.backends import openvino_models
from mtu.runtime.engine import Profile

SIZE = (16, 24)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip", 3, *SIZE)


@pytest.fixture
def run(capsys, tmp_path, clip, small):
    """mtu-run on a small clip into `out`."""

    def run(*arguments, model=None):
        model = model or small.directory
        return cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", "--model", model, *arguments)

    return run


def refused(ended, tmp_path, *words):
    cli.refused(ended, tmp_path, *words)
    assert ended.err.count("\n") == 1 and not (tmp_path / "out").exists()


# What cannot be had


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "gpu:97"], "OpenVINO finds no device GPU.97 (it finds CPU"),
        (["--device", "gpu:97", "--backend", "openvino"], "install its driver, or use --device cpu"),
        (["--device", "gpu:97", "--backend", "torch"], "is Intel's, which backend torch does not run on"),
        (["--device", "npu", "--backend", "onnxruntime"], "is Intel's, which backend onnxruntime does not run on"),
        (["--device", "cuda", "--backend", "openvino"], "backend openvino does not run on cuda: leave out one of"),
        (["--device", "cuda:1", "--backend", "openvino"], "backend openvino does not run on cuda:1"),
        (["--device", "nonsense", "--backend", "openvino"], "unknown device 'nonsense': choose auto, cpu, cuda"),
        (["--device", "gpu:x", "--backend", "openvino"], "unknown device 'gpu:x'"),
        (["--device", "GPU", "--backend", "openvino"], "unknown device 'GPU'"),
        (["--precision", "bf16", "--backend", "onnxruntime"], "backend onnxruntime computes in the model's own types"),
        (["--precision", "bf16", "--backend", "torch"], "backend torch computes in the model's own types (fp32)"),
        (["--precision", "bf16", "--device", "cuda"], "backend openvino does not run on cuda"),
    ],
)
def test_a_device_or_arithmetic_that_is_not_there(run, tmp_path, arguments, words):
    refused(run(*arguments), tmp_path, words)


@pytest.mark.parametrize("arguments", [["--backend", "openvino"], ["--precision", "bf16"]])
def test_an_engine(run, tmp_path, small, arguments):
    engine = fake_cuda.write_engine(small, tmp_path / "engine", Profile.fixed(*SIZE))
    ended = run(*arguments, model=engine.directory)
    words = "is an engine, which backend openvino cannot run" if "openvino" in arguments else "those of an engine"
    refused(ended, tmp_path, words)


class Core:
    """OpenVINO's, on another machine."""

    available_devices = ("CPU", "GPU.0", "GPU.1")

    def get_property(self, device, name):
        return {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Some Processor "}[name]


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(openvino_models, "load_openvino", lambda: SimpleNamespace(Core=Core))
    return monkeypatch


def test_bf16_on_a_processor_without_units_for_it(run, tmp_path, elsewhere):
    refused(run("--precision", "bf16"), tmp_path, "bf16: Some Processor has no units for bf16, and would be slower")


@pytest.mark.parametrize(
    ("found", "device", "fits"),
    [
        (("CPU", "GPU"), "GPU.0", True),
        (("CPU", "GPU.0", "GPU.1"), "GPU", True),
        (("CPU", "GPU.0", "GPU.1"), "GPU.1", True),
        (("CPU", "GPU"), "GPU.1", False),
        (("CPU",), "NPU", False),
        ((), "CPU", False),
    ],
)
def test_devices_as_openvino_names_them(small, elsewhere, found, device, fits):
    elsewhere.setattr(Core, "available_devices", found)
    target = openvino_models.Target(device, "f32", 1)
    if fits:
        openvino_models.Compiler(small, target)
    else:
        with pytest.raises(InvalidInputError, match=f"no device {device} .it finds {', '.join(found) or 'none'}"):
            openvino_models.Compiler(small, target)


@pytest.mark.parametrize(
    "error", [RuntimeError("Exception from a.cpp:1:\ncan't alloc"), MemoryError(), RuntimeError("x")]
)
@pytest.mark.parametrize("when", ["compile_model", "export_model"])
def test_memory_that_runs_out_while_it_compiles(small, monkeypatch, tmp_path, error, when):
    """Of what is only kept for later runs it is no error."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))

    def short(*_):
        raise error

    compiler = openvino_models.Compiler(small, openvino_models.Target("CPU", "f32", 1))
    compiled = SimpleNamespace(export_model=short)
    core = SimpleNamespace(
        read_model=compiler._core.read_model,
        compile_model=short if when == "compile_model" else lambda *_: compiled,
    )
    monkeypatch.setattr(compiler, "_core", core)
    if when == "export_model":
        assert compiler.compile(small.interface.graph("first"), *SIZE) is compiled
        return
    with pytest.raises(InvalidInputError if str(error) == "x" else MemoryError):
        compiler.compile(small.interface.graph("first"), *SIZE)


def test_frames_too_large_to_compile_for_may_still_be_cut_into_tiles(small, monkeypatch):
    compile_ = openvino_models.Compiler.compile

    def small_ones(self, graph, height, width):
        if height > 16:
            raise MemoryError
        return compile_(self, graph, height, width)

    monkeypatch.setattr(openvino_models.Compiler, "compile", small_ones)
    backend = open_backend("openvino", small, "cpu", size=(64, 24))
    tile, whole = (np.zeros((1, height, 24, 3), np.uint8) for height in (16, 64))
    backend.submit("first", dict.fromkeys(small.interface.frames, tile), {}).result()
    with pytest.raises(InvalidInputError, match="the memory is too small for frames of 24x64 with openvino"):
        backend.submit("first", dict.fromkeys(small.interface.frames, whole), {})
    backend.close()


def test_a_size_that_no_frame_had_is_dropped(small):
    backend = open_backend("openvino", small, "cpu", size=(32, 24))
    frame = np.zeros((1, *SIZE, 3), np.uint8)
    backend.submit("first", dict.fromkeys(small.interface.frames, frame), {}).result()
    assert [*backend._pools] == [SIZE]
    backend.close()


# Models


def recursive(model):
    function = model.functions[0]
    again = helper.make_node(function.name, list(function.input), list(function.output), domain=function.domain)
    del function.node[:]
    function.node.append(again)


def outside(place):
    def edit(model):
        tensor = next(each for each in model.graph.initializer if len(each.raw_data) >= 16)
        set_external_data(tensor, place)
        tensor.ClearField("raw_data")

    return edit


def another_operator(model):
    model.graph.node[3].op_type = "Nonsense"


def without_functions(model):
    del model.functions[:]


def in_a_circle(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[: len(content) // 2], "cannot be read as ONNX"),
        (lambda content: content[:-1], "cannot be read as ONNX"),
        (lambda content: b"", "is not the graph first"),
        (lambda content: np.random.default_rng(0).bytes(2000), "cannot be read as ONNX"),
        (recursive, "cannot be loaded by OpenVINO: "),
        (outside("../secret.bin"), "cannot be read as ONNX"),
        (outside("/etc/passwd"), "cannot be read as ONNX"),
        (outside("none.bin"), "cannot be read as ONNX"),
        (another_operator, "cannot be loaded by OpenVINO: No conversion rule found for operations: Nonsense"),
        (without_functions, "No conversion rule found for operations: mtu.CorrelationArgmaxWarp"),
        (in_a_circle, "cannot be loaded by OpenVINO: "),
        ("step", "mtu.graph is 'step', should be 'first'"),
    ],
)
@pytest.mark.parametrize("size", [SIZE, None])
def test_a_damaged_graph(tmp_path, small, damage, words, size):
    """Refused when the model is opened, whether or not the size is known by then."""
    shutil.copytree(small.directory, tmp_path / "m")
    content = small.graph("first").read_bytes()
    if damage == "step":
        content = small.graph("step").read_bytes()
    elif damage.__name__ == "<lambda>":
        content = damage(content)
    else:
        model = onnx.load_from_string(content)
        damage(model)
        content = model.SerializeToString()
    (tmp_path / "m" / "first.onnx").write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        open_backend("openvino", open_bundle(tmp_path / "m"), "cpu", size=size)
    assert words in str(error.value) and "\n" not in str(error.value)


# The cache


@pytest.fixture
def kept(monkeypatch, tmp_path, small):
    """The files in a cache of its own that `small` is compiled in."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "cache"))
    expected = pictures(small)

    def files():
        return sorted((tmp_path / "cache" / "openvino").iterdir())

    assert len(files()) == 2
    return files, expected


def pictures(bundle):
    backend = open_backend("openvino", bundle, "cpu", size=SIZE)
    session = Session(backend, scene_threshold=None)
    found = [each.rgb for frame in moving_frames(4, *SIZE) for each in session.push(frame)]
    found += [each.rgb for each in session.flush()]
    backend.close()
    return found


def with_digest(content):
    return hashlib.sha256(content).digest() + content


ENTRIES = {
    "empty": lambda content: b"",
    "short": lambda content: content[:40],
    "truncated": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "random": lambda content: os.urandom(1000),
    "random with a digest": lambda content: with_digest(os.urandom(1000)),
    "nothing with a digest": lambda content: with_digest(b""),
    "half with a digest": lambda content: with_digest(content[32 : len(content) // 2]),
    "a text with a digest": lambda content: with_digest(b"<?xml version='1.0'?>"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_damaged_or_foreign_entry_is_made_again(small, kept, kind):
    files, expected = kept
    for path in files():
        path.write_bytes(ENTRIES[kind](path.read_bytes()))
    assert np.array_equal(pictures(small), expected)
    assert [len(cache.read_kept(path) or b"") > 100_000 for path in files()] == [True, True]


def test_what_is_kept_is_not_made_again(small, kept, monkeypatch):
    monkeypatch.setattr(openvino_models.Compiler, "_read", lambda *_: pytest.fail("it is read"))
    _, expected = kept
    assert np.array_equal(pictures(small), expected)


@pytest.mark.parametrize("key", ["get_version", "weights"])
def test_another_version_or_model_has_entries_of_its_own(small, kept, monkeypatch, tmp_path, key):
    files, _ = kept
    if key == "get_version":
        monkeypatch.setattr(openvino_models.load_openvino(), "get_version", lambda: "2031.1")
    else:
        shutil.copytree(small.directory, tmp_path / "m")
        for path in (tmp_path / "m").glob("*.onnx"):
            model = onnx.load(path)
            model.doc_string = "another file"
            onnx.save(model, path)
        small = open_bundle(tmp_path / "m")
    pictures(small)
    assert len(files()) == 4


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def an_entry_is_a_directory(cache_directory, monkeypatch):
    entries = list((cache_directory / "openvino").iterdir())
    for path in entries:
        path.unlink()
        path.mkdir()


def it_is_a_file(cache_directory, monkeypatch):
    shutil.rmtree(cache_directory)
    cache_directory.write_text("mine")


def it_lies_below_a_file(cache_directory, monkeypatch):
    it_is_a_file(cache_directory, monkeypatch)
    monkeypatch.setenv("MTU_CACHE_DIR", str(cache_directory / "cache"))


def it_may_not_be_written(cache_directory, monkeypatch):
    if os.getuid() == 0:
        monkeypatch.setenv("MTU_CACHE_DIR", "/proc/self/cache")
    else:
        shutil.rmtree(cache_directory)
        cache_directory.mkdir(0o500)


def the_disk_is_full(cache_directory, monkeypatch):
    shutil.rmtree(cache_directory)
    monkeypatch.setattr(cache, "write_whole", full)


def nobody_has_a_home(cache_directory, monkeypatch):
    monkeypatch.delenv("MTU_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))


@pytest.mark.parametrize(
    "state",
    [
        an_entry_is_a_directory,
        it_is_a_file,
        it_lies_below_a_file,
        it_may_not_be_written,
        the_disk_is_full,
        nobody_has_a_home,
    ],
)
def test_a_cache_that_cannot_be_used_is_a_note(run, kept, monkeypatch, tmp_path, state):
    state(tmp_path / "cache", monkeypatch)
    ended = run("--backend", "openvino")
    assert ended.code == 0 and len(list((tmp_path / "out").iterdir())) == 3
    notes = [line for line in ended.err.splitlines() if "cannot be kept" in line]
    assert len(notes) == 1 and notes[0].startswith("mtu-run: note: the compiled model cannot be kept in "), ended.err
    assert notes[0].endswith("): every run makes it again") and "Warning" not in ended.err


COMPILE = """
import sys
from mtu.runtime import open_backend, open_bundle
open_backend("openvino", open_bundle(sys.argv[1]), "cpu", size=(16, 24)).close()
"""
KILLED = "import os, pathlib\npathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)\n" + COMPILE


def start(code, bundle):
    return subprocess.Popen([sys.executable, "-c", code, str(bundle.directory)], env=environment())


def test_two_processes_compile_the_same_model(small, kept, tmp_path):
    files, expected = kept
    shutil.rmtree(tmp_path / "cache")
    processes = [start(COMPILE, small) for _ in range(2)]
    assert [process.wait(LIMIT) for process in processes] == [0, 0]
    assert len(files()) == 2 and not [path for path in files() if path.suffix]
    assert np.array_equal(pictures(small), expected)


def test_a_process_killed_while_it_writes(small, kept, tmp_path):
    files, expected = kept
    names = files()
    shutil.rmtree(tmp_path / "cache")
    assert start(KILLED, small).wait(LIMIT) == -signal.SIGKILL
    assert [path.suffix for path in files()] == [".part"]
    assert np.array_equal(pictures(small), expected)
    assert set(names) < set(files())
