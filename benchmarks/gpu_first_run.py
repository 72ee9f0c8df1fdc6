"""What a GPU that this project has never run on is asked first: engines of mtu2 against saved pictures, then times.

The steps are sections of the GPU check, in processes of their own; they hand engines on in a folder. numpy, onnx,
pycuda, cuda-bindings and a TensorRT are enough: neither torch nor onnxruntime is needed where the GPU is.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mtu.benchmarks.gpu_engines import Plan, build_and_time, can_have_plugin
from mtu.benchmarks.gpu_precision import decibels, read_clip
from mtu.benchmarks.gpu_report import GpuReport, Skip
from mtu.core.errors import InvalidInputError
from mtu.core.files import write_whole
from mtu.runtime.tensorrt_library import LIBRARIES, Library, is_importable, load_library, package_of

FRAMES = 24
SIZE = 216, 384
"""Of the demo clip."""
FLOORS = {"fp32": 60.0, "fp16": 45.0}
"""dB that the worst frame has to reach against onnxruntime in fp32; another runtime in fp32 gives 89, fp16 62."""
Picture = NDArray[np.uint8]


def save_reference(clip: Path, path: Path, frames: int = FRAMES) -> str:
    """Restores the first frames of a clip with onnxruntime on the CPU and writes both to an .npz; what it holds."""
    from mtu.runtime import open_backend, open_bundle, restore

    blurred = read_clip(clip)[:frames]
    backend = open_backend("onnxruntime", open_bundle(), "cpu")
    restored = [frame.rgb for frame in restore(blurred, backend, scene_threshold=None)]
    saved = io.BytesIO()
    np.savez_compressed(saved, blurred=np.stack(blurred), restored=np.stack(restored))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, saved.getvalue())
    height, width = blurred[0].shape[:2]
    return f"{len(blurred)} frames {width}x{height}, {path.stat().st_size / 2**20:.1f} MiB"


def read_reference(path: Path) -> tuple[list[Picture], list[Picture]]:
    """The blurred and the restored frames of `save_reference`."""
    try:
        with np.load(path) as saved:
            return list(saved["blurred"]), list(saved["restored"])
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise InvalidInputError(
            f"{path} holds no saved pictures ({error}): make it where onnxruntime is, with --save-reference FILE, and"
            " give it with --reference"
        ) from None


def choose_library() -> Library:
    """TensorRT if it is here, else TensorRT-RTX."""
    for name in LIBRARIES:
        if is_importable(package_of(name)):
            return load_library(name)
    raise Skip("neither tensorrt nor tensorrt_rtx is installed")


def make_plan(report: GpuReport, folder: Path, plugin_library: Path | None) -> Plan:
    """How engines are built here: with the C++ plugin if it is given, else with the one in Python, else without."""
    library = choose_library()
    plugin = can_have_plugin(library, plugin_library)
    if not plugin:
        needs = f"tensorrt {library.version} needs it: mtu-build-plugin, then --plugin-library FILE"
        report.check("C++ plugin", False, needs)
    return Plan(library.name, folder, plugin_library, plugin)


def build_engines(report: GpuReport, plan: Plan, size: tuple[int, int] = SIZE) -> None:
    """Engines of mtu2 for the size of the saved pictures, in fp32 and fp16."""
    for precision in FLOORS:
        report.run(precision, partial(_build_one, report, plan, precision, size))


def _build_one(report: GpuReport, plan: Plan, precision: str, size: tuple[int, int]) -> None:
    from mtu.runtime.bundle import open_bundle

    plan.build(report, precision, open_bundle(), size, precision)
    how = "the C++ plugin" if plan.plugin_library else "the Python plugin" if plan.plugin else "no plugin"
    report.check(f"engines {precision}", True, f"{plan.library} with {how}")


def check_pictures(report: GpuReport, plan: Plan, reference: Path, *, graph: bool) -> None:
    """Both engines on the saved frames against the saved pictures, each frame."""
    blurred, expected = read_reference(reference)
    for precision in FLOORS:
        report.run(precision, partial(_check_one, report, plan, precision, blurred, expected, graph))


def _check_one(
    report: GpuReport, plan: Plan, precision: str, blurred: Sequence[Picture], expected: Sequence[Picture], graph: bool
) -> None:
    from mtu.runtime import restore
    from mtu.runtime.engine import open_engine

    height, width, _ = blurred[0].shape
    backend = plan.open(open_engine(plan.folder / precision), (height, width), graph=graph)
    try:
        restored = [frame.rgb for frame in restore(blurred, backend, scene_threshold=None)]
    finally:
        backend.close()
    psnr = [
        decibels(float(np.square(one.astype(np.float64) - other).mean()))
        for one, other in zip(restored, expected, strict=True)
    ]
    worst, floor = min(psnr), FLOORS[precision]
    detail = f"{len(psnr)} frames, worst {worst:.1f} dB (frame {psnr.index(worst)}), floor {floor:.0f} dB"
    report.check(f"pictures {precision}", worst >= floor, detail)
    if graph:
        report.check(f"captured {precision}", not backend.remarks, "; ".join(backend.remarks))


def time_steps(report: GpuReport, plan: Plan, size: tuple[int, int], samples: int = 100) -> None:
    """The step of mtu2 in fp16 at `size`, with and without a CUDA graph, and whole frames."""
    from mtu.runtime.bundle import open_bundle

    name = f"mtu2 {plan.library} fp16"
    report.run(name, partial(build_and_time, report, plan, name, open_bundle(), size, "fp16", samples))
