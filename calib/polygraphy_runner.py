"""Any of the backends as a runner of Polygraphy. Imports Polygraphy (extra [compare]).

What Polygraphy has no runner for is a network that takes back what it gave: a `BackendRunner` that threads its states
is one rollout from its activation to its end, and every `infer` is the next frame.

Note [no states]
    Polygraphy feeds a runner the same inputs in every iteration, and a first frame has no states. It is fed states
    without values instead, arrays of NaN, of height and width 0 where the state has them: `no_states` makes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from mtu.calib.rollout import Array
from mtu.core.errors import NonFiniteError
from mtu.core.interface import Interface
from mtu.runtime.backends import Backend


def taken_states(interface: Interface) -> dict[str, str]:
    """The states that a frame takes where all are there: the name of the input, and of the output before."""
    return interface.graph_for(interface.states).states


def no_states(interface: Interface) -> dict[str, Array]:
    """The states that a first frame is fed, by name of the input. See Note [no states]."""
    tensors = {taken: interface.states[given] for taken, given in taken_states(interface).items()}
    return {name: np.full(tensor.at(0, 0), np.nan, tensor.dtype) for name, tensor in tensors.items()}


class BackendRunner(BaseRunner):  # type: ignore[misc]
    """Runs a clip on a backend, a frame each time, numbered from 0.

    It takes the window (`rollout.windows`); unless it threads its states, also these, by name of the input and of the
    interface's types. It gives all outputs of the graphs as numpy arrays that stay valid. Whoever opened the backend
    closes it; several runners can share it. Warm-up runs of a runner that threads its states would be frames of the
    clip.

    Raises NonFiniteError, which names the runner and the frame, if the model overflows.
    """

    def __init__(self, backend: Backend, name: str | None = None, *, threads_states: bool = False) -> None:
        """`name` stands in Polygraphy's results and log. `threads_states`: each frame gets the states of the last."""
        super().__init__(name=name, prefix=f"mtu-{backend.name}")
        self._backend, self._threads_states = backend, threads_states
        self._states: Mapping[str, Any] = {}
        self._frame = 0

    def get_input_metadata_impl(self) -> TensorMetadata:
        """See Polygraphy."""
        interface, metadata = self._backend.interface, TensorMetadata()
        fed = {*interface.frames, *(() if self._threads_states else taken_states(interface))}
        for tensor in (each.tensor for graph in interface.graphs for each in graph.inputs):
            if tensor.name in fed:
                shape = [size if isinstance(size, int) else None for size in tensor.shape]
                metadata.add(tensor.name, np.dtype(tensor.dtype), shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """See Polygraphy."""
        interface = self._backend.interface
        start = time.perf_counter()
        states = self._states if self._threads_states else self._fed(feed_dict)
        pending = self._backend.submit(
            interface.graph_for(states).name, {name: feed_dict[name] for name in interface.frames}, states
        )
        try:
            outputs = pending.result()
        except NonFiniteError as error:
            raise NonFiniteError([f"{state} of {self.name}" for state in error.states], self._frame) from None
        self.inference_time = time.perf_counter() - start
        self._frame += 1
        if self._threads_states:
            self._states = pending.states
        found = {**outputs, **self._backend.read_states(pending.states)}
        return {each.tensor.name: found[each.tensor.name] for each in interface.outputs}

    def _fed(self, feed_dict: Mapping[str, Array]) -> Mapping[str, Any]:
        arrays = {given: feed_dict[taken] for taken, given in taken_states(self._backend.interface).items()}
        if any(array.size == 0 or np.isnan(array.flat[0]) for array in arrays.values()):
            return {}
        return self._backend.write_states(arrays)

    def deactivate_impl(self) -> None:
        """See Polygraphy."""
        self._states, self._frame = {}, 0
