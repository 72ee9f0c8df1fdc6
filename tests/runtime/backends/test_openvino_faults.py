"""OpenVINO and bad input: one message and exit code 2."""

# ruff: noqa: E402
from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tests import cli, fake_cuda, needs
from tests.frames import write_clip

needs.library("openvino", "onnx")

import onnx
from onnx import helper
from onnx.external_data_helper import set_external_data

from mtu.core.errors import InvalidInputError
from mtu.runtime import open_backend, open_bundle
from mtu.runtime.backends import openvino_models, openvino_precision
from mtu.runtime.backends.openvino_models import Compiler, Target
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
        (["--precision", "bf16", "--device", "cuda"], "backend onnxruntime computes in the model's own types"),
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
    monkeypatch.setattr(openvino_models, "shared_core", Core)
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


def not_a_number(model):
    tensor = next(each for each in model.graph.initializer if len(each.raw_data) >= 16)
    tensor.raw_data = np.float32(np.nan).tobytes() + tensor.raw_data[4:]


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
        (not_a_number, "has weights that are no numbers ("),
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


# What auto does then


@pytest.fixture
def incapable(monkeypatch):
    def refuse(*_):
        raise InvalidInputError("OpenVINO cannot do this")

    monkeypatch.setattr(openvino_models.Compiler, "__init__", refuse)


@pytest.mark.parametrize("precision", [None, "auto"])
def test_auto_takes_onnxruntime_and_says_so(small, incapable, precision):
    said = []
    backend = open_backend("auto", small, "cpu", precision=precision, say=said.append)
    assert backend.name == "onnxruntime"
    assert said == ["note: onnxruntime runs the model, not openvino: OpenVINO cannot do this"]
    backend.close()


@pytest.mark.parametrize(("name", "precision"), [("openvino", None), ("auto", "bf16"), ("auto", "fp32")])
def test_what_was_asked_for_is_not_replaced(small, incapable, name, precision):
    with pytest.raises(InvalidInputError, match="OpenVINO cannot do this"):
        open_backend(name, small, "cpu", precision=precision)


def test_a_model_that_neither_takes_is_refused_once(small, tmp_path):
    shutil.copytree(small.directory, tmp_path / "m")
    (tmp_path / "m" / "first.onnx").write_bytes(b"nothing")
    said = []
    with pytest.raises(InvalidInputError, match=r"first\.onnx cannot be read as ONNX"):
        open_backend("auto", open_bundle(tmp_path / "m"), "cpu", say=said.append)
    assert not said


@pytest.mark.parametrize(
    ("text", "about_memory"),
    [
        ("std::bad_alloc", True),
        ("Failed to allocate 12 bytes", True),
        ("could not create a memory object", True),
        ("Check 'ok' failed at src/plugins/intel_cpu/src/memory_desc/cpu_memory_desc_utils.cpp:12: wrong shape", False),
        ("Parameter 'memory_in': the shape is incompatible", False),
    ],
)
def test_what_is_about_memory(text, about_memory):
    assert openvino_models.is_about_memory(RuntimeError(text)) is about_memory


def test_a_version_without_the_mark_is_refused(small, monkeypatch):
    monkeypatch.setattr(openvino_precision, "_KEY", "unknown")
    with pytest.raises(InvalidInputError, match="cannot keep the matching in fp32"):
        Compiler(small, Target("CPU", "bf16", 1)).check()
