"""The recurrent loop, written once above all backends: window, states, padding, scene cuts. Imports numpy.

Note [one stream, one session]
    A session is the memory of ONE stream: the last frames, the states, the scene-cut detector. A backend is the model
    and has no memory, so many sessions can share it, one call at a time. Frames of two streams in one session, or a
    session kept over a seek, give ghosts of the wrong pictures: call `reset()` at every discontinuity that the
    scene-cut detection cannot see, and open a second session for a second stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.models.errors import InvalidInputError
from mtu.models.interface import DISPLACEMENT_NAME, FRAME_NAMES, LOOK_AHEAD, OUTPUT_NAME, SIZE_MULTIPLE, WINDOW
from mtu.runtime.backends import Backend

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


class Session:
    """Restores one stream, frame by frame, two frames behind it. See Note [one stream, one session]."""

    def __init__(self, backend: Backend, *, scene_threshold: float | None = SCENE_THRESHOLD) -> None:
        """`scene_threshold` None switches the detection off. The caller closes the backend."""
        self._backend = backend
        self._scene_threshold = scene_threshold
        self._size: tuple[int, int] | None = None
        self._pushed = 0
        self.cuts: list[int] = []
        """Numbers of the frames that started a new scene."""
        self.inference_seconds = 0.0
        """Time spent in the backend."""
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
        self._states: dict[str, Any] = {}
        self._first = self._next = self._pushed

    def push(self, frame: Picture) -> Iterator[Restored]:
        """Takes the next frame and gives those that can now be restored: none, one, or at a scene cut up to two.

        `frame` is uint8 [H, W, 3], RGB, any size from 1x1, and is not to be changed until it is restored. Raises
        InvalidInputError for any other array, or another size than the frames before.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise InvalidInputError(
                f"frame {self._pushed} is {frame.dtype} {list(frame.shape)}; frames are uint8 [H, W, 3]"
            )
        size = (frame.shape[0], frame.shape[1])
        if self._size is not None and size != self._size:
            raise InvalidInputError(
                f"frame {self._pushed} is {size[1]}x{size[0]}, the frames before are {self._size[1]}x{self._size[0]};"
                " call reset() where a stream changes its size"
            )
        self._size = size
        if self._detector is not None and self._detector.is_cut(frame):
            self.cuts.append(self._pushed)
            yield from self.flush()
        self._window[self._pushed] = pad_to_multiple(frame)[None]
        self._pushed += 1
        if self._pushed - self._next > LOOK_AHEAD:
            yield self._restore()

    def flush(self) -> Iterator[Restored]:
        """Gives the frames still waiting for their successors; the next frame pushed is a first frame."""
        while self._next < self._pushed:
            yield self._restore()
        self._forget()

    def _restore(self) -> Restored:
        assert self._size is not None
        height, width = self._size
        index, last = self._next, self._pushed - 1
        window = [self._window[min(max(index + offset, self._first), last)] for offset in WINDOW]
        began = time.perf_counter()
        outputs = self._backend.run({**dict(zip(FRAME_NAMES, window, strict=True)), **self._states})
        self.inference_seconds += time.perf_counter() - began
        self._states = {state.input.name: outputs[state.output.name] for state in self._backend.interface.states}
        self._next += 1
        self._window.pop(self._next + WINDOW[0] - 1, None)
        return Restored(index, outputs[OUTPUT_NAME][0, :height, :width], _first_or_none(outputs.get(DISPLACEMENT_NAME)))


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
