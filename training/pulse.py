"""Signs of life of a long run: a line at least every half minute, whatever it is doing. Standard library only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

SILENCE = 30.0
"""Seconds after which a run that has said nothing says what it is doing."""


class Pulse:
    """Says what is being done whenever nothing else was said for `SILENCE` seconds; a context manager."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.doing: Callable[[], str] = lambda: "starting"
        """Words for what is done now; called in another thread."""
        self._say = say
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)

    def say(self, text: str) -> None:
        """Says something else, which counts."""
        self._last = time.monotonic()
        self._say(text)

    def quiet(self) -> None:
        """Says nothing any more: another process does."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.01, self._last + SILENCE - time.monotonic())):
            if time.monotonic() - self._last >= SILENCE:
                self.say(self.doing())

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
