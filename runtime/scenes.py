"""Where a new scene begins. Imports numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.core.window import Picture

SCENE_THRESHOLD = 10.0
"""Score in percent from which a frame starts a new scene; the default of FFmpeg's scdet filter."""
SCENE_SAMPLES = 128
"""The scene score looks at a grid of at most so many rows and columns."""
WARM_UP = 20
"""Frames before a part of a scene that is split, from which a model remembers enough (docs/scale.md)."""


@dataclass(frozen=True)
class Split:
    """How long scenes are restored in parts. That changes pictures, unlike everything else."""

    seconds: float
    """A part is no longer."""
    warm_up: int = WARM_UP
    """Frames before a part that are restored to remember them, and dropped."""

    def __post_init__(self) -> None:
        if not 1 <= self.seconds < math.inf:
            raise InvalidInputError(f"--split-long {self.seconds:g}: give seconds, 1 or more")
        if self.warm_up < 0:
            raise InvalidInputError(f"--warm-up {self.warm_up}: give frames, 0 or more")


def split_of(seconds: float | None, warm_up: int | None) -> Split | None:
    """What is asked for, None for an option that is not given. Raises InvalidInputError."""
    if seconds is None:
        if warm_up is not None:
            raise InvalidInputError(f"--warm-up {warm_up} is for --split-long, which is not given: leave it out")
        return None
    return Split(seconds) if warm_up is None else Split(seconds, warm_up)


class SceneDetector:
    """Says of each frame whether it starts a new scene.

    The score is FFmpeg's: the mean absolute difference to the frame before, or its change since the last frame, if that
    is smaller, in percent of the range; so steady fast motion is no cut, nor is the first motion seen. Computed on the
    green channel of a grid.
    """

    def __init__(self, threshold: float | None) -> None:
        """`threshold` in percent, above 0; None finds none."""
        if threshold is not None and not threshold > 0:
            raise InvalidInputError(
                f"scene threshold {threshold:g}: must be above 0 (the default is {SCENE_THRESHOLD:g})"
            )
        self._threshold = threshold
        self._previous: NDArray[np.int16] | None = None
        self._difference: float | None = None

    def is_cut(self, frame: Picture) -> bool:
        """Whether `frame`, uint8 [H, W, 3], starts a new scene; the first two frames ever do not."""
        if self._threshold is None:
            return False
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
