"""A GPU's first run without a GPU: the kernel by its emulator behind a driver, engines by a simulated CUDA."""

from __future__ import annotations

import ctypes
import sys
import types
from enum import IntEnum

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from tests import fake_cuda
from tests.frames import moving_frames
from tests.gpu_stand_ins import fails, hand_out_engines, of, records, report
from tests.plugins.emulated import emulators
from tests.plugins.subjects import SUBJECTS

from mtu.benchmarks import gpu_cases, gpu_check, gpu_first_run
from mtu.benchmarks.gpu_report import Skip
from mtu.core.errors import InvalidInputError
from mtu.plugins import kernel, nvrtc
from mtu.plugins.op import OPS
from mtu.runtime.tensorrt_library import load_library

__all__ = ["emulators", "records", "report"]  # fixtures
CHOSEN = [
    (op, case)
    for op, case in gpu_cases.all_cases()
    if case.name in ("batch", "flat_half", "channels_3", "special", "small", "pool_7", "odd_half", "huge")
]


# --- the kernel -----------------------------------------------------------------------------------------------------


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Driver(types.ModuleType):
    """cuda.bindings.driver, as far as the cases need it: memory of the host, the kernels by their emulators."""

    CUresult = Status
    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=4,
    )

    def __init__(self, emulators) -> None:
        super().__init__("cuda.bindings.driver")
        self.emulators, self.blocks, self.answer, self.current = emulators, [], Status.CUDA_SUCCESS, None
        self.compiled = {}

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *_: (Status.CUDA_SUCCESS, 1)

    def cuDeviceGetAttribute(self, kind, device):
        return Status.CUDA_SUCCESS, kind

    def cuGetErrorString(self, status):
        return Status.CUDA_SUCCESS, b"an illegal memory access"

    def cuCtxSetCurrent(self, context):
        self.current = context
        return (Status.CUDA_SUCCESS,)

    def cuCtxSynchronize(self):
        return (self.answer,)

    def cuMemAlloc(self, size):
        assert self.current is not None
        self.blocks.append(np.full(size + 256, 0xA5, np.uint8))
        address = self.blocks[-1].ctypes.data
        return Status.CUDA_SUCCESS, address + -address % 256

    def cuMemcpyHtoD(self, target, source, size):
        ctypes.memmove(target, source, size)
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyDtoH(self, target, source, size):
        return self.cuMemcpyHtoD(target, source, size)

    def cuModuleLoadData(self, cubin):
        return Status.CUDA_SUCCESS, cubin

    def cuModuleGetFunction(self, module, name):
        return Status.CUDA_SUCCESS, (name.decode(), *self.compiled[module])

    def cuLaunchKernel(self, function, *rest):
        name, source, macros = function
        grid, threads, (arguments, kinds) = rest[:3], rest[3], rest[8]
        (emulator,) = (self.emulators[each.kernel] for each in SUBJECTS if each.kernel.text() == source)
        emulator.start(nvrtc.Launch(name, grid, threads, arguments, kinds), macros)
        return (Status.CUDA_SUCCESS,)

    def cuEventElapsedTime(self, before, after):
        return Status.CUDA_SUCCESS, 0.5


@pytest.fixture
def driver(emulators, monkeypatch):
    driver = Driver(emulators)
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)

    def compiled(source, arch, macros):
        assert arch == "sm_90"
        cubin = f"cubin {len(driver.compiled)}".encode()
        driver.compiled[cubin] = source, dict(macros)
        return cubin

    monkeypatch.setattr(nvrtc, "compiled", compiled)
    kernel.launcher.cache_clear()
    yield driver
    kernel.launcher.cache_clear()


def test_cases_are_checked_without_torch(report, records, driver):
    gpu_cases.check_cases(report, gpu_cases.Cuda(), CHOSEN)
    assert [(record["name"], record["passed"], record["detail"]) for record in records] == [
        (f"cases of {op}, {layout}", True, f"{count} cases")
        for op, counts in (("CorrelationArgmaxWarp", (6, 2)), ("IterativeFilters", (3, 1)))
        for layout, count in zip(("linear", "hwc8"), counts, strict=True)
        for layout in (layout, f"{layout}, unaligned")
    ]


@pytest.mark.parametrize("kernel", ["mtu_prepare", "mtu_match"])
def test_a_kernel_that_does_nothing_is_seen(report, records, driver, kernel):
    launch = driver.cuLaunchKernel
    driver.cuLaunchKernel = lambda function, *rest: (
        (Status.CUDA_SUCCESS,) if function[0] == kernel else launch(function, *rest)
    )
    gpu_cases.check_cases(report, gpu_cases.Cuda(), [(op, case) for op, case in CHOSEN if case.name == "flat_half"])
    assert [record["passed"] for record in of(records, "check")] == [False] * len(of(records, "check"))
    assert of(records, "error") or len(of(records, "check")) == 4


def test_a_fault_on_the_device_is_an_error(report, records, driver):
    driver.answer = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    gpu_cases.check_cases(report, gpu_cases.Cuda(), CHOSEN[:1])
    assert {record["message"] for record in of(records, "error")} == {"RuntimeError: CUDA: an illegal memory access"}


