"""What all command lines share: how a program ends. Imports typer and rich.

Exit codes: 0 all well; 2 a user error, said in one message; 3 done, but a part of the input was unreadable; 130 Ctrl-C;
143 SIGTERM, 129 a closed terminal. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from mtu.models.errors import MissingExtraError, MtuError
from mtu.models.release import VERSION
from mtu.runtime.bundle import BUNDLED

USER_ERROR = 2
DAMAGED_INPUT = 3


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; a BaseException, so that temporary files are removed and nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(signum)


def new_app() -> typer.Typer:
    """A typer program without shell-completion options and with plain tracebacks."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _print_version(asked: bool) -> None:
    if asked:
        print(VERSION)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
]
"""The option that every command line has."""

ModelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL",
        help=f"{BUNDLED}, which comes with the package; a bundle made by mtu-export onnx, or an engine made by"
        " mtu-build-engine.",
        show_default=BUNDLED,
    ),
]
"""The model that a command runs on frames."""


def say(program: str, text: str) -> None:
    """One line for the user on stderr."""
    # Where stderr is closed, print would take stdout, which may be the video.
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a terminal that has gone, or a full disk under a log
            print(f"{program}: {text}", file=sys.stderr, flush=True)


def require(extra: str, purpose: str, *packages: str) -> None:
    """Raises MissingExtraError for the first of `packages` that is not installed; `extra` is the one that brings it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra, purpose)


def run_app(app: typer.Typer, program: str) -> NoReturn:
    """Runs a command line and ends the process with the code that the outcome has."""
    ends = [signal.SIGTERM]
    # Under nohup it is ignored, and stays so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        ends.append(signal.SIGHUP)
    before = [(number, signal.signal(number, _terminate)) for number in ends]
    code = 0
    try:
        try:
            app(prog_name=program)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # so that what cannot be written is known in here
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except MtuError as error:
        say(program, f"error: {error}")
        code = USER_ERROR
    except Terminated as end:
        code = end.code
        say(program, "terminated")
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.filename is not None:
            # A name that the system refuses: too long, or in a directory that may not be searched.
            say(program, f"error: {error.filename}: {error.strerror}")
        elif error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # as above
            say(program, "error: no space left on device; free some, or write elsewhere")
        else:
            raise
        code = USER_ERROR
    except MemoryError:
        say(program, "error: out of memory: use smaller frames, or a machine with more memory")
        code = USER_ERROR
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if code == 128 + signal.SIGINT:
        say(program, "interrupted")
    if any(thread.name.startswith("mtu-") for thread in threading.enumerate()):
        # A thread still waits for a pipe; Python cannot end while it holds stdin or stdout.
        os._exit(code)
    sys.exit(code)
