"""OpenVINO, on a CPU; on an Intel GPU or NPU where it finds one. Imports openvino and onnx (extra [openvino]).

Note [requests]
    A frame is an infer request that runs beside the caller: `submit` starts it, `result` waits for it. What it writes
    lies in its own memory, so a request is lent to whoever holds the frame's states or waits for its result, and comes
    back with the last of them. The states of a frame go into the next request where they are, without a copy.

Tuning notes: graphs are compiled for one size each, which is up to twice as fast as for any. `at_once` streams are
computed at the same time, each on its share of the cores; memory grows with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Graph
from mtu.runtime.backends import Gate, Request, non_finite, out_of_memory
from mtu.runtime.backends.openvino_models import Compiler, Target, is_about_memory, reason
from mtu.runtime.backends.openvino_precision import choose_precision
from mtu.runtime.bundle import Bundle
from mtu.runtime.openvino_library import load_openvino

SIZES = 4
"""So many sizes are kept compiled; of more, the one that was used longest ago is dropped."""
SPARE = 2
"""So many requests of a graph are kept that nobody holds: what they wrote to is theirs."""


class _Pool:
    """The infer requests of a graph at one size. See Note [requests]."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._free: list[Any] = []
        self.is_used = False

    def lease(self) -> _Lease:
        self.is_used = True
        request = self._free.pop() if self._free else self._compiled.create_infer_request()
        return _Lease(self, request)

    def take_back(self, request: Any) -> None:
        if len(self._free) < SPARE:
            self._free.append(request)


class _Lease:
    """A request, until nobody holds what it wrote."""

    def __init__(self, pool: _Pool, request: Any) -> None:
        self._pool, self.request = pool, request
        self.reads: tuple[Any, ...] = ()
        """The states that it reads, and with them the requests that wrote those; the frames, which OpenVINO does not
        keep."""

    def wait(self) -> None:
        """Until it has run. Raises RuntimeError if it could not."""
        try:
            self.request.wait()
        finally:
            self.reads = ()

    def __del__(self) -> None:
        try:
            self.wait()
        except RuntimeError:
            return  # whoever asked for the result was told
        self._pool.take_back(self.request)


@dataclass(frozen=True)
class _State:
    """A tensor of OpenVINO, and the request that it lies in; None for one that came from the host."""

    tensor: Any
    lease: _Lease | None = None


@dataclass
class _Pending:
    """See `mtu.runtime.backends.Pending`."""

    backend: OpenVinoBackend
    graph: Graph
    size: tuple[int, int]
    lease: _Lease
    states: Mapping[str, _State]

    def result(self) -> dict[str, Any]:
        """See `Pending.result`."""
        return self.backend.fetch(self)


