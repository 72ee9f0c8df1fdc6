"""The kernels on a GPU with numpy and cuda-bindings alone: the cases of all ops against the truth, and their time.

`python -m mtu.benchmarks.gpu_cases NAME` runs the cases of one name in a process that is small enough for
compute-sanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.benchmarks.gpu_report import GpuReport
from mtu.plugins import iterative_filters, nvrtc
from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.cases import Case
from mtu.plugins.iterative_filters import cases as filters_cases
from mtu.plugins.kernel import Kernel, Layout, launcher
from mtu.plugins.op import OPS, Op, find_op

Array = NDArray[Any]
ONE_CASE = "published_half"
SANITIZERS = ("memcheck", "racecheck")
SIZES: Mapping[str, tuple[int, int]] = {"1280x720": (180, 320), "1920x1080": (270, 480)}
"""Frame sizes, and height and width of their motion maps."""
CHANNELS, DETAIL_CHANNELS = 52, 26
"""Of the published networks but the largest."""
FILTERED_CHANNELS = 128
"""Of IFAN, at an eighth of the frame's size."""
PREDICTED_US: Mapping[str, float] = {
    "IterativeFilters 1280x720 fp16 linear": 7,
    "IterativeFilters 1280x720 fp16 hwc8": 8,
}
"""What docs/kernel.md predicts for an H200 (the middle), in microseconds, by the name of the timing."""


class PaddingError(AssertionError):
    """A kernel did not write zeros where the layout has them."""


class Cuda:
    """The first GPU through cuda-bindings. Memory is an address. The tests have one that emulates the kernels."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self._check = nvrtc.check
        self._check(driver.cuInit(0))
        context = self._check(driver.cuDevicePrimaryCtxRetain(self._check(driver.cuDeviceGet(0))))
        self._check(driver.cuCtxSetCurrent(context))

    def allocate(self, size: int) -> int:
        """The address of so many bytes, a multiple of 256."""
        return int(self._check(self._driver.cuMemAlloc(size)))

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._check(self._driver.cuMemFree(address))

    def write(self, address: int, array: Array) -> None:
        """Copies an array there."""
        self._check(self._driver.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes))

    def read(self, address: int, array: Array) -> None:
        """Waits for everything, then fills the array with what is there."""
        self._check(self._driver.cuCtxSynchronize())
        self._check(self._driver.cuMemcpyDtoH(array.ctypes.data, address, array.nbytes))

    @property
    def stream(self) -> int:
        """Where kernels go."""
        return 0

    def launch(self, kernel: Kernel, problem: Any, pointers: Sequence[int], count: int | None = None) -> None:
        """Enqueues an op; see `Launcher.launch`."""
        launcher(kernel, 0).launch(problem, pointers, self.stream, count)

    def milliseconds(self, call: Callable[[], None]) -> float:
        """How long the device takes for what `call` enqueues."""
        driver, check = self._driver, self._check
        before, after = (check(driver.cuEventCreate(0)) for _ in range(2))
        check(driver.cuEventRecord(before, 0))
        call()
        check(driver.cuEventRecord(after, 0))
        check(driver.cuEventSynchronize(after))
        return float(check(driver.cuEventElapsedTime(before, after)))


def laid_out(array: Array, layout: Layout) -> Array:
    """An array [B, C, h, w] as the layout has it in memory, others as they are; padding, not to be read, is NaN."""
    if layout == "linear" or array.ndim != 4:
        return np.ascontiguousarray(array)
    batch, channels, h, w = array.shape
    out = np.full((batch, h, w, -(-channels // 8) * 8), np.nan, array.dtype)
    out[..., :channels] = array.transpose(0, 2, 3, 1)
    return out


def garbage(shape: Sequence[int], dtype: Any) -> Array:
    """Memory that nobody has written to."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    filled: Array = np.full(size, 0xA5, np.uint8).view(dtype).reshape(shape)
    return filled


