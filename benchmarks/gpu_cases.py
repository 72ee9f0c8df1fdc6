"""The kernel on a GPU with numpy and cuda-bindings alone: the cases of the op against the truth, and its time.

`python -m mtu.benchmarks.gpu_cases NAME` runs one case in a process that is small enough for compute-sanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.benchmarks.gpu_report import GpuReport
from mtu.plugins import nvrtc
from mtu.plugins.correlation_argmax_warp import cuda_op
from mtu.plugins.correlation_argmax_warp.cases import CASES, Case

Array = NDArray[Any]
ONE_CASE = "published_half"
SANITIZERS = ("memcheck", "racecheck")
SIZES: Mapping[str, tuple[int, int]] = {"1280x720": (180, 320), "1920x1080": (270, 480)}
"""Frame sizes, and height and width of their motion maps."""
CHANNELS, DETAIL_CHANNELS = 52, 26
"""Of the published networks but the largest."""


class Cuda:
    """The first GPU through cuda-bindings. Memory is an address. The tests have one that emulates the kernel."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self._check = nvrtc.check
        self._check(driver.cuInit(0))
        context = self._check(driver.cuDevicePrimaryCtxRetain(self._check(driver.cuDeviceGet(0))))
        self._check(driver.cuCtxSetCurrent(context))
        self._launcher = cuda_op.launcher(0)

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

    def launch(self, problem: cuda_op.Problem, *pointers: int) -> None:
        """Enqueues the kernel; the pointers are those of `cuda_op.Launcher.launch`."""
        self._launcher.launch(problem, *pointers, 0)  # type: ignore[call-arg]

    def milliseconds(self, call: Callable[[], None]) -> float:
        """How long the device takes for what `call` enqueues."""
        driver, check = self._driver, self._check
        before, after = (check(driver.cuEventCreate(0)) for _ in range(2))
        check(driver.cuEventRecord(before, 0))
        call()
        check(driver.cuEventRecord(after, 0))
        check(driver.cuEventSynchronize(after))
        return float(check(driver.cuEventElapsedTime(before, after)))


def laid_out(array: Array, layout: cuda_op.Layout) -> Array:
    """[B, C, h, w] as the layout has it in memory; the padding, which must not be read, is NaN."""
    if layout == "linear":
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
    """The kernel with memory for one set of inputs; what it writes to is full of garbage at first."""

    def __init__(
        self,
        machine: Cuda,
        inputs: Sequence[Array],
        attributes: Mapping[str, int] | None = None,
        *,
        layout: cuda_op.Layout = "linear",
        unaligned: bool = False,
    ) -> None:
        """`inputs` are motion, motion_prev, detail_prev. `unaligned` shifts all tensors by one element."""
        motion, _, detail = inputs
        more: dict[str, Any] = {"motion_type": motion.dtype.name, "detail_type": detail.dtype.name}
        more.update(attributes or {}, motion_layout=layout, detail_layout=layout)
        self.problem = cuda_op.Problem(*(*motion.shape, detail.shape[1]), **more)
        self._machine, self._channels, self._allocated = machine, detail.shape[1], list[int]()
        arrays = [laid_out(array, layout) for array in inputs]
        self._outputs = [garbage(arrays[2].shape, detail.dtype), garbage((len(motion), *motion.shape[2:]), np.int32)]
        self._workspace = garbage([cuda_op.workspace_bytes(self.problem)], np.uint8)
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
        for address, array in zip(self.pointers[3:], (*self._outputs, self._workspace), strict=True):
            self._machine.write(address, garbage(array.shape, array.dtype))

    def launch(self) -> None:
        """Enqueues it."""
        self._machine.launch(self.problem, *self.pointers)

    def results(self) -> tuple[Array, Array]:
        """Copies of warped [B, c, H, W] and displacement, as the last launch left them."""
        for address, array in zip(self.pointers[3:], self._outputs, strict=False):
            self._machine.read(address, array)
        warped, displacement = (array.copy() for array in self._outputs)
        if self.problem.detail_layout == "hwc8":
            if warped[..., self._channels :].any():
                raise AssertionError("the padding of HWC8 was not written as zeros")
            warped = warped[..., : self._channels].transpose(0, 3, 1, 2)
        return warped, displacement

    def run(self) -> tuple[Array, Array]:
        """The results of one launch on garbage."""
        self.spoil()
        self.launch()
        return self.results()


def is_right(machine: Cuda, case: Case, layout: cuda_op.Layout = "linear", unaligned: bool = False) -> bool:
    """Whether the kernel gives the truth for a case, every bit of it."""
    call = Call(machine, list(case.inputs.values()), case.attributes, layout=layout, unaligned=unaligned)
    return all(
        np.array_equal(result, truth, equal_nan=truth.dtype.kind == "f")
        for result, truth in zip(call.run(), case.expected, strict=True)
    )


def check_cases(report: GpuReport, machine: Cuda, cases: Sequence[Case] = CASES) -> None:
    """Every case in every layout, aligned and not."""
    for layout in ("linear", "hwc8"):
        chosen = [case for case in cases if layout == "linear" or case.dtype == "float16"]
        for unaligned in (False, True):
            name = f"cases, {layout}{', unaligned' if unaligned else ''}"
            report.run(name, partial(_check_cases, report, machine, name, chosen, layout, unaligned))


def _check_cases(
    report: GpuReport, machine: Cuda, name: str, cases: Sequence[Case], layout: cuda_op.Layout, unaligned: bool
) -> None:
    wrong = [case.name for case in cases if not is_right(machine, case, layout, unaligned)]
    report.check(name, not wrong, f"{len(cases)} cases" + (f", wrong: {', '.join(wrong)}" if wrong else ""))


def time_cases(
    report: GpuReport,
    machine: Cuda,
    sizes: Mapping[str, tuple[int, int]] = SIZES,
    samples: int = 30,
    several: int = 10,
) -> None:
    """The kernel at the sizes of videos in fp16, on noise: so many in a row, over their number."""
    for size, (h, w) in sizes.items():
        case = Case(
            *(size, "as in a video", h, w, "random"),
            channels=CHANNELS,
            detail_channels=DETAIL_CHANNELS,
            max_displacement=10,
            dtype="float16",
        )
        for layout in ("linear", "hwc8"):
            name = f"kernel {size} fp16 {layout}, by itself"
            report.run(name, partial(_time, report, machine, name, case, layout, samples, several))


def _time(
    report: GpuReport, machine: Cuda, name: str, case: Case, layout: cuda_op.Layout, samples: int, several: int
) -> None:
    call = Call(machine, list(case.inputs.values()), case.attributes, layout=layout)

    def launches() -> None:
        for _ in range(several):
            call.launch()

    launches()  # compiled, and warm
    values = [machine.milliseconds(launches) / several for _ in range(samples)]
    report.time(name, "kernel by itself", values)


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
    """Runs the case of this name; 0 if the kernel is right."""
    (case,) = (case for case in CASES if case.name == name)
    right = is_right(Cuda(), case)
    print(f"{name}: {'right' if right else 'WRONG'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
