"""The sections of the GPU check: what each does, how much of the time it gets, what it proves. Imports nothing heavy.

The order is that of their worth: where the time runs out, the last get none.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mtu.benchmarks.gpu_report import GpuReport, Record, Skip
from mtu.core.release import VERSION
from mtu.runtime.gpu import find_gpu
from mtu.runtime.tensorrt_library import LIBRARIES, LibraryName, is_importable

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("numpy", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
    *("pycuda", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "av", "pytest"),
)
REFERENCE = ROOT / ".kit" / "first-run.npz"


@dataclass(frozen=True)
class Options:
    """What the sections are told."""

    quick: bool = False
    clip: Path | None = None
    plugin_library: Path | None = None
    reference: Path = REFERENCE
    folder: Path = Path()
    """Where one section leaves what another takes up."""


def environment(report: GpuReport, options: Options) -> None:
    """What the figures depend on."""
    from mtu.benchmarks.gpu_cases import find_sanitizer

    gpu = find_gpu()
    report.check("a GPU answers", gpu is not None, gpu.name if gpu else "none does")
    if gpu is not None:
        report.fact("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 2**30:.1f} GiB")
    report.fact("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    report.fact("Python", platform.python_version())
    report.fact("mtu-trt", VERSION)
    report.fact("compute-sanitizer", find_sanitizer() or "not found")
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            report.fact(package, importlib.metadata.version(package))
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"
    for name, command in {
        query: ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"],
        "nvcc": ["nvcc", "--version"],
    }.items():
        with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            report.fact(name, done.stdout.strip().splitlines()[-1])
    report.run("torch", lambda: _torch_facts(report))
    report.run("onnxruntime providers", lambda: _onnxruntime_facts(report))


def _torch_facts(report: GpuReport) -> None:
    import torch

    cudnn: Any = torch.backends.cudnn
    report.fact("torch CUDA, cuDNN", f"{torch.version.cuda}, {cudnn.version()}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        report.fact("multiprocessors", properties.multi_processor_count)
        report.fact("L2 cache, MiB", getattr(properties, "L2_cache_size", 0) / 2**20)


def _onnxruntime_facts(report: GpuReport) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    report.fact("onnxruntime providers", ", ".join(onnxruntime.get_available_providers()))


def tests(report: GpuReport, options: Options) -> None:
    """The tests that need a GPU."""
    from mtu.benchmarks.gpu_tests import run_tests

    run_tests(report)


def cases(report: GpuReport, options: Options) -> None:
    """The kernels' cases, without torch."""
    _need("cuda.core", "cuda.bindings")
    from mtu.benchmarks.gpu_cases import Cuda, check_cases

    check_cases(report, Cuda())


def one_case(report: GpuReport, options: Options) -> None:
    """One case of each kernel under compute-sanitizer."""
    _need("cuda.core", "cuda.bindings")
    from mtu.benchmarks.gpu_cases import check_one_case

    check_one_case(report)


def case_time(report: GpuReport, options: Options) -> None:
    """The kernels' time, without torch."""
    _need("cuda.core", "cuda.bindings")
    from mtu.benchmarks.gpu_cases import Cuda, time_cases

    time_cases(report, Cuda())


def kernel(report: GpuReport, options: Options) -> None:
    """The kernel against torch."""
    _need("torch", "cuda.core", "cuda.bindings")
    from mtu.benchmarks.gpu_cases import SIZES
    from mtu.benchmarks.gpu_device import Device
    from mtu.benchmarks.gpu_kernel import check_kernel

    check_kernel(report, Device(), sizes=dict(list(SIZES.items())[:1]) if options.quick else SIZES)


def kernel_time(report: GpuReport, options: Options) -> None:
    """The kernel's time, the floors, and torch's."""
    _need("torch", "cuda.core", "cuda.bindings")
    import torch

    from mtu.benchmarks.gpu_cases import SIZES
    from mtu.benchmarks.gpu_device import Device
    from mtu.benchmarks.gpu_kernel import measure_rates, time_kernel

    device = Device()
    rates = measure_rates(report, device)
    compiler = torch.compile if _can_compile(report, options) else None
    sizes = dict(list(SIZES.items())[:1]) if options.quick else SIZES
    time_kernel(report, device, rates, sizes=sizes, compiler=compiler)


def _can_compile(report: GpuReport, options: Options) -> bool:
    if options.quick:
        report.skip("torch.compile", "takes long: leave out --quick")
    elif importlib.util.find_spec("triton") is None:
        report.skip("torch.compile", "the package triton is not installed")
    else:
        return True
    return False


def _need(*names: str) -> None:
    for name in names:
        if not is_importable(name):
            raise Skip(f"{name} is not installed: pip install {names[0]} cuda-core cuda-bindings nvidia-cuda-nvrtc")


