"""How much memory a run will take, and how much there is: asked before it is taken. Imports numpy.

Note [measured memory]
    What a backend holds while it computes a frame grows with the frame's pixels, and with what a graph's tensors take
    that are alive at one time, which export works out (`Interface.working_bytes`). `COSTS` has how the two go together,
    measured once on a CPU (docs/performance.md says how). GPUs were not measured: there TensorRT says itself what it
    needs, and the other backends answer when memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtu.core.interface import Interface
from mtu.runtime.backends import Backend
from mtu.runtime.chain import StagedBackend

MIB = 2**20
VIDEO_FIXED, VIDEO_PIXEL = 32 * MIB, 310
"""Bytes that reading, waiting and encoding hold, and for each pixel of a frame; measured from H.264 to H.264."""
STREAM_PIXEL = 50
"""Likewise for each further stream that is read in step, beside its frames in the window."""
MOST = 0.9
"""The share of the free memory up to which an estimate, good to a tenth, is taken to fit."""


@dataclass(frozen=True)
class Cost:
    """What a backend holds while it computes a frame, beside the loaded model."""

    fixed: int
    """Bytes, whatever the size."""
    working: float
    """Bytes for each byte of `Interface.working_bytes`, for each pixel of the padded frame."""
    pixel: float
    """Bytes for each pixel, beside those."""
    held: int = 1
    """Frames of a stream whose states are there at one time."""

    def of(self, working_bytes: int, pixels: int) -> int:
        """Bytes for a frame."""
        return self.fixed + math.ceil(max(working_bytes, self.working * working_bytes + self.pixel) * pixels)


COSTS: Mapping[tuple[str, str], Cost] = {
    # (backend, computes in): measured with networks of 8, 26 and 48 channels; int8 with every layer that can be
    ("openvino", "fp32"): Cost(75 * MIB, 2.48, 20, held=2),
    ("openvino", "bf16"): Cost(75 * MIB, 1.02, 190, held=2),
    ("openvino", "int8"): Cost(135 * MIB, 1.97, 0, held=2),
    ("onnxruntime", "fp32"): Cost(10 * MIB, 5.08, -350),
    ("onnxruntime", "fp16"): Cost(10 * MIB, 5.4, -350),
    ("onnxruntime", "int8"): Cost(10 * MIB, 8.24, -350),
    ("torch", "fp32"): Cost(100 * MIB, 1.85, 140),
    ("torch", "fp16"): Cost(60 * MIB, 1.15, 130),
    ("torch-compile", "fp32"): Cost(210 * MIB, 1.70, 130),
}


def needed(backend: Backend, frame: tuple[int, int], tile: tuple[int, int], tiles: int) -> int | None:
    """Bytes that restoring a video takes beside the loaded model, or None where that is not known.

    `frame` and `tile` are height and width of the frames and of what the backend gets; `tiles` is how many of these a
    frame has, each with states of its own.
    """
    others = len(backend.interface.streams) - 1
    total = VIDEO_FIXED + (VIDEO_PIXEL * backend.interface.scale**2 + STREAM_PIXEL * others) * frame[0] * frame[1]
    for stage in _models(backend):
        interface, pixels = stage.interface, tile[0] * tile[1]
        # The last word: "fp16 computed in fp32" is fp32.
        cost = COSTS.get((stage.name, stage.arithmetic.split()[-1]))
        if cost is None or stage.device != "cpu" or not interface.working_bytes:
            return None
        frames = len(interface.streams) * (interface.look_back + interface.look_ahead + 2)
        kept = cost.held * state_bytes(interface, *tile) + 3 * frames * pixels
        total += cost.of(interface.working_bytes, pixels) + (tiles - 1) * kept
        tile = tile[0] * interface.scale, tile[1] * interface.scale
    return total


def _models(backend: Backend) -> Iterator[Backend]:
    """Itself, or what it is made of, each of which has the states of its own."""
    if not isinstance(backend, StagedBackend):
        yield backend
        return
    for stage in backend.stages:
        yield from _models(stage)


def state_bytes(interface: Interface, height: int, width: int) -> int:
    """Bytes of the states of one stream of padded frames of this size."""
    states = interface.states.values()
    return sum(np.dtype(state.dtype).itemsize * math.prod(state.at(height, width)) for state in states)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken now without swapping: of the machine, or of the control group or the limits of this
    process (ulimit -v, -d) where they allow less.

    None where Linux's files under `root` do not say it.
    """
    found = [_of_the_machine(root), *_of_control_groups(root), *_of_the_process(root)]
    return min((size for size in found if size is not None), default=None)


def _of_the_machine(root: Path) -> int | None:
    kib = _numbers(root / "proc/meminfo").get("MemAvailable:")
    return None if kib is None else kib * 1024


def _of_control_groups(root: Path) -> list[int | None]:
    """Of the group of this process and those it lies in, of either version."""
    found: list[int | None] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # In a container the path may be that of the host, and its own group is the top.
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        while group != top and top in group.parents:
            found.append(_left(group, *names))
            group = group.parent
        found.append(_left(top, *names))
    return found


def _of_the_process(root: Path) -> Iterator[int]:
    """Address space and data that its limits leave."""
    status = _numbers(root / "proc/self/status")
    for line in _text(root / "proc/self/limits").splitlines():
        for name, taken in ("Max address space", "VmSize:"), ("Max data size", "VmData:"):
            limit = line.removeprefix(name).split()[:1]
            if line.startswith(name) and limit and limit[0].isdecimal():
                yield max(0, int(limit[0]) - status.get(taken, 0) * 1024)


def _left(group: Path, limit: str, usage: str) -> int | None:
    """What a group may still take; what its files hold in memory only to have them at hand can be had back."""
    try:
        most, taken = int(_text(group / limit)), int(_text(group / usage))
    except ValueError:  # no such file, or "max"
        return None
    numbers = _numbers(group / "memory.stat")
    return max(0, most - taken + numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file that are a name and a number."""
    pairs = (line.split()[:2] for line in _text(path).splitlines() if len(line.split()) >= 2)
    return {name: int(number) for name, number in pairs if number.isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def size_in_words(size: int) -> str:
    """ "1.4 GiB", "310 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
