"""The kernels of all ops by an emulator on the CPU; see cuda_emulator/. Nothing here is a test."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.plugins.subjects import SUBJECTS, Subject
from tests.processes import need

from mtu.plugins.kernel import Kernel
from mtu.plugins.nvrtc import Launch

EMULATOR = ROOT / "tests" / "plugins" / "cuda_emulator"
MULTIPROCESSORS = 4
_NUMBERS = {"float32": 0, "float16": 1, "linear": 0, "hwc8": 1}
_MACROS = {
    "mtu_prepare": ("MTU_TYPE",),
    "mtu_match": ("MTU_TYPE", "MTU_POOL"),
    "mtu_planes": ("MTU_TYPE", "MTU_SHARED_TAPS"),
    "mtu_pixels": ("MTU_SHARED_TAPS",),
}
_WORDS = {"mtu::Half": "half", "true": "shared", "false": "separate"}


def c_problem(problem: Any) -> ctypes.Array[ctypes.c_int32]:
    """Problem of the op's launch.h, whose members are those of Python's in order."""
    values = [_NUMBERS.get(value, value) for value in dataclasses.asdict(problem).values()]
    return (ctypes.c_int32 * len(values))(*values)


def cuda_folder(subject: Subject) -> Path:
    """The sources of its kernels."""
    return ROOT / "plugins" / subject.folder / "cuda"


class Emulator:
    """kernel.cu and launch.cu of one op as a library for this processor."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        need("g++")
        library = folder / f"{subject.folder}.so"
        options = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing"]
        options += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
        source = ["-shared", "-fPIC", f"-I{EMULATOR}", f"-I{cuda_folder(subject)}", "-o", str(library)]
        subprocess.run(["g++", *options, *source, str(EMULATOR / f"{subject.folder}.cpp")], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.emulator_check.restype = ctypes.c_char_p
        self._library.emulator_workspace_bytes.restype = ctypes.c_size_t
        self._library.emulator_start.restype = ctypes.c_bool
        self.kernel = subject.kernel
        self.revision = self._library.emulator_revision()
        self.last_error, self.fail = self._library.emulator_last_error, self._library.emulator_fail
        self.setup()

    def setup(self, seed: int = 0, multiprocessors: int = MULTIPROCESSORS) -> None:
        """The order of threads; what CUDA answers in C++."""
        self._library.emulator_setup(seed, multiprocessors)

    def check(self, problem: Any) -> str | None:
        """What the launcher in C++ says against a problem."""
        reason = self._library.emulator_check(c_problem(problem))
        return None if reason is None else reason.decode()

    def workspace_bytes(self, problem: Any) -> int:
        """Of the launcher in C++."""
        return self._library.emulator_workspace_bytes(c_problem(problem))

    def start(self, launch: Launch, macros: Mapping[str, str]) -> None:
        """One launch, of the kernels that the macros make."""
        name = "_".join([launch.kernel, *(_WORDS.get(macros[each], macros[each]) for each in _MACROS[launch.kernel])])
        values = [kind(value) for kind, value in zip(launch.types, launch.arguments, strict=True)]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        assert self._library.emulator_start(name.encode(), *launch.grid, launch.threads, addresses), name

    def launch(
        self, problem: Any, pointers: Sequence[int], count: int | None = None, multiprocessors: int = MULTIPROCESSORS
    ) -> None:
        """As the launcher in Python starts them; `count`: the first ones only."""
        for launch in self.kernel.launches(problem, pointers, multiprocessors)[:count]:
            self.start(launch, self.kernel.defines(problem))

    def launch_cpp(self, problem: Any, pointers: Sequence[int]) -> int:
        """The status of the launcher in C++."""
        return self._library.emulator_launch(c_problem(problem), (ctypes.c_void_p * len(pointers))(*pointers))


class Emulators:
    """Those of all ops by their kernels, each compiled when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, dict[Kernel, Emulator]()

    def __getitem__(self, kernel: Kernel) -> Emulator:
        if kernel not in self._made:
            (subject,) = (subject for subject in SUBJECTS if subject.kernel is kernel)
            self._made[kernel] = Emulator(subject, self._folder)
        return self._made[kernel]


@pytest.fixture(scope="session")
def emulators(tmp_path_factory) -> Emulators:
    return Emulators(tmp_path_factory.mktemp("emulator"))


def poisoned(shape: Sequence[int], dtype: Any, misaligned: bool = False) -> np.ndarray:
    """An array full of garbage, aligned to 64 bytes or only to its element."""
    itemsize, count = np.dtype(dtype).itemsize, int(np.prod(shape))
    memory = np.full(count * itemsize + 128, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64 + (itemsize if misaligned else 0)
    return memory[start : start + count * itemsize].view(dtype).reshape(shape)


def laid_out(array: np.ndarray, layout: str, misaligned: bool) -> np.ndarray:
    """The array in a layout; HWC8's pads are NaN. An array without channels stays as it is."""
    if layout == "hwc8" and array.ndim == 4:
        batch, channels, height, width = array.shape
        out = poisoned((batch, height, width, -(-channels // 8) * 8), array.dtype, misaligned)
        out[:] = np.nan
        out[..., :channels] = array.transpose(0, 2, 3, 1)
        return out
    out = poisoned(array.shape, array.dtype, misaligned)
    out[:] = array
    return out


def run(
    emulators: Emulators,
    subject: Subject,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, int],
    like: Sequence[np.ndarray],
    *,
    through: str = "python",
    layout: str = "linear",
    misaligned: bool = False,
    multiprocessors: int = MULTIPROCESSORS,
    seed: int = 0,
) -> list[np.ndarray]:
    """The op by the emulator: outputs of the shapes and types of `like`. Inputs stay as they are."""
    emulator, kernel = emulators[subject.kernel], subject.kernel
    shapes, kinds = zip(*((array.shape, array.dtype.name) for array in inputs.values()), strict=True)
    problem = kernel.problem_of(attributes, shapes, kinds, [layout] * len(inputs))
    given = [laid_out(array, layout, misaligned) for array in inputs.values()]
    outputs = []
    for array in like:
        shape = laid_out(np.zeros_like(array), layout, misaligned).shape
        outputs.append(poisoned(shape, array.dtype, misaligned and array.ndim == 4))
    workspace = poisoned((kernel.workspace_bytes(problem) + 64,), np.uint8)
    fence = workspace[-64:].copy()
    before = [array.tobytes() for array in given]
    pointers = [array.ctypes.data for array in (*given, *outputs, workspace)]
    emulator.setup(seed, multiprocessors)
    if through == "c++":
        assert emulator.launch_cpp(problem, pointers) == 0
    else:
        emulator.launch(problem, pointers, None, multiprocessors)
    assert [array.tobytes() for array in given] == before
    assert (workspace[-64:] == fence).all()
    for i, array in enumerate(like):
        if layout == "hwc8" and array.ndim == 4:
            channels = array.shape[1]
            assert not outputs[i][..., channels:].any()
            outputs[i] = outputs[i][..., :channels].transpose(0, 3, 1, 2)
    return outputs
