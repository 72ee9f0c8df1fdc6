"""How much memory a run will take, and how much there is: asked before it is taken. Plain Python.

Note [measured memory]
    What a backend holds while it computes a frame grows with the frame's pixels, and with the channels of the network;
    the number of units hardly matters, as their maps use the same memory one after the other. `COSTS` has what was
    measured once on a CPU (docs/performance.md says how). GPUs were not measured: there TensorRT says itself what it
    needs, and the other backends answer when memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mtu.core.interface import Interface
from mtu.runtime.backends import Backend

MIB = 2**20
VIDEO_FIXED, VIDEO_PIXEL = 32 * MIB, 310
"""Bytes that reading, waiting and encoding hold, and for each pixel of a frame; measured from H.264 to H.264."""
WINDOW_PIXEL = 18
"""Bytes for each pixel of the six frames that a session holds."""
MOST = 0.9
"""The share of the free memory up to which an estimate, good to a tenth, is taken to fit."""


@dataclass(frozen=True)
class Cost:
    """What a backend holds while it computes a frame, beside the loaded model."""

    fixed: int
    """Bytes, whatever the size."""
    pixel: Mapping[int, float]
    """Bytes for each pixel of the padded frame, by channels of the network, rising."""

    def of(self, channels: int, pixels: int) -> int:
        """Bytes for a frame; between the measured numbers of channels on a line, outside in proportion."""
        known = list(self.pixel.items())
        if channels <= known[0][0] or channels >= known[-1][0]:
            nearest, each = known[0] if channels <= known[0][0] else known[-1]
            each *= channels / nearest
        else:
            (low, a), (high, b) = next(two for two in pairwise(known) if two[0][0] <= channels <= two[1][0])
            each = a + (b - a) * (channels - low) / (high - low)
        return self.fixed + math.ceil(each * pixels)


COSTS: Mapping[tuple[str, str], Cost] = {
    # (backend, precision): measured with networks of 8, 26 and 48 channels; int8 with every layer that can be
    ("onnxruntime", "fp32"): Cost(10 * MIB, {8: 1000, 26: 3260, 48: 6000}),
    ("onnxruntime", "fp16"): Cost(10 * MIB, {26: 3450}),
    ("onnxruntime", "int8"): Cost(10 * MIB, {26: 5450}),
    ("torch", "fp32"): Cost(100 * MIB, {8: 610, 26: 1500, 48: 2420}),
    ("torch", "fp16"): Cost(60 * MIB, {26: 940}),
    ("torch-compile", "fp32"): Cost(210 * MIB, {26: 1330}),
}


def needed(backend: Backend, frame: tuple[int, int], tile: tuple[int, int], tiles: int) -> int | None:
    """Bytes that restoring a video takes beside the loaded model, or None where that is not known.

    `frame` and `tile` are height and width of the frames and of what the backend gets; `tiles` is how many of these a
    frame has, each with states of its own.
    """
    interface = backend.interface
    cost = COSTS.get((backend.name, _kind(interface)))
    if cost is None or backend.device != "cpu":
        return None
    pixels = tile[0] * tile[1]
    video = VIDEO_FIXED + VIDEO_PIXEL * frame[0] * frame[1]
    kept = state_bytes(interface, *tile) + WINDOW_PIXEL * pixels
    return cost.of(interface.config.channels, pixels) + (tiles - 1) * kept + video


def _kind(interface: Interface) -> str:
    return "int8" if interface.int8_layers else interface.precision


def state_bytes(interface: Interface, height: int, width: int) -> int:
    """Bytes of the states of one stream of frames of this size, multiples of 4."""
    size = 2 if interface.state_dtype == "float16" else 4
    return sum(size * math.prod(state.output.at(height, width)) for state in interface.states)


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
