"""Batches of cropped pictures out of focus, each a pure function of the run's seed and its number. Imports torch.

Made ones come from `mtu.training.data.defocus`, of its own pictures or of a user's photographs; those of DPDD from
`mtu.calib.picture_sets`, read as they lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtu.calib.picture_sets import FOLDERS, PictureSplit, Still, find_stills, sizes_of_stills
from mtu.core.errors import InvalidInputError
from mtu.models.ifan import STREAMS
from mtu.runtime import Picture
from mtu.runtime.video import read_picture
from mtu.training import batches
from mtu.training.batches import Made, Source, spread, turned_part
from mtu.training.data.defocus import DefocusedStill, make_still
from mtu.training.data.photographs import find_photographs
from mtu.training.data.textures import Photographs, Split
from mtu.training.options import DPDD, Options, Say

SHARP = 0.03
"""Share of the samples in which everything is sharp: they should come out as they are."""

MULTIPLE = 8
"""Height and width that are validated on are multiples of this."""


class Sample(NamedTuple):
    """A picture twice, and what else was seen at that moment; all uint8 [n, H, W, 3]."""

    blurred: Picture
    """n = 1."""
    sharp: Picture
    """n = 1."""
    views: Picture
    """n = 2: from the right and from the left half of the lens; 0 where they are not known."""


class StillBatch(NamedTuple):
    """B pictures, uint8."""

    blurred: Tensor
    """[B, 3, H, W]."""
    sharp: Tensor
    """[B, 3, H, W]."""
    views: Tensor
    """[2, B, 3, H, W], the right ones first, or [0, B, 3, H, W]."""


Draw = Callable[[np.random.Generator, int], Sample]
"""(random numbers, number of the batch) -> a picture at least as large as a crop."""


@dataclass(frozen=True)
class Stills(Source):
    """The batches of pictures."""

    options: Options
    draw: Draw
    has_views: bool

    def batch(self, number: int) -> StillBatch:
        """One of them. Raises what `draw` raises."""
        rng = np.random.default_rng((self.options.seed, number))
        parts = [cut(self.draw(rng, number), self.options.crop, rng) for _ in range(self.options.batch)]
        blurred, sharp, views = (
            torch.from_numpy(np.stack(planes, 1)).movedim(-1, 2).contiguous() for planes in zip(*parts, strict=True)
        )
        return StillBatch(blurred[0], sharp[0], views)


def cut(sample: Sample, crop: int, rng: np.random.Generator) -> Sample:
    """A random crop, mirrored and with its colours permuted at random; in `SHARP` of them everything is sharp.

    Views differ by a shift along the rows: with them a picture is not turned by a quarter, and in a mirror the right
    one is the left one.
    """
    height, width = sample.sharp.shape[1:3]
    corner = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
    turns, upside_down, mirrored = int(rng.integers(4)), rng.random() < 0.5, rng.random() < 0.5
    colours, sharp_already = rng.permutation(3), rng.random() < SHARP
    if len(sample.views):
        turns = 0
    sharp, blurred, views = (
        turned_part(part, corner, crop, turns, upside_down, mirrored)[..., colours]
        for part in (sample.sharp, sample.blurred, sample.views)
    )
    if sharp_already:
        blurred, views = sharp, sharp.repeat(len(views), 0)
    return Sample(blurred, sharp, views[::-1] if mirrored else views)


def of_made(still: DefocusedStill) -> Sample:
    """A made picture as a sample."""
    return Sample(still.blurred[None], still.sharp[None], np.stack((still.right, still.left)))


def made_stills(options: Options, photographs: Photographs | None = None) -> Made[Sample]:
    """Draws from made pictures without end; without photographs they are made of those that come with the maker."""
    return Made(options, functools.partial(_made, options.crop + batches.MARGIN, photographs))


def _made(side: int, photographs: Photographs | None, seed: int) -> Sample:
    return of_made(make_still(seed, side, side, photographs=photographs))


@dataclass(frozen=True)
class RecordedStills:
    """Draws from the pictures of a data set, each with the same chance."""

    stills: tuple[Still, ...]

    def __call__(self, rng: np.random.Generator, batch: int) -> Sample:
        """See `Draw`. Raises InvalidInputError for a picture that cannot be read."""
        return read_sample(self.stills[int(rng.integers(len(self.stills)))])


def read_sample(still: Still) -> Sample:
    """A picture of a data set. Raises InvalidInputError if it cannot be read."""
    sharp, blurred, *views = map(read_picture, still.paths)
    return Sample(blurred[None], sharp[None], np.stack(views) if views else np.empty((0, *sharp.shape), np.uint8))


def training_stills(options: Options, streams: int, say: Say = lambda text: None) -> Stills:
    """The batches of a run of a network that reads so many streams; photographs that cannot be used are named to `say`.

    Raises InvalidInputError or MissingFileError for a folder that cannot be used.
    """
    kind, folder, _ = options.sources[0]
    if kind != DPDD or folder is None:
        return Stills(options, made_stills(options, _photographs(folder, "train", say)), True)
    stills = _recorded(folder, "train", streams)
    for still, (height, width) in zip(stills, sizes_of_stills(stills), strict=True):
        if min(height, width) < options.crop:
            raise InvalidInputError(f"{still.sharp} is {width}x{height}: smaller than --crop {options.crop}")
    return Stills(options, RecordedStills(tuple(stills)), len(stills[0].streams) > 1)


def validation_stills(options: Options, streams: int, say: Say = lambda text: None) -> list[Sample]:
    """What a run is judged by: made pictures of the validation split, or the middle of pictures of DPDD's."""
    kind, folder, _ = options.sources[0]
    size, count = batches.VALIDATION_SIZE, batches.VALIDATION_CLIPS
    if kind != DPDD or folder is None:
        photographs = _photographs(folder, "validation", say)
        made = (make_still(seed, size, size, split="validation", photographs=photographs) for seed in range(count))
        return [of_made(still) for still in made]
    stills = spread(_recorded(folder, "val", streams), count)
    for still, sides in zip(stills, sizes_of_stills(stills), strict=True):
        if min(sides) < MULTIPLE:
            raise InvalidInputError(f"{still.sharp} is {sides[1]}x{sides[0]}: the least is {MULTIPLE}x{MULTIPLE}")
    return [Sample(*(_middle(part, 2 * size) for part in read_sample(still))) for still in stills]


def _middle(pictures: Picture, most: int) -> Picture:
    """The middle of pictures, at most so many pixels high and wide."""
    height, width = pictures.shape[1:3]
    h, w = (min(side // MULTIPLE * MULTIPLE, most) for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    return np.ascontiguousarray(pictures[:, top : top + h, left : left + w])


def _photographs(folder: Path | None, split: Split, say: Say) -> Photographs | None:
    return None if folder is None else find_photographs(folder, split, say)


def _recorded(folder: Path, split: PictureSplit, streams: int) -> list[Still]:
    """The pictures of a split of DPDD with the views, which a network that reads one picture can do without."""
    if streams == 1:
        alone = find_stills(DPDD, folder, split)
        home = alone[0].sharp.parents[2]
        if not any((home / FOLDERS[DPDD][view].format(split=split)).is_dir() for view in STREAMS[1:]):
            return alone
    return find_stills(DPDD, folder, split, STREAMS)
