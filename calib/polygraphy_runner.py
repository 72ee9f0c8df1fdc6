"""Any of the backends as a runner of Polygraphy. Imports Polygraphy (extra [compare]).

What Polygraphy has no runner for is a network that takes back what it gave: a `BackendRunner` that threads its states
is one rollout from its activation to its end, and every `infer` is the next frame.

Note [no states]
    Polygraphy feeds a runner the same inputs in every iteration, and a first frame has no states. It is fed states
    without pixels instead, arrays of height and width 0: `no_states` makes them.
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
from mtu.core.interface import FRAME_NAMES, Interface
from mtu.runtime.backends import Backend


def no_states(interface: Interface) -> dict[str, Array]:
    """The states that a first frame is fed, by name of the step graph's input. See Note [no states]."""
    return {state.input.name: np.zeros(state.input.at(0, 0), state.dtype) for state in interface.states}


class BackendRunner(BaseRunner):  # type: ignore[misc]
    """Runs a clip on a backend, a frame each time, numbered from 0.

    It takes the window, uint8 [1, H, W, 3] by the names in `FRAME_NAMES`, H and W multiples of 4; unless it threads its
    states, also these, by name of the step graph's input and of the interface's types. It gives all outputs of the
    graphs as numpy arrays that stay valid. Whoever opened the backend closes it; several runners can share it. Warm-up
    runs of a runner that threads its states would be frames of the clip.

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
        metadata = TensorMetadata()
        for spec in self._backend.interface.inputs("first" if self._threads_states else "step"):
            shape = [size if isinstance(size, int) else None for size in spec.shape]
            metadata.add(spec.name, np.dtype(spec.dtype), shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """See Polygraphy."""
        interface = self._backend.interface
        start = time.perf_counter()
        states = self._states if self._threads_states else self._fed(feed_dict)
        pending = self._backend.submit({**{name: feed_dict[name] for name in FRAME_NAMES}, **states})
        try:
            outputs = pending.result()
        except NonFiniteError as error:
            raise NonFiniteError([f"{state} of {self.name}" for state in error.states], self._frame) from None
        self.inference_time = time.perf_counter() - start
        self._frame += 1
        if self._threads_states:
            self._states = pending.states
        made = self._backend.read_states(pending.states)
        found = {**outputs, **{state.output.name: made[state.input.name] for state in interface.states}}
        return {spec.name: found[spec.name] for spec in interface.outputs}

    def _fed(self, feed_dict: Mapping[str, Array]) -> dict[str, Any]:
        arrays = {state.input.name: feed_dict[state.input.name] for state in self._backend.interface.states}
        return self._backend.write_states(arrays) if all(array.size for array in arrays.values()) else {}

    def deactivate_impl(self) -> None:
        """See Polygraphy."""
        self._states, self._frame = {}, 0
