"""The recurrent loop, written once above all backends: window, states, padding, scene cuts, overflows. Imports numpy.

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

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import DISPLACEMENT_NAME, FRAME_NAMES, LOOK_AHEAD, OUTPUT_NAME, SIZE_MULTIPLE, WINDOW
from mtu.runtime.backends import Backend, Pending

Picture = NDArray[np.uint8]

SCENE_THRESHOLD = 10.0
"""Score in percent from which a frame starts a new scene; the default of FFmpeg's scdet filter."""
SCENE_SAMPLES = 128
"""The scene score looks at a grid of at most so many rows and columns."""


@dataclass(frozen=True)
class Restored:
    """A restored frame."""

    index: int
    """Number of the frame in the stream, counted from 0 over all pushes."""
    rgb: Picture
    """uint8 [H, W, 3], the size of the frame pushed."""
    displacement: NDArray[np.int32] | None
    """Displacement index [ceil(H/4), ceil(W/4)] of the motion compensation; None for one unit."""


class SceneDetector:
    """Says of each frame whether it starts a new scene.

    The score is FFmpeg's: the mean absolute difference to the frame before, or its change since the last frame, if that
    is smaller, in percent of the range; so steady fast motion is no cut, nor is the first motion seen. Computed on the
    green channel of a grid.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold` in percent, above 0."""
        if not threshold > 0:
            raise InvalidInputError(
                f"scene threshold {threshold:g}: must be above 0 (the default is {SCENE_THRESHOLD:g})"
            )
        self._threshold = threshold
        self._previous: NDArray[np.int16] | None = None
        self._difference: float | None = None

    def is_cut(self, frame: Picture) -> bool:
        """Whether `frame`, uint8 [H, W, 3], starts a new scene; the first two frames ever do not."""
        rows, columns = (max(1, -(-size // SCENE_SAMPLES)) for size in frame.shape[:2])
        current = frame[::rows, ::columns, 1].astype(np.int16)
        if self._previous is None:
            self._previous = current
            return False
        difference = float(np.abs(current - self._previous).mean()) * 100 / 255
        known = self._difference is not None
        score = min(difference, abs(difference - (self._difference or 0.0)))
        self._previous, self._difference = current, difference
        return known and score >= self._threshold


@dataclass
class _Submitted:
    """A frame that the backend has, with what is needed to submit it again."""

    index: int
    window: dict[str, Picture]
    is_first: bool
    pending: Pending


class Session:
    """Restores one stream, frame by frame, two frames behind it, or three with a backend that keeps one under way.

    See Note [one stream, one session] and Note [values that are not finite].
    """

    def __init__(
        self, backend: Backend, *, scene_threshold: float | None = SCENE_THRESHOLD, strict: bool = False
    ) -> None:
        """`scene_threshold` None switches the detection off; `strict` makes values that are not finite an error at
        once. The caller closes the backend."""
        self._backend = backend
        self._scene_threshold = scene_threshold
        self._strict = strict
        self._size: tuple[int, int] | None = None
        self._pushed = 0
        self.cuts: list[int] = []
        """Numbers of the frames that started a new scene."""
        self.redone: list[int] = []
        """Numbers of the frames restored as first frames because the model gave values that are not finite."""
        self.inference_seconds = 0.0
        """Time spent in the backend, or waiting for it."""
        self.reset()

    @property
    def max_displacement(self) -> int:
        """Search radius of the motion compensation, for reading `Restored.displacement`."""
        return self._backend.interface.max_displacement

    def reset(self) -> None:
        """Forgets the stream: the next frame pushed is a first frame.

        Frames not restored yet are dropped; call `flush()` before to get them.
        """
        self._forget()
        self._detector = SceneDetector(self._scene_threshold) if self._scene_threshold is not None else None
        self._size = None

    def _forget(self) -> None:
        self._window: dict[int, Picture] = {}
        self._submitted: deque[_Submitted] = deque()
        self._states: Mapping[str, Any] = {}
        self._first = self._next = self._pushed

    def push(self, frame: Picture) -> list[Restored]:
        """Takes the next frame and gives those that are now restored: none, one, or at a scene cut all still waiting.

        `frame` is uint8 [H, W, 3], RGB, any size from 1x1, and is not to be changed until two frames after it are
        restored. Raises InvalidInputError for any other array, or another size than the frames before; NonFiniteError
        (see the note).
        """
        self._size = check_frame(frame, self._pushed, self._size)
        restored = []
        if self._detector is not None and self._detector.is_cut(frame):
            self.cuts.append(self._pushed)
            restored = self.flush()
        self._window[self._pushed] = pad_to_multiple(frame)[None]
        self._pushed += 1
        if self._pushed - self._next > LOOK_AHEAD:
            self._submit_next()
            restored += self._fetch_down_to(self._backend.in_flight)
        return restored

    def flush(self) -> list[Restored]:
        """Gives the frames still waiting, three at most; the next frame pushed is a first frame."""
        restored = []
        while self._next < self._pushed:
            self._submit_next()
            restored += self._fetch_down_to(self._backend.in_flight)
        restored += self._fetch_down_to(0)
        self._forget()
        return restored

    def _submit_next(self) -> None:
        index, last = self._next, self._pushed - 1
        window = [self._window[min(max(index + offset, self._first), last)] for offset in WINDOW]
        self._next += 1
        self._window.pop(self._next + WINDOW[0] - 1, None)
        inputs = dict(zip(FRAME_NAMES, window, strict=True))
        began = time.perf_counter()
        pending = self._backend.submit({**inputs, **self._states})
        self.inference_seconds += time.perf_counter() - began
        self._submitted.append(_Submitted(index, inputs, not self._states, pending))
        self._states = pending.states

    def _fetch_down_to(self, count: int) -> list[Restored]:
        """The results of the oldest frames submitted, until the backend has `count`."""
        return [self._fetch() for _ in range(len(self._submitted) - count)]

    def _fetch(self) -> Restored:
        """The result of the oldest frame submitted."""
        assert self._size is not None
        height, width = self._size
        oldest = self._submitted.popleft()
        began = time.perf_counter()
        outputs = self._result(oldest)
        self.inference_seconds += time.perf_counter() - began
        displacement = _first_or_none(outputs.get(DISPLACEMENT_NAME))
        return Restored(oldest.index, outputs[OUTPUT_NAME][0, :height, :width], displacement)

    def _result(self, frame: _Submitted) -> dict[str, Any]:
        """Of a frame taken from the queue. See Note [values that are not finite]."""
        try:
            return frame.pending.result()
        except NonFiniteError as error:
            if self._strict or frame.is_first:
                raise NonFiniteError(error.states, frame.index) from None
        self.redone.append(frame.index)
        again = self._backend.submit(frame.window)
        self._states = again.states
        for later in self._submitted:
            later.pending = self._backend.submit({**later.window, **self._states})
            self._states = later.pending.states
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


def _first_or_none(batch: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    return None if batch is None else batch[0]


def pad_to_multiple(frame: Picture) -> Picture:
    """`frame` [H, W, 3] with its last row and column repeated up to the next multiple of 4; itself where it fits."""
    bottom, right = (-size % SIZE_MULTIPLE for size in frame.shape[:2])
    if bottom or right:
        return np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)


def restore(
    frames: Iterable[Picture], backend: Backend, *, scene_threshold: float | None = SCENE_THRESHOLD
) -> Iterator[Restored]:
    """Restores a whole stream: one result a frame, in order. The caller closes the backend."""
    session = Session(backend, scene_threshold=scene_threshold)
    for frame in frames:
        yield from session.push(frame)
    yield from session.flush()
