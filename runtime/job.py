"""One run of `mtu-run`: a video in, a restored video out. Decode, inference and encode each have a thread.

    reader --Frame/Packet--> [queue] --> Session (main thread) --> [queue] --> writer

The reader and the writer are each used by one thread only. Packets of other streams go straight through, in the order
they were read, so that the output interleaves as the input does. Memory is bounded by the two queues.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtu.core.errors import InvalidInputError
from mtu.runtime.backends import Build, PrecisionChoice, Runner
from mtu.runtime.compare import Comparison
from mtu.runtime.hold import Hold
from mtu.runtime.opened import Models
from mtu.runtime.outputs import Outputs, Shown
from mtu.runtime.scenes import SCENE_THRESHOLD, Split
from mtu.runtime.session import Restored, Stream
from mtu.runtime.stages import Pipe, Stage, StoppedError
from mtu.runtime.stored_session import STORE_BYTES, StoredSession, store_beside
from mtu.runtime.tiles import TileChoice
from mtu.runtime.video import EncodeOptions, Frame, Reader, ReadOptions, SourceInfo, Writer, open_streams

PATIENCE = 3.0
"""Seconds that the end of a run waits for a thread that waits for a pipe."""


@dataclass(frozen=True)
class Job:
    """What to do; field by field the options of `mtu-run`."""

    source: str
    target: str
    model: Path | None = None
    backend: str = "auto"
    device: str = "auto"
    precision: PrecisionChoice | None = None
    cuda_graph: bool = True
    plugin_library: Path | None = None
    build: Build | None = None
    strict: bool = False
    tile: TileChoice = "auto"
    compare: Comparison | None = None
    heat: bool = False
    where: Path | None = None
    """The model whose map says where frames are restored; None: everywhere."""
    threshold: float | None = None
    """Of `where`, None for `THRESHOLD`."""
    save_motion: Path | None = None
    save_maps: Path | None = None
    streams: Mapping[str, str] = field(default_factory=dict)
    """The sources of what the model reads beside `source`, by name of the stream."""
    read: ReadOptions = field(default_factory=ReadOptions)
    scene_threshold: float | None = SCENE_THRESHOLD
    split: Split | None = None
    """Of `mtu-farm`: how the scenes in the store were split."""
    join: Literal["exact", "fast"] = "exact"
    """Of `mtu-farm`: by one encode at its end, or by units that are encoded where they are restored."""
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    overwrite: bool = False
    resume: bool = False
    """Whether restored scenes are kept beside the target until it is whole, and taken from there."""
    resume_bytes: int | None = STORE_BYTES
    """How much they may take; None: any."""


@dataclass
class RunReport:
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
    streams: dict[str, str] = field(default_factory=dict)
    """Where the streams came from that the model reads beside the source, by name."""
    tiles: dict[str, int] | None = None
    """How each frame is cut: `count`, and of each tile `width`, `height` and the least `overlap`; None: it is not."""
    map: dict[str, Any] | None = None
    """Of a model that gives maps: `unit`, what its values stand for (None: only themselves), and for each of `frames`
    its `time` in seconds, and the `mean` and 95th percentile (`p95`) over the frame, in that unit; with a gate also its
    `threshold`, and of each frame the share of it that was `restored`."""
    redone: list[int] = field(default_factory=list)
    """Frames restored without memory, because the model gave values that are not finite."""
    resumed: int = 0
    """Frames that an earlier run had restored, which was interrupted."""
    seconds: float = 0.0
    """From the first frame asked for to the finished file; loading the model is not in it."""
    inference_seconds: float = 0.0
    """Of those, the seconds that the main thread spent on the model, or waiting for it."""
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
    models: Models | None = None,
    start: Callable[[RunReport, int | None], None] = lambda report, frames: None,
    progress: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """Restores `job.source` into `job.target`, which gets its name when it is whole.

    `models` are those of several runs, None opens the model for this one. `start` is called before frame 1 with the
    report so far (its notes are complete) and the expected number of frames, `progress` after each frame, `say` with
    what takes long before that. Raises MtuError for what the user can put right; then, and for every other exception,
    nothing stands at the target's name.
    """
    with contextlib.ExitStack() as stack:
        reader = open_streams(job.source, job.streams, job.read)
        source = reader.info
        pipeline = stack.enter_context(Pipeline(reader, into_pipe=job.target == "-"))
        if models is None:
            models = stack.enter_context(Models())
        hold = stack.enter_context(Hold(store_beside(job.target))) if job.resume and job.target != "-" else None
        opened = models.open(job, (source.height, source.width), say)
        backend, gate = opened.backend, opened.gate
        session = opened.session(job)
        stored = stack.enter_context(contextlib.closing(session)) if isinstance(session, StoredSession) else None
        if stored is not None:
            stack.callback(stored.store.is_kept)  # else it goes
        outputs = stack.enter_context(Outputs(job, source, backend.interface, gate))
        writer = outputs.writer
        if hold is not None:
            hold.remember(writer.temporary)
        report = _new_report(job, source, backend, writer)
        report.tiles = None if opened.tiling is None else opened.tiling.as_json()
        report.notes += opened.notes
        if not job.resume and job.target != "-" and store_beside(job.target).is_dir():
            report.notes.append(
                f"an interrupted run has left restored scenes of {job.target}: --resume goes on with them"
            )
        start(report, source.frame_count)

        def done() -> None:
            report.frames += 1
            progress()

        began = time.perf_counter()
        try:
            pipeline.run(session, outputs.write, done)
        except BaseException:
            if stored is not None and stored.store.is_kept():
                say(f"restored scenes are kept in {stored.store.directory}: the same command goes on with them")
            raise
        report.damage, report.scene_cuts, report.redone = reader.damage, session.cuts, session.redone
        report.inference_seconds = session.inference_seconds
        if report.frames == 0:
            raise InvalidInputError(
                f"{job.source}: no frame could be decoded" + (f": {reader.damage}" if reader.damage else "")
            )
        outputs.commit()
        if stored is not None:
            report.resumed = stored.taken
            stored.store.remove()
        if (given := backend.interface.the("map")) is not None:
            report.map = {"unit": given.unit and given.unit.name, "frames": outputs.map_figures}
        if gate is not None and report.map is not None:
            report.map["threshold"] = gate.threshold
            shares = [each["restored"] for each in outputs.map_figures]
            part = sum(shares) / len(shares)
            report.remarks.append(
                f"{part:.1%} of all pixels were restored, those with a sigma above {gate.threshold:g}"
            )
        report.remarks += [*reader.remarks, *writer.remarks, *backend.remarks, *redone_remark(session.redone)]
        report.remarks += [] if stored is None else stored.remarks
        report.seconds = time.perf_counter() - began
    return report


def redone_remark(frames: list[int]) -> list[str]:
    """What a user should know of `RunReport.redone`."""
    if not frames:
        return []
    numbers = ", ".join(map(str, frames[:10])) + (", ..." if len(frames) > 10 else "")
    return [
        f"the model gave non-finite values at {len(frames)} frame{'s' if len(frames) != 1 else ''} ({numbers}), which"
        " were restored without memory of the frames before"
    ]


def _new_report(job: Job, source: SourceInfo, backend: Runner, writer: Writer) -> RunReport:
    interface = backend.interface
    return RunReport(
        source=job.source,
        target=job.target,
        model=interface.variant,
        checkpoint=interface.weights,
        precision=backend.arithmetic,
        backend=backend.name,
        device=backend.device,
        width=source.width,
        height=source.height,
        notes=[*source.notes, *writer.notes],
        streams=dict(job.streams),
    )


class Pipeline:
    """The three stages of one run; a context manager that ends them and closes the reader."""

    def __init__(self, reader: Reader, *, into_pipe: bool) -> None:
        """`into_pipe` says that the encoder writes to stdout, where nobody may read."""
        self._reader, self._into_pipe = reader, into_pipe
        self._stop = threading.Event()
        self._decoded, self._restored = Pipe(self._stop), Pipe(self._stop)
        self._decode = Stage("decode", lambda: self._decoded.fill(reader), self._stop)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits for a pipe which gives nothing cannot be ended, nor its reader closed under it.
        if not self._decode.is_alive():
            self._reader.close()

    def run(self, session: Stream, write: Callable[[Any], None], done: Callable[[], None]) -> None:
        """Restores all frames. `write` gets `Shown` frames and packets, in the encode thread; `done` is called after
        each frame. Raises what a stage has raised."""
        waiting: deque[Frame] = deque()

        def encode() -> None:
            for item in self._restored:
                write(item)

        def send(results: list[Restored]) -> None:
            for result in results:
                self._restored.put(Shown(waiting.popleft(), result))
                done()

        stages = [self._decode, Stage("encode", encode, self._stop)]
        try:
            for stage in stages:
                stage.start()
            with contextlib.suppress(StoppedError):
                for item in self._decoded:
                    if isinstance(item, Frame):
                        waiting.append(item)
                        send(session.push({session.streams[0]: item.rgb, **item.views}))
                    else:
                        self._restored.put(item)
                send(session.flush())
                self._restored.end()
                stages[1].join()
        finally:
            self._stop.set()
            self._decode.end(PATIENCE)
            # A file is closed after the last thread that writes to it; stdout is not ours to close.
            stages[1].end(PATIENCE if self._into_pipe else None)
        for stage in stages:
            if stage.error is not None:
                raise stage.error