def step_torch(report: GpuReport, options: Options) -> None:
    """The network's step in torch."""
    import torch

    from mtu.benchmarks.gpu_device import Device
    from mtu.benchmarks.gpu_network import MODELS, time_torch

    device = Device()
    models = MODELS[:1] if options.quick else MODELS
    time_torch(report, device, models=models, compiler=torch.compile if _can_compile(report, options) else None)


def step_onnxruntime(report: GpuReport, options: Options) -> None:
    """The network's step in onnxruntime."""
    from mtu.benchmarks.gpu_network import MODELS, time_onnxruntime

    time_onnxruntime(report, models=MODELS[:1] if options.quick else MODELS)


def precision_torch(report: GpuReport, options: Options) -> None:
    """Fp16 against fp32 in torch."""
    from mtu.benchmarks.gpu_device import Device
    from mtu.benchmarks.gpu_precision import CLIP, compare_torch

    compare_torch(report, device=Device.name, clip=options.clip or CLIP)


def step_tensorrt(library: LibraryName, report: GpuReport, options: Options) -> None:
    """The network's step in a library's engines."""
    from mtu.benchmarks.gpu_engines import time_tensorrt
    from mtu.benchmarks.gpu_network import MODELS
    from mtu.benchmarks.gpu_precision import CLIP

    models = MODELS[:1] if options.quick else (*MODELS, "ifan")
    time_tensorrt(report, library, models=models, plugin_library=options.plugin_library, clip=options.clip or CLIP)


def engines(report: GpuReport, options: Options) -> None:
    """Builds what the sections below take up."""
    from mtu.benchmarks.gpu_first_run import build_engines, make_plan

    build_engines(report, make_plan(report, options.folder, options.plugin_library))


def pictures(graph: bool, report: GpuReport, options: Options) -> None:
    """Engines against saved pictures."""
    from mtu.benchmarks.gpu_first_run import check_pictures, make_plan

    check_pictures(report, make_plan(report, options.folder, options.plugin_library), options.reference, graph=graph)


def times_720p(report: GpuReport, options: Options) -> None:
    """An engine's times at the size of a video."""
    from mtu.benchmarks.gpu_first_run import make_plan, time_steps
    from mtu.benchmarks.gpu_network import SIZE

    time_steps(report, make_plan(report, options.folder, options.plugin_library), SIZE)


class Section(NamedTuple):
    """A part of the check."""

    run: Callable[[GpuReport, Options], None]
    share: float
    """Of the time, at most."""
    proves: str


ENVIRONMENT = Section(environment, 0.1, "a GPU answers; what it and the packages are is written down")
CASES = Section(cases, 0.15, "the kernels give the truth for every case of every op, in both layouts, aligned or not")
SECTIONS: Mapping[str, Section] = {
    "environment": ENVIRONMENT,
    "cases": CASES,
    "kernel": Section(
        kernel, 0.2, "on large random maps the kernel gives what torch gives, twice, and in a CUDA graph"
    ),
    "kernel-time": Section(kernel_time, 0.3, "how long the kernel takes beside torch and its floors"),
    "tests": Section(tests, 0.25, "the tests that need a GPU pass"),
    **{
        name: Section(partial(step_tensorrt, name), 0.45, f"engines of {name} are built, run and timed")
        for name in LIBRARIES
    },
    "torch": Section(step_torch, 0.45, "how long a step takes in torch"),
    "precision": Section(precision_torch, 0.1, "how far fp16 is from fp32 in torch"),
    "onnxruntime": Section(step_onnxruntime, 0.2, "how long a step takes in onnxruntime"),
}
FIRST_RUN: Mapping[str, Section] = {
    "environment": ENVIRONMENT,
    "one-case": Section(one_case, 0.15, "one case of each kernel is right, and compute-sanitizer finds no fault in it"),
    "cases": CASES,
    "case-time": Section(case_time, 0.05, "how long the kernels take at 720p and 1080p"),
    "engines": Section(engines, 0.3, "engines of mtu2 are built in fp32 and fp16"),
    "pictures": Section(partial(pictures, False), 0.1, "24 frames of the engines are onnxruntime's"),
    "pictures-graph": Section(partial(pictures, True), 0.1, "the same from a CUDA graph"),
    "times-720p": Section(times_720p, 0.35, "how long a step of mtu2 in fp16 takes at 720p"),
}
"""What --only first-run does."""
ALL = {**SECTIONS, **FIRST_RUN}


def run_section(name: str, options: Options, seconds: float) -> None:
    """The process of a section: findings go to stdout, a line of JSON each, whatever else is printed to stderr."""
    findings = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def emit(record: Record) -> None:
        findings.write(json.dumps(record) + "\n")

    report = GpuReport(emit, time.monotonic() + seconds)
    report.run(name, lambda: ALL[name].run(report, options))