class Call:
    """An op with memory for one set of inputs; what it writes to is full of garbage at first."""

    def __init__(
        self,
        machine: Cuda,
        kernel: Kernel,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        attributes: Mapping[str, int],
        *,
        layout: Layout = "linear",
        unaligned: bool = False,
    ) -> None:
        """`outputs` say shapes and types. `unaligned` shifts all tensors by one element."""
        shapes, kinds = [array.shape for array in inputs], [array.dtype.name for array in inputs]
        self.problem = kernel.problem_of(attributes, shapes, kinds, [layout] * len(inputs))
        self._machine, self._kernel, self._allocated = machine, kernel, list[int]()
        arrays = [laid_out(array, layout) for array in inputs]
        self._outputs = [garbage(laid_out(array, layout).shape, array.dtype) for array in outputs]
        self._channels = [array.shape[1] if layout == "hwc8" and array.ndim == 4 else None for array in outputs]
        self._workspace = garbage([max(kernel.workspace_bytes(self.problem), 1)], np.uint8)
        self.pointers: list[int] = []
        for array in (*arrays, *self._outputs, self._workspace):
            offset = array.itemsize if unaligned and array is not self._workspace else 0
            self._allocated.append(machine.allocate(array.nbytes + offset))
            self.pointers.append(self._allocated[-1] + offset)
        for address, array in zip(self.pointers, arrays, strict=False):
            machine.write(address, array)
        self.spoil()

    def __del__(self) -> None:
        for address in self._allocated:
            self._machine.free(address)

    def spoil(self) -> None:
        """Fills everything that the kernel writes with garbage."""
        written = (*self._outputs, self._workspace)
        for address, array in zip(self.pointers[-len(written) :], written, strict=True):
            self._machine.write(address, garbage(array.shape, array.dtype))

    def launch(self) -> None:
        """Enqueues it."""
        self.launch_first(None)

    def launch_first(self, count: int | None) -> None:
        """Enqueues so many of its launches."""
        self._machine.launch(self._kernel, self.problem, self.pointers, count)

    def results(self) -> tuple[Array, ...]:
        """Copies of the outputs as linear, as the last launch left them."""
        results = []
        for address, array, channels in zip(
            self.pointers[-len(self._outputs) - 1 : -1], self._outputs, self._channels, strict=True
        ):
            self._machine.read(address, array)
            copy = array.copy()
            if channels is not None:
                if copy[..., channels:].any():
                    raise PaddingError("the padding of HWC8 was not written as zeros")
                copy = copy[..., :channels].transpose(0, 3, 1, 2)
            results.append(copy)
        return tuple(results)

    def run(self) -> tuple[Array, ...]:
        """The results of one launch on garbage."""
        self.spoil()
        self.launch()
        return self.results()


def call_of(machine: Cuda, op: Op, case: Any, **how: Any) -> Call:
    """An op with memory for a case; `how` as for `Call`."""
    kernel = op.part(op.kernel)
    return Call(machine, kernel, list(case.inputs.values()), case.expected, case.attributes, **how)


def is_right(machine: Cuda, op: Op, case: Any, layout: Layout = "linear", unaligned: bool = False) -> bool:
    """Whether the kernel gives the truth for a case: every bit of it, or as near as the case allows."""
    try:
        results = call_of(machine, op, case, layout=layout, unaligned=unaligned).run()
    except PaddingError:
        return False
    return all(map(_is_near, results, case.expected, getattr(case, "allowed", repeat(None))))


def _is_near(result: Array, truth: Array, allowed: Array | None) -> bool:
    if allowed is None:
        return np.array_equal(result, truth, equal_nan=truth.dtype.kind == "f")
    return bool((np.abs(result.astype(np.float64) - truth) <= allowed).all())


def all_cases() -> Iterator[tuple[Op, Any]]:
    """Those of all ops."""
    for op in map(find_op, OPS):
        for case in op.part("cases:CASES"):
            yield op, case


def check_cases(report: GpuReport, machine: Cuda, cases: Iterable[tuple[Op, Any]] | None = None) -> None:
    """Every case of every op in every layout, aligned and not."""
    found = list(all_cases() if cases is None else cases)
    for op in dict.fromkeys(op.name for op, _ in found):
        for layout in ("linear", "hwc8"):
            chosen = [each for each in found if each[0].name == op]
            chosen = [each for each in chosen if layout == "linear" or each[1].dtype == "float16"]
            for unaligned in (False, True):
                name = f"cases of {op}, {layout}{', unaligned' if unaligned else ''}"
                report.run(name, partial(_check_cases, report, machine, name, chosen, layout, unaligned))


