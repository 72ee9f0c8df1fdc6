"""One run of `mtu-run`: a video in, a restored video out. Decode, inference and encode each have a thread.

    reader --Frame/Packet--> [queue] --> Session (main thread) --> [queue] --> writer

The reader and the writer are each used by one thread only. Packets of other streams go straight through, in the order
they were read, so that the output interleaves as the input does. Memory is bounded by the two queues.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtu.models.errors import InvalidInputError, OutputError
from mtu.runtime.backends import Backend, open_backend
from mtu.runtime.bundle import open_bundle
from mtu.runtime.motion_picture import motion_picture
from mtu.runtime.session import SCENE_THRESHOLD, Picture, Restored, Session
from mtu.runtime.video import EncodeOptions, Frame, Reader, Segment, Writer, open_reader, open_writer
from mtu.runtime.video.colour import quarter_turn, swaps_sides

QUEUED = 8
"""Frames and packets waiting between two stages."""

PATIENCE = 3.0
"""Seconds that the end of a run waits for a decoder that waits for its input."""

Comparison = Literal["side-by-side", "split"]


@dataclass(frozen=True)
class Job:
    """What to do; field by field the options of `mtu-run`."""

    source: str
    target: str
    model: Path | None = None
    backend: str = "auto"
    device: str = "auto"
    compare: Comparison | None = None
    save_motion: Path | None = None
    segment: Segment | None = None
    scene_threshold: float | None = SCENE_THRESHOLD
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    overwrite: bool = False


@dataclass
class Report:
    """What was done; written by `--json`."""

    source: str
    target: str
    model: str
    checkpoint: str
    precision: str
    backend: str
    device: str
    width: int
    height: int
    frames: int = 0
    scene_cuts: list[int] = field(default_factory=list)
    seconds: float = 0.0
    """From the first frame asked for to the finished file; loading the model is not in it."""
    inference_seconds: float = 0.0
    """Of those, the seconds in which the model ran."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of the conversion; complete before frame 1."""
    remarks: list[str] = field(default_factory=list)
    """Harmless things found on the way, such as timestamps that had to be made up."""
    damage: str | None = None
    """What of the input could not be read."""

    @property
    def fps(self) -> float:
        """Frames a second over the whole run."""
        return self.frames / self.seconds if self.seconds else 0.0


