"""Times models, backends and precisions against each other. Imports numpy; the backends run in processes of their own.

Method: one process for each row of the table, so that thread pools and memory are its own. The processes take turns of
a few frames each, so that whatever else the machine does hits all of them alike; so does a matrix product of numpy,
which says how much arithmetic the machine has to give. A frame is timed from the call of `Backend.submit` until its
outputs are on the host; the first frames are warm-up. With several streams each gives a frame, all are submitted, and
the time until the last output is shared out. Nothing else overlaps, so a backend that can upload a frame while it
computes another has more throughput than shows here. A chain is timed by its sessions, from the frames that go in to
those that come out.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mtu.benchmarks.arithmetic import frame_gflop, product_gflops
from mtu.core.errors import InvalidInputError, MtuError
from mtu.core.processor import processor_flags
from mtu.core.release import VERSION
from mtu.core.window import Picture, Window
from mtu.export.engine_cache import cached_engine
from mtu.runtime.backends import (
    CHOOSES_PRECISION,
    Backend,
    PrecisionChoice,
    open_backend,
    open_model,
)
from mtu.runtime.bundle import BUNDLED
from mtu.runtime.chain import StagedBackend, interface_of, open_session

WARM_UP = 3
"""Frames of each backend before its first timed one, the first of them without states."""


PROCESSOR_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
"""What decides how fast fp32, bf16 and int8 are, as Linux names it; the last three are of ARM."""


@dataclass(frozen=True)
class Contestant:
    """What is timed in a process of its own."""

    model: str | None
    """A directory; None for the model of the package."""
    backend: str
    precision: PrecisionChoice | None
    """None where the backend has no choice."""
    device: str
    streams: int
    size: tuple[int, int]
    """Height and width, padded."""

    @property
    def label(self) -> str:
        """For messages."""
        return " ".join(filter(None, (self.backend, self.precision, "on", self.model or BUNDLED)))


@dataclass(frozen=True)
class Row:
    """A model in a backend at one size; times in milliseconds."""

    model: str
    backend: str
    device: str
    arithmetic: str
    """What it computed in, in words."""
    width: int
    height: int
    streams: int
    frames: int
    """That were timed, of all streams."""
    median_ms: float
    """For a frame, all streams together: with two streams, half the time in which each gives one."""
    p90_ms: float
    fps: float
    """Of all streams together."""
    speed_up: float
    """Over the slowest of the run."""
    gflops: float | None
    """Billions of operations a second; see `frame_gflop`."""
    of_product: float | None
    """That over what a matrix product of numpy reached in the same run in fp32."""
    peak_mib: float
    """Largest resident memory of the backend's process, libraries and model included."""
    baseline_mib: float
    """Of that, what the process had before it loaded the model."""


def _noise(height: int, width: int) -> Iterator[Picture]:
    """Random noise that moves by a pixel a frame, five arrays in turn, without end."""
    base = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return itertools.cycle([np.ascontiguousarray(np.roll(base, shift, axis=1)) for shift in range(5)])


def _seconds(backend: Backend, frames: Iterable[Picture], streams: int = 1) -> Iterator[float]:
    """Restores as many streams, which have the same frames; what a frame of each took, all together."""
    if isinstance(backend, StagedBackend):
        sessions = [open_session(backend, scene_threshold=None) for _ in range(streams)]
        for frame in frames:
            began = time.perf_counter()
            if [session.push(frame) for session in sessions][-1]:
                yield time.perf_counter() - began
        return
    window, states = Window(backend.interface), [dict[str, Any]() for _ in range(streams)]
    for frame in frames:
        window.push(dict.fromkeys(backend.interface.streams, frame))
        if window.is_ready:
            taken = window.take()
            graph = backend.interface.graph_for(states[0]).name
            began = time.perf_counter()
            pending = [backend.submit(graph, taken, each) for each in states]
            for each in pending:
                each.result()
            yield time.perf_counter() - began
            states = [dict(each.states) for each in pending]


def _work(pipe: Connection, what: Contestant) -> None:
    """A process: answers each number n with the seconds of n frames of each stream, and None with its memory.

    A text that it sends is for the user, an error ends it.
    """
    try:
        baseline = _peak_mib()
        backend = open_backend(
            what.backend,
            open_model(what.model),
            what.device,
            size=what.size,
            precision=what.precision,
            streams=what.streams,
            at_once=what.streams,
            build=cached_engine,
            say=pipe.send,
        )
        seconds = _seconds(backend, _noise(*what.size), what.streams)
        for _ in range(WARM_UP):
            next(seconds)
        pipe.send((backend.name, backend.device, backend.arithmetic))
        while (count := pipe.recv()) is not None:
            pipe.send(list(itertools.islice(seconds, count)))
        pipe.send((_peak_mib(), baseline))
    except MtuError as error:
        pipe.send(error)
    except MemoryError:
        height, width = what.size
        pipe.send(InvalidInputError(f"out of memory at {width}x{height}: use a smaller size"))
    except KeyboardInterrupt:
        pass  # it goes to the whole group; the parent says so


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def contestants(
    models: Sequence[Path | None],
    backends: Sequence[str],
    precisions: Sequence[PrecisionChoice],
    height: int,
    width: int,
    *,
    device: str = "auto",
    streams: int = 1,
) -> list[Contestant]:
    """Every model with every backend, in every precision where that can choose, at the size rounded up for the model.

    Raises MtuError for a model that cannot be opened, or where none of the backends can choose a precision.
    """
    if precisions and not set(backends) & {"auto", *CHOOSES_PRECISION}:
        raise InvalidInputError(
            f"--precision {','.join(precisions)}: {', '.join(backends)} can only compute in the model's own types:"
            f" leave it out, or add {' or '.join(CHOOSES_PRECISION)} to --backends"
        )
    made = []
    for model in models:
        size = interface_of(open_model(model)).size.padded(height, width)
        for name in backends:
            for precision in precisions if precisions and name in ("auto", *CHOOSES_PRECISION) else (None,):
                made.append(Contestant(None if model is None else str(model), name, precision, device, streams, size))
    return made