def _check_cases(
    report: GpuReport, machine: Cuda, name: str, cases: Sequence[tuple[Op, Any]], layout: Layout, unaligned: bool
) -> None:
    wrong = [case.name for op, case in cases if not is_right(machine, op, case, layout, unaligned)]
    report.check(name, not wrong, f"{len(cases)} cases" + (f", wrong: {', '.join(wrong)}" if wrong else ""))


def video_cases(size: str, h: int, w: int) -> Iterator[tuple[str, Op, Any]]:
    """For each op what to call its time, the op and a case of the size of a video in fp16, on noise."""
    more: dict[str, Any] = {"channels": CHANNELS, "detail_channels": DETAIL_CHANNELS, "max_displacement": 10}
    yield f"kernel {size} fp16", OP, Case(size, "as in a video", h, w, "random", dtype="float16", **more)
    filters = filters_cases.Case(size, "as in a video", h // 2, w // 2, channels=FILTERED_CHANNELS, dtype="float16")
    yield f"{iterative_filters.OP.name} {size} fp16", iterative_filters.OP, filters


def time_cases(
    report: GpuReport,
    machine: Cuda,
    sizes: Mapping[str, tuple[int, int]] = SIZES,
    samples: int = 30,
    several: int = 10,
) -> None:
    """The kernels at the sizes of videos: so many in a row, over their number."""
    for size, (h, w) in sizes.items():
        for name, op, case in video_cases(size, h, w):
            for layout in ("linear", "hwc8"):
                of = f"{name} {layout}"
                timed = partial(_time, report, machine, of, op, case, layout, samples, several)
                report.run(f"{of}, by itself", timed)


def _time(
    report: GpuReport, machine: Cuda, name: str, op: Op, case: Any, layout: Layout, samples: int, several: int
) -> None:
    call = call_of(machine, op, case, layout=layout)

    def launches() -> None:
        for _ in range(several):
            call.launch()

    launches()  # compiled, and warm
    values = [machine.milliseconds(launches) / several for _ in range(samples)]
    predicted = {"predicted_us": PREDICTED_US[name]} if name in PREDICTED_US else {}
    group = "kernel by itself" if op is OP else f"{op.name} by itself"
    report.time(f"{name}, by itself", group, values, **predicted)


# --- under compute-sanitizer ----------------------------------------------------------------------------------------


def find_sanitizer() -> str | None:
    """compute-sanitizer, which comes with the CUDA toolkit."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [str(Path(folder) / "bin") for folder in folders if folder]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def check_one_case(report: GpuReport, seconds: float = 90) -> None:
    """One case by itself, then under each tool of compute-sanitizer, in processes that may take so long together."""
    command = [sys.executable, "-m", "mtu.benchmarks.gpu_cases", ONE_CASE]
    plain = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds / 3)
    right = plain.returncode == 0
    report.check(f"case {ONE_CASE}", right, "" if right else last_lines(plain.stdout + plain.stderr))
    sanitizer = find_sanitizer()
    for tool in SANITIZERS if right else ():
        if sanitizer is None:
            report.skip(tool, "compute-sanitizer is not on PATH, in CUDA_HOME or in /usr/local/cuda")
            continue
        # Errors of the driver's API are found by everything else; here they would be those of other libraries too.
        options = ["--tool", tool, "--error-exitcode", "9"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        report.run(tool, partial(_sanitize, report, tool, [sanitizer, *options, *command], seconds / 3))


def _sanitize(report: GpuReport, tool: str, command: Sequence[str], seconds: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    said = done.stdout + done.stderr
    # Where the tool cannot attach, the program runs without it, and well.
    summaries = [line for line in said.splitlines() if "SUMMARY:" in line]
    clean = done.returncode == 0 and any("SUMMARY: 0 " in line for line in summaries)
    # It may find nothing and fail all the same, as on a device that it does not support.
    found = summaries and (clean or "SUMMARY: 0 " not in summaries[-1])
    report.check(tool, clean, summaries[-1].strip("= ") if found else last_lines(said))


def last_lines(text: str) -> str:
    """The end of what a program said, in one line."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-4:]) or "it said nothing"


def main(name: str) -> int:
    """Runs the cases of this name; 0 if the kernels are right."""
    wrong = 0
    for op, case in all_cases():
        if case.name == name:
            for layout in ("linear", "hwc8"):
                right = is_right(Cuda(), op, case, layout)
                print(f"{op.name} {name} {layout}: {'right' if right else 'WRONG'}")
                wrong += not right
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
