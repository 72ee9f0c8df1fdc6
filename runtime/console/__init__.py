"""What all command lines share: how a program ends. Imports typer and rich.

Exit codes: 0 all well; 2 a user error, said in one message; 3 done, but a part of the input was unreadable; 4 some of
several inputs failed; 130 Ctrl-C; 143 SIGTERM, 129 a closed terminal. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TypeVar

import typer

from mtu.core.cache import NotKeptWarning
from mtu.core.errors import MtuError
from mtu.runtime.console.terminal import drop_stdout, drop_unread_stdout, make_stderr_patient
from mtu.runtime.console.usage import Command, Group, UsageError, explain

USER_ERROR = 2
DAMAGED_INPUT = 3
SOME_FAILED = 4
Function = TypeVar("Function", bound=Callable[..., Any])


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; a BaseException, so that temporary files are removed and nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


class _Signals:
    """While a command runs, a signal that asks for its end raises; which one came is kept for who hides that."""

    def __init__(self) -> None:
        self.last = 0
        # Under nohup or in the background of a script they are ignored, and stay so.
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
        ours = (signal.SIG_DFL, signal.default_int_handler)
        self._before = {n: signal.signal(n, self._end) for n in numbers if signal.getsignal(n) in ours}

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        self.last = number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_signals: _Signals | None = None
"""Of the command that runs."""


def end_if_asked() -> None:
    """Raises what a signal that came raised before, where a library may have made an error of its own of that."""
    if _signals is not None and _signals.last:
        raise KeyboardInterrupt if _signals.last == signal.SIGINT else Terminated(_signals.last)


class _App(typer.Typer):
    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """As in typer, with the help of `mtu.runtime.console.usage`."""
        return super().command(name, cls=Command, **settings)


def new_app() -> typer.Typer:
    """A typer program without shell-completion options, with plain tracebacks and the help of `usage`."""
    return _App(cls=Group, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def say(program: str, text: str) -> None:
    """One line for the user on stderr."""
    # Where stderr is closed, print would take stdout, which may be the video.
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a terminal that has gone, or a full disk under a log
            print(f"{program}: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _plain_notes(program: str) -> Iterator[None]:
    """What cannot be kept in the cache is said in a line for the user, without a place in the source."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, NotKeptWarning):
                say(program, f"note: {message}")
            else:
                show(message, category, *place, **more)

        warnings.showwarning = shown
        yield


def run_app(app: typer.Typer, program: str) -> NoReturn:
    """Runs a command line and ends the process with the code that the outcome has."""
    global _signals
    signals = _signals = _Signals()
    code = 0
    make_stderr_patient()
    try:
        try:
            with _plain_notes(program):
                code = app(prog_name=program, standalone_mode=False) or 0
        finally:
            drop_unread_stdout()
            if sys.stdout is not None:
                sys.stdout.flush()  # so that what cannot be written is known in here
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except (UsageError, MtuError) as error:
        say(program, f"error: {error if isinstance(error, MtuError) else explain(error)}")
        code = USER_ERROR
    except Terminated as end:
        code = end.code
    except BrokenPipeError:
        drop_stdout()  # its reader has gone
        code = 1
    except OSError as error:
        if error.filename is not None:
            # A name that the system refuses: too long, or in a directory that may not be searched.
            say(program, f"error: {error.filename}: {error.strerror}")
        elif error.errno == errno.ENOSPC:
            drop_stdout()
            say(program, "error: no space left on device; free some, or write elsewhere")
        else:
            raise
        code = USER_ERROR
    except MemoryError:
        say(program, "error: out of memory: use smaller frames, or a machine with more memory")
        code = USER_ERROR
    except Exception:
        if not signals.last:
            raise
        code = 128 + signals.last  # a library made an error of its own of the signal
    finally:
        signals.restore()
    if code == 128 + signal.SIGINT:
        say(program, "interrupted")
    elif signals.last and code == 128 + signals.last:
        say(program, "terminated")
    if any(thread.name.startswith("mtu-") for thread in threading.enumerate()):
        # A thread still waits for a pipe; Python cannot end while it holds stdin or stdout.
        os._exit(code)
    sys.exit(code)
