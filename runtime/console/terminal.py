"""A terminal that nobody reads (one stopped with Ctrl-S) holds up no command. Standard library only."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import time
from typing import Any

PATIENCE = 2.0
"""Seconds that a text waits for the terminal; then it is dropped, and none waits until one has got through again."""


class PatientTerminal(io.RawIOBase):
    """The terminal of a file descriptor, for writing; what it does not take in time is dropped."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError if it is no terminal, or one that cannot be opened by its name."""
        self._descriptor, self._patience = descriptor, PATIENCE
        self._own = -1  # io closes what is dropped, also where the next line raises
        # Opened anew: O_NONBLOCK on the one given would hold for the shell too.
        self._own = os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)

    def write(self, data: Any) -> int:
        """Writes what the terminal takes; says that it was all."""
        rest, until = bytes(data), time.monotonic() + self._patience
        with contextlib.suppress(OSError):  # a terminal that has gone
            while rest:
                try:
                    rest = rest[os.write(self._own, rest) :]
                    self._patience = PATIENCE
                except BlockingIOError:
                    if (left := until - time.monotonic()) <= 0:
                        self._patience = 0.0
                        break
                    select.select([], [self._own], [], left)
        return len(data)

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor that was given."""
        return self._descriptor

    def close(self) -> None:
        """Closes the descriptor of its own, not the one given."""
        if not self.closed and self._own >= 0:
            os.close(self._own)
        super().close()


def make_stderr_patient() -> None:
    """If stderr is a terminal, writes to it as `PatientTerminal` does from now on, whoever writes."""
    before = sys.stderr
    try:
        raw = PatientTerminal(before.fileno())
    except (AttributeError, OSError, ValueError):  # closed, a file, a pipe, or a system without names of terminals
        return
    buffer = io.BufferedWriter(raw)
    sys.stderr = io.TextIOWrapper(buffer, before.encoding, before.errors, line_buffering=True, write_through=True)


def drop_stdout() -> None:
    """What stdout still holds is dropped; Python would write it, wait or complain about it, at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def drop_unread_stdout() -> None:
    """Drops what a stdout that is a terminal and takes nothing now still holds."""
    if sys.stdout is not None and sys.stdout.isatty() and not select.select([], [sys.stdout], [], 0)[1]:
        drop_stdout()
