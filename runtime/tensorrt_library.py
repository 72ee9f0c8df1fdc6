"""Loads TensorRT or TensorRT-RTX, whichever is named; the two have one API. Imports them inside `load_library` only."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mtu.core.errors import InvalidInputError, MissingExtraError

LibraryName = Literal["tensorrt", "tensorrt-rtx"]
LIBRARIES: tuple[LibraryName, ...] = get_args(LibraryName)
EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
"""The extra that installs each library."""
OLDEST = {"tensorrt": (8, 6), "tensorrt-rtx": (1, 7)}
"""The first version of each that this release can use: RTX takes plugins from a Python process since 1.7."""

Sink = Callable[[str, str], None]
"""Takes a message of the library: severity (INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE) and text."""


class MessageLog:
    """What the library said. `Library.logger` is one of these and the library's own logger class in one."""

    def __init__(self) -> None:
        self._last_error = ""
        self._sinks: list[Sink] = []

    def record(self, severity: str, text: str) -> None:
        """Takes one message."""
        if "ERROR" in severity:
            self._last_error = text
        for sink in list(self._sinks):
            sink(severity, text)

    @contextlib.contextmanager
    def to(self, sink: Sink) -> Iterator[None]:
        """Hands every message, of whatever severity, to `sink` as well, which may be called from any thread."""
        self._sinks.append(sink)
        try:
            yield
        finally:
            self._sinks.remove(sink)

    def forget(self) -> None:
        """Before an operation whose reason is asked for if it fails: what an earlier one said is no reason."""
        self._last_error = ""

    def last_error(self) -> str:
        """The newest error since `forget`, on one line, without the place in NVIDIA's sources."""
        return one_line(self._last_error) or "it gives no reason"


@dataclass(frozen=True)
class Library:
    """A loaded library."""

    name: LibraryName
    module: Any
    """The imported `tensorrt` or `tensorrt_rtx`."""
    version: str
    """As the package says: "10.16.1.11"."""
    logger: Any
    """A `trt.ILogger` that is a `MessageLog` too. One for each process: the library keeps the first it was given."""

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.name == "tensorrt-rtx"

    @property
    def major(self) -> int:
        """First number of the version; 1 for TensorRT-RTX."""
        return int(self.version.split(".")[0])


def package_of(name: LibraryName) -> str:
    """The Python module of a library."""
    return name.replace("-", "_")


def is_importable(module: str) -> bool:
    """Whether a module is there, "cuda.core" too; says nothing about whether it loads."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def is_installed(name: LibraryName) -> bool:
    """Whether the library's package is there; says nothing about whether it loads."""
    return is_importable(package_of(name))


@functools.cache
def load_library(name: LibraryName) -> Library:
    """The library `name`, one object for each process.

    Raises MissingExtraError if its package is not installed, InvalidInputError if that cannot be loaded, is too old, or
    there is no such library.
    """
    if name not in LIBRARIES:
        raise InvalidInputError(f"unknown library '{name}': choose {' or '.join(LIBRARIES)}")
    if not is_installed(name):
        raise MissingExtraError(package_of(name), EXTRAS[name], name)
    if name == "tensorrt-rtx":
        with contextlib.suppress(OSError):  # `check_plugin_import` says so where it matters
            _link_rtx()
    try:
        module = importlib.import_module(package_of(name))
        version = str(module.__version__)
    except (ImportError, OSError, AttributeError) as error:
        raise InvalidInputError(
            f"{name} is installed but cannot be loaded ({one_line(str(error))}): install it again with"
            f' pip install --force-reinstall "mtu-trt[{EXTRAS[name]}]"'
        ) from None
    oldest = OLDEST[name]
    if version_numbers(version)[:2] < oldest:
        raise InvalidInputError(
            f"{name} {version} is too old: {'.'.join(map(str, oldest))} or newer is needed;"
            f' pip install -U "mtu-trt[{EXTRAS[name]}]"'
        )
    return Library(name, module, version, _new_logger(module))


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "10.16.1.11" is (10, 16, 1, 11), "8.6.1.post1" is (8, 6, 1)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def one_line(text: str) -> str:
    """A message of the library on one line of at most 400 characters, without the place in NVIDIA's sources."""
    text = " ".join(text.split())
    text = re.sub(r"\[[\w/]+\.(cpp|h)::\S+::\d+\]\s*", "", text)
    return text if len(text) <= 400 else text[:397] + "..."


def check_plugin_import(library: Library) -> None:
    """Raises InvalidInputError where TensorRT-RTX's parser would abort the process on a plugin. See `_link_rtx`."""
    if library.is_rtx:
        try:
            _link_rtx()
        except OSError as error:
            raise InvalidInputError(
                f"tensorrt-rtx needs the link {error.filename2 or error.filename} to {error.filename} for plugins, and"
                f" it cannot be made ({error.strerror}): make it, or build with --no-plugin"
            ) from None


def _link_rtx() -> None:
    """On the first plugin the parser of TensorRT-RTX 1.7 opens `libtensorrt_rtx.so`, which its wheel lacks (it has
    `libtensorrt_rtx.so.1`), and ends the process. The link has to lie beside the library: a copy elsewhere is loaded a
    second time."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    for folder in (found.submodule_search_locations or []) if found else []:
        real, link = Path(folder) / "libtensorrt_rtx.so.1", Path(folder) / "libtensorrt_rtx.so"
        if real.exists() and not link.exists():
            with contextlib.suppress(FileExistsError):  # another process made it
                link.symlink_to(real.name)


def _new_logger(module: Any) -> Any:
    class Logger(module.ILogger, MessageLog):  # type: ignore[misc]
        """Keeps the library's messages instead of printing them."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            MessageLog.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            self.record(severity.name, text)

    return Logger()
