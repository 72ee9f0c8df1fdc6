"""The backends: what executes a bundle's two graphs. This file imports numpy only; a backend's module its own library.

A new backend is a module with a factory and a line in `FACTORIES`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mtu.models.errors import InvalidInputError, MissingExtraError
from mtu.models.interface import Interface
from mtu.runtime.bundle import Bundle


class Backend(Protocol):
    """Executes one model. It keeps nothing of a stream, so several streams can share it, one call at a time."""

    name: str
    """As on the command line."""
    device: str
    """What runs the model, in words: "cpu", "cuda:0 (NVIDIA ...)"."""
    interface: Interface

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One frame. The graph is `step` where `inputs` has states, `first` where it has none.

        Frames are uint8 arrays [1, H, W, 3], H and W multiples of 4, contiguous, and not changed while they are in the
        window: the same array object is the same frame, and a backend may upload it once. States are what this backend
        returned for the frame before, opaque to the caller, and used up by the call.

        Returns every output of the interface. `output` and `displacement` are numpy arrays that stay valid; states
        belong to the backend's device. Raises InvalidInputError if the model gives non-finite values.
        """
        ...

    def close(self) -> None:
        """Frees the model; the backend cannot be used afterwards. States and outputs stay valid."""
        ...


FACTORIES: Mapping[str, tuple[str, str, str]] = {
    # name: (module with `open_backend(bundle, device)`, package it needs, extra that brings it)
    "onnxruntime": ("mtu.runtime.backends.ort_backend", "onnxruntime", "cpu"),
    "torch": ("mtu.runtime.backends.torch_backend", "torch", "export"),
    "torch-compile": ("mtu.runtime.backends.torch_compile_backend", "torch", "export"),
}


def open_backend(name: str, bundle: Bundle, device: str = "auto") -> Backend:
    """The backend `name` ("auto" or a key of `FACTORIES`) with the model of `bundle` loaded on `device`.

    `device` is "auto", "cpu", "cuda" or "cuda:N". Raises InvalidInputError for an unknown backend or device, or a
    broken model; MissingExtraError if the backend's package is not installed.
    """
    if name == "auto":
        name = "onnxruntime"
    if name not in FACTORIES:
        raise InvalidInputError(f"unknown backend '{name}': choose one of auto, {', '.join(FACTORIES)}")
    if (
        device != "auto"
        and device != "cpu"
        and not (device == "cuda" or (device.startswith("cuda:") and device[5:].isdecimal()))
    ):
        raise InvalidInputError(f"unknown device '{device}': choose auto, cpu, cuda or cuda:N")
    module, package, extra = FACTORIES[name]
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra, f"backend {name}")
    backend: Backend = importlib.import_module(module).open_backend(bundle, device)
    return backend


def installed_backends() -> list[str]:
    """The backends whose package is installed."""
    return [name for name, (_, package, _) in FACTORIES.items() if importlib.util.find_spec(package) is not None]


def check_finite(states: Mapping[str, np.ndarray]) -> None:
    """Raises InvalidInputError if a state has a value that is not finite.

    The largest value is enough to see it: it is NaN if any value is, and states are never negative (facts: every map
    that becomes a state comes out of ReLUs or the clamp).
    """
    bad = [name for name, value in states.items() if not np.isfinite(value.max())]
    if bad:
        raise InvalidInputError(
            f"the model gave non-finite values in {', '.join(bad)}: its weights overflow;"
            " use an fp32 bundle (mtu-export onnx --precision fp32) or another checkpoint"
        )
