"""Where the clips of a training run come from: made, of photographs or footage of a user's own, or of a data set.

Made clips have their true motion (`mtu.training.data.clips`); footage (`mtu.training.data.footage`) and data sets
(`mtu.calib.datasets`) the one that `mtu.training.data.flow` estimates between sharp frames. Imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtu.calib.datasets import LAYOUTS, Layout, VideoPair, find_pairs, read_clip, sizes_of
from mtu.core.errors import InvalidInputError
from mtu.models.mtu.config import LOOK_AHEAD, SIZE_MULTIPLE
from mtu.runtime.video.pictures.header import read_header
from mtu.training import batches
from mtu.training.batches import Draw, Made, spread
from mtu.training.data.flow import motion_between
from mtu.training.data.footage import find_footage
from mtu.training.data.material import Material, made_clip
from mtu.training.data.photographs import find_photographs
from mtu.training.data.scene import Clip
from mtu.training.data.textures import Split
from mtu.training.options import VIDEOS, Data, Options, Say

DATA_OPTION = "--data {layout}:{root}"
"""How a data set is asked for, for messages."""


def made_clips(
    options: Options, materials: Sequence[Material] = (None,), weights: Sequence[float] = (1,)
) -> Made[Clip]:
    """Draws from made clips without end; as many are made of each material as its weight says."""
    shares = tuple(weight / sum(weights) for weight in weights)
    return Made(options, functools.partial(_made, *_size(options), tuple(materials), shares))


def _size(options: Options) -> tuple[int, int]:
    """Frames of a made clip, and its side in pixels."""
    return options.frames + 2 * LOOK_AHEAD, options.crop + batches.MARGIN


def _made(frames: int, side: int, materials: tuple[Material, ...], shares: tuple[float, ...], seed: int) -> Clip:
    # The seed says of what, or a clip would be made of each.
    which = int(np.random.default_rng((seed, 2)).choice(len(materials), p=shares))
    return made_clip(seed, frames, side, "train", materials[which])


@dataclass(frozen=True)
class RecordedClips:
    """Draws from the videos of a data set, each frame with the same chance."""

    options: Options
    pairs: tuple[VideoPair, ...]

    def __call__(self, rng: np.random.Generator, batch: int) -> Clip:
        """See `Draw`. Raises InvalidInputError for frames that cannot be read."""
        options, count = self.options, self.options.frames + 2 * LOOK_AHEAD
        starts = np.array([len(pair.sharp) - count + 1 for pair in self.pairs])
        pair = self.pairs[int(rng.choice(len(starts), p=starts / starts.sum()))]
        start, size = int(rng.integers(len(pair.sharp) - count + 1)), options.crop
        header = read_header(pair.sharp[start])
        height, width = header.height, header.width
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        blurred, sharp = read_clip(pair, start, count, crop=(top, left, size, size))
        motion = motion_between(sharp) if options.motion_weight else np.full((*sharp.shape[:3], 2), np.nan, np.float16)
        return Clip(blurred, sharp, motion)


@dataclass(frozen=True)
class Mixed:
    """Draws from several, each as often as its weight says."""

    draws: tuple[Draw, ...]
    shares: tuple[float, ...]
    """Of 1."""

    def __call__(self, rng: np.random.Generator, batch: int) -> Clip:
        """See `Draw`."""
        return self.draws[int(rng.choice(len(self.draws), p=self.shares))](rng, batch)


def training_clips(options: Options, say: Say = lambda text: None) -> Draw:
    """What a run draws from; files that cannot be used are named to `say`.

    Raises InvalidInputError or MissingFileError for a folder that cannot be used.
    """
    draws: list[tuple[Draw, float]] = []
    made: list[tuple[Material, float]] = []
    for source in options.sources:
        if source.kind in LAYOUTS and source.folder is not None:
            draws.append((_recorded(source.kind, source.folder, options), source.weight))
        else:
            made.append((_material(source, "train", *_size(options), say), source.weight))
    if made:
        materials, weights = zip(*made, strict=True)
        draws.append((made_clips(options, materials, weights), sum(weights)))
    if len(draws) == 1:
        return draws[0][0]
    total = sum(weight for _, weight in draws)
    return Mixed(tuple(draw for draw, _ in draws), tuple(weight / total for _, weight in draws))


def _recorded(layout: Layout, folder: Path, options: Options) -> RecordedClips:
    pairs = find_pairs(layout, folder, "train", shortest=options.frames + 2 * LOOK_AHEAD, option=DATA_OPTION)
    for pair, (height, width) in zip(pairs, sizes_of(pairs), strict=True):
        if min(height, width) < options.crop:
            raise InvalidInputError(f"{pair.sharp[0]} is {width}x{height}: smaller than --crop {options.crop}")
    return RecordedClips(options, tuple(pairs))


def _material(source: Data, split: Split, frames: int, side: int, say: Say) -> Material:
    if source.folder is None:
        return None
    if source.kind == VIDEOS:
        return find_footage(source.folder, split, frames, side, say)
    return find_photographs(source.folder, split, say)


def validation_clips(options: Options, say: Say = lambda text: None) -> list[Clip]:
    """The clips that a run is judged by, as many of each source: made ones of the validation split, or videos of a data
    set's test split."""
    count = max(1, batches.VALIDATION_CLIPS // len(options.sources))
    return [clip for source in options.sources for clip in _validation(source, count, say)]


def _validation(source: Data, count: int, say: Say) -> list[Clip]:
    frames, side = batches.VALIDATION_FRAMES, batches.VALIDATION_SIZE
    if source.kind not in LAYOUTS or source.folder is None:
        material = _material(source, "validation", frames, side, say)
        return [made_clip(seed, frames, side, "validation", material) for seed in range(count)]
    pairs = find_pairs(source.kind, source.folder, "test", shortest=frames, option=DATA_OPTION)
    clips = []
    for pair in spread(pairs, count):
        header = read_header(pair.sharp[0])
        height, width = header.height, header.width
        h, w = (min(size // SIZE_MULTIPLE * SIZE_MULTIPLE, 2 * side) for size in (height, width))
        blurred, sharp = read_clip(pair, 0, frames, crop=((height - h) // 2, (width - w) // 2, h, w))
        clips.append(Clip(blurred, sharp, np.full((*sharp.shape[:3], 2), np.nan, np.float16)))
    return clips
