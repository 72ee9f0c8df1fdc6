"""The GPU check without a GPU: its sections on the CPU (the kernel by its emulator), its arithmetic, its answers."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import sys
import time
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from mtu.benchmarks import gpu_check, gpu_kernel, gpu_network
from mtu.benchmarks.gpu_report import Report, Skip
from mtu.models.errors import MissingExtraError
from mtu.plugins.correlation_argmax_warp import cuda_op, torch_op
from mtu.plugins.correlation_argmax_warp.cases import CASES
from mtu.plugins.correlation_argmax_warp.reference import pooled_costs
from mtu.runtime.gpu import Gpu, find_gpu
from tests import fake_cuda
from tests.test_kernel import emulator

__all__ = ["emulator"]  # a fixture

SIZES = {"32x24": (6, 8)}
RATES = {"copy": 4e12, "fp16": 8e14, "fp32": 5e13}
pytestmark = pytest.mark.usefixtures("one_thread")


class Cpu:
    """A `Device` that is none: the kernel is emulated, and everything else runs on the CPU."""

    name = "cpu"

    def __init__(self, emulator) -> None:
        self.emulator = emulator

    def start(self, problem, pointers, count) -> None:
        half = int(problem.motion_type == "float16")
        names = ("emulator_prepare", "emulator_match")[:count]
        for name, launch in zip(names, cuda_op.launches(problem, *pointers, 4), strict=False):
            extra = [half] if name == "emulator_prepare" else [half, problem.pool_size]
            values = [kind(value) for kind, value in zip(launch.types, launch.arguments, strict=True)]
            getattr(self.emulator, name)(*extra, *launch.grid, launch.threads, *values)

    def launch(self, problem, *pointers) -> None:
        self.start(problem, pointers, 2)

    def launch_prepare(self, problem, *pointers) -> None:
        self.start(problem, pointers, 1)

    def synchronize(self) -> None:
        pass

    def graph(self, call):
        call()
        return call

    def intervals(self, call, count):
        times = [time.perf_counter()]
        for _ in range(count):
            call()
            times.append(time.perf_counter())
        return [1000 * (after - before) for before, after in itertools.pairwise(times)]

    def peak_memory(self, call):
        call()
        return 1.0


@pytest.fixture
def device(emulator):
    emulator.emulator_setup(0, 4)
    return Cpu(emulator)


@pytest.fixture
def records():
    return []


@pytest.fixture
def report(records):
    return Report(records.append)


def of(records, kind):
    return [record for record in records if record["kind"] == kind]


# --- the report -----------------------------------------------------------------------------------------------------


def fails(error):
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Skip("no"), "no"),
        (MissingExtraError("cuda-core", "gpu", "this"), "this needs the package 'cuda-core'"),
        (ModuleNotFoundError("x", name="pycuda"), "the package pycuda is not installed"),
        (importlib.metadata.PackageNotFoundError("mtu-trt"), "mtu-trt itself is not installed: pip install --no-deps"),
        (torch.cuda.OutOfMemoryError("tried\nmore"), "too little device memory: tried"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_missing_is_skipped(report, records, error, reason):
    assert report.run("part", partial(fails, error)) is None
    (record,) = records
    assert (record["kind"], record["name"]) == ("skip", "part")
    assert record["reason"].startswith(reason)


@pytest.mark.parametrize(
    "error",
    [ValueError("wrong"), ImportError("libx.so"), ModuleNotFoundError("x", name="mtu.runtime.nothing")],
    ids=repr,
)
def test_what_fails_is_an_error_and_the_rest_goes_on(report, records, error):
    report.run("part", partial(fails, error))
    assert report.run("next", lambda: 3) == 3
    (record,) = records
    assert record["kind"] == "error"
    assert str(error) in record["message"]
    assert record["where"].startswith("test_gpu_check.py:")


def test_what_takes_longer_than_is_left_is_not_begun(records):
    report = Report(records.append, deadline=time.monotonic() + 20)
    assert report.run("long", lambda: 1, seconds=30) is None
    assert report.run("short", lambda: 1, seconds=5) == 1
    assert [record["kind"] for record in records] == ["skip"]
    assert "--minutes" in records[0]["reason"]


def test_times_are_medians_and_p90(report, records):
    report.time("x", "g", [float(i) for i in range(1, 101)], floor_us=3.0)
    (record,) = records
    assert (record["median_ms"], record["samples"], record["floor_us"]) == (50.5, 100, 3.0)
    assert record["p90_ms"] == 91.0


# --- the kernel -----------------------------------------------------------------------------------------------------


def test_the_kernel_passes_its_check(report, records, device):
    chosen = [case for case in CASES if case.name in ("batch", "flat_half", "channels_3", "special", "small", "pool_7")]
    gpu_kernel.check_kernel(report, device, sizes=SIZES, cases=chosen)
    assert of(records, "error") == []
    checks = {record["name"]: record for record in of(records, "check")}
    assert [name for name, check in checks.items() if not check["passed"]] == []
    assert checks["cases, linear, unaligned"]["detail"] == "6 cases"
    assert checks["cases, hwc8"]["detail"] == "2 cases"
    assert {"the same twice", "the same in a CUDA graph", "random maps 32x24 fp16 hwc8"} <= set(checks)
    assert "batch of 2, D = 20, 96 channels, fp32: warped as displaced" in checks


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_kernel_that_does_not_write_is_seen(report, records, device, stop_after):
    device.launch = lambda problem, *pointers: device.start(problem, pointers, stop_after)
    chosen = [case for case in CASES if case.name in ("batch", "flat_half")]
    gpu_kernel.check_kernel(report, device, sizes=SIZES, cases=chosen)
    passed = {record["name"] for record in of(records, "check") if record["passed"]}
    assert passed <= {"the same twice", "the same in a CUDA graph"}
    wrong = next(record for record in of(records, "check") if record["name"] == "cases, linear")
    assert wrong["detail"] == "2 cases, wrong: flat_half, batch"


def test_a_wrong_displacement_is_seen_and_a_tie_is_not(device):
    motion, motion_prev = gpu_kernel.random_maps(device, (2, 8, 12, 16), torch.float32)
    detail = torch.zeros(2, 4, 48, 64)
    index = torch_op.correlation_argmax_warp(motion, motion_prev, detail)[1]
    assert gpu_kernel.disagreement(motion, motion_prev, index, index) == (0, 0)
    other = index.clone()
    other[1, 3, 4] += 1
    other[0, 0, 0] = -1
    assert gpu_kernel.disagreement(motion, motion_prev, other, index) == (2, 2)
    black = torch.zeros_like(motion)
    assert gpu_kernel.disagreement(black, black, other, index) == (2, 1)  # all tie, but -1 is no displacement


def test_the_pooled_cost_is_that_of_the_truth():
    case = next(case for case in CASES if case.name == "batch")
    motion, motion_prev = case.inputs["motion"], case.inputs["motion_prev"]
    costs = pooled_costs(motion, motion_prev, case.max_displacement, case.pool_size)
    a, b = (torch.nn.functional.normalize(torch.from_numpy(m).double(), dim=1) for m in (motion, motion_prev))
    where = torch.from_numpy(np.argwhere(np.ones(costs.shape[1:]))).unbind(1)
    for index in range(0, len(costs), 5):
        chosen = torch.full_like(where[0], index)
        ours = gpu_kernel.pooled_cost(a, b, where, chosen, case.max_displacement, case.pool_size)
        np.testing.assert_allclose(ours.numpy(), costs[index].ravel(), atol=1e-12)


COMPARABLE = [c for c in CASES if not c.exact_ties and (c.pool_size, c.scale, c.dtype) == (5, 4, "float32")]


@pytest.mark.parametrize("name", [case.name for case in COMPARABLE])
def test_the_unfused_op_is_the_op(name):
    case = next(case for case in COMPARABLE if case.name == name)
    inputs = [torch.from_numpy(array) for array in case.inputs.values()]
    for result, truth in zip(gpu_kernel.unfused(*inputs, case.max_displacement), case.expected, strict=True):
        np.testing.assert_array_equal(result.numpy(), truth)


def test_the_floors_of_the_published_network():
    half = cuda_op.Problem(1, 52, 180, 320, 26)
    maps, detail, index = 11_980_800, 47_923_200, 230_400
    assert gpu_kernel.least_bytes(half) == maps + 2 * cuda_op.workspace_bytes(half) + 2 * detail + index
    single = cuda_op.Problem(2, 52, 180, 320, 26, motion_type="float32", detail_type="float32")
    others = 2 * (2 * maps + 2 * 2 * detail + index)
    assert gpu_kernel.least_bytes(single) == others + 2 * cuda_op.workspace_bytes(single)
    assert gpu_kernel.useful_operations(half) == 2 * 441 * 57600 * 52


def test_the_kernel_is_timed_beside_torch_and_its_floors(report, records, device, monkeypatch):
    monkeypatch.setattr(gpu_kernel, "PREDICTED_US", {"kernel 32x24 fp16 linear": 12.5})
    rates = gpu_kernel.measure_rates(report, device, copied=2**16, side=32)
    assert set(rates) == set(RATES) and min(rates.values()) > 0
    compiler = lambda function, dynamic: function  # noqa: E731
    gpu_kernel.time_kernel(report, device, RATES, sizes=SIZES, compiler=compiler, rounds=3, launches=1)
    assert of(records, "error") == []
    times = {record["name"]: record for record in of(records, "time")}
    kernel = times["kernel 32x24 fp16 linear"]
    assert (kernel["group"], kernel["predicted_us"], kernel["samples"]) == ("kernel 32x24 fp16", 12.5, 3)
    assert kernel["prepare_us"] + kernel["match_us"] == pytest.approx(1000 * kernel["median_ms"])
    problem = cuda_op.Problem(1, 52, 6, 8, 26)
    assert kernel["floor_bytes_us"] == pytest.approx(gpu_kernel.least_bytes(problem) / 4e6)
    assert kernel["floor_operations_us"] == pytest.approx(gpu_kernel.useful_operations(problem) / 8e8)
    assert "predicted_us" not in times["kernel 32x24 fp16 hwc8"]
    for name in ("unfused", "unfused compiled", "torch op"):
        assert {f"{name} 32x24 fp16", f"{name} 32x24 fp32"} <= set(times)
    assert "kernel 32x24 fp16 linear, again at the end" in times
    assert all(record["passed"] for record in of(records, "check"))


# --- the network ----------------------------------------------------------------------------------------------------


def test_torch_steps_are_timed(report, records, device):
    compiled = []

    def compiler(function, dynamic):
        compiled.append(function)
        return function

    gpu_network.time_torch(report, device, models=["mtu2"], size=(16, 24), compiler=compiler, samples=3)
    assert of(records, "error") == []
    groups = [record["group"] for record in of(records, "time")]
    assert groups.count("mtu2 torch eager AMP") == groups.count("mtu2 torch.compile AMP") == len(compiled) == 2
    assert groups.count("captured") == 4 and groups[-1] == "again"


def test_a_step_hands_its_states_on(device, monkeypatch):
    seen = []
    step = gpu_network.torch_step(
        device, "mtu2", (16, 24), "contiguous", lambda function, dynamic: lambda f, s: seen.append(s) or function(f, s)
    )
    step()
    assert seen[0] is not seen[-1] and not torch.equal(seen[0][1], seen[-1][1])


def test_onnxruntime_steps_are_timed(report, records):
    gpu_network.time_onnxruntime(report, models=["mtu2"], size=(16, 24), device="cpu", samples=3)
    assert of(records, "error") == []
    assert [record["name"] for record in of(records, "time")] == ["mtu2 onnxruntime fp32", "mtu2 onnxruntime fp16"]


def test_onnxruntime_without_cuda_says_so(report, records):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    report.run("onnxruntime", lambda: gpu_network.time_onnxruntime(report))
    (skipped,) = records
    assert skipped["kind"] == "skip" and "onnxruntime-gpu" in skipped["reason"]


@pytest.fixture
def make_gpu(monkeypatch):
    yield lambda flavour: fake_cuda.install(monkeypatch, fake_cuda.Gpu(flavour=flavour, registered=True))
    fake_cuda.uninstall()


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx", "tensorrt-8"])
def test_engines_are_timed_through_the_backend(report, records, library, small, tmp_path, monkeypatch, make_gpu):
    make_gpu(library)
    monkeypatch.setattr(fake_cuda.Event, "time_till", lambda self, later: 0.25, raising=False)
    monkeypatch.setattr("mtu.runtime.plugin.register_plugin", lambda *_: None)
    name = library.removesuffix("-8")
    built = []

    def build(bundle, directory, options):
        built.append((options.fp16, options.plugin, options.plugin_library))
        changes = {"library": options.runtime, "library_version": fake_cuda.VERSIONS[library]}
        return fake_cuda.write_engine(small, directory, options.profile, **changes)

    monkeypatch.setattr("mtu.export.engine.build_engine", build)
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (3, 14, 21, 3), np.uint8))
    plugin = tmp_path / "plugin.so" if library == "tensorrt-8" else None
    gpu_network.time_tensorrt(
        report, name, models=["mtu2"], size=(16, 24), plugin_library=plugin, clip=tmp_path / "clip.npy", samples=4
    )
    assert of(records, "error") == of(records, "skip") == []
    times = {record["name"]: record for record in of(records, "time")}
    assert times[f"mtu2 {name} fp16"]["median_ms"] == 0.25
    assert times[f"mtu2 {name} fp16"]["samples"] == 4
    assert f"mtu2 {name} fp32 without plugin, without CUDA graph" in times
    assert f"mtu2 {name} fp32, whole frames" in times
    assert all(record["passed"] for record in of(records, "check"))
    assert [built[i][:2] for i in range(4)] == [(True, True), (False, True), (True, False), (False, False)]
    assert {entry[2] for entry in built} == {plugin}
    assert [record["value"] for record in of(records, "value")] == [999.0, 100.0]  # one engine twice


def test_tensorrt_8_without_the_plugin_is_timed_without(report, records, monkeypatch, make_gpu):
    make_gpu("tensorrt-8")
    monkeypatch.setattr("mtu.export.engine.build_engine", lambda *_: fails(ValueError("not built")))
    gpu_network.time_tensorrt(report, "tensorrt", models=["mtu2"], size=(16, 24))
    assert [record["name"] for record in of(records, "skip")] == ["mtu2 tensorrt fp16", "mtu2 tensorrt fp32"]
    assert "--plugin-library" in of(records, "skip")[0]["reason"]
    assert [record["name"] for record in of(records, "error")] == [
        "mtu2 tensorrt fp16 without plugin",
        "mtu2 tensorrt fp32 without plugin",
        "tensorrt fp16 against fp32",
    ]


def test_fp16_is_compared_with_fp32(report, records, tmp_path):
    pytest.importorskip("onnx")
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8))
    gpu_network.compare_torch(report, device="cpu", clip=tmp_path / "clip.npy", limit=3)
    psnr, equal = (record["value"] for record in of(records, "value"))
    assert 40 < psnr < 100 and 80 < equal <= 100


def test_a_clip_that_is_not_there_is_said(tmp_path):
    with pytest.raises(Skip, match="--clip"):
        gpu_network.read_clip(tmp_path / "none.mp4")


# --- tests that need a GPU ------------------------------------------------------------------------------------------

TESTS = """
import pytest

