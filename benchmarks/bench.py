"""Times the backends of one bundle against each other. Imports numpy; the backends run in processes of their own.

Method: one process for each backend, so that thread pools and memory are its own. The processes take turns of a few
frames each, so that whatever else the machine does hits all of them alike. A frame is timed from the call of
`Backend.submit` until its outputs are on the host; the first frames are warm-up. Nothing overlaps, so a backend that
can upload a frame while it computes another has more throughput than shows here. A chain is timed by its sessions, from
one frame that goes in to one that comes out.
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

from mtu.core.errors import InvalidInputError, MtuError
from mtu.core.release import VERSION
from mtu.core.window import Picture, Window
from mtu.export.engine_cache import cached_engine
from mtu.runtime.backends import Backend, installed_backends, open_backend, open_model
from mtu.runtime.chain import StagedBackend, interface_of, open_session

WARM_UP = 3
"""Frames of each backend before its first timed one, the first of them without states."""


@dataclass(frozen=True)
class Row:
    """One backend at one size; times in milliseconds a frame."""

    backend: str
    device: str
    width: int
    height: int
    frames: int
    median_ms: float
    p90_ms: float
    fps: float
    peak_mib: float
    """Largest resident memory of the backend's process, libraries and model included."""
    baseline_mib: float
    """Of that, what the process had before it loaded the model."""


def _noise(height: int, width: int) -> Iterator[Picture]:
    """Random noise that moves by a pixel a frame, five arrays in turn, without end."""
    base = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return itertools.cycle([np.ascontiguousarray(np.roll(base, shift, axis=1)) for shift in range(5)])


def _seconds(backend: Backend, frames: Iterable[Picture]) -> Iterator[float]:
    """Restores a stream; what each frame took."""
    if isinstance(backend, StagedBackend):
        session = open_session(backend, scene_threshold=None)
        for frame in frames:
            began = time.perf_counter()
            if session.push(frame):
                yield time.perf_counter() - began
        return
    window, states = Window(backend.interface), dict[str, Any]()
    for frame in frames:
        window.push(frame)
        if window.is_ready:
            taken = window.take()
            began = time.perf_counter()
            pending = backend.submit(backend.interface.graph_for(states).name, taken, states)
            pending.result()
            yield time.perf_counter() - began
            states = dict(pending.states)


def _work(pipe: Connection, model: str | None, name: str, device: str, height: int, width: int) -> None:
    """A backend's process: answers each number n with the seconds of n frames, and None with its memory.

    A text that it sends is for the user, an error ends it.
    """
    try:
        baseline = _peak_mib()
        backend = open_backend(
            name,
            open_model(model),
            device,
            size=(height, width),
            build=cached_engine,
            say=pipe.send,
        )
        seconds = _seconds(backend, _noise(height, width))
        for _ in range(WARM_UP):
            next(seconds)
        pipe.send((backend.name, backend.device))
        while (count := pipe.recv()) is not None:
            pipe.send(list(itertools.islice(seconds, count)))
        pipe.send((_peak_mib(), baseline))
    except MtuError as error:
        pipe.send(error)
    except MemoryError:
        pipe.send(InvalidInputError(f"out of memory at {width}x{height}: use a smaller size"))
    except KeyboardInterrupt:
        pass  # it goes to the whole group; the parent says so


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(
    model: Path | None,
    backends: Sequence[str] | None,
    height: int,
    width: int,
    *,
    device: str = "auto",
    rounds: int = 10,
    frames: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Times every backend at one size, rounded up to what the model takes, in `rounds` turns of `frames` frames each.

    `backends` None are those that are installed; of them, one that refuses the model is left out, and `say` told so.
    Raises MtuError if the model, a backend that was named, or none at all can be opened.
    """
    height, width = interface_of(open_model(model)).size.padded(height, width)
    context = multiprocessing.get_context("spawn")
    workers, refused = [], list[MtuError]()
    try:
        for name in installed_backends() if backends is None else backends:
            slow = ", which compiles first: a minute or more" if name == "torch-compile" else ""
            say(f"{width}x{height}: starting {name}{slow}")
            ours, theirs = context.Pipe()
            arguments = (theirs, None if model is None else str(model), name, device, height, width)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            try:
                workers.append((process, ours, _receive(ours, name, say), list[float]()))
            except MtuError as error:
                refused.append(error)
                if backends is not None:
                    raise
                say(f"left out: {error}")
        if not workers:
            raise (
                refused[0] if refused else InvalidInputError("no backend is installed: mtu-doctor says what is missing")
            )
        for turn in range(rounds):
            say(f"{width}x{height}: round {turn + 1} of {rounds}")
            for _, pipe, (name, _), seconds in workers:
                pipe.send(frames)
                seconds += _receive(pipe, name)
        rows = []
        for _, pipe, (name, on), seconds in workers:
            pipe.send(None)
            peak, baseline = _receive(pipe, name)
            milliseconds = [1000 * value for value in seconds]
            median = statistics.median(milliseconds)
            p90 = float(np.percentile(milliseconds, 90))
            rows.append(Row(name, on, width, height, len(seconds), median, p90, 1000 / median, peak, baseline))
        return rows
    finally:
        for process, pipe, *_ in workers:
            pipe.close()
            process.terminate()
            process.join()


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
    """What the figures depend on: processor, cores, system, versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    found = {
        "processor": cpu,
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        "mtu-trt": VERSION,
    }
    for package in ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def as_markdown(rows: Sequence[Row], model: str) -> str:
    """The rows as a table, with the environment above."""
    lines = [
        f"Model {model}. " + ", ".join(f"{key} {value}" for key, value in environment().items()) + ".",
        "",
        "| size | backend | median ms | p90 ms | fps | speed-up | peak MiB | of it before the model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same_size = [other for other in rows if (other.width, other.height) == (row.width, row.height)]
        slowest = max(other.median_ms for other in same_size)
        lines.append(
            f"| {row.width}x{row.height} | {row.backend} {row.device} | {row.median_ms:.1f} | {row.p90_ms:.1f}"
            f" | {row.fps:.2f} | {slowest / row.median_ms:.2f}x | {row.peak_mib:.0f} | {row.baseline_mib:.0f} |"
        )
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[Row], model: str) -> dict[str, Any]:
    """The rows and the environment, for machines."""
    return {"model": model, "environment": environment(), "rows": [asdict(row) for row in rows]}
