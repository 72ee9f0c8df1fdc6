"""The progress lines of the commands on stderr, on a terminal alone. Imports rich."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from mtu.runtime.console import say

if TYPE_CHECKING:
    from mtu.runtime.job import Report


class FpsColumn(ProgressColumn):
    """Frames a second over the last half minute."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text(f"{task.speed:.2f} fps" if task.speed else "- fps", style="progress.data.speed")


class Progress:
    """Prints the notes before frame 1, then on a terminal frames done, frames a second and the time left."""

    def __init__(self, program: str, *, enabled: bool) -> None:
        """`enabled` False prints the notes alone."""
        self._program = program
        self._bar = RichProgress(
            TextColumn(program),
            BarColumn(),
            MofNCompleteColumn(),
            FpsColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task = self._bar.add_task("frames", total=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, report: Report, frames: int | None) -> None:
        """Called before frame 1; `frames` is the expected number, None if unknown."""
        for note in report.notes:
            say(self._program, f"note: {note}")
        self._bar.update(self._task, total=frames)
        self._bar.start()

    def advance(self) -> None:
        """Called after each frame."""
        self._bar.advance(self._task)


@contextlib.contextmanager
def frame_counter(program: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A line with the frames done and the time left; gives what is to be called after each. `total` None: unknown."""
    with _transient(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(program, total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def stage_bar(program: str, *, enabled: bool = True) -> Iterator[Callable[[str, float], None]]:
    """A line with what is being done; gives what is to be called with that and with how far all of it is, 0 to 1."""
    with _transient(TimeRemainingColumn(), enabled=enabled) as bar:
        task = bar.add_task(program, total=1.0)
        yield lambda text, done: bar.update(task, description=f"{program}: {text[:60]}", completed=done)


def _transient(*columns: ProgressColumn, enabled: bool = True) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not enabled or sys.stderr is None or not sys.stderr.isatty(),
    )
