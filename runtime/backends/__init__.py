"""The backends: what executes a model's graphs. This file imports numpy only; a backend's module its own library.

A new backend is a module with a factory and a line in `FACTORIES`.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from mtu.core.errors import InvalidInputError, MissingExtraError, MtuError, NonFiniteError
from mtu.core.extras import is_installed
from mtu.core.interface import Interface
from mtu.runtime.bundle import Bundle, described_bundle, model_directory, open_bundle, read_fields, stages_of
from mtu.runtime.engine import Engine, is_engine, open_engine
from mtu.runtime.gpu import find_gpu
from mtu.runtime.tensorrt_library import LIBRARIES, is_importable


@dataclass(frozen=True)
class Stages:
    """A chain of models: the pictures of each are the frames of the next."""

    directory: Path
    models: tuple[Bundle | Engine, ...]
    """Two or more."""


Model = Bundle | Engine | Stages
"""What can be run: ONNX graphs, the TensorRT engines built from them, or several of either in a row."""


class Pending(Protocol):
    """A frame that a backend has been given."""

    states: Mapping[str, Any]
    """By name of the output. Opaque to the caller; to be given with the next frame at once, before `result`."""

    def result(self) -> dict[str, Any]:
        """Waits for the frame: every output but the states, by name, numpy arrays that stay valid.

        Raises NonFiniteError if a state or a map has a value that is not finite; then what was made from these states
        is as useless as they are.
        """
        ...


class Runner(Protocol):
    """Where a model runs, here or elsewhere, as reports tell of it."""

    name: str
    """As on the command line."""
    device: str
    """What runs the model, in words: "cpu", "cuda:0 (NVIDIA ...)"."""
    interface: Interface
    arithmetic: str
    """What it computes in, in words: `Interface.arithmetic`, where the model's own types are taken."""

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the way it ran; complete after the last frame."""
        ...


class Backend(Runner, Protocol):
    """Executes one model. It keeps nothing of a stream, so several streams and threads can share it: one call is done
    after the other (`Gate`)."""

    in_flight: int
    """How many frames may be submitted before the result of the oldest is asked for: 0 where `submit` computes at once,
    1 where a frame is under way when `submit` returns: computed beside the caller, or uploaded while the one before
    is computed."""
    stacks: bool
    """Whether `submit` takes frames of several streams at once, stacked along axis 0, with states that are so too; for
    `mtu.runtime.stacked`."""

    def submit(self, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> Pending:
        """One frame, through the graph of this name (`Interface.graph_for(states)` for those that are held).

        `frames` are those of `Window.take`: uint8 [1, H, W, 3] by name of the input, padded, contiguous, and not
        changed while they are in the window: the same array object is the same frame, and a backend may upload it once.
        `states` are those of the frame before; they are not changed, and their memory is used again when nobody holds
        them any more. More than the graph takes may be in either.
        """
        ...

    def read_states(self, states: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A frame's `states` as numpy arrays of the interface's types, by the same names; copies that stay valid.

        The frame's result has been fetched. For tools that look at states; the loop over frames has no need of it.
        """
        ...

    def write_states(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Numpy arrays as `submit` takes states: by name of the output, of the interface's types."""
        ...

    def close(self) -> None:
        """Frees the model, once; afterwards every other method raises InvalidInputError. Outputs stay valid."""
        ...


@dataclass(frozen=True)
class Request:
    """What `open_backend` was asked for. A backend's module takes what concerns it."""

    name: str
    model: Bundle | Engine
    device: str
    size: tuple[int, int] | None
    precision: PrecisionChoice | None
    streams: int
    at_once: int
    cuda_graph: bool
    plugin_library: Path | None
    build: Build | None
    say: Callable[[str], None]

    @property
    def bundle(self) -> Bundle:
        """The model, for backends that run ONNX; raises InvalidInputError for an engine."""
        if isinstance(self.model, Engine):
            raise InvalidInputError(
                f"model {self.model.directory} is an engine, which backend {self.name} cannot run:"
                f" use --backend {self.model.manifest.library}, or give the bundle it was built from"
            )
        return self.model


PrecisionChoice = Literal["auto", "fp32", "bf16"]
"""What a backend that can computes in, whatever the types of the model."""

Build = Callable[..., Engine]
"""`mtu.export.engine_cache.cached_engine`, which a command hands in: the runtime itself builds nothing."""


def _needs(library: str, extra: str) -> Mapping[str, str]:
    # pycuda is no part of [rtx]: it is built from source, and building engines does without it.
    return {library: extra, "cuda.bindings": extra, "cuda.core": extra, "pycuda": "gpu" if extra == "gpu" else ""}


FACTORIES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    # name: (module with `open_backend(request)`, the packages it needs, each with the extra that brings it)
    "openvino": ("mtu.runtime.backends.openvino_backend", {"openvino": "openvino", "onnx": "openvino"}),
    "onnxruntime": ("mtu.runtime.backends.ort_backend", {"onnxruntime": "cpu"}),
    "torch": ("mtu.runtime.backends.torch_backend", {"torch": "export"}),
    "torch-compile": ("mtu.runtime.backends.torch_backend", {"torch": "export"}),
    "tensorrt": ("mtu.runtime.backends.tensorrt_backend", _needs("tensorrt", "gpu")),
    "tensorrt-rtx": ("mtu.runtime.backends.tensorrt_backend", _needs("tensorrt_rtx", "rtx")),
}

