"""mtu-doctor: what is here, what is broken, and why a model would be refused."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from tests import cli, fake_cuda
from tests.small_models import opposite

from mtu.core import processor
from mtu.export.chain_files import write_chain
from mtu.plugins.op import OPS, find_op
from mtu.runtime import doctor
from mtu.runtime.bundle import bundled_directory
from mtu.runtime.engine import Profile
from mtu.runtime.gpu import find_gpu

SIZE = Profile.fixed(32, 48)


class Answers:
    """Stands for the processes that try things."""

    says: dict[str, tuple[bool, str]] = {}  # noqa: RUF012

    def __init__(self, name, arguments=()):
        self._answer = self.says.get(name, (True, "1.0"))

    def outcome(self):
        return self._answer


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setattr(doctor, "Trial", Answers)
    monkeypatch.setattr(Answers, "says", {"TensorRT": (True, "10.16.1.11")})
    return Answers.says


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("mtu.runtime.gpu.driver_library", lambda: None)
    find_gpu.cache_clear()
    yield
    find_gpu.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    gpu = fake_cuda.Gpu()
    fake_cuda.install(monkeypatch, gpu)
    yield gpu
    fake_cuda.uninstall()


def test_everything_is_really_tried(capsys, tmp_path):
    report = tmp_path / "report.json"
    ended = cli.run(capsys, "mtu-doctor", "--json", report)
    assert ended.code == 0 and ended.err == ""
    works, _, found = ended.out.partition("\n\n")
    lines = dict(line.split(": ", 1) for line in found.splitlines())
    for name in ("system", "driver", *doctor.TRIALS, "nvcc"):
        assert lines[name].startswith(("found: ", "missing: ", "broken: "))
    assert lines["PyAV"].startswith("found: ") and "FFmpeg" in lines["PyAV"]
    assert lines["onnxruntime"].startswith("found: ") and "CPU" in lines["onnxruntime"]
    assert all(" -> " in line for line in lines.values() if line.startswith(("missing", "broken: loading")))
    written = json.loads(report.read_text())
    assert [f["name"] for f in written["host"]] == list(lines) and written["backends"] == []
    assert [line.split(": ")[:2] for line in works.splitlines()] == [
        [each["name"], "yes" if each["works"] else "no"] for each in written["works"]
    ]
    assert works.startswith("run: yes: mtu-run with openvino, onnxruntime")
    assert re.match(r"found: 20\d\d\.\d+\.\d+ \(.*CPU", lines["OpenVINO"])


def works(ended):
    """What `mtu-doctor` says first: name -> (yes or no, why)."""
    return {line.split(": ")[0]: line.split(": ", 2)[1:] for line in ended.out.partition("\n\n")[0].splitlines()}


def test_where_nothing_is_installed_nothing_works(capsys, answers, no_gpu, monkeypatch):
    monkeypatch.setattr("mtu.runtime.backends.is_importable", lambda package: False)
    monkeypatch.setattr(doctor, "is_importable", lambda module: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = cli.run(capsys, "mtu-doctor")
    assert ended.code == 2 and ended.err == ""
    found = works(ended)
    assert list(found) == ["run", "export", "train", "measure", "farm", "server", "build"]
    extras = {"run": "cpu", "export": "export", "train": "train", "measure": "compare", "build": "rtx"}
    extras |= {"farm": "farm", "server": "triton"}
    for name, (answer, why) in found.items():
        assert answer == "no" and f'pip install "mtu-trt[{extras[name]}]"' in why


@pytest.mark.parametrize(
    ("broken", "no"),
    [
        ("onnxruntime", {"export"}),
        ("OpenVINO", set()),
        ("torch", {"export", "train"}),
        ("onnx", {"export", "build"}),
        ("TensorRT-RTX", {"build"}),
        ("PyAV", {"run"}),
    ],
)
def test_what_a_broken_library_costs(capsys, answers, no_gpu, monkeypatch, broken, no):
    """Where everything else is installed, and no GPU answers."""
    monkeypatch.setattr("mtu.runtime.backends.is_importable", lambda package: True)
    monkeypatch.setattr(doctor, "is_importable", lambda module: True)
    monkeypatch.setattr("mtu.core.extras.missing", lambda *needed: [])
    monkeypatch.setattr(doctor, "missing", lambda *needed: [])
    answers[broken] = (False, "it is broken")
    ended = cli.run(capsys, "mtu-doctor")
    found = works(ended)
    assert {name for name, (answer, _) in found.items() if answer == "no"} == no
    assert ended.code == (2 if "run" in no else 0)
    if broken == "onnxruntime":
        assert found["run"][1] == "mtu-run with openvino, torch, torch-compile"
        assert found["export"][1].startswith("onnxruntime does not work (it is broken): pip install")


def test_tensorrt_builds_where_a_gpu_is(capsys, answers, gpu, monkeypatch):
    monkeypatch.setattr(doctor, "is_importable", lambda module: module in ("onnx", "tensorrt"))
    assert works(cli.run(capsys, "mtu-doctor"))["build"] == ["yes", "mtu-build-engine with tensorrt"]


def test_a_library_that_ends_its_process_is_found_out(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "onnx.py").write_text("import os; os.abort()")
    assert doctor.Trial("onnx").outcome() == (False, "loading it ends the process (signal 6)")
    (tmp_path / "onnx.py").write_text("print('noise'); import ctypes; ctypes.CDLL('libnothing.so')")
    works, text = doctor.Trial("onnx").outcome()
    assert not works and text.startswith("OSError: libnothing.so")
    (tmp_path / "onnx.py").write_text("print('noise'); __version__ = '7'")
    assert doctor.Trial("onnx").outcome() == (True, "7")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("__version__ = '2023.3.0-1'", "openvino 2023.3.0-1 is too old: 2025.0 or newer is needed; pip install -U"),
        ("import ctypes; ctypes.CDLL('libnothing.so')", "openvino is installed but cannot be loaded (libnothing.so"),
        ("", "openvino is installed but cannot be loaded (module 'openvino' has no attribute '__version__')"),
        ("import os; os.abort()", "loading it ends the process (signal 6)"),
    ],
)
def test_an_openvino_that_is_of_no_use(tmp_path, monkeypatch, source, words):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "openvino.py").write_text(source)
    works, text = doctor.Trial("OpenVINO").outcome()
    assert not works and text.startswith(words)


@pytest.mark.parametrize(
    ("abilities", "flags", "words"),
    [
        ({"CPU": ["FP32", "BF16"]}, "amx_bf16 avx512_bf16", "2026.1.0 (CPU with bf16 in AMX)"),
        ({"CPU": ["BF16"]}, "avx512_bf16", "2026.1.0 (CPU with bf16 in AVX512-BF16)"),
        ({"CPU": ["BF16"]}, "", "2026.1.0 (CPU with bf16)"),
        ({"CPU": ["FP32"], "GPU.0": ["FP16"]}, "avx2", "2026.1.0 (CPU, GPU.0)"),
        ({}, "amx_bf16", "2026.1.0 (no device)"),
    ],
)
def test_what_openvino_finds(monkeypatch, tmp_path, abilities, flags, words):
    core = SimpleNamespace(available_devices=list(abilities), get_property=lambda device, name: abilities[device])
    openvino = SimpleNamespace(__version__="2026.1.0-2-releases/2026/1", Core=lambda: core)
    (tmp_path / "cpuinfo").write_text(f"flags : sse {flags}\n")
    monkeypatch.setattr("mtu.runtime.openvino_library.load_openvino", lambda: openvino)
    monkeypatch.setattr(processor.bf16_units, "__defaults__", (tmp_path / "cpuinfo",))
    assert doctor._openvino() == words


@pytest.mark.needs_library("tensorrt_rtx")
def test_each_op_is_named_with_its_revision():
    works, text = doctor.Trial("plugin", ["tensorrt-rtx"]).outcome()
    named = " and ".join(f"{name} revision {find_op(name).revision}" for name in OPS)
    assert works and text == f"{named}, registers with tensorrt-rtx"


def test_a_cpp_plugin_that_is_not_there(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    works, text = doctor.Trial("plugin", ["tensorrt-rtx", str(tmp_path / "none.so")]).outcome()
    assert not works and "none.so does not exist: build it with mtu-build-plugin" in text


def test_an_engine_that_can_run(capsys, answers, gpu, small, tmp_path):
    engine = fake_cuda.write_engine(small, tmp_path / "e", SIZE)
    ended = cli.run(capsys, "mtu-doctor", engine.directory)
    assert ended.code == 0
    assert "GPU 0: found: Fake GPU, compute capability 9.0, 1.0 GiB" in ended.out
    assert ended.out.endswith("tensorrt: can run it\n")
    assert "custom fp32, frames 48x32, tensorrt 10.16.1.11, compute capability 9.0" in ended.out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "NVIDIA A10", "compute_capabilities": ("8.6",)}, "the engine was built for NVIDIA A10"),
        ({"library_version": "10.3.0"}, "the engine was built with tensorrt 10.3.0, here is 10.16.1.11"),
        ({"plugins": {"CorrelationArgmaxWarp": 7}}, "revision 7 of the plugin"),
    ],
)
def test_why_an_engine_is_refused(capsys, answers, gpu, small, tmp_path, changes, reason):
    engine = fake_cuda.write_engine(small, tmp_path / "e", SIZE, **changes)
    ended = cli.run(capsys, "mtu-doctor", engine.directory)
    assert ended.code == 2 and ended.err == ""
    assert "tensorrt: cannot run it\n" in ended.out and reason in ended.out
    assert "mtu-build-engine BUNDLE" in ended.out


def test_a_damaged_engine(capsys, answers, gpu, small, tmp_path):
    engine = fake_cuda.write_engine(small, tmp_path / "e", SIZE)
    engine.graph("step").write_bytes(b"FAKE")
    ended = cli.run(capsys, "mtu-doctor", engine.directory)
    assert ended.code == 2 and "step.engine is damaged or of another build" in ended.out


def test_all_reasons_at_once(capsys, answers, no_gpu, small, tmp_path, monkeypatch):
    engine = fake_cuda.write_engine(small, tmp_path / "e", SIZE)
    answers["TensorRT"] = (False, "it is broken")
    monkeypatch.setattr("mtu.runtime.backends.is_importable", lambda package: package != "pycuda")
    monkeypatch.setattr(doctor, "is_importable", lambda module: True)
    ended = cli.run(capsys, "mtu-doctor", engine.directory, "--json", tmp_path / "report.json")
    assert ended.code == 2
    (verdict,) = json.loads((tmp_path / "report.json").read_text())["backends"]
    first, second, third, *others = verdict["reasons"]
    assert first.startswith("the engine was built with tensorrt 10.16.1.11, which is not installed here")
    assert "no NVIDIA GPU answers here" in second
    assert "'pycuda'" in third and others == ["TensorRT does not work (it is broken): " + doctor.TRIALS["TensorRT"][2]]


def test_a_bundle(capsys, no_gpu, small):
    ended = cli.run(capsys, "mtu-doctor", small.directory)
    assert ended.code == 0
    assert f"bundle {small.directory}: custom (2 units, 4 channels, 1 block), fp32, weights" in ended.out
    assert "onnxruntime: can run it" in ended.out
    reasons = ended.out.split("tensorrt: cannot run it\n")[1]
    assert "no NVIDIA GPU answers" in reasons


def test_a_network_that_torch_does_not_know(capsys, no_gpu, tmp_path):
    ended = cli.run(capsys, "mtu-doctor", opposite(tmp_path / "m").directory)
    assert ended.code == 0 and "onnxruntime: can run it" in ended.out
    assert "torch: cannot run it\n  the network family 'by hand' is none of this release" in ended.out


def test_the_bundled_model_in_words():
    works, text = doctor.Trial("model", [str(bundled_directory())]).outcome()
    assert works and text.startswith("mtu2 (2 units, 26 channels, 8 blocks), fp32, weights ")


def test_a_broken_bundle(capsys, tmp_path, small):
    shutil.copytree(small.directory, tmp_path / "b")
    (tmp_path / "b" / "first.onnx").write_bytes(b"no")
    ended = cli.run(capsys, "mtu-doctor", tmp_path / "b")
    assert ended.code == 2
    assert "first.onnx cannot be loaded by onnxruntime" in ended.out and "can run it" not in ended.out.replace(
        "cannot run it", ""
    )


def test_bad_arguments(capsys, tmp_path):
    for arguments, words in (
        (["nowhere"], "model nowhere does not exist"),
        ([tmp_path], "lacks bundle.json"),
        (["--json", tmp_path], "is a directory"),
    ):
        ended = cli.run(capsys, "mtu-doctor", *arguments)
        assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize(("second", "works"), [("bundle", True), ("engine", False)])
def test_a_chain(capsys, no_gpu, small, tmp_path, second, works):
    """Two bundles run by whatever runs both; a bundle and an engine each by its own."""
    model = small.directory
    if second != "bundle":
        model = fake_cuda.write_engine(small, tmp_path / "e", SIZE).directory
    write_chain([small.directory, model], tmp_path / "chain")
    ended = cli.run(capsys, "mtu-doctor", tmp_path / "chain")
    assert ended.code == (0 if works else 2), ended.err
    lines = ended.out.splitlines()
    place = lines.index(f"chain {tmp_path / 'chain'}")
    assert lines[place + 1].startswith(f"  bundle {tmp_path / 'chain'}/1-") and lines[place + 2].startswith("  ")
    assert ("openvino: can run it" if works else "auto: cannot run it") == lines[place + 3]
    assert works or "no NVIDIA GPU answers here" in ended.out