def test_the_kernel_is_timed_by_itself(report, records, driver):
    gpu_cases.time_cases(report, gpu_cases.Cuda(), {"32x24": (6, 8)}, samples=3, several=2)
    assert [(record["name"], record["median_ms"], record["samples"]) for record in records] == [
        (f"{name} 32x24 fp16 {layout}, by itself", 0.25, 3)
        for name in ("kernel", "IterativeFilters")
        for layout in ("linear", "hwc8")
    ]


def test_one_case_says_whether_it_is_right(driver, capsys, monkeypatch):
    assert gpu_cases.main(gpu_cases.ONE_CASE) == 0
    monkeypatch.setattr(driver, "cuLaunchKernel", lambda *_: (Status.CUDA_SUCCESS,))
    assert gpu_cases.main(gpu_cases.ONE_CASE) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 * 2 * len(OPS)
    assert [line.split(": ")[1] for line in said] == ["right"] * (len(said) // 2) + ["WRONG"] * (len(said) // 2)
    assert said[:2] == [f"CorrelationArgmaxWarp published_half {layout}: right" for layout in ("linear", "hwc8")]


# --- compute-sanitizer ----------------------------------------------------------------------------------------------

TOOL = """#!/bin/sh
echo "$@" >> {log}
{body}
"""


@pytest.fixture
def sanitizer(tmp_path, monkeypatch):
    """Puts a compute-sanitizer that does `body` on PATH; the case is right if it is run by itself."""

    def make(body):
        path = tmp_path / "compute-sanitizer"
        path.write_text(TOOL.format(log=tmp_path / "log", body=body))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return tmp_path / "log"

    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    monkeypatch.setattr(gpu_cases.sys, "executable", str(python))
    return make


@pytest.mark.parametrize(
    ("body", "passed", "detail"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", True, "ERROR SUMMARY: 0 errors"),
        ("echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'", True, "0 hazards"),
        ("echo '========= ERROR SUMMARY: 12 errors'\nexit 9", False, "ERROR SUMMARY: 12 errors"),
        ("echo '========= Error: Target application terminated before first instrumented API call'", False, "Target"),
        ("echo '========= ERROR SUMMARY: 0 errors'\nexit 1", False, "ERROR SUMMARY: 0 errors"),
        (
            "echo '========= Device not supported'\necho '========= ERROR SUMMARY: 0 errors'\nexit 1",
            False,
            "Device not supported",
        ),
        ("exit 0", False, "it said nothing"),
    ],
)
def test_a_sanitizer_has_to_say_that_nothing_is_wrong(report, records, sanitizer, body, passed, detail):
    log = sanitizer(body)
    gpu_cases.check_one_case(report)
    first, *others = of(records, "check")
    assert first["passed"] and [(other["name"], other["passed"]) for other in others] == [
        ("memcheck", passed),
        ("racecheck", passed),
    ]
    assert all(detail in other["detail"] for other in others)
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["memcheck", "racecheck"]


def test_without_a_sanitizer_that_is_said(report, records, sanitizer, monkeypatch):
    monkeypatch.setattr(gpu_cases, "find_sanitizer", lambda: None)
    gpu_cases.check_one_case(report)
    assert [record["kind"] for record in records] == ["check", "skip", "skip"]
    assert "compute-sanitizer is not on PATH" in records[1]["reason"]


def test_a_case_that_fails_by_itself_is_not_sanitized(report, records, sanitizer, tmp_path):
    log = sanitizer("exit 0")
    (tmp_path / "python").write_text("#!/bin/sh\necho Traceback\necho 'RuntimeError: CUDA: no device' >&2\nexit 1\n")
    gpu_cases.check_one_case(report)
    (only,) = records
    assert not only["passed"] and "RuntimeError: CUDA: no device" in only["detail"] and not log.exists()


def test_a_sanitizer_is_found_beside_the_toolkit(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_cases.find_sanitizer() == str(tool)


# --- saved pictures and engines -------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.npy"
    np.save(path, np.stack(moving_frames(5, 16, 24)))
    return path


@pytest.fixture
def bundled(small, monkeypatch):
    """A small network stands in for the bundled one."""
    from mtu.runtime import bundle

    monkeypatch.setattr(bundle, "open_bundle", lambda *_: small)
    monkeypatch.setattr("mtu.runtime.open_bundle", lambda *_: small)


@pytest.fixture
def reference(clip, bundled, tmp_path):
    path = tmp_path / "kit" / "first-run.npz"
    assert gpu_check.main(["--save-reference", str(path), "--clip", str(clip)]) == 0
    return path


def test_pictures_are_saved_without_a_gpu(capsys, reference, clip, small):
    from mtu.runtime import deblur

    blurred, restored = gpu_first_run.read_reference(reference)
    assert np.array_equal(blurred, np.load(clip))
    assert np.array_equal(restored, list(deblur(blurred, model=small.directory, scene_threshold=None)))
    assert capsys.readouterr().err == f"gpu-check: {reference}: 5 frames 24x16, 0.0 MiB\n"
    assert list(reference.parent.iterdir()) == [reference]


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04", "other"], ids=str)
def test_pictures_that_cannot_be_read_say_what_to_do(tmp_path, content):
    path = tmp_path / "r.npz"
    if content == "other":
        np.savez(path, something=np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="--save-reference FILE"):
        gpu_first_run.read_reference(path)


def test_pictures_that_cannot_be_written_are_one_line(bundled, clip, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert gpu_check.main(["--save-reference", str(tmp_path / "file" / "r.npz"), "--clip", str(clip)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


FLAVOURS = ["tensorrt", "tensorrt-rtx", "tensorrt-8"]


@pytest.fixture
def make_plan(bundled, small, tmp_path, monkeypatch, report):
    """The plan on a host with a library, and what its builder is asked for."""

    def make(flavour, plugin_library=None):
        built = hand_out_engines(monkeypatch, small, flavour)
        name = flavour.removesuffix("-8")
        monkeypatch.setattr(gpu_first_run, "is_importable", lambda module: module == name.replace("-", "_"))
        plan = gpu_first_run.make_plan(report, tmp_path / "engines", plugin_library)
        assert plan.library == load_library(plan.library).name == name
        return plan, built

    yield make
    fake_cuda.uninstall()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engines_give_the_saved_pictures(report, records, make_plan, reference, tmp_path, flavour):
    library = tmp_path / "plugin.so" if flavour == "tensorrt-8" else None
    plan, built = make_plan(flavour, library)
    gpu_first_run.build_engines(report, plan, (16, 24))
    assert built == [("fp32", False, True, library), ("fp16", True, True, library)]
    for graph in (False, True):
        gpu_first_run.check_pictures(report, plan, reference, graph=graph)
    assert of(records, "error") == of(records, "skip") == []
    checks = [(record["name"], record["passed"]) for record in of(records, "check")]
    plain = [("pictures fp32", True), ("pictures fp16", True)]
    graphs = [("pictures fp32", True), ("captured fp32", True), ("pictures fp16", True), ("captured fp16", True)]
    assert checks == [("engines fp32", True), ("engines fp16", True), *plain, *graphs]
    detail = of(records, "check")[2]["detail"]
    assert detail == "5 frames, worst 999.0 dB (frame 0), floor 60 dB"


def test_other_pictures_are_seen(report, records, make_plan, reference):
    plan, _ = make_plan("tensorrt")
    gpu_first_run.build_engines(report, plan, (16, 24))
    blurred, restored = gpu_first_run.read_reference(reference)
    restored[3] = restored[3] ^ 8
    np.savez(reference, blurred=blurred, restored=restored)
    gpu_first_run.check_pictures(report, plan, reference, graph=False)
    wrong = [record for record in of(records, "check") if not record["passed"]]
    assert [record["name"] for record in wrong] == ["pictures fp32", "pictures fp16"]
    assert "worst 30.1 dB (frame 3)" in wrong[0]["detail"]


def test_engines_that_were_not_built_are_errors(report, records, make_plan, reference, monkeypatch):
    plan, _ = make_plan("tensorrt")
    monkeypatch.setattr("mtu.export.engine.build_engine", lambda *_: fails(ValueError("no tactic")))
    gpu_first_run.build_engines(report, plan, (16, 24))
    gpu_first_run.check_pictures(report, plan, reference, graph=True)
    assert [record["name"] for record in of(records, "error")] == ["fp32", "fp16", "fp32", "fp16"]
    assert of(records, "check") == []


def test_tensorrt_8_without_the_plugin_fails_and_goes_on_without(report, records, make_plan, reference):
    plan, built = make_plan("tensorrt-8")
    gpu_first_run.build_engines(report, plan, (16, 24))
    assert [entry[2] for entry in built] == [False, False]
    assert [(record["name"], record["passed"]) for record in of(records, "check")] == [
        ("C++ plugin", False),
        ("engines fp32", True),
        ("engines fp16", True),
    ]


def test_a_step_is_timed_with_and_without_a_graph(report, records, make_plan):
    plan, built = make_plan("tensorrt")
    gpu_first_run.time_steps(report, plan, (16, 24), samples=3)
    assert built == [("mtu2-tensorrt-fp16", True, True, None)]
    assert [record["name"] for record in of(records, "time")] == [
        "mtu2 tensorrt fp16",
        "mtu2 tensorrt fp16, whole frames",
        "mtu2 tensorrt fp16, without CUDA graph",
    ]
    assert of(records, "error") == []


def test_a_host_without_a_library_is_said(report, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_first_run, "is_importable", lambda module: False)
    with pytest.raises(Skip, match="neither tensorrt nor tensorrt_rtx"):
        gpu_first_run.make_plan(report, tmp_path, None)


def test_what_a_gpu_host_imports_needs_neither_torch_nor_onnxruntime():
    from tests.runtime.test_lean import run

    modules = "gpu_check, gpu_sections, gpu_cases, gpu_first_run, gpu_engines"
    done = run(f"from mtu.benchmarks import {modules}\nassert not {{'torch', 'av'}} & set(sys.modules)")
    assert done.returncode == 0, done.stderr
