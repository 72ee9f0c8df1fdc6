"""Makes the ops' plugins known to TensorRT or TensorRT-RTX: from a C++ library where one is given, else in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.plugins.op import DOMAIN, Op, find_op


class Library(Protocol):
    """TensorRT or TensorRT-RTX, loaded."""

    @property
    def name(self) -> str:
        """ "tensorrt" or "tensorrt-rtx"."""
        ...

    @property
    def version(self) -> str:
        """As the package says: "10.16.1.11"."""
        ...

    @property
    def module(self) -> Any:
        """The imported `tensorrt` or `tensorrt_rtx`."""
        ...

    @property
    def logger(self) -> Any:
        """The library's logger, which takes messages too: record, forget, last_error."""
        ...


def register_plugins(library: Library, ops: Sequence[str], path: Path | None) -> None:
    """`ops` are names, `path` a file made by mtu-build-plugin or None; does nothing for what is known already.

    Raises MissingFileError or InvalidInputError if the file is not there or is no plugin for this library.
    """
    if path is not None and not path.is_file():
        raise MissingFileError(f"--plugin-library {path} does not exist: build it with mtu-build-plugin")
    for op in map(find_op, ops):
        if path is None:
            from mtu.plugins.trt_python import register

            register(library, op)
            continue
        if not is_known(library, op):
            library.module.get_plugin_registry().load_library(str(path.resolve()))  # says nothing where it fails
        if not is_known(library, op):
            raise InvalidInputError(
                f"{path} is no {op.name} plugin for {library.name} {library.version}: build it for this version with"
                " mtu-build-plugin, or leave out --plugin-library"
            )


def is_known(library: Library, op: Op) -> bool:
    """Whether the library's registry has a plugin for the op."""
    registry = library.module.get_plugin_registry()
    find = registry.get_creator if hasattr(registry, "get_creator") else registry.get_plugin_creator
    return find(op.name, str(op.version), DOMAIN) is not None
