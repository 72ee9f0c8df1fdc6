"""The step of the whole network on a GPU in torch and onnxruntime.

Imports numpy; torch, onnx and onnxruntime inside the functions that need them. A step goes from five uint8 frames on
the device to a uint8 frame on the device, and hands its states on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtu.benchmarks.gpu_report import GpuReport, Skip
from mtu.core.interface import Graph, Interface

if TYPE_CHECKING:
    from mtu.benchmarks.gpu_device import Device, Enqueue

SIZE = 720, 1280
Compiler = Callable[..., Callable[..., Any]]
"""torch.compile, or what takes its arguments."""
MODELS = ("mtu2", "mtu10")


def random_window(interface: Interface, height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Frames of noise by the names of the inputs."""
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (1, height, width, 3), np.uint8) for name in interface.frames}


# --- torch ----------------------------------------------------------------------------------------------------------


def time_torch(
    report: GpuReport,
    device: Device,
    *,
    models: Sequence[str] = MODELS,
    size: tuple[int, int] = SIZE,
    compiler: Compiler | None = None,
    samples: int = 60,
) -> None:
    """The networks of `models` with random weights under AMP fp16: eager and compiled, both memory formats.

    `compiler` is torch.compile, or None to leave the compiled ones out.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    ways: list[tuple[str, str, Compiler | None, float]] = []
    for model in models:
        ways += [(model, layout, None, 5) for layout in ("contiguous", "channels_last")]
        if compiler is not None:
            layouts = ("channels_last", "contiguous") if model == "mtu2" else ("channels_last",)
            ways += [(model, layout, compiler, 45 if model == "mtu2" else 90) for layout in layouts]
    for model, layout, chosen, seconds in ways:
        group = f"{model} {'torch eager AMP' if chosen is None else 'torch.compile AMP'}"
        name = f"{group} {layout}"
        step = report.run(name, partial(torch_step, device, model, size, layout, chosen), seconds)
        if step is None:
            continue
        report.run(name, partial(_time_call, report, device, name, group, step, samples))
        captured = f"{name}, in a CUDA graph"
        report.run(captured, partial(_time_captured, report, device, captured, step, samples))
    model, layout, *_ = ways[0]
    name = f"{model} torch eager AMP {layout}, again at the end"

    def again() -> None:
        _time_call(report, device, name, "again", torch_step(device, model, size, layout, None), samples)

    report.run(name, again)


def _time_call(report: GpuReport, device: Device, name: str, group: str, call: Enqueue, samples: int) -> None:
    peak = device.peak_memory(call)
    report.time(name, group, device.intervals(call, samples + 5)[5:], peak_mib=peak)


def _time_captured(report: GpuReport, device: Device, name: str, call: Enqueue, samples: int) -> None:
    _time_call(report, device, name, "captured", device.graph(call), samples)


def torch_step(device: Device, model: str, size: tuple[int, int], layout: str, compiler: Compiler | None) -> Enqueue:
    """A call that runs one step of a preset, random weights, on the states of the call before; it is warm."""
    import torch

    from mtu.models.checkpoint import random_checkpoint
    from mtu.models.families import find_preset

    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    checkpoint = random_checkpoint(*find_preset(model))
    network = checkpoint.network()
    network.to(device.name, memory_format=memory)
    window = random_window(checkpoint.describe(), *size)
    frames = [torch.from_numpy(frame).to(device.name) for frame in window.values()]

    def restore(frames: Sequence[torch.Tensor], states: Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
        pictures = [(frame.float().permute(0, 3, 1, 2) / 255).contiguous(memory_format=memory) for frame in frames]
        with torch.autocast(device.name, torch.float16):
            if states is None:
                restored, new, _ = network.first(pictures)
            else:
                restored, new, _ = network.step(pictures, states)
        return ((restored.float() * 255).round().permute(0, 2, 3, 1).to(torch.uint8), *new)

    if compiler is not None:
        torch.compiler.reset()  # it counts how often it has compiled this function
    step = compiler(restore, dynamic=False) if compiler is not None else restore
    with torch.no_grad():
        states = restore(frames, None)[1:]
        states = restore(frames, states)[1:]

    def call() -> None:
        nonlocal states
        with torch.no_grad():
            states = step(frames, states)[1:]

    for _ in range(3):  # the compiler runs, cuDNN chooses
        call()
    device.synchronize()
    return call


# --- onnxruntime ----------------------------------------------------------------------------------------------------


def step_graph(model: str, fp16: bool) -> tuple[bytes, Graph, Interface]:
    """The graph with states as ONNX: the bundled weights of mtu2, random ones of any other preset."""
    import onnx

    from mtu.export.precision import in_fp16, to_fp16
    from mtu.export.to_onnx import export_graph
    from mtu.models.checkpoint import random_checkpoint
    from mtu.models.families import find_preset
    from mtu.runtime.bundle import BUNDLED, open_bundle

    bundle, checkpoint = open_bundle(), random_checkpoint(*find_preset(model))
    interface = bundle.interface if model == BUNDLED else checkpoint.describe()
    graph = interface.graph_for(interface.states)
    exported = onnx.load(bundle.graph(graph.name)) if model == BUNDLED else export_graph(checkpoint, graph, interface)
    if fp16:
        to_fp16(exported)
        interface = in_fp16(interface)
    return exported.SerializeToString(), interface.graph(graph.name), interface


def time_onnxruntime(
    report: GpuReport,
    *,
    models: Sequence[str] = MODELS,
    size: tuple[int, int] = SIZE,
    device: str = "cuda",
    samples: int = 60,
) -> None:
    """The step of each model, fp32 and fp16, with every tensor on the device already; times of the host."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Skip("this onnxruntime was built without CUDA: pip install onnxruntime-gpu")
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # those of torch's packages
    for model in models:
        for fp16 in (False, True):
            name = f"{model} onnxruntime {'fp16' if fp16 else 'fp32'}"
            part = partial(_time_onnxruntime, report, name, model, fp16, size, device, samples)
            report.run(name, part, seconds=10 if model == "mtu2" else 30)


def _time_onnxruntime(
    report: GpuReport, name: str, model: str, fp16: bool, size: tuple[int, int], device: str, samples: int
) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    content, graph, interface = step_graph(model, fp16)
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise RuntimeError("onnxruntime has CUDA and could not start it: check its CUDA and cuDNN libraries")
    random, window = np.random.default_rng(1), random_window(interface, *size)
    binding = session.io_binding()
    for tensor in (each.tensor for each in graph.inputs):
        array: Any = window.get(tensor.name)
        if array is None:
            array = random.random(tensor.at(*size), np.float32).astype(tensor.dtype)
        binding.bind_ortvalue_input(tensor.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for tensor in (each.tensor for each in graph.outputs):
        kind = np.dtype(tensor.dtype)
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(tensor.at(*size), kind, device, 0)
        binding.bind_ortvalue_output(tensor.name, value)
    values = []
    for number in range(samples + 5):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if number >= 5:
            values.append(1000 * (time.perf_counter() - began))
    report.time(name, f"{model} onnxruntime {'fp16' if fp16 else 'fp32'}", values)