def measure(
    asked: Sequence[Contestant],
    *,
    leave_out: bool = False,
    rounds: int = 10,
    frames: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Times all of them in `rounds` turns of `frames` frames each.

    With `leave_out`, one that cannot be had is left out, and `say` told so. Raises MtuError for it else, or if none is
    left.
    """
    context = multiprocessing.get_context("spawn")
    workers, refused = [], list[MtuError]()
    try:
        for what in asked:
            height, width = what.size
            slow = ", which compiles first: a minute or more" if what.backend == "torch-compile" else ""
            say(f"{width}x{height}: starting {what.label}{slow}")
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, what), daemon=True)
            process.start()
            theirs.close()
            try:
                workers.append((process, ours, what, _receive(ours, what.backend, say), list[float]()))
            except MtuError as error:
                refused.append(error)
                if not leave_out:
                    raise
                say(f"left out: {error}")
        if not workers:
            raise (
                refused[0] if refused else InvalidInputError("no backend is installed: mtu-doctor says what is missing")
            )
        products = []
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            products.append(product_gflops())
            for _, pipe, what, _, seconds in workers:
                pipe.send(frames)
                seconds += _receive(pipe, what.backend)
        product = statistics.median(products)
        slowest = max(statistics.median(seconds) for *_, seconds in workers)
        rows = []
        for _, pipe, what, found, seconds in workers:
            pipe.send(None)
            rows.append(_row(what, found, seconds, slowest, product, _receive(pipe, what.backend)))
        return rows
    finally:
        for process, pipe, *_ in workers:
            pipe.close()
            process.terminate()
            process.join()


def _row(
    what: Contestant,
    found: tuple[str, str, str],
    seconds: Sequence[float],
    slowest: float,
    product: float,
    memory: tuple[float, float],
) -> Row:
    (backend, device, arithmetic), (height, width) = found, what.size
    median = statistics.median(seconds)
    gflop = frame_gflop(open_model(what.model), height, width)
    gflops = None if gflop is None else gflop * what.streams / median
    return Row(
        model=what.model or BUNDLED,
        backend=backend,
        device=device,
        arithmetic=arithmetic,
        width=width,
        height=height,
        streams=what.streams,
        frames=len(seconds) * what.streams,
        median_ms=1000 * median / what.streams,
        p90_ms=1000 * float(np.percentile(seconds, 90)) / what.streams,
        fps=what.streams / median,
        speed_up=slowest / median,
        gflops=gflops,
        of_product=None if gflops is None else gflops / product,
        peak_mib=memory[0],
        baseline_mib=memory[1],
    )


def _receive(pipe: Connection, name: str, say: Callable[[str], None] = lambda text: None) -> Any:
    try:
        while isinstance(answer := pipe.recv(), str):
            say(answer)
    except EOFError:
        raise InvalidInputError(
            f"the process of backend {name} died: its message is above; if there is none, memory was short"
        ) from None
    if isinstance(answer, MtuError):
        raise answer
    return answer


def environment() -> dict[str, str]:
    """What the figures depend on: processor, what it can do, cores, system, versions."""
    cpu, info = {"model name": platform.processor() or platform.machine()}, Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text().split("\n\n")[0].splitlines()
        cpu |= {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    found = {"processor": cpu["model name"]}
    if "cpu family" in cpu and "model" in cpu:
        found["processor"] += f" (family {cpu['cpu family']}, model {cpu['model']})"
    flags = processor_flags()
    found["that has"] = " ".join(flag for flag in PROCESSOR_FLAGS if flag in flags) or "nothing known"
    found |= {
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        "mtu-trt": VERSION,
    }
    for package in ("openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table, with the environment above."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in environment().items()) + ".",
        "",
        "| size | model | backend | computes in | median ms | p90 ms | fps | speed-up | GFLOP/s | of numpy's | peak MiB"
        " | of it before the model |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        streams = "" if row.streams == 1 else f", {row.streams} streams"
        rate = "-" if row.gflops is None else f"{row.gflops:.0f}"
        share = "-" if row.of_product is None else f"{row.of_product:.0%}"
        lines.append(
            f"| {row.width}x{row.height} | {row.model} | {row.backend} {row.device}{streams} | {row.arithmetic}"
            f" | {row.median_ms:.1f} | {row.p90_ms:.1f} | {row.fps:.2f} | {row.speed_up:.2f}x | {rate} | {share}"
            f" | {row.peak_mib:.0f} | {row.baseline_mib:.0f} |"
        )
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows and the environment, for machines."""
    return {"environment": environment(), "rows": [asdict(row) for row in rows]}
