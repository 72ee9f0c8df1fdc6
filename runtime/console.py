"""What all command lines share: how a program ends. Imports typer and rich.

Exit codes: 0 all well; 2 a user error, said in one message; 3 done, but a part of the input was unreadable; 130 Ctrl-C;
143 SIGTERM. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import typer

from mtu.models.errors import MissingExtraError, MtuError

USER_ERROR = 2
DAMAGED_INPUT = 3


class Terminated(BaseException):
    """SIGTERM arrived; a BaseException so that temporary files are removed on the way out and nothing swallows it."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def new_app() -> typer.Typer:
    """A typer program without shell-completion options and with plain tracebacks."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def say(program: str, text: str) -> None:
    """One line for the user on stderr."""
    print(f"{program}: {text}", file=sys.stderr, flush=True)


def require(extra: str, purpose: str, *packages: str) -> None:
    """Raises MissingExtraError for the first of `packages` that is not installed; `extra` is the one that brings it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra, purpose)


def run_app(app: typer.Typer, program: str) -> NoReturn:
    """Runs a command line and ends the process with the code that the outcome has."""
    signal.signal(signal.SIGTERM, _terminate)
    code = 0
    try:
        app(prog_name=program)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except MtuError as error:
        say(program, f"error: {error}")
        code = USER_ERROR
    except Terminated:
        code = 128 + signal.SIGTERM
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code == 128 + signal.SIGINT:
        say(program, "interrupted; nothing was written")
    elif code == 128 + signal.SIGTERM:
        say(program, "terminated; nothing was written")
    if any(thread.name.startswith("mtu-") for thread in threading.enumerate()):
        # A decoder still waits for a pipe; Python cannot end while it holds stdin.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
