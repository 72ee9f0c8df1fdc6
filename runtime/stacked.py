"""Several streams over one backend, their frames computed together. Imports numpy.

`push_together` gives each of several sessions a frame; what they submit to a backend that `stacked` made is computed in
batches. Everything else works with such a backend as with any other.

Note [what waits]
    A frame that is submitted waits until the first result is asked for. Then all that waits is computed: frames of one
    size for one graph in one batch, stacked along axis 0, at most so many as was said. The states stay stacked on the
    device, and go into the next batch as they are while the same streams are in it. Where others are, they are taken
    apart, through the host, so that a stream that pauses does not hold the states of all.

Note [errors in a batch]
    A batch that cannot be computed, for want of memory perhaps, is computed one by one. So is one with values that are
    not finite: each frame alone says whether they are its own. The rows of a batch are independent, so the others'
    states are good.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mtu.core.errors import MtuError, NonFiniteError
from mtu.core.window import Moment
from mtu.runtime.backends import Backend, Pending
from mtu.runtime.session import Restored, Stream

_T = TypeVar("_T")


def push_together(pairs: Sequence[tuple[Stream, Moment]]) -> list[list[Restored] | MtuError]:
    """`Stream.push` of several streams, none of them twice: for each what it gives, or the error that it raises.

    The streams may be of any kind, and anywhere in their sequences; an error of one touches no other.
    """
    started = [_tried(partial(stream.start, frame)) for stream, frame in pairs]
    return [each if isinstance(each, MtuError) else _tried(each) for each in started]


def _tried(call: Callable[[], _T]) -> _T | MtuError:
    try:
        return call()
    except MtuError as error:
        return error


def stacked(backend: Backend, most: int) -> Backend:
    """A backend that computes frames of up to `most` streams at once, for sessions that `push_together` is given; the
    one given where it cannot, which computes them one by one. Closing either closes both."""
    return StackedBackend(backend, most) if backend.stacks and most > 1 else backend


class _Batch:
    """Frames that were computed together."""

    def __init__(self, pending: Pending, states: Sequence[_States], number: int) -> None:
        """`states` are those that it gives, in the order of its rows; later batches have larger numbers."""
        self.pending, self.count = pending, len(states)
        self.places = [(number, row) for row in range(len(states))]
        self._outputs: dict[str, Any] | None = None
        self.held = weakref.WeakSet(states)
        """What somebody still holds of its states."""

    def outputs(self) -> dict[str, Any]:
        """See `Pending.result`; of all rows."""
        if self._outputs is None:
            self._outputs = self.pending.result()
        return self._outputs


@dataclass(eq=False)
class _States:
    """The states of one stream after a frame: nowhere before it is computed, in a row of a `batch` then, and when that
    was taken apart in `arrays` of their own, by name."""

    batch: _Batch | None = None
    row: int = 0
    arrays: Mapping[str, np.ndarray] | None = None
    error: MtuError | None = None
    """Why they will never be there."""

    @property
    def place(self) -> tuple[int, int]:
        """For sorting: streams that were computed together come in the order that their states are in."""
        return (0, 0) if self.batch is None else self.batch.places[self.row]


@dataclass(eq=False)
class _Waiting:
    """A frame of one stream; see `Pending`."""

    backend: StackedBackend
    graph: str
    frames: Mapping[str, np.ndarray]
    before: _States | None
    """Those that it takes."""
    after: _States
    """Those that it gives."""
    states: Mapping[str, Any]
    """See `Pending.states`: each is `after`."""
    batch: _Batch | None = None
    row: int = 0

    @property
    def kind(self) -> tuple[Any, ...]:
        """What goes into one batch has the same."""
        return self.graph, next(iter(self.frames.values())).shape

    @property
    def can_start(self) -> bool:
        """Whether there is nothing that has to be computed before."""
        before = self.before
        return before is None or any(each is not None for each in (before.batch, before.arrays, before.error))

    def result(self) -> dict[str, Any]:
        """See `Pending.result`."""
        return self.backend.fetch(self)


class StackedBackend:
    """See `mtu.runtime.backends.Backend`, and `stacked`; states are `_States`. See Note [what waits]."""

    stacks = False

    def __init__(self, backend: Backend, most: int) -> None:
        """`backend` stacks; it gets frames of up to `most` streams at once."""
        self._backend, self._most = backend, most
        self.name, self.device, self.in_flight = backend.name, backend.device, backend.in_flight
        self.interface, self.arithmetic = backend.interface, backend.arithmetic
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    @property
    def remarks(self) -> list[str]:
        """See `Backend.remarks`."""
        return self._backend.remarks

    def submit(self, graph: str, frames: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> Pending:
        """See `Backend.submit`. Raises nothing: what cannot be computed says so when its result is asked for."""
        described = self.interface.graph(graph)
        before = next((states[source] for source in described.states.values()), None)
        frames, after = {name: frames[name] for name in described.frames}, _States()
        frame = _Waiting(self, graph, frames, before, after, dict.fromkeys(self.interface.states, after))
        with self._lock:
            self._waiting.append(frame)
        return frame

    def fetch(self, frame: _Waiting) -> dict[str, Any]:
        """`Pending.result`."""
        with self._lock:
            self._compute()
            if frame.batch is None:
                assert frame.after.error is not None
                raise frame.after.error
            try:
                outputs = frame.batch.outputs()
            except NonFiniteError:
                if frame.batch.count == 1:
                    raise
                return self._submit([frame]).result()
            return {name: value[frame.row : frame.row + 1] for name, value in outputs.items()}

    def _compute(self) -> None:
        """All that waits."""
        while self._waiting:
            ready = [frame for frame in self._waiting if frame.can_start]
            together = [frame for frame in ready if frame.kind == ready[0].kind]
            together.sort(key=lambda frame: frame.before.place if frame.before else (0, 0))
            del together[self._most :]
            self._waiting = [frame for frame in self._waiting if frame not in together]
            self._start(together)

    def _start(self, frames: Sequence[_Waiting]) -> None:
        """Computes these in one batch. See Note [errors in a batch]."""
        try:
            pending = self._submit(frames)
        except MtuError as error:
            if len(frames) == 1:
                frames[0].after.error = error
            else:
                for frame in frames:
                    self._start([frame])
            return
        batch = _Batch(pending, [frame.after for frame in frames], next(self._numbers))
        for row, frame in enumerate(frames):
            frame.batch = frame.after.batch = batch
            frame.row = frame.after.row = row

    def _submit(self, frames: Sequence[_Waiting]) -> Pending:
        first = frames[0]
        stack = {name: np.concatenate([frame.frames[name] for frame in frames]) for name in first.frames}
        befores = [frame.before for frame in frames if frame.before is not None]
        return self._backend.submit(first.graph, stack if len(frames) > 1 else first.frames, self._states_of(befores))

    def _states_of(self, befores: Sequence[_States]) -> Mapping[str, Any]:
        """As the backend takes them, stacked."""
        if not befores:
            return {}
        batch = befores[0].batch
        if batch is not None and [each.place for each in befores] == batch.places:
            return batch.pending.states
        rows = [self._own(each) for each in befores]
        return self._backend.write_states({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})

    def _own(self, states: _States) -> Mapping[str, np.ndarray]:
        """The states of a stream in arrays of its own; the batch that they are in is taken apart."""
        if states.error is not None:
            raise states.error
        if (batch := states.batch) is not None:
            with contextlib.suppress(NonFiniteError):
                batch.outputs()
            arrays = self._backend.read_states(batch.pending.states)
            for each in batch.held:
                each.arrays = {name: array[each.row : each.row + 1].copy() for name, array in arrays.items()}
                each.batch = None
        assert states.arrays is not None
        return states.arrays

    def read_states(self, states: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Backend.read_states`."""
        with self._lock:
            self._compute()
            return {name: self._own(each)[name].copy() for name, each in states.items()}

    def write_states(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Backend.write_states`."""
        return dict.fromkeys(arrays, _States(arrays=dict(arrays)))

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()
