"""Commands as processes of their own: waiting for a state of theirs, a terminal for them. Nothing here is a test."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import ROOT

LIMIT = 120
"""Seconds after which something that should come to pass has failed; no test depends on how much sooner it does."""


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports this checkout, with one thread for arithmetic."""
    path = os.pathsep.join(filter(None, (str(ROOT / ".links"), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def need(*programs: str) -> None:
    """Skips a test on a machine that lacks one of the programs."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> None:
    """Returns once `condition` is true; fails if `process` ends before, or after LIMIT seconds."""
    until = time.monotonic() + LIMIT
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode} before it was where the test wants it")
        if time.monotonic() > until:
            raise AssertionError(f"did not come to pass within {LIMIT} s")
        time.sleep(0.01)


def is_full(pipe: int) -> bool:
    """Whether a pipe, given by the end that is written to, takes nothing more."""
    return not select.select([], [pipe], [], 0)[1]


class Terminal:
    """A terminal to give to a process: `end` is its file descriptor; what arrives is read all the time."""

    def __init__(self) -> None:
        self._main, self.end = pty.openpty()
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(self._main, 65536):
                self._shown += part

    def finish(self) -> bytes:
        """Everything that was shown; every process that had the terminal has ended."""
        os.close(self.end)
        self._reader.join(LIMIT)
        os.close(self._main)
        return bytes(self._shown)


@contextlib.contextmanager
def unread_terminal() -> Iterator[int]:
    """A terminal that nobody reads, and that is full already, as one stopped with Ctrl-S."""
    main, end = pty.openpty()
    os.set_blocking(end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(end, b"x" * 1024)
    os.set_blocking(end, True)
    yield end
    os.close(main)
    os.close(end)
