"""Threads that hand work on through bounded queues and end together. Standard library, but for the error."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mtu.core.errors import InvalidInputError

QUEUED = 8
"""Items waiting between two stages."""


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

    def fill(self, items: Iterable[Any]) -> None:
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

    def start(self) -> None:
        """Starts the thread. Raises InvalidInputError where the system gives none."""
        try:
            super().start()
        except RuntimeError as error:
            raise InvalidInputError(
                f"the system starts no further thread ({error}): the memory or a limit (ulimit -v, -u) is too small"
            ) from None

    def end(self, seconds: float | None = None) -> None:
        """Waits until it has ended, at most so long; does nothing where it was never started."""
        if self.ident is not None:
            self.join(seconds)

    def run(self) -> None:
        """Runs the work; StoppedError means that somebody else has the reason."""
        try:
            self._work()
        except StoppedError:
            pass
        except BaseException as error:
            self.error = error
            self._stop_run.set()
