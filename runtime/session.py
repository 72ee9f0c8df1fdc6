"""The loop over the frames of a stream, written once above all backends: window, states, scene cuts, overflows.

Imports numpy.

Note [one stream, one session]
    A session is the memory of ONE stream: the last frames, the states, the scene-cut detector. A backend is the model
    and has no memory, so many sessions can share it, one call at a time. Frames of two streams in one session, or a
    session kept over a seek, give ghosts of the wrong pictures: call `reset()` at every discontinuity that the
    scene-cut detection cannot see, and open a second session for a second stream.

Note [values that are not finite]
    A backend finds them only when a frame's result is fetched, and by then the next frame may be under way with states
    made of them. The memory is lost: the frame is restored once more as a first frame, from its window alone, and what
    was under way is submitted again with the states of that. A frame which is not finite as a first frame either means
    that the weights overflow, and is an error.
"""

from __future__ import annotations

import abc
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Role
from mtu.core.window import Moment, Picture, Window, by_stream, cut
from mtu.runtime.backends import Backend, Pending
from mtu.runtime.scenes import SCENE_THRESHOLD, SceneDetector

ROLES: tuple[Role, ...] = ("picture", "displacement", "map")
"""What `Restored` has of a frame, in its order."""


@dataclass(frozen=True)
class Restored:
    """A restored frame: what the model gave for it, cut back to its size."""

    index: int
    """Number of the frame in the stream, counted from 0 over all pushes."""
    picture: Picture | None
    """uint8 [s*H, s*W, 3] for a frame of H x W and a model of scale s; None for a model that gives none."""
    displacement: NDArray[np.int32] | None = None
    """Displacement index, a value for each position of its map; None for a model that gives none."""
    map: NDArray[np.floating] | None = None
    """A value in [0, 1] for each position; None for a model that gives none."""

    @property
    def rgb(self) -> Picture:
        """The picture of a model that gives one."""
        assert self.picture is not None, "the model gives no picture"
        return self.picture


@dataclass
class _Submitted:
    """A frame that the backend has, with what is needed to submit it again."""

    index: int
    frames: dict[str, Picture]
    is_first: bool
    pending: Pending


class Stream(abc.ABC):
    """What every session does: counts and checks the frames of one stream, and ends a scene where another begins."""

    def __init__(self, streams: Sequence[str], scene_threshold: float | None) -> None:
        """Calls `reset`. `streams` are those that the model reads; with `scene_threshold` None no cuts are found."""
        self.streams, self._scene_threshold = streams, scene_threshold
        self._pushed = 0
        self.cuts: list[int] = []
        """Numbers of the frames that started a new scene."""
        self.reset()

    def reset(self) -> None:
        """Forgets the stream: the next frame pushed is a first frame.

        Frames not restored yet are dropped; call `flush()` before to get them.
        """
        self._detector = SceneDetector(self._scene_threshold)
        self._size: tuple[int, int] | None = None

    def begin_at(self, number: int) -> None:
        """As `reset`; the next frame pushed is that of this number."""
        self._pushed = number
        self.reset()

    def push(self, frame: Moment) -> list[Restored]:
        """Takes the next frame and gives those that are now restored: none, one, or at a scene cut all still waiting.

        `frame` is uint8 [H, W, 3], RGB, any size from 1x1, and is not to be changed until the frames after it that look
        back to it are restored. For a model that reads several streams it is a mapping with such a frame of each, all
        of one size; scene cuts are found in the first. Raises InvalidInputError for anything else, or another size than
        the frames before; NonFiniteError (see the note).
        """
        return self.start(frame)()

    def start(self, frame: Moment) -> Callable[[], list[Restored]]:
        """The first half of `push`: takes the frame and submits what it makes ready. What is returned is the second,
        to be called before the next frame: it waits for results and gives them. Both raise as `push`."""
        frames, size = by_stream(frame, self.streams), self._size
        for each in frames.values():
            size = check_frame(each, self._pushed, size)
        self._size, restored = size, []
        if self._detector.is_cut(frames[self.streams[0]]):
            self.cuts.append(self._pushed)
            restored = self.flush()
        self._pushed += 1
        rest = self._start(frames)
        return lambda: restored + rest()

    def _start(self, frames: Mapping[str, Picture]) -> Callable[[], list[Restored]]:
        """`start`, of frames that are no cut any more, one of each stream. Everything is in the second half."""
        return partial(self._push, frames)

    @abc.abstractmethod
    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        """Both halves."""

    @abc.abstractmethod
    def flush(self) -> list[Restored]:
        """Gives the frames still waiting; the next frame pushed is a first frame."""

    @property
    @abc.abstractmethod
    def redone(self) -> list[int]:
        """Numbers of the frames restored as first frames because the model gave values that are not finite."""

    @property
    @abc.abstractmethod
    def inference_seconds(self) -> float:
        """Time spent in the backend, or waiting for it."""


