"""The step of the whole network on a GPU, by everything that can run it, and fp16 against fp32 on a clip.

Imports numpy; torch, onnx, onnxruntime, TensorRT, pycuda and av inside the functions that need them. A step goes from
five uint8 frames on the device to a uint8 frame on the device, and hands its states on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtu.benchmarks.gpu_report import Report, Skip
from mtu.models.interface import FRAME_NAMES, PRESETS, Interface

if TYPE_CHECKING:
    from mtu.benchmarks.gpu_device import Call, Device
    from mtu.runtime.backends import Backend
    from mtu.runtime.bundle import Bundle
    from mtu.runtime.tensorrt_library import LibraryName

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "calib" / "demo" / "blurred.mp4"
SIZE = 720, 1280
Compiler = Callable[..., Callable[..., Any]]
"""torch.compile, or what takes its arguments."""
MODELS = ("mtu2", "mtu10")


def random_window(height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Five frames of noise by their names."""
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (1, height, width, 3), np.uint8) for name in FRAME_NAMES}


# --- torch ----------------------------------------------------------------------------------------------------------


def time_torch(
    report: Report,
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


def _time_call(report: Report, device: Device, name: str, group: str, call: Call, samples: int) -> None:
    peak = device.peak_memory(call)
    report.time(name, group, device.intervals(call, samples + 5)[5:], peak_mib=peak)


def _time_captured(report: Report, device: Device, name: str, call: Call, samples: int) -> None:
    _time_call(report, device, name, "captured", device.graph(call), samples)


def torch_step(device: Device, model: str, size: tuple[int, int], layout: str, compiler: Compiler | None) -> Call:
    """A call that runs one step of a preset, random weights, on the states of the call before; it is warm."""
    import torch

    from mtu.models.checkpoint import random_checkpoint

    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network: Any = random_checkpoint(PRESETS[model]).network()
    network.to(device.name, memory_format=memory)
    frames = [torch.from_numpy(frame).to(device.name) for frame in random_window(*size).values()]

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


def step_graph(model: str, fp16: bool) -> bytes:
    """The step graph as ONNX: the bundled weights of mtu2, random ones of any other preset."""
    from mtu.runtime.bundle import open_bundle

    if model == "mtu2" and not fp16:
        return open_bundle().graph("step").read_bytes()
    import onnx

    if model == "mtu2":
        graph = onnx.load(open_bundle().graph("step"))
    else:
        from mtu.export.to_onnx import export_graph
        from mtu.models.checkpoint import random_checkpoint

        graph = export_graph(random_checkpoint(PRESETS[model]), Interface(PRESETS[model]), "step")
    if fp16:
        from mtu.export.precision import to_fp16

        to_fp16(graph)
    return bytes(graph.SerializeToString())


def time_onnxruntime(
    report: Report,
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
    report: Report, name: str, model: str, fp16: bool, size: tuple[int, int], device: str, samples: int
) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(step_graph(model, fp16), options, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise RuntimeError("onnxruntime has CUDA and could not start it: check its CUDA and cuDNN libraries")
    interface = Interface(PRESETS[model], "float16" if fp16 else "float32")
    random, window = np.random.default_rng(1), random_window(*size)
    binding = session.io_binding()
    for spec in interface.inputs("step"):
        array = window.get(spec.name)
        if array is None:
            array = random.random(spec.at(*size), np.float32).astype(spec.dtype)
        binding.bind_ortvalue_input(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for spec in interface.outputs:
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(spec.at(*size), np.dtype(spec.dtype), device, 0)
        binding.bind_ortvalue_output(spec.name, value)
    values = []
    for number in range(samples + 5):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if number >= 5:
            values.append(1000 * (time.perf_counter() - began))
    report.time(name, f"{model} onnxruntime {'fp16' if fp16 else 'fp32'}", values)


# --- TensorRT -------------------------------------------------------------------------------------------------------


def time_tensorrt(
    report: Report,
    library: LibraryName,
    *,
    models: Sequence[str] = MODELS,
    size: tuple[int, int] = SIZE,
    plugin_library: Path | None = None,
    clip: Path = CLIP,
    samples: int = 100,
) -> None:
    """Engines of `models` built and timed through the backend, the most wanted first; and fp16 against fp32 on `clip`.

    With and without plugin, fp16 and fp32, with and without a CUDA graph. `plugin_library` is the C++ plugin, which
    TensorRT 8.6 needs.
    """
    from mtu.runtime.bundle import open_bundle
    from mtu.runtime.tensorrt_library import load_library

    loaded = load_library(library)
    import pycuda.driver  # noqa: F401

    slow = 10 if loaded.is_rtx else 40  # seconds for two engines, about
    with tempfile.TemporaryDirectory(prefix="mtu-gpu-check-") as folder:
        where = Path(folder)
        builder = partial(_build, report, library, plugin_library, where)
        for model in models:
            bundle = open_bundle() if model == "mtu2" else report.run(model, partial(_export, model, where), seconds=60)
            if bundle is None:
                continue
            for precision, plugin in (("fp16", True), ("fp32", True), ("fp16", False), ("fp32", False)):
                name = f"{model} {library} {precision}{'' if plugin else ' without plugin'}"
                if plugin and loaded.major < 10 and not loaded.is_rtx and plugin_library is None:
                    report.skip(name, "TensorRT 8.6 needs the C++ plugin: mtu-build-plugin, then --plugin-library FILE")
                    continue
                build = partial(builder, name, bundle, size, precision, plugin)
                report.run(name, partial(_time_engine, report, name, build, size, samples), seconds=slow)
            if model == "mtu2":
                plugin = loaded.is_rtx or loaded.major >= 10 or plugin_library is not None
                part = partial(_compare_engines, report, library, builder, bundle, plugin, clip)
                report.run(f"{library} fp16 against fp32", part, seconds=2 * slow)


def _export(model: str, where: Path) -> Bundle:
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    return export_bundle(random_checkpoint(PRESETS[model]), where / model)


def _build(
    report: Report,
    library: LibraryName,
    plugin_library: Path | None,
    where: Path,
    name: str,
    bundle: Bundle,
    size: tuple[int, int],
    precision: str,
    plugin: bool,
) -> Callable[[bool], Backend]:
    """Builds an engine and returns what opens it, with or without CUDA graphs."""
    from mtu.export.engine import BuildOptions, build_engine
    from mtu.runtime.backends import open_backend
    from mtu.runtime.engine import Profile

    options = BuildOptions(
        Profile.fixed(*size),
        fp16=precision == "fp16",
        runtime=library,
        plugin=plugin,
        plugin_library=plugin_library,
        timing_cache=where / "timing.cache",
    )
    began = time.monotonic()
    engine = build_engine(bundle, where / f"{name} {size[0]}x{size[1]}".replace(" ", "-"), options)
    report.fact(f"{name}: seconds to build both engines", time.monotonic() - began)
    return lambda graph: open_backend(library, engine, size=size, cuda_graph=graph, plugin_library=plugin_library)


def _time_engine(
    report: Report, name: str, build: Callable[[], Callable[[bool], Any]], size: tuple[int, int], samples: int
) -> None:
    from mtu.runtime.backends.cuda_device import open_device

    open_engine_backend = build()
    for graph in (True, False):
        with open_device(0) as gpu:
            before = gpu.free_memory()
        backend = open_engine_backend(graph)
        try:
            values = engine_intervals(backend, size, samples + 10)[10:]
            with backend.gpu:
                used = before - backend.gpu.free_memory()
            shown = name if graph else f"{name}, without CUDA graph"
            report.time(shown, name if graph else "plain launches", values, peak_mib=used / 2**20)
            if graph:
                report.check(f"{name}: captured", not backend.remarks, "; ".join(backend.remarks))
                report.time(f"{name}, whole frames", "frames", frame_times(backend, size, samples))
        finally:
            backend.close()


def engine_intervals(backend: Any, size: tuple[int, int], count: int) -> list[float]:
    """Milliseconds between the ends of steps on the device, frames uploaded before, results not waited for."""
    import pycuda.driver as driver

    window = random_window(*size)  # the same arrays each time: nothing is uploaded
    states: Any = {}
    for _ in range(8):  # first, then both directions between the two buffers, run and captured
        states = backend.submit({**window, **states}).states
    with backend.gpu:
        backend.gpu.synchronize()
        events = [driver.Event() for _ in range(count + 1)]
        events[0].record(backend.compute)
    for event in events[1:]:
        states = backend.submit({**window, **states}).states
        with backend.gpu:
            event.record(backend.compute)
    with backend.gpu:
        backend.gpu.synchronize()
        return [float(before.time_till(after)) for before, after in pairwise(events)]


def frame_times(backend: Any, size: tuple[int, int], count: int) -> list[float]:
    """Milliseconds of the host between results of new frames: upload, step and download overlap."""
    window = list(random_window(*size).values())
    frames = [frame.copy() for frame in window]
    states: Any = {}
    before: Any = None
    times = []
    for number in range(count + 5):
        # A new object each time: the same one would be the same frame, and not be uploaded again.
        window = [*window[1:], frames[number % len(frames)].view()]
        pending = backend.submit({**dict(zip(FRAME_NAMES, window, strict=True)), **states})
        states = pending.states
        if before is not None:
            before.result()
        before = pending
        times.append(time.perf_counter())
    before.result()
    return [1000 * (after - earlier) for earlier, after in pairwise(times[4:])]


# --- fp16 against fp32 ----------------------------------------------------------------------------------------------


def read_clip(path: Path) -> list[NDArray[np.uint8]]:
    """The frames of a video, or of an array [T, H, W, 3] of uint8 in a .npy file, which needs no av."""
    if path.suffix == ".npy":
        return list(np.load(path))
    if not path.exists():
        raise Skip(f"{path} is not there: give a clip with --clip")
    from mtu.runtime import read_frames

    return list(read_frames(path))


def compare_backends(report: Report, name: str, frames: Sequence[NDArray[np.uint8]], half: Any, full: Any) -> None:
    """PSNR of the pictures and share of equal displacements of two backends on the same frames."""
    from mtu.runtime import restore

    squares, equal = [], []
    pairs = zip(*(restore(frames, backend, scene_threshold=None) for backend in (half, full)), strict=True)
    for one, other in pairs:
        squares.append(np.square(one.rgb.astype(np.float64) - other.rgb).mean())
        equal.append(np.mean(one.displacement == other.displacement))
    error = float(np.mean(squares))
    report.value(f"{name}, PSNR in dB", "fp16 PSNR", 10 * np.log10(255**2 / error) if error else 999.0)
    report.value(f"{name}, equal displacements in %", "fp16 equal displacements", 100 * float(np.mean(equal)))


def _compare_engines(
    report: Report, library: str, builder: Callable[..., Any], bundle: Bundle, plugin: bool, clip: Path
) -> None:
    frames = read_clip(clip)
    height, width = (size + -size % 4 for size in frames[0].shape[:2])
    opened = [
        builder(f"clip {library} {precision}", bundle, (height, width), precision, plugin)(True)
        for precision in ("fp16", "fp32")
    ]
    compare_backends(report, f"{library}: fp16 against fp32 on {clip.name}", frames, *opened)
    for backend in opened:
        backend.close()


def compare_torch(report: Report, *, device: str = "cuda", clip: Path = CLIP, limit: int | None = None) -> None:
    """The bundled mtu2 in torch, fp16 against fp32 (without TF32), on the first `limit` frames of `clip`."""
    import torch

    frames = read_clip(clip)[:limit]
    from mtu.runtime.backends.torch_backend import TorchBackend, read_model
    from mtu.runtime.bundle import open_bundle

    torch.backends.cudnn.allow_tf32 = False
    interface, checkpoint = read_model(open_bundle())
    half, full = (
        TorchBackend(Interface(interface.config, kind), checkpoint.network(), device) for kind in ("float16", "float32")
    )
    compare_backends(report, f"torch: fp16 against fp32 on {clip.name}", frames, half, full)
