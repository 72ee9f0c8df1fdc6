"""The progress line of mtu-run on stderr. Imports rich."""

from __future__ import annotations

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