DEVICES = r"auto|cpu|cuda(:\d+)?|gpu(:\d+)?|npu"
"""What `open_backend` takes: gpu and npu are Intel's, and OpenVINO's alone."""
CHOOSES_PRECISION = ("openvino",)
"""The backends that can compute in other types than the model's."""
GPU_ONLY = LIBRARIES
"""The backends that do nothing without an NVIDIA GPU."""


def open_model(directory: Path | str | None = None) -> Model:
    """The engine, bundle or chain in `directory`, or the bundle inside the package.

    Raises MissingFileError or InvalidInputError if it is none, or not whole.
    """
    if directory is not None and is_engine(directory):
        return open_engine(directory)
    found = model_directory(directory)
    fields = read_fields(found)
    stages = stages_of(found, fields)
    if stages is None:
        return described_bundle(found, fields)
    return Stages(found, tuple(open_engine(each) if is_engine(each) else open_bundle(each) for each in stages))


def open_backend(
    name: str,
    model: Model,
    device: str = "auto",
    *,
    size: tuple[int, int] | None = None,
    precision: PrecisionChoice | None = None,
    streams: int = 1,
    at_once: int = 1,
    cuda_graph: bool = True,
    plugin_library: Path | None = None,
    build: Build | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Backend:
    """The backend `name` ("auto" or a key of `FACTORIES`) with `model` loaded on `device`.

    "auto" is the library that an engine was built with; for a bundle onnxruntime where that has a GPU, else openvino
    where it is installed and takes the model (`say` is told if not), else onnxruntime. `device` is "auto", "cpu",
    "cuda" or "cuda:N"; "gpu", "gpu:N" and "npu" are Intel's, which openvino runs. `precision` is what openvino computes
    in: fp32 where it is not said, "auto" for bf16 where that is both fast and proven. `at_once` is how many sessions
    are to be computed at the same time, where the backend can. `size` is height and width of the frames to come, where
    that is known; what cannot be run at that size is then refused at once. The TensorRT backends need it with a bundle,
    and `build`, which makes an engine of it for that size (`mtu.export.engine_cache.cached_engine`) and tells `say` so.
    `streams` is how many sessions will share it, such as the tiles of a frame (`Tiling.count`): the TensorRT backends
    count the memory of all. `cuda_graph` False makes them run every layer of every frame one by one; `plugin_library`
    is the C++ plugin, which they need on TensorRT 8.6 in place of the one in Python. Of a chain the backends of all
    stages are opened; `mtu.runtime.chain.open_session` runs them.

    Raises InvalidInputError for an unknown backend or device, a broken model, or an engine that is not for this host;
    MissingExtraError if a package of the backend is not installed.
    """
    if isinstance(model, Stages):
        from mtu.runtime.chain import open_stages

        options: dict[str, Any] = {"streams": streams, "cuda_graph": cuda_graph, "plugin_library": plugin_library}
        options |= {"precision": precision, "at_once": at_once, "build": build, "say": say}
        return open_stages(name, model, device, size, **options)
    is_free = name == "auto" and device in ("auto", "cpu") and precision in (None, "auto")
    name = check_choice(name, model, device, precision)
    if name in GPU_ONLY:
        # Before the packages, some of which are hard to install where there is no GPU.
        _check_gpu(name, device)
    for error in packages_missing(name):
        raise error
    request = Request(
        name=name,
        model=model,
        device=device,
        size=None if size is None else model.interface.size.padded(*size),
        precision=precision,
        streams=streams,
        at_once=at_once,
        cuda_graph=cuda_graph,
        plugin_library=plugin_library,
        build=build,
        say=say,
    )
    try:
        return _opened(request)
    except InvalidInputError as error:
        # A network of one's own may have what OpenVINO cannot do, and an installation may be broken.
        if not (is_free and name == "openvino") or packages_missing("onnxruntime"):
            raise
        try:
            backend = _opened(replace(request, name="onnxruntime"))
        except MtuError:
            raise error from None
        say(f"note: onnxruntime runs the model, not openvino: {error}")
        return backend


def check_choice(name: str, model: Bundle | Engine, device: str, precision: PrecisionChoice | None) -> str:
    """The backend that is meant, "auto" or not. Raises InvalidInputError for what cannot be on any machine."""
    if name == "auto":
        name = automatic(model, device, precision)
    if name not in FACTORIES:
        near = get_close_matches(name, FACTORIES, n=1, cutoff=0.5)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidInputError(f"unknown backend '{name}'{meant}: choose one of auto, {', '.join(FACTORIES)}")
    _check_device(name, device)
    _check_precision(name, model, precision)
    return name


def _opened(request: Request) -> Backend:
    backend: Backend = importlib.import_module(FACTORIES[request.name][0]).open_backend(request)
    return backend


def automatic(model: Bundle | Engine, device: str = "auto", precision: PrecisionChoice | None = None) -> str:
    """The backend that `open_backend` takes for "auto"."""
    if isinstance(model, Engine):
        return model.manifest.library
    if device.startswith("cuda"):
        return "onnxruntime"
    if device.startswith(("gpu", "npu")) or precision == "bf16":
        return "openvino"
    if device == "auto" and find_gpu() is not None and is_installed("onnxruntime-gpu"):
        return "onnxruntime"
    return "onnxruntime" if packages_missing("openvino") else "openvino"


def _check_device(name: str, device: str) -> None:
    kind = device.partition(":")[0]
    if not re.fullmatch(DEVICES, device):
        raise InvalidInputError(f"unknown device '{device}': choose auto, cpu, cuda, cuda:N, gpu, gpu:N or npu")
    if kind in ("gpu", "npu") and name != "openvino":
        raise InvalidInputError(
            f"device {device} is Intel's, which backend {name} does not run on: use --backend openvino, or --device"
            " cuda for a GPU of NVIDIA"
        )
    if kind == "cuda" and name == "openvino":
        raise InvalidInputError(f"backend openvino does not run on {device}: leave out one of --backend and --device")


def _check_precision(name: str, model: Bundle | Engine, precision: PrecisionChoice | None) -> None:
    """Raises InvalidInputError where a backend that cannot choose would have to."""
    if name in CHOOSES_PRECISION or precision in (None, "auto"):
        return
    own = "those of an engine" if isinstance(model, Engine) else model.interface.arithmetic
    if precision == "bf16" or own != "fp32":
        raise InvalidInputError(
            f"--precision {precision}: backend {name} computes in the model's own types ({own}): leave it out, or use"
            " --backend openvino with a bundle"
        )


def _check_gpu(name: str, device: str) -> None:
    if device == "cpu":
        raise InvalidInputError(f"backend {name} runs on an NVIDIA GPU: leave out --device cpu")
    index = int(device.partition(":")[2] or 0)
    if find_gpu(index) is None:
        raise InvalidInputError(
            f"backend {name} needs an NVIDIA GPU, and none answers as cuda:{index}: mtu-doctor says more;"
            " --backend onnxruntime runs a bundle without one"
        )


def packages_missing(name: str) -> list[MissingExtraError]:
    """An error for each package that the backend `name` needs and that is not installed."""
    return [
        MissingExtraError(package, extra, f"backend {name}")
        for package, extra in FACTORIES[name][1].items()
        if not is_importable(package)
    ]


def installed_backends() -> list[str]:
    """The backends whose packages are installed; those that need a GPU only where one answers."""
    return [
        name for name in FACTORIES if not packages_missing(name) and (name not in GPU_ONLY or find_gpu() is not None)
    ]


@dataclass(frozen=True)
class Finished:
    """The `Pending` of a backend that computes in `submit`."""

    states: Mapping[str, Any]
    outputs: dict[str, Any]
    non_finite: Sequence[str]
    """Names of the states and maps that hold such values."""

    def result(self) -> dict[str, Any]:
        """See `Pending.result`."""
        if self.non_finite:
            raise NonFiniteError(self.non_finite)
        return self.outputs


def out_of_memory(name: str, height: int, width: int) -> InvalidInputError:
    """The error for memory that ran out while the backend `name` had frames of this size."""
    return InvalidInputError(
        f"the memory is too small for frames of {width}x{height} with {name}: take smaller ones, or cut them into"
        " tiles (mtu-run --tile WIDTHxHEIGHT), or end other programs"
    )


class Gate:
    """What stands before every backend: one call at a time, and none after `close`. A context manager around a call.

    Libraries and the memory that frames share are not made for two calls at once; a second thread waits.
    """

    def __init__(self, name: str) -> None:
        """`name` is the backend's, for the message."""
        self._name = name
        self._lock = threading.Lock()
        self._is_closed = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._is_closed:
            self._lock.release()
            raise InvalidInputError(
                f"backend {self._name} is closed: open another with open_backend, and close it after its last frame"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self) -> bool:
        """Waits for the call under way and lets no other in. False if that was done before: nothing is left to free."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        return not was_closed


def non_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the tensors that have a value which is not finite.

    The largest and the smallest are enough to see it: both are NaN if any value is.
    """
    return [name for name, value in tensors.items() if not np.isfinite([value.min(), value.max()]).all()]
