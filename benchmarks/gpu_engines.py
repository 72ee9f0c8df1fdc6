"""TensorRT's engines on a GPU: built, opened and timed through the backend, fp16 compared with fp32.

Imports numpy; onnx, TensorRT and pycuda inside the functions that need them.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu.benchmarks.gpu_network import MODELS, SIZE, random_window
from mtu.benchmarks.gpu_precision import CLIP, compare_backends, read_clip
from mtu.benchmarks.gpu_report import GpuReport
from mtu.core.window import Window

if TYPE_CHECKING:
    from mtu.runtime.backends import Backend
    from mtu.runtime.bundle import Bundle
    from mtu.runtime.engine import Engine
    from mtu.runtime.tensorrt_library import Library, LibraryName


@dataclass(frozen=True)
class Plan:
    """How engines are built and opened, and the folder they are built in."""

    library: LibraryName
    folder: Path
    plugin_library: Path | None = None
    """The C++ plugin, which TensorRT 8.6 needs."""
    plugin: bool = True
    """Whether engines hold the plugin; the one in Python if no library is given."""

    def build(self, report: GpuReport, name: str, bundle: Bundle, size: tuple[int, int], precision: str) -> Engine:
        """The engine `name` in the folder."""
        from mtu.export.engine import build_engine
        from mtu.export.engine_options import BuildOptions
        from mtu.runtime.engine import Profile

        options = BuildOptions(
            Profile.fixed(*size),
            fp16=precision == "fp16",
            runtime=self.library,
            plugin=self.plugin,
            plugin_library=self.plugin_library,
            timing_cache=self.folder / "timing.cache",
        )
        began = time.monotonic()
        engine = build_engine(bundle, self.folder / name.replace(" ", "-"), options)
        report.fact(f"{name}: seconds to build both engines", time.monotonic() - began)
        return engine

    def open(self, engine: Engine, size: tuple[int, int], *, graph: bool) -> Backend:
        """A backend that runs an engine, with or without CUDA graphs."""
        from mtu.runtime.backends import open_backend

        return open_backend(self.library, engine, size=size, cuda_graph=graph, plugin_library=self.plugin_library)


def can_have_plugin(library: Library, plugin_library: Path | None) -> bool:
    """Whether engines of a library can hold the plugin; TensorRT 8.6 takes none from Python."""
    return library.is_rtx or library.major >= 10 or plugin_library is not None


def time_tensorrt(
    report: GpuReport,
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
    from mtu.runtime.backends import packages_missing
    from mtu.runtime.bundle import open_bundle
    from mtu.runtime.tensorrt_library import load_library

    for missing in packages_missing(library):
        raise missing
    loaded = load_library(library)
    slow = 10 if loaded.is_rtx else 40  # seconds for two engines, about
    able = can_have_plugin(loaded, plugin_library)
    with tempfile.TemporaryDirectory(prefix="mtu-gpu-check-") as folder:
        plan = Plan(library, Path(folder), plugin_library)
        for model in models:
            bundle = open_bundle() if model == "mtu2" else report.run(model, partial(_export, model, plan), seconds=60)
            if bundle is None:
                continue
            for precision, plugin in (("fp16", True), ("fp32", True), ("fp16", False), ("fp32", False)):
                name = f"{model} {library} {precision}{'' if plugin else ' without plugin'}"
                if plugin and not able:
                    report.skip(name, "TensorRT 8.6 needs the C++ plugin: mtu-build-plugin, then --plugin-library FILE")
                    continue
                chosen = replace(plan, plugin=plugin)
                part = partial(build_and_time, report, chosen, name, bundle, size, precision, samples)
                report.run(name, part, seconds=slow)
            if model == "mtu2":
                part = partial(_compare, report, replace(plan, plugin=able), bundle, clip)
                report.run(f"{library} fp16 against fp32", part, seconds=2 * slow)


def _export(model: str, plan: Plan) -> Bundle:
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint
    from mtu.models.families import find_preset

    return export_bundle(random_checkpoint(*find_preset(model)), plan.folder / model)


def build_and_time(
    report: GpuReport, plan: Plan, name: str, bundle: Bundle, size: tuple[int, int], precision: str, samples: int
) -> None:
    """An engine's step with and without a CUDA graph, its memory, and whole frames."""
    from mtu.runtime.backends.cuda_device import open_device

    engine = plan.build(report, name, bundle, size, precision)
    for graph in (True, False):
        with open_device(0) as gpu:
            before = gpu.free_memory()
        backend: Any = plan.open(engine, size, graph=graph)
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

    window = random_window(backend.interface, *size)  # the same arrays each time: nothing is uploaded
    states: Any = {}

    def submit() -> Any:
        return backend.submit(backend.interface.graph_for(states).name, window, states).states

    for _ in range(8):  # without states, then both directions between the two buffers, run and captured
        states = submit()
    with backend.gpu:
        backend.gpu.synchronize()
        events = [driver.Event() for _ in range(count + 1)]
        events[0].record(backend.compute)
    for event in events[1:]:
        states = submit()
        with backend.gpu:
            event.record(backend.compute)
    with backend.gpu:
        backend.gpu.synchronize()
        return [float(before.time_till(after)) for before, after in pairwise(events)]


def frame_times(backend: Any, size: tuple[int, int], count: int) -> list[float]:
    """Milliseconds of the host between results of new frames: upload, step and download overlap."""
    frames = [frame[0] for frame in random_window(backend.interface, *size).values()]
    window = Window(backend.interface)
    states: Any = {}
    before: Any = None
    times = []
    for number in itertools.count():
        window.push(dict.fromkeys(backend.interface.streams, frames[number % len(frames)]))
        if not window.is_ready:
            continue
        pending = backend.submit(backend.interface.graph_for(states).name, window.take(), states)
        states = pending.states
        if before is not None:
            before.result()
        before = pending
        times.append(time.perf_counter())
        if len(times) == count + 5:
            break
    before.result()
    return [1000 * (after - earlier) for earlier, after in pairwise(times[4:])]


def _compare(report: GpuReport, plan: Plan, bundle: Bundle, clip: Path) -> None:
    frames = read_clip(clip)
    height, width = bundle.interface.size.padded(*frames[0].shape[:2])
    opened = []
    for precision in ("fp16", "fp32"):
        engine = plan.build(report, f"clip {plan.library} {precision}", bundle, (height, width), precision)
        opened.append(plan.open(engine, (height, width), graph=True))
    compare_backends(report, f"{plan.library}: fp16 against fp32 on {clip.name}", frames, *opened)
    for backend in opened:
        backend.close()
