"""Makes the plugin known to TensorRT or TensorRT-RTX: the C++ library where one is given, else the plugin in Python.

Imports the library's plugin classes inside the function.
"""

from __future__ import annotations

from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import OP_DOMAIN, OP_NAME, OP_VERSION
from mtu.runtime.tensorrt_library import Library


def register_plugin(library: Library, path: Path | None) -> None:
    """`path` is a file made by mtu-build-plugin, or None; does nothing where the plugin is known already.

    Raises MissingFileError or InvalidInputError if the file is not there or is no plugin for this library.
    """
    if path is None:
        from mtu.plugins.correlation_argmax_warp.trt_plugin import register

        register(library)
        return
    if not path.is_file():
        raise MissingFileError(f"--plugin-library {path} does not exist: build it with mtu-build-plugin")
    registry = library.module.get_plugin_registry()
    find = registry.get_creator if hasattr(registry, "get_creator") else registry.get_plugin_creator
    identity = OP_NAME, str(OP_VERSION), OP_DOMAIN
    if find(*identity) is None:
        registry.load_library(str(path.resolve()))  # a failure shows in nothing but the lack of the creator
    if find(*identity) is None:
        raise InvalidInputError(
            f"{path} is no {OP_NAME} plugin for {library.name} {library.version}: build it for this version with"
            " mtu-build-plugin, or leave out --plugin-library"
        )
