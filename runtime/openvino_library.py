"""Loads OpenVINO, without what sends reports of it to its makers. Imports it inside `load_openvino` only."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.runtime.tensorrt_library import is_importable, one_line, version_numbers

OLDEST = (2025, 0)
"""The first version that this release can use."""
TELEMETRY = "openvino_telemetry"
"""The package that sends reports. OpenVINO brings it, uses it if it can be imported, and does without it otherwise."""


def load_openvino() -> Any:
    """The package `openvino`, imported such that it reports to nobody.

    Raises MissingExtraError if it is not installed, InvalidInputError if it cannot be loaded or is too old.
    """
    if not is_importable("openvino"):
        raise MissingExtraError("openvino", "openvino", "backend openvino")
    other = "or use --backend onnxruntime"
    # Importing openvino would send one; whoever has the package for a purpose of their own gets it back.
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == TELEMETRY}
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        openvino: Any = importlib.import_module("openvino")
        version = str(openvino.__version__)
    except Exception as error:  # a package that is damaged or only half there raises anything
        raise InvalidInputError(
            f"openvino is installed but cannot be loaded ({one_line(str(error)) or type(error).__name__}): install it"
            f' again with pip install --force-reinstall "mtu-trt[openvino]", {other}'
        ) from None
    finally:
        sys.modules.pop(TELEMETRY, None)
        sys.modules.update(before)
    if version_numbers(version)[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InvalidInputError(
            f'openvino {version} is too old: {oldest} or newer is needed; pip install -U "mtu-trt[openvino]", {other}'
        )
    return openvino


@functools.cache
def shared_core() -> Any:
    """The one openvino.Core of this process. Raises as `load_openvino`.

    A Core gives the thread that makes it a stack for signals. Where two have been and both are gone, that stack is
    memory of somebody else (OpenVINO 2026.4): the next signal that Python handles, such as Ctrl-C or the end of a child
    process, writes over it.
    """
    return load_openvino().Core()
