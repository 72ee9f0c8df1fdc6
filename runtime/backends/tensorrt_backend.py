"""TensorRT and TensorRT-RTX: the library is an argument. Imports it, pycuda and cuda-bindings (extras [gpu], [rtx]).

No tensor leaves the device between frames. A frame is uploaded once and stays there while it is in a window; the states
of one frame are read where they were written. Tuning notes: an engine for one size is the fastest; `cuda_graph` saves
the host the launch of every layer; sessions that share a backend should have one frame size.

Note [three streams]
    Upload, computation and download have a stream each, so that frame t+1 comes up and frame t-1 goes down while frame
    t is computed. What one stream must not do before another is said by events, and there are four such things:

    1. a frame is computed with after it has arrived;            (upload -> compute, `Frame.arrived`)
    2. a slot is filled anew after it has been read;            (compute -> upload, `Frame.used`)
    3. a result goes down after it has been computed;            (compute -> download, `Buffers.computed`)
    4. a buffer is written anew after its result has gone down.  (download -> compute, `Buffers.downloaded`)

    The host waits in two places: before it overwrites pinned memory that is still being uploaded, and for a result.
    Everything else is ordered by being on one stream. What the library does on streams of its own, while it makes a
    context and when it runs one for the first time, is waited for by waiting for the whole device: after the contexts
    are made, before a capture, and before anything is freed. tests/fake_cuda.py sees each missing wait.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Graph, Interface
from mtu.plugins.register import register_plugins
from mtu.runtime.backends import Gate, Request
from mtu.runtime.backends.cuda_device import Device, copy, download, new_stream, open_device, upload
from mtu.runtime.backends.tensorrt_buffers import Lease, checked, size_of
from mtu.runtime.backends.tensorrt_engines import LoadedEngines
from mtu.runtime.backends.tensorrt_finite import NonFiniteCheck
from mtu.runtime.backends.tensorrt_frames import Frame, frames_of_a_stream
from mtu.runtime.backends.tensorrt_graphs import GraphCache
from mtu.runtime.backends.tensorrt_setup import Setup
from mtu.runtime.engine import Engine, check_files, refusals
from mtu.runtime.gpu import find_gpu
from mtu.runtime.tensorrt_library import Library, load_library


class Submitted:
    """See `mtu.runtime.backends.Pending`. Every state is the lease of the buffers that it is in."""

    def __init__(self, device: Device, interface: Interface, lease: Lease) -> None:
        self.states: Mapping[str, Lease] = dict.fromkeys(interface.states, lease)
        self._device, self._interface = device, interface
        self._lease: Lease | None = lease
        self._results: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        """See `Pending.result`."""
        if self._lease is not None:
            buffers = self._lease.buffers
            with self._device:
                buffers.downloaded.synchronize()
            if buffers.result_flags.any():
                flags = zip(checked(self._interface), buffers.result_flags, strict=True)
                raise NonFiniteError([tensor.name for tensor, flag in flags if flag])
            self._results = {name: value.copy() for name, value in buffers.results.items()}
            self._lease = None
        return self._results


class TensorrtBackend:
    """See `mtu.runtime.backends.Backend`."""

    in_flight = 1
    stacks = False

    def __init__(
        self, engine: Engine, library: Library, gpu: Device, size: tuple[int, int] | None, *, cuda_graph: bool
    ) -> None:
        """`engine` fits the host and its files are whole; it is made ready for frames of `size`, where that is known.

        Raises InvalidInputError if it cannot be loaded even so.
        """
        self.name = library.name
        self.device = f"cuda:{gpu.index} ({gpu.name})"
        self.interface = engine.interface
        self.arithmetic = engine.interface.arithmetic
        self.remarks: list[str] = []
        self._gate = Gate(self.name)
        self.gpu = gpu
        self._engine = engine
        self._engines = LoadedEngines(engine, library, gpu)
        self._setup: Setup | None = None
        gpu.outlives(self)
        try:
            with gpu, gpu.alone:
                self.upload, self.compute, self.download = new_stream(), new_stream(), new_stream()
                self._graphs: Any = GraphCache(gpu, self.compute, self.remarks, is_on=cuda_graph)
                self._check: Any = NonFiniteCheck(gpu)
                self._engines.load()
            if size is not None:
                self.prepare(*size)
        except BaseException:
            self.close()
            raise

    def prepare(self, height: int, width: int) -> Setup:
        """Makes ready for frames of this size; what was ready for another size is freed.

        Raises InvalidInputError if the engine is not for this size or the memory is too small.
        """
        if self._setup is not None and self._setup.size == (height, width):
            return self._setup
        check_size(self._engine, height, width)
        with self.gpu:
            if self._setup is not None:
                self.gpu.synchronize()
                self._free_setup()
            needed, free = working_memory(self.interface, height, width), self.gpu.free_memory()
            if needed > free:
                raise self.gpu.out_of_memory(needed, free)
            self._setup = Setup(
                self.gpu, self.interface, self._engines, self._check, self._graphs, self.compute, (height, width)
            )
            try:
                with self.gpu.alone:
                    self._setup.allocate()
            except BaseException:
                self.gpu.synchronize()
                self._free_setup()
                raise
            return self._setup

    def submit(self, graph: str, frames: Mapping[str, NDArray[np.uint8]], states: Mapping[str, Any]) -> Submitted:
        """See `Backend.submit`. All states of a frame are in the same buffers."""
        with self._gate:
            return self._submit(self.interface.graph(graph), frames, states)

    def _submit(self, graph: Graph, frames: Mapping[str, NDArray[np.uint8]], states: Mapping[str, Any]) -> Submitted:
        window = {name: frames[name] for name in graph.frames}
        setup = self.prepare(*next(iter(window.values())).shape[1:3])
        previous: Lease | None = next((states[name] for name in graph.states.values()), None)
        with self.gpu:
            uploaded = {name: self._uploaded(setup, array) for name, array in window.items()}
            # See Note [fixed slots] in `tensorrt_setup`.
            for name, frame in uploaded.items():
                copy(setup.slots[name], frame.memory, frame.staging.nbytes, self.compute)
            for frame in uploaded.values():
                frame.used.record(self.compute)
            lease = setup.pool.lease()
            after = lease.buffers
            self.compute.wait_for_event(after.downloaded)
            setup.run(graph, previous.buffers if previous else None, after)
            after.computed.record(self.compute)
            self.download.wait_for_event(after.computed)
            for name, result in after.results.items():
                download(result, after.memory[name], self.download)
            download(after.result_flags, after.flags, self.download)
            after.downloaded.record(self.download)
        return Submitted(self.gpu, self.interface, lease)

    def _uploaded(self, setup: Setup, array: NDArray[np.uint8]) -> Frame:
        """Where `array` is on the device, or will be before the compute stream goes on."""
        frame = setup.frames.find(array)
        if frame is None:
            frame = setup.frames.add(array, setup.pool.made)
            frame.arrived.synchronize()  # the pinned memory is read until then
            np.copyto(frame.staging, array)
            self.upload.wait_for_event(frame.used)
            upload(frame.memory, frame.staging, self.upload)
            frame.arrived.record(self.upload)
            self.compute.wait_for_event(frame.arrived)
        return frame

    def read_states(self, states: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """See `Backend.read_states`."""
        arrays = {}
        with self._gate, self.gpu:
            for name, lease in states.items():
                buffers, tensor = lease.buffers, self.interface.states[name]
                staging = self.gpu.pinned(tensor.at(*buffers.size), tensor.dtype)
                download(staging, buffers.memory[name], self.download)
                self.download.synchronize()
                arrays[name] = np.array(staging)
                del staging  # freed while the device is current
        return arrays

    def write_states(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """See `Backend.write_states`. They are in buffers as a frame's results have them."""
        with self._gate:
            return self._write_states(arrays) if arrays else {}

    def _write_states(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        setup = self.prepare(*self._size_of_frames(arrays))
        with self.gpu:
            lease = setup.pool.lease()
            for name, array in arrays.items():
                staging = self.gpu.pinned(array.shape, self.interface.states[name].dtype)
                np.copyto(staging, array)
                upload(lease.buffers.memory[name], staging, self.compute)
                self.compute.synchronize()
                del staging
        return dict.fromkeys(arrays, lease)

    def _size_of_frames(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
        """Height and width of the padded frames that these states are of; where no shape tells it, of the last ones."""
        unit = self.interface.size.multiple  # frames of so many pixels have states without fractions
        found: list[int | None] = [None, None] if self._setup is None else [*self._setup.size]
        for name, array in arrays.items():
            tensor = self.interface.states[name]
            small = tensor.at(unit, unit)
            for axis, larger in enumerate((tensor.at(2 * unit, unit), tensor.at(unit, 2 * unit))):
                for length, one, two in zip(array.shape, small, larger, strict=True):
                    if one != two:
                        found[axis] = length * unit // one
        height, width = found
        if height is None or width is None:
            raise InvalidInputError(
                "the size of the frames cannot be told from the shapes of these states: run a frame before writing them"
            )
        return height, width

    def _free_setup(self) -> None:
        """On the device that is current, with nothing under way."""
        if self._setup is not None:
            self._setup.free()
            self._setup = None
            self._engines.keep_compiled()

    def close(self) -> None:
        """See `Backend.close`."""
        if not self._gate.close():
            return
        with self.gpu:
            self.gpu.synchronize()
            self._free_setup()
            self._engines.close()
            self._graphs = self._check = None
            self.upload = self.compute = self.download = None

    def __del__(self) -> None:
        """What nobody closed. At the end of the process the device does."""
        if not sys.is_finalizing():
            self.close()


def working_memory(interface: Interface, height: int, width: int, streams: int = 1) -> int:
    """Bytes of device memory for the frames and buffers of sessions that take turns: its frames and a set of outputs
    for each; and for all, the fixed slots and two sets more, of which one is for a frame that is redone."""
    frames = frames_of_a_stream(interface) * streams + len(interface.frames)
    outputs = sum(size_of(output.tensor, height, width) for output in interface.outputs)
    return frames * height * width * 3 + (streams + 2) * outputs


def check_size(engine: Engine, height: int, width: int) -> None:
    """Raises InvalidInputError if frames of this size, as they are padded, are outside the engine's profile."""
    manifest = engine.manifest
    if manifest.profile.holds(height, width):
        return
    half = " --fp16" if manifest.precision == "fp16" else ""
    raise InvalidInputError(
        f"frames of {width}x{height} do not fit engine {engine.directory}, which is for"
        f" {manifest.profile}: build one with mtu-build-engine BUNDLE -o DIR --size {width}x{height}{half}"
        f" --runtime {manifest.library}, or cut larger frames into tiles that it takes (mtu-run --tile WIDTHxHEIGHT)"
    )


def open_backend(request: Request) -> TensorrtBackend:
    """For the library that `request.name` names. "auto" is the first GPU.

    Whatever can be said without the library is said before it sees the files.
    """
    index = int(request.device.partition(":")[2] or 0)
    found = find_gpu(index)
    assert found is not None  # `mtu.runtime.backends.open_backend` has looked
    library = load_library(request.name)
    engine = request.model
    if not isinstance(engine, Engine):
        if request.build is None:
            raise InvalidInputError(
                f"backend {request.name} runs engines, and model {engine.name} is a bundle: give an engine made by"
                " mtu-build-engine, or open_backend(..., build=mtu.export.engine_cache.cached_engine)"
            )
        if request.size is None:
            raise InvalidInputError(
                f"backend {request.name} builds an engine for one size of frames: give"
                " open_backend(..., size=(height, width)), or an engine made by mtu-build-engine"
            )
        engine = request.build(engine, library, found, request.size, request.plugin_library, request.say)
    if engine.manifest.library != request.name:
        raise InvalidInputError(
            f"engine {engine.directory} was built with {engine.manifest.library}: use --backend"
            f" {engine.manifest.library}, or build one with --runtime {request.name}"
        )
    reasons = refusals(engine.manifest, library.version, found)
    if reasons:
        raise InvalidInputError(f"engine {engine.directory}: {'; '.join(reasons)}")
    if request.size is not None:
        check_size(engine, *request.size)
    check_files(engine)
    gpu = open_device(index)
    with gpu:
        weights = sum(path.stat().st_size for path in engine.files)
        needed = weights + max(engine.manifest.device_memory.values())
        if request.size is not None:
            needed += working_memory(engine.interface, *request.size, request.streams)
        if needed > gpu.free_memory():
            raise gpu.out_of_memory(needed, gpu.free_memory())
    if engine.manifest.plugins:
        register_plugins(library, [*engine.manifest.plugins], request.plugin_library)
    return TensorrtBackend(engine, library, gpu, request.size, cuda_graph=request.cuda_graph)