def run_job(
    job: Job,
    *,
    start: Callable[[Report, int | None], None] = lambda report, frames: None,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Restores `job.source` into `job.target`, which gets its name when it is whole.

    `start` is called before frame 1 with the report so far (its notes are complete) and the expected number of frames,
    `progress` after each frame. Raises MtuError for what the user can put right; then, and for every other exception,
    nothing stands at the target's name.
    """
    with contextlib.ExitStack() as stack:
        reader = open_reader(job.source, segment=job.segment)
        stop = threading.Event()
        decoded = Pipe(stop)
        decode = Stage("decode", lambda: decoded.fill(reader), stop)
        # A thread that waits for a pipe which gives nothing cannot be ended, nor its reader closed under it.
        stack.callback(lambda: None if decode.is_alive() else reader.close())
        backend = stack.enter_context(contextlib.closing(open_backend(job.backend, open_bundle(job.model), job.device)))
        session = Session(backend, scene_threshold=job.scene_threshold)
        wider = job.compare == "side-by-side"
        along, _ = _across(reader.display_matrix)
        writer = stack.enter_context(
            open_writer(
                job.target,
                reader,
                width=reader.width * (2 if wider and along == 1 else 1),
                height=reader.height * (2 if wider and along == 0 else 1),
                options=job.encode,
                overwrite=job.overwrite,
            )
        )
        motion_writer = stack.enter_context(_open_motion_writer(job, reader, backend)) if job.save_motion else None
        report = _new_report(job, reader, backend, writer)
        start(report, reader.frame_count)
        began = time.perf_counter()
        _run_stages(job, decode, decoded, reader, session, writer, motion_writer, report, progress, stop)
        report.damage, report.scene_cuts, report.inference_seconds = (
            reader.damage,
            session.cuts,
            session.inference_seconds,
        )
        if report.frames == 0:
            raise InvalidInputError(
                f"{job.source}: no frame could be decoded" + (f": {reader.damage}" if reader.damage else "")
            )
        writer.commit()
        if motion_writer:
            motion_writer.commit()
        report.remarks = [*reader.remarks, *writer.remarks]
        report.seconds = time.perf_counter() - began
    return report


def _open_motion_writer(job: Job, reader: Reader, backend: Backend) -> Writer:
    assert job.save_motion is not None
    if job.target != "-":
        target, motion = Path(job.target).resolve(), job.save_motion.resolve()
        if target == motion or target in motion.parents or motion in target.parents:
            raise OutputError(
                f"--save-motion {job.save_motion} and the output {job.target} lie in each other: separate them"
            )
    if not backend.interface.has_motion:
        raise InvalidInputError("--save-motion: a model of one unit estimates no motion; use one of two units or more")
    return open_writer(f"{job.save_motion}/", reader, overwrite=job.overwrite, copy_streams=False)


def _new_report(job: Job, reader: Reader, backend: Backend, writer: Writer) -> Report:
    interface = backend.interface
    return Report(
        source=job.source,
        target=job.target,
        model=interface.preset,
        checkpoint=interface.checkpoint,
        precision=interface.state_dtype,
        backend=backend.name,
        device=backend.device,
        width=reader.width,
        height=reader.height,
        notes=[*reader.notes, *writer.notes],
    )


def _run_stages(
    job: Job,
    decode: Stage,
    decoded: Pipe,
    reader: Reader,
    session: Session,
    writer: Writer,
    motion_writer: Writer | None,
    report: Report,
    progress: Callable[[], None],
    stop: threading.Event,
) -> None:
    restored = Pipe(stop)
    turn = reader.display_matrix
    waiting: deque[Frame] = deque()

    def encode() -> None:
        for item in restored:
            if not isinstance(item, Shown):
                writer.copy(item)
                continue
            writer.write(compose(item.source.rgb, item.result.rgb, job.compare, turn), item.source)
            if motion_writer is not None:
                motion_writer.write(item.motion_picture(), item.source)

    def send(results: Iterator[Restored]) -> None:
        for result in results:
            restored.put(Shown(waiting.popleft(), result, session.max_displacement))
            report.frames += 1
            progress()

    stages = [decode, Stage("encode", encode, stop)]
    try:
        for stage in stages:
            stage.start()
        with contextlib.suppress(StoppedError):
            for item in decoded:
                if isinstance(item, Frame):
                    waiting.append(item)
                    send(session.push(item.rgb))
                else:
                    restored.put(item)
            send(session.flush())
            restored.end()
            stages[1].join()
    finally:
        stop.set()
        decode.join(PATIENCE)
        stages[1].join()
    for stage in stages:
        if stage.error is not None:
            raise stage.error


@dataclass(frozen=True)
class Shown:
    """A frame and what became of it, on the way to the writer."""

    source: Frame
    result: Restored
    max_displacement: int

    def motion_picture(self) -> Picture:
        """The displacement as colours, the size of the frame."""
        assert self.result.displacement is not None
        height, width = self.result.rgb.shape[:2]
        return motion_picture(self.result.displacement, self.max_displacement, height, width)


def compose(
    before: Picture, after: Picture, compare: Comparison | None, display_matrix: tuple[int, ...] | None = None
) -> Picture:
    """The picture to write: the restored frame, both side by side, or the left half before and the right half after.

    All are uint8 [H, W, 3]; side by side is 2W wide. A white line of two pixels marks the split. Left and right are
    those of the picture as `display_matrix` shows it.
    """
    if compare is None:
        return after
    axis, backwards = _across(display_matrix)
    low, high = (after, before) if backwards else (before, after)
    if compare == "side-by-side":
        return np.concatenate((low, high), axis=axis)
    size = before.shape[axis]
    middle = size - size // 2 if backwards else size // 2
    both = np.concatenate((low.take(range(middle), axis), high.take(range(middle, size), axis)), axis)
    np.moveaxis(both, axis, 0)[max(middle - 1, 0) : middle + 1] = 255
    return both


def _across(display_matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """The axis of a stored picture that is shown from left to right, and whether it runs backwards there."""
    if display_matrix is None or not quarter_turn(display_matrix):
        return 1, False
    if swaps_sides(display_matrix):
        return 0, display_matrix[3] < 0
    return 1, display_matrix[0] < 0


class StoppedError(Exception):
    """Another stage has failed or the run is being ended."""


class Pipe:
    """A bounded queue that ends with its stream, and with the run: no thread waits on it for ever."""

    _END = object()

    def __init__(self, stop: threading.Event) -> None:
        """`stop` ends every wait, with StoppedError."""
        self._queue: queue.Queue[Any] = queue.Queue(QUEUED)
        self._stop = stop

    def put(self, item: Any) -> None:
        """Waits for a free place. Raises StoppedError."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        raise StoppedError

    def end(self) -> None:
        """No more items will come."""
        self.put(self._END)

    def fill(self, items: Any) -> None:
        """Puts all of an iterable, then the end."""
        for item in items:
            self.put(item)
        self.end()

    def __iter__(self) -> Iterator[Any]:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=0.1)
                if item is self._END:
                    return
                yield item
        raise StoppedError


class Stage(threading.Thread):
    """A thread whose exception is kept for the main thread and stops the other stages."""

    def __init__(self, name: str, work: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(name=f"mtu-{name}", daemon=True)
        self.error: BaseException | None = None
        self._work = work
        self._stop_run = stop

    def run(self) -> None:
        """Runs the work; StoppedError means that somebody else has the reason."""
        try:
            self._work()
        except StoppedError:
            pass
        except BaseException as error:
            self.error = error
            self._stop_run.set()
