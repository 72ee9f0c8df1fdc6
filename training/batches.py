"""Batches of cropped sequences for training, each a pure function of the run's seed and its number. Imports torch.

Where the clips come from is in `mtu.training.sources`. What is not of clips alone serves the batches of pictures too
(`mtu.training.stills`).
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtu.core.errors import MtuError
from mtu.models.mtu.config import LOOK_AHEAD
from mtu.training.data.scene import Clip
from mtu.training.losses import displacement_targets
from mtu.training.options import Options

SHARDS = 16
"""Batch n uses the made clips of shard n modulo this: loader processes whose number divides it make no clip twice."""

KEPT = 24
"""Newest made clips of a shard that its batches draw from."""

USES = 8
"""Crops drawn, on average, from a made clip before a new one is made; making it takes longer than reading it."""

HARD = 0.7
"""Share of the sequences at the more blurred of two places of their clip: much of a clip has little to restore."""

SHARP = 0.06
"""Share of the sequences whose input is the sharp frames themselves: they should come out as they are."""

MARGIN = 64
"""Pixels by which a made clip is larger than a crop."""

VALIDATION_CLIPS, VALIDATION_FRAMES, VALIDATION_SIZE = 12, 11, 160

LEFT = (signal.SIGINT, signal.SIGTERM)
"""Signals that loader processes leave alone: a terminal sends Ctrl-C to all, but the run has yet to save."""

T = TypeVar("T")

Draw = Callable[[np.random.Generator, int], Clip]
"""(random numbers, number of the batch) -> a clip at least as large as a crop, with two more frames at each end."""


class Batch(NamedTuple):
    """A batch of sequences of T frames."""

    blurred: Tensor
    """uint8 [T + 4, B, 3, H, W]: two more frames on either side."""
    sharp: Tensor
    """uint8 [T, B, 3, H, W]."""
    target: Tensor
    """int16 [T, B, H/4, W/4], see `displacement_targets`."""


class Source(Dataset[Any]):
    """The batches of a run by their number, each a NamedTuple of tensors; the error itself for one that fails."""

    def __getitem__(self, number: int) -> Any:
        # An error that a loader process raises gets a traceback into its message, one that it returns does not.
        try:
            return self.batch(number)
        except MtuError as error:
            return error

    def batch(self, number: int) -> Any:
        """One of them. Raises MtuError."""
        raise NotImplementedError


@dataclass(frozen=True)
class Batches(Source):
    """The batches of clips."""

    options: Options
    draw: Draw

    def batch(self, number: int) -> Batch:
        """One of them. Raises what `draw` raises."""
        rng = np.random.default_rng((self.options.seed, number))
        parts = [cut(self.draw(rng, number), self.options.crop, rng) for _ in range(self.options.batch)]
        blurred, sharp, motion = (np.stack(planes, 1) for planes in zip(*parts, strict=True))
        return Batch(
            torch.from_numpy(blurred).movedim(-1, 2).contiguous(),
            torch.from_numpy(sharp).movedim(-1, 2).contiguous(),
            displacement_targets(torch.from_numpy(motion)),
        )


def cut(
    clip: Clip, crop: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]:
    """A random crop of a clip of T + 4 frames, turned, mirrored and with its colours permuted at random.

    Returns blurred [T + 4, crop, crop, 3], sharp [T, crop, crop, 3] and motion [T, crop, crop, 2]. In half of the cases
    the two outer frames on either side are the first and the last of the T, as at the ends of a video; in `SHARP` of
    them blurred is sharp.
    """
    height, width = clip.sharp.shape[1:3]
    corners = [(int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))) for _ in range(2)]
    top, left = max(corners, key=lambda corner: _blur(clip, corner, crop)) if rng.random() < HARD else corners[0]
    turns, upside_down, mirrored, colours = (
        int(rng.integers(4)),
        rng.random() < 0.5,
        rng.random() < 0.5,
        rng.permutation(3),
    )
    ends, sharp_already = rng.random() < 0.5, rng.random() < SHARP

    def turned(part: NDArray[Any]) -> NDArray[Any]:
        return turned_part(part, (top, left), crop, turns, upside_down, mirrored)

    inner = slice(LOOK_AHEAD, len(clip.sharp) - LOOK_AHEAD)
    blurred = turned(clip.sharp if sharp_already else clip.blurred)[..., colours].copy()
    sharp = turned(clip.sharp[inner])[..., colours]
    dy, dx = np.moveaxis(turned(clip.motion[inner]), -1, 0)
    for _ in range(turns):
        dy, dx = -dx, dy
    motion = np.stack((-dy if upside_down else dy, -dx if mirrored else dx), -1)
    if ends:
        blurred[:LOOK_AHEAD] = blurred[LOOK_AHEAD]
        blurred[-LOOK_AHEAD:] = blurred[-LOOK_AHEAD - 1]
    return blurred, sharp, motion


def _blur(clip: Clip, corner: tuple[int, int], crop: int) -> float:
    """How far the blurred square of `crop` pixels at (top, left) is from the sharp one, in the middle of a clip."""
    (top, left), middle = corner, len(clip.sharp) // 2
    blurred, sharp = (part[middle, top : top + crop, left : left + crop] for part in (clip.blurred, clip.sharp))
    return float(np.square(blurred.astype(np.float32) - sharp).mean())


def turned_part(
    pictures: NDArray[Any], corner: tuple[int, int], crop: int, turns: int, upside_down: bool, mirrored: bool
) -> NDArray[Any]:
    """The square of `crop` pixels at (top, left) of pictures [T, H, W, n], turned by quarters, then mirrored."""
    top, left = corner
    part = np.rot90(pictures[:, top : top + crop, left : left + crop], turns, (1, 2))
    return part[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]


class Made(Generic[T]):
    """Draws from clips or pictures that are made when they are first drawn; keeps those that may be drawn again."""

    def __init__(self, options: Options, make: Callable[[int], T]) -> None:
        """`make` makes one from a seed."""
        self._options, self._make = options, make
        self._kept: dict[int, dict[int, T]] = {}

    def __call__(self, rng: np.random.Generator, batch: int) -> T:
        """One of the newest `KEPT` of the shard of this batch. Raises what `make` raises."""
        shard, options = batch % SHARDS, self._options
        newest = 2 + batch // SHARDS * options.batch // USES
        oldest = max(0, newest - KEPT)
        number = int(rng.integers(oldest, newest))
        kept = {n: made for n, made in self._kept.get(shard, {}).items() if n >= oldest}
        if number not in kept:
            # Runs of different seeds have none in common within 10 million.
            kept[number] = self._make(options.seed * 10_000_000 + number * SHARDS + shard)
        self._kept[shard] = kept
        return kept[number]


def spread(found: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, over all."""
    return [found[n * len(found) // most] for n in range(most)] if len(found) > most else found


def batches(source: Source, first: int, stride: int, workers: int) -> Generator[Any, None, None]:
    """The batches number first, first + stride, ..., without end, made ahead by `workers` processes, if any.

    The processes are started at once and end when the generator is closed. It raises what `source.batch` raises.
    """
    loader = DataLoader(
        source,
        batch_size=None,
        sampler=range(first, sys.maxsize, stride),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals,
    )
    if not workers or threading.current_thread() is not threading.main_thread():
        return _whole(iter(loader))
    # A process ignores from its first moment what the one that starts it ignores.
    before = {int(number): signal.signal(number, signal.SIG_IGN) for number in LEFT}
    try:
        return _whole(iter(loader))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _whole(loaded: Iterator[Any]) -> Generator[Any, None, None]:
    try:
        for batch in loaded:
            if isinstance(batch, MtuError):
                raise batch
            yield batch
    finally:
        # Not left to the collector: Python waits at its end for processes that ignore SIGTERM, if need be for ever.
        # One that aborts while it ends, as torch's now and then do, makes torch raise; it was to end anyway.
        with contextlib.suppress(RuntimeError):
            getattr(loaded, "_shutdown_workers", lambda: None)()


def _leave_signals(worker: int) -> None:
    # Once more, for torch has a handler of its own.
    for number in LEFT:
        signal.signal(number, signal.SIG_IGN)


def floats(picture: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] as fp32 in [0, 1], channels last."""
    return (picture.float() / 255).contiguous(memory_format=torch.channels_last)