class OpenVinoBackend:
    """See `mtu.runtime.backends.Backend`; states are tensors of OpenVINO."""

    name = "openvino"
    in_flight = 1
    stacks = False

    def __init__(self, bundle: Bundle, compiler: Compiler, device: str, size: tuple[int, int] | None) -> None:
        """Compiles at once for padded frames of `size` (height, width), where that is known."""
        self._openvino = load_openvino()
        self._compiler = compiler
        self.device = device
        self.interface = bundle.interface
        self.arithmetic = compiler.arithmetic
        self.remarks = [] if device == "cpu" else [f"nobody has tried this on {compiler.device_name} yet: look at it"]
        self._gate = Gate(self.name)
        self._pools: dict[tuple[int, int], dict[str, _Pool]] = {}
        if size is None:
            compiler.check()
        else:
            with contextlib.suppress(MemoryError):  # whoever opened it may cut the frames into tiles
                self._pools_for(size)

    def _pools_for(self, size: tuple[int, int]) -> dict[str, _Pool]:
        """By name of the graph; `size` becomes the one used last."""
        pools = self._pools.pop(size, None) or {
            graph.name: _Pool(self._compiler.compile(graph, *size)) for graph in self.interface.graphs
        }
        self._pools = {each: kept for each, kept in self._pools.items() if any(pool.is_used for pool in kept.values())}
        while len(self._pools) >= SIZES:
            del self._pools[next(iter(self._pools))]
        self._pools[size] = pools
        return pools

    def submit(self, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> _Pending:
        """See `Backend.submit`."""
        described = self.interface.graph(graph)
        height, width = next((frame.shape[1:3] for frame in frames.values()), (0, 0))
        taken = {name: states[source] for name, source in described.states.items()}
        try:
            # Outside the gate, or a stream that waits for its frame before would keep all others from starting theirs.
            for state in taken.values():
                if state.lease is not None:
                    state.lease.wait()
            with self._gate:
                return self._start(described, (height, width), frames, taken)
        except (RuntimeError, MemoryError) as error:
            raise self._failed(error, graph, (height, width)) from None

    def _start(
        self, graph: Graph, size: tuple[int, int], frames: Mapping[str, np.ndarray], taken: Mapping[str, _State]
    ) -> _Pending:
        lease = self._pools_for(size)[graph.name].lease()
        shared = {name: self._shared(frames[name]) for name in graph.frames}
        for name, tensor in shared.items():
            lease.request.set_tensor(name, tensor)
        for name, state in taken.items():
            lease.request.set_tensor(name, state.tensor)
        given = {name: _State(lease.request.get_tensor(name), lease) for name in self.interface.states}
        lease.reads = (*taken.values(), *shared.values())
        lease.request.start_async()
        return _Pending(self, graph, size, lease, given)

    def _shared(self, frame: np.ndarray) -> Any:
        # OpenVINO takes only arrays that it could write to.
        return self._openvino.Tensor(frame if frame.flags.writeable else frame.copy(), shared_memory=True)

    def fetch(self, pending: _Pending) -> dict[str, Any]:
        """The outputs of a frame; `Pending.result`."""
        try:
            pending.lease.wait()
        except (RuntimeError, MemoryError) as error:
            raise self._failed(error, pending.graph.name, pending.size) from None
        request, kept = pending.lease.request, self.interface.states
        outputs = {
            each.tensor.name: np.array(request.get_tensor(each.tensor.name).data)
            for each in pending.graph.outputs
            if each.tensor.name not in kept
        }
        found = [name for name, state in pending.states.items() if not _is_finite(state.tensor)]
        found += non_finite({each.tensor.name: outputs[each.tensor.name] for each in self.interface.with_role("map")})
        if found:
            raise NonFiniteError(found)
        return outputs

    def _failed(self, error: Exception, graph: str, size: tuple[int, int]) -> InvalidInputError:
        height, width = size
        if is_about_memory(error):
            return out_of_memory(self.name, height, width)
        return InvalidInputError(
            f"OpenVINO could not run {graph}.onnx on frames of {width}x{height}: {reason(error)}; export the model"
            " again, or use --backend onnxruntime"
        )

    def read_states(self, states: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Backend.read_states`."""
        with self._gate:
            return {name: self._to_host(name, state.tensor) for name, state in states.items()}

    def _to_host(self, name: str, tensor: Any) -> np.ndarray:
        described, value = self.interface.states[name], tensor.data
        if _is_bf16(tensor):
            value = (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.array(value.transpose(0, 3, 1, 2) if len(described.shape) == 4 else value, order="C")

    def write_states(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Backend.write_states`."""
        with self._gate:
            return {name: _State(self._from_host(name, value)) for name, value in arrays.items()}

    def _from_host(self, name: str, value: np.ndarray) -> Any:
        described = self.interface.states[name]
        value = np.array(value.transpose(0, 2, 3, 1) if len(described.shape) == 4 else value, order="C")
        if not self._compiler.keeps_bf16(described):
            return self._openvino.Tensor(value, shared_memory=True)
        bits = value.view(np.uint32)
        # Rounded to the nearest, half to even.
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return self._openvino.Tensor(rounded, rounded.shape, self._openvino.Type.bf16)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._gate.close():
            self._pools.clear()


def _is_bf16(tensor: Any) -> bool:
    return str(tensor.element_type.get_type_name()) == "bf16"


def _is_finite(tensor: Any) -> bool:
    if not _is_bf16(tensor):
        return not non_finite({"": tensor.data})
    # Not finite are the largest of either sign: 0x7f80 and more, 0xff80 and more.
    bits = tensor.data.view(np.uint16)
    return bool(bits.view(np.int16).max() < 0x7F80 and bits.max() < 0xFF80)


def open_backend(request: Request) -> OpenVinoBackend:
    """`device` "auto" is the CPU, `precision` None fp32."""
    bundle, device = request.bundle, "cpu" if request.device == "auto" else request.device
    kind, _, number = device.partition(":")
    target = Target(kind.upper() + (f".{number}" if number else ""), "f32", request.at_once)

    def opened(precision: str, size: tuple[int, int] | None) -> OpenVinoBackend:
        return OpenVinoBackend(bundle, Compiler(bundle, replace(target, precision=precision)), device, size)

    if request.precision != "auto":
        return opened("bf16" if request.precision == "bf16" else "f32", request.size)
    precision, why = choose_precision(Compiler(bundle, target), opened)
    request.say(f"--precision auto: {why}")
    return opened(precision, request.size)