class Session(Stream):
    """Restores one stream, frame by frame: as many frames behind it as the model looks ahead, and one more with a
    backend that keeps one under way.

    See Note [one stream, one session] and Note [values that are not finite].
    """

    def __init__(
        self, backend: Backend, *, scene_threshold: float | None = SCENE_THRESHOLD, strict: bool = False
    ) -> None:
        """`scene_threshold` None switches the detection off; `strict` makes values that are not finite an error at
        once. The caller closes the backend."""
        self._backend, self._interface = backend, backend.interface
        self._strict = strict
        self._redone: list[int] = []
        self._inference_seconds = 0.0
        super().__init__(self._interface.streams, scene_threshold)

    @property
    def redone(self) -> list[int]:
        """See `Stream.redone`."""
        return self._redone

    @property
    def inference_seconds(self) -> float:
        """See `Stream.inference_seconds`."""
        return self._inference_seconds

    @property
    def max_displacement(self) -> int:
        """Radius of the displacements, for reading `Restored.displacement`; 0 for a model that gives none."""
        displacement = self._interface.the("displacement")
        return displacement.radius if displacement else 0

    def reset(self) -> None:
        """See `Stream.reset`."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._window = Window(self._interface, self._pushed)
        self._submitted: deque[_Submitted] = deque()
        self._states: Mapping[str, Any] = {}

    def _start(self, frames: Mapping[str, Picture]) -> Callable[[], list[Restored]]:
        self._window.push(frames)
        if self._window.is_ready:
            self._submit_next()
        return partial(self._fetch_down_to, self._backend.in_flight)

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        return self._start(frames)()

    def flush(self) -> list[Restored]:
        """See `Stream.flush`."""
        restored = []
        while self._window.next < self._pushed:
            self._submit_next()
            restored += self._fetch_down_to(self._backend.in_flight)
        restored += self._fetch_down_to(0)
        self._forget()
        return restored

    def _submit_next(self) -> None:
        index, frames = self._window.next, self._window.take()
        is_first = not self._interface.graph_for(self._states).states
        self._submitted.append(_Submitted(index, frames, is_first, self._submit(frames)))

    def _submit(self, frames: dict[str, Picture]) -> Pending:
        """Through the graph for the states that are held, which become those of this frame."""
        graph = self._interface.graph_for(self._states)
        began = time.perf_counter()
        pending = self._backend.submit(graph.name, frames, self._states)
        self._inference_seconds += time.perf_counter() - began
        self._states = pending.states
        return pending

    def _fetch_down_to(self, count: int) -> list[Restored]:
        """The results of the oldest frames submitted, until the backend has `count`."""
        return [self._fetch() for _ in range(len(self._submitted) - count)]

    def _fetch(self) -> Restored:
        """The result of the oldest frame submitted."""
        oldest = self._submitted.popleft()
        began = time.perf_counter()
        outputs = self._result(oldest)
        self._inference_seconds += time.perf_counter() - began
        return Restored(oldest.index, **{role: self._cut(role, outputs) for role in ROLES})

    def _cut(self, role: Role, outputs: dict[str, Any]) -> Any:
        output = self._interface.the(role)
        if output is None:
            return None
        assert self._size is not None
        return cut(outputs[output.tensor.name], output.tensor, *self._size)

    def _result(self, frame: _Submitted) -> dict[str, Any]:
        """Of a frame taken from the queue. See Note [values that are not finite]."""
        try:
            return frame.pending.result()
        except NonFiniteError as error:
            if self._strict or frame.is_first:
                raise NonFiniteError(error.states, frame.index) from None
        self._redone.append(frame.index)
        self._states = {}
        again = self._submit(frame.frames)
        for later in self._submitted:
            later.pending = self._submit(later.frames)
        try:
            return again.result()
        except NonFiniteError as error:
            raise NonFiniteError(error.states, frame.index) from None


def check_frame(frame: Picture, number: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of frame `number` of a stream whose frames before are of `size` (None: there are none).

    Raises InvalidInputError unless it is uint8 [H, W, 3] and of that size.
    """
    if not isinstance(frame, np.ndarray):
        raise InvalidInputError(f"frame {number} is a {type(frame).__name__}; frames are numpy arrays, uint8 [H, W, 3]")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise InvalidInputError(f"frame {number} is {frame.dtype} {list(frame.shape)}; frames are uint8 [H, W, 3]")
    found = (frame.shape[0], frame.shape[1])
    if size is not None and found != size:
        raise InvalidInputError(
            f"frame {number} is {found[1]}x{found[0]}, the frames before are {size[1]}x{size[0]};"
            " call reset() where a stream changes its size"
        )
    return found
