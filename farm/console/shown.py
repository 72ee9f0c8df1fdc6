"""What `mtu-farm run` shows: how far planning and restoring are, how fast, how long it will last, who did what."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from mtu.farm.engine import Done
from mtu.farm.films import Watch
from mtu.farm.planning import Film, frames_missing
from mtu.runtime.batch import Outcome
from mtu.runtime.console import say
from mtu.runtime.console.progress import FpsColumn, Meter
from mtu.runtime.console.runs import counted, say_outcome
from mtu.runtime.job import Job

_AVERAGE = 1800.0
"""Seconds over which speed is taken: units end minutes apart."""


@contextlib.contextmanager
def planning(program: str, films: int, enabled: bool) -> Iterator[Callable[[Job, int], None]]:
    """Shows how many frames of which film are planned; gives what is to be told."""
    with Meter(program, MofNCompleteColumn(), FpsColumn(), unit="frames", transient=True, enabled=enabled) as meter:
        read: dict[str, int] = {}

        def told(job: Job, frames: int) -> None:
            new, read[job.source] = frames - read.get(job.source, 0), frames
            meter.advance(new, f"planning {Path(job.source).name}, {len(read)} of {films}")

        meter.start(None)
        yield told


class Shown(Watch):
    """A bar of all frames, lines for each film that is whole, at the end one for each worker. A context manager."""

    def __init__(self, program: str, films: Sequence[Film], enabled: bool) -> None:
        self._program, self._films = program, len(films)
        self._workers: dict[str, tuple[int, float]] = {}
        frames, to_do = sum(film.plan.frames for film in films), sum(map(frames_missing, films))
        before = f", {frames - to_do} of them restored before" if to_do < frames else ""
        self.say(f"{counted(len(films), 'film')}, {counted(frames, 'frame')}{before}")
        for film in films:
            for note in film.notes:
                self.say(f"note: {film.job.source}: {note}")
        columns = MofNCompleteColumn(), FpsColumn(), TimeRemainingColumn()
        self._meter = Meter(program, *columns, unit="frames", transient=True, enabled=enabled, average=_AVERAGE)
        self._meter.start(to_do)

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.__exit__()

    def unit(self, done: Done) -> None:
        """See `Watch`."""
        frames, seconds = self._workers.get(done.worker, (0, 0.0))
        self._workers[done.worker] = frames + done.frames, seconds + done.seconds
        self._meter.advance(done.frames, "restoring")

    def joining(self, film: Film, frames: int) -> None:
        """See `Watch`."""
        if frames % 100 == 1:
            self._meter.advance(0, f"joining {Path(film.job.target).name}, {frames} of {film.plan.frames}")

    def film(self, outcome: Outcome) -> None:
        """See `Watch`."""
        say_outcome(self._program, outcome)
        if (report := outcome.report) is not None:
            for remark in report.remarks:
                self.say(f"note: {report.source}: {remark}")
            self.say(f"{report.target}: {counted(report.frames, 'frame')} {report.width}x{report.height}")
            if report.damage:
                self.say(f"damaged input: {report.source}: {report.damage}; what could be decoded was kept")

    def say(self, text: str) -> None:
        """See `Watch`."""
        say(self._program, text)

    def say_workers(self) -> None:
        """How fast each worker was."""
        for worker, (frames, seconds) in sorted(self._workers.items()):
            if frames and seconds:
                self.say(f"worker {worker}: {counted(frames, 'frame')}, {frames / seconds:.2f} fps")