@pytest.mark.needs_cuda
@pytest.mark.parametrize("reason", [
    "the package tensorrt_nothing is not installed", "tensorrt is not installed", "numpy is not fast enough"
])
def test_skipped(reason):
    pytest.skip(reason)

@pytest.mark.needs_cuda
def test_passed():
    pass

@pytest.mark.needs_cuda
def test_failed():
    assert 1 == 2

def test_not_marked():
    assert False
"""


def test_a_skip_counts_unless_its_library_is_missing(report, records, tmp_path, monkeypatch):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_gpu.py").write_text(TESTS)
    (folder / "test_other.py").write_text("import nothing_that_is_needed")
    (folder / "test_third.py").write_text("import a_module_that_is_not  # for pytest.mark.needs_cuda")
    works = gpu_check._works_on_cuda
    monkeypatch.setattr(gpu_check, "_works_on_cuda", lambda name: name != "tensorrt" and works(name))
    gpu_check.tests(report, gpu_check.Options(), folder)
    outcomes = {record["name"].split("test_")[-1]: record for record in records}
    assert len(records) == 6
    assert "a_module_that_is_not" in outcomes["third"]["reason"]
    assert outcomes["passed"]["passed"] is True
    assert outcomes["failed"]["passed"] is False and "assert 1 == 2" in outcomes["failed"]["detail"]
    assert outcomes["skipped[tensorrt is not installed]"]["kind"] == "skip"
    for reason in ("the package tensorrt_nothing is not installed", "numpy is not fast enough"):
        assert outcomes[f"skipped[{reason}]"]["passed"] is False


def test_without_tests_that_is_said(report, tmp_path):
    with pytest.raises(Skip, match="in a checkout"):
        gpu_check.tests(report, gpu_check.Options(), tmp_path)


@pytest.mark.parametrize(
    ("outcome", "message", "excused"),
    [
        ("skipped", "this onnxruntime was built without CUDA", True),
        ("skipped", "tensorrt-rtx is not installed", True),
        ("skipped", "could not import 'cuda.core': No module named 'cuda.core'", True),
        ("skipped", "no CUDA device", False),
        ("skipped", "numpy is too old", False),
        ("error", "E   ModuleNotFoundError: No module named 'a_module_that_is_not'", True),
        ("error", "E   ModuleNotFoundError: No module named 'numpy'", False),
        ("failed", "onnxruntime gave NaN", False),
    ],
)
def test_which_skips_are_excused(monkeypatch, outcome, message, excused):
    here = ("numpy", "torch")
    monkeypatch.setattr(gpu_check, "_works_on_cuda", lambda name: name in here)
    assert gpu_check.lacks_library(outcome, message) is excused


def test_onnxruntime_is_there_if_it_has_cuda(monkeypatch):
    for provider, works in (("CPUExecutionProvider", False), ("CUDAExecutionProvider", True)):
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda provider=provider: [provider])
        assert gpu_check._works_on_cuda("onnxruntime") is works
    assert gpu_check._works_on_cuda("numpy") and not gpu_check._works_on_cuda("nothing_like.this")


# --- figures and tables ---------------------------------------------------------------------------------------------


def timed(name, group, median):
    return {"kind": "time", "name": name, "group": group, "median_ms": median, "p90_ms": median, "samples": 5}


MEASURED = [
    timed("kernel linear", "kernel 1280x720 fp16", 0.070),
    timed("kernel hwc8", "kernel 1280x720 fp16", 0.060),
    timed("unfused", "unfused 1280x720 fp16", 0.59),
    timed("engine", "mtu2 tensorrt fp16", 1.6),
    timed("engine", "mtu2 tensorrt-rtx fp16", 1.5),
    timed("eager", "mtu2 torch eager AMP", 13.0),
    timed("eager", "mtu2 torch eager AMP", 12.0),
    timed("compiled", "mtu2 torch.compile AMP", 3.0),
    {"kind": "value", "name": "torch: PSNR", "group": "fp16 PSNR", "value": 40.0},
    {"kind": "value", "name": "tensorrt: PSNR", "group": "fp16 PSNR", "value": 51.0},
    {"kind": "value", "name": "tensorrt: equal", "group": "fp16 equal displacements", "value": 99.4},
]


def test_figures_are_reached_or_not():
    found = gpu_check.figures(MEASURED, "NVIDIA H200")
    assert [(f.value and round(f.value, 3), f.outcome) for f in found] == [
        (60.0, "reached"),
        (9.833, "not reached"),
        (1.5, "reached"),
        (8.0, "reached"),
        (2.0, "not reached"),
        (51.0, "reached"),
        (99.4, "not reached"),
    ]


def test_figures_that_were_not_measured():
    assert {figure.outcome for figure in gpu_check.figures([], "NVIDIA H200")} == {"not measured"}
    assert gpu_check.figures(MEASURED, "NVIDIA L4")[0].outcome == "not measured"


def test_the_table_shows_everything():
    records = [
        *MEASURED,
        {"kind": "fact", "name": "torch", "value": "2.9"},
        {"kind": "check", "name": "fine", "passed": True, "detail": ""},
        {"kind": "check", "name": "cases", "passed": False, "detail": "wrong: batch"},
        {"kind": "skip", "name": "engine", "reason": "no TensorRT"},
        {"kind": "error", "name": "part", "message": "ValueError: no", "where": "x.py:3"},
        {**timed("slow", "g", 2.5), "floor_bytes_us": 31.25},
    ]
    results = {
        "gpu": "NVIDIA X",
        "date": "2026",
        "commit": None,
        "sections": {"one": {"records": records, "ended": ""}, "two": {"records": [], "ended": "died of signal 6"}},
        "figures": [{"name": "kernel", "target": "<= 60 us", "value": None, "outcome": "not measured"}],
    }
    assert gpu_check.failures(results) == [
        "one: cases: wrong: batch",
        "one: part: ValueError: no (x.py:3)",
        "two: died of signal 6",
    ]
    text = gpu_check.as_markdown(results)
    for line in (
        "- torch: 2.9",
        "| kernel hwc8 | 60.0 us | 60.0 us | 5 |  |",
        "| slow | 2.500 ms | 2.500 ms | 5 | floor_bytes_us 31.2 |",
        "| tensorrt: PSNR | 51.00 | | | |",
        "| kernel | <= 60 us |  | not measured |",
        "SKIPPED one: engine: no TensorRT",
        "PASSED one: 1 checks",
        "FAILED one: cases: wrong: batch",
    ):
        assert line in text.splitlines()


# --- the run --------------------------------------------------------------------------------------------------------


def child(code):
    return [sys.executable, "-c", f"import os, time\nprint('{{\"name\": 1}}', flush=True)\n{code}"]


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("", ""),
        ("os.abort()", "died of signal 6"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("time.sleep(60)", "ended because it took more than 1 s"),
    ],
)
def test_a_section_that_dies_leaves_what_it_found(records, monkeypatch, code, how):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    assert gpu_check.collect(child(code), 0.5 if how.startswith("ended because") else 60, records.append) == how
    assert records == [{"name": 1}]


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path, capsys):
    assert gpu_check.main(["-o", str(tmp_path / "results.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu-check: error: no NVIDIA GPU answers") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_sections_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--only", "kernel,kernels"])
    assert end.value.code == 2
    assert "unknown section 'kernels'" in capsys.readouterr().err


@pytest.fixture
def made_up_gpu(monkeypatch):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda index=0: Gpu(0, "NVIDIA Made Up (80GB)", "9.0", 2**36))


def test_an_output_that_cannot_be_written_is_refused(made_up_gpu, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert gpu_check.main(["-o", str(tmp_path / "file" / "results.json")]) == 2
    error = capsys.readouterr().err
    assert "give another with -o" in error and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_whole_run_on_a_host_that_lacks_everything(made_up_gpu, tmp_path, capsys):
    path = tmp_path / "new" / "results.json"
    arguments = ["-o", str(path), "--only", "environment,torch"]
    assert gpu_check.main(arguments) == 0
    results = json.loads(path.read_text())
    assert list(results["sections"]) == ["environment", "torch"]
    assert (results["gpu"], results["arguments"]) == ("NVIDIA Made Up (80GB)", arguments)
    facts = {record["name"]: record.get("value") for record in results["sections"]["environment"]["records"]}
    assert facts["torch"] == torch.__version__
    (skipped,) = results["sections"]["torch"]["records"]
    assert skipped["kind"] == "skip" and "torch finds no CUDA device" in skipped["reason"]
    assert {figure["outcome"] for figure in results["figures"]} == {"not measured"}
    assert list(path.parent.iterdir()) == [path]
    assert "SKIPPED torch: torch: this torch finds no CUDA device" in capsys.readouterr().out


def test_a_failed_check_is_exit_code_1_and_results_grow(made_up_gpu, tmp_path, monkeypatch):
    path = tmp_path / "results.json"

    def collect(command, seconds, found):
        found({"kind": "check", "name": "it works", "passed": False, "detail": ""})
        assert json.loads(path.read_text())["sections"]["kernel"]["records"]
        return ""

    monkeypatch.setattr(gpu_check, "collect", collect)
    assert gpu_check.main(["-o", str(path), "--only", "kernel"]) == 1
    assert gpu_check.main(["-o", str(path), "--only", "kernel", "--minutes", "0.01"]) == 0  # no time: skipped
