"""How far a command is, on stderr: a bar on a terminal, elsewhere a line a minute. Imports rich."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from mtu.runtime.console import say

if TYPE_CHECKING:
    from mtu.runtime.job import RunReport


EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


class _Console(Console):
    """Leaves the cursor visible: the text that shows it again might be one that the terminal does not take."""

    def show_cursor(self, show: bool = True) -> bool:
        """See rich."""
        return False


class FpsColumn(ProgressColumn):
    """Frames a second over the last half minute."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text(f"{task.speed:.2f} fps" if task.speed else "- fps", style="progress.data.speed")


class Meter:
    """How far a command is: a bar on a terminal; elsewhere a line every `EVERY` seconds, so none of a short run."""

    def __init__(
        self,
        program: str,
        *columns: ProgressColumn,
        unit: str,
        transient: bool,
        enabled: bool = True,
        average: float = 30.0,
    ) -> None:
        """`unit` is what is counted, in the plural; "%" for a share from 0 to 1. `enabled` False shows nothing; speed
        is over the last `average` seconds."""
        self._program, self._unit = program, unit
        shown = enabled and sys.stderr is not None
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            console=_Console(stderr=True),
            transient=transient,
            disable=not shown or not sys.stderr.isatty(),
            speed_estimate_period=average,
        )
        self._task = self._bar.add_task(program, total=None)
        self._lines = shown and self._bar.disable
        self._total: float | None = None
        self._done = self._said = 0.0
        self._when = time.monotonic()

    def start(self, total: float | None) -> None:
        """Called before the first; `total` is the expected number, None if unknown."""
        self._total, self._when = total, time.monotonic()
        self._bar.update(self._task, total=total)
        self._bar.advance(self._task, 0)  # from when on speed counts
        self._bar.start()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, count: int = 1, text: str = "") -> None:
        """So many more are done; `text` is what is being done now, where there are several things."""
        if text:
            self._bar.update(self._task, description=f"{self._program}: {text[:60]}")
        self._bar.advance(self._task, count)
        self._done += count
        self._say(text and f"{text}, ")

    def reach(self, text: str, done: float) -> None:
        """`text` is being done, and `done` is how far it all is."""
        self._bar.update(self._task, description=f"{self._program}: {text[:60]}", completed=done)
        self._done = done
        self._say(f"{text}, ")

    def _say(self, text: str = "") -> None:
        passed = time.monotonic() - self._when
        if not self._lines or passed < EVERY:
            return
        speed = (self._done - self._said) / passed if passed else 0.0
        if self._unit == "%":
            line = f"{text}{100 * self._done:.0f} %"
        else:
            of = f" of {self._total:.0f}" if self._total else ""
            line = f"{text}{self._done:.0f}{of} {self._unit}, {speed:.2f} a second"
        if self._total and speed > 0 and self._done < self._total:
            line += f", {timedelta(seconds=round((self._total - self._done) / speed))} left"
        say(self._program, line)
        self._said, self._when = self._done, time.monotonic()


class Progress(Meter):
    """Prints the notes before frame 1, then frames done, frames a second and the time left."""

    def __init__(self, program: str, *, enabled: bool, notes_of: str = "") -> None:
        """`enabled` False prints the notes alone; `notes_of` comes before the text of each."""
        columns = MofNCompleteColumn(), FpsColumn(), TimeRemainingColumn()
        super().__init__(program, *columns, unit="frames", transient=False, enabled=enabled)
        self._notes_of = notes_of

    def begin(self, report: RunReport, frames: int | None) -> None:
        """Called before frame 1; `frames` is the expected number, None if unknown."""
        for note in report.notes:
            say(self._program, f"note: {self._notes_of}{note}")
        self.start(frames)


@contextlib.contextmanager
def frame_counter(program: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Shows the frames done and the time left; gives what is to be called after each. `total` None: unknown."""
    with Meter(program, MofNCompleteColumn(), TimeRemainingColumn(), unit="frames", transient=True) as meter:
        meter.start(total)
        yield meter.advance


@contextlib.contextmanager
def stage_bar(program: str, *, enabled: bool = True) -> Iterator[Callable[[str, float], None]]:
    """Shows what is being done; gives what is to be called with that and with how far all of it is, 0 to 1."""
    with Meter(program, TimeRemainingColumn(), unit="%", transient=True, enabled=enabled) as meter:
        meter.start(1.0)
        yield meter.reach
