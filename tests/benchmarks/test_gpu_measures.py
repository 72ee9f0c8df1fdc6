"""What the GPU check measures, without a GPU: on the CPU, the kernel by its emulator, engines by a simulated CUDA."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from tests import fake_cuda
from tests.gpu_stand_ins import Cpu, fails, hand_out_engines, of, records, report
from tests.plugins.emulated import emulators

from mtu.benchmarks import gpu_engines, gpu_kernel, gpu_network, gpu_precision
from mtu.benchmarks.gpu_report import Skip
from mtu.plugins.correlation_argmax_warp import cuda_op, torch_op
from mtu.plugins.correlation_argmax_warp.cases import CASES
from mtu.plugins.correlation_argmax_warp.reference import pooled_costs

__all__ = ["emulators", "records", "report"]  # fixtures

SIZES = {"32x24": (6, 8)}
RATES = {"copy": 4e12, "fp16": 8e14, "fp32": 5e13}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def device(emulators):
    return Cpu(emulators)


# --- the kernel -----------------------------------------------------------------------------------------------------


def test_the_kernel_passes_its_check(report, records, device):
    gpu_kernel.check_kernel(report, device, sizes=SIZES)
    assert of(records, "error") == []
    checks = {record["name"]: record for record in of(records, "check")}
    assert [name for name, check in checks.items() if not check["passed"]] == []
    assert {"the same twice", "the same in a CUDA graph", "random maps 32x24 fp16 hwc8"} <= set(checks)
    assert "batch of 2, D = 20, 96 channels, fp32: warped as displaced" in checks


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_kernel_that_does_not_write_is_seen(report, records, device, stop_after):
    launch = device.launch
    device.launch = lambda kernel, problem, pointers, count=None: launch(kernel, problem, pointers, stop_after)
    gpu_kernel.check_kernel(report, device, sizes=SIZES)
    passed = {record["name"] for record in of(records, "check") if record["passed"]}
    assert passed <= {"the same twice", "the same in a CUDA graph"}


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
def make_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "cache"))
    yield lambda flavour: fake_cuda.install(
        monkeypatch, fake_cuda.Gpu(flavour=flavour, registered={"CorrelationArgmaxWarp"})
    )
    fake_cuda.uninstall()


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx", "tensorrt-8"])
def test_engines_are_timed_through_the_backend(report, records, library, small, tmp_path, monkeypatch, make_gpu):
    name, built = library.removesuffix("-8"), hand_out_engines(monkeypatch, small, library)
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (3, 14, 21, 3), np.uint8))
    plugin = tmp_path / "plugin.so" if library == "tensorrt-8" else None
    gpu_engines.time_tensorrt(
        report, name, models=["mtu2"], size=(16, 24), plugin_library=plugin, clip=tmp_path / "clip.npy", samples=4
    )
    assert of(records, "error") == of(records, "skip") == []
    times = {record["name"]: record for record in of(records, "time")}
    assert times[f"mtu2 {name} fp16"]["median_ms"] == 0.25
    assert times[f"mtu2 {name} fp16"]["samples"] == 4
    assert f"mtu2 {name} fp32 without plugin, without CUDA graph" in times
    assert f"mtu2 {name} fp32, whole frames" in times
    assert all(record["passed"] for record in of(records, "check"))
    assert [built[i][1:3] for i in range(4)] == [(True, True), (False, True), (True, False), (False, False)]
    assert {entry[3] for entry in built} == {plugin}
    assert [record["value"] for record in of(records, "value")] == [999.0, 100.0]  # one engine twice


def test_engines_of_a_network_with_another_op_are_timed(report, records, monkeypatch, make_gpu):
    from tests.ifan import TINY

    def build(bundle, directory, options):
        plugins = {"plugins": {}} if not options.plugin else {}
        return fake_cuda.write_engine(bundle, directory, options.profile, **plugins)

    make_gpu("tensorrt")
    monkeypatch.setattr("mtu.models.families.find_preset", lambda name: (name, TINY))
    monkeypatch.setattr("mtu.export.engine.build_engine", build)
    monkeypatch.setattr(fake_cuda.Event, "time_till", lambda self, later: 0.25, raising=False)
    gpu_engines.time_tensorrt(report, "tensorrt", models=["ifan"], size=(16, 24), samples=4)
    assert of(records, "error") == of(records, "skip") == []
    times = {record["name"] for record in of(records, "time")}
    assert {"ifan tensorrt fp16", "ifan tensorrt fp32 without plugin, without CUDA graph"} <= times


def test_tensorrt_8_without_the_plugin_is_timed_without(report, records, monkeypatch, make_gpu):
    make_gpu("tensorrt-8")
    monkeypatch.setattr("mtu.export.engine.build_engine", lambda *_: fails(ValueError("not built")))
    gpu_engines.time_tensorrt(report, "tensorrt", models=["mtu2"], size=(16, 24))
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
    gpu_precision.compare_torch(report, device="cpu", clip=tmp_path / "clip.npy", limit=3)
    psnr, equal = (record["value"] for record in of(records, "value"))
    assert 40 < psnr < 100 and 80 < equal <= 100


def test_a_clip_that_is_not_there_is_said(tmp_path):
    with pytest.raises(Skip, match="--clip"):
        gpu_precision.read_clip(tmp_path / "none.mp4")
