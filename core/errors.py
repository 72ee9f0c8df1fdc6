"""What the user can put right: every error this project raises on purpose. Plain Python, imports nothing.

A message says what was got, what is allowed and what to do. The command line prints it alone and exits with 2; every
other exception is a bug and keeps its traceback. Each class also inherits the builtin a library user would expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MtuError(Exception):
    """Base of all errors that the user can put right."""


class InvalidInputError(MtuError, ValueError):
    """A value, file or stream that cannot be used as it is."""


class NonFiniteError(InvalidInputError):
    """The model gave values that are not finite."""

    def __init__(self, states: Sequence[str], frame: int | None = None) -> None:
        """`states` are the names of the tensors that hold such values, `frame` the number of the frame if known."""
        self.states, self.frame = list(states), frame
        super().__init__(
            f"the model gave non-finite values in {', '.join(self.states)}"
            + (f" at frame {frame}" if frame is not None else "")
            + ": its weights overflow; use an fp32 model (mtu-export onnx --precision fp32) or another checkpoint"
        )

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[list[str], int | None]]:
        # mtu-bench hands it from one process to another.
        return type(self), (self.states, self.frame)


class MissingFileError(MtuError, FileNotFoundError):
    """A path that does not exist."""

    # OSError.__str__ would look for errno and strerror.
    __str__ = Exception.__str__


class OutputError(MtuError, OSError):
    """An output that exists already or cannot be written."""

    __str__ = Exception.__str__


class MissingExtraError(MtuError, ImportError):
    """A Python package that an optional part needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """`extra` is the one that brings the package, or empty if it is to be installed by itself."""
        what = f'"mtu-trt[{extra}]"' if extra else package
        super().__init__(f"{purpose} needs the package '{package}', which is not installed: pip install {what}")
        self._arguments = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        # mtu-bench hands it from one process to another.
        return type(self), self._arguments


def some(names: Iterable[str]) -> str:
    """The first four of many names, for a message, and how many more there are."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
