"""Makes clips of blurred and sharp frames of sharp footage: videos whose frames are averaged over an exposure.

Reads the videos of a user's folder, writes nothing. Imports OpenCV and PyAV when used. Source of the recipe: Nah et al.
2017 (GoPro) and Su et al. 2017 (DVD), who average the frames of a fast camera. Here light is linear, and where frames
are further apart than `SMALL` the ones between them are made, by the optical flow of `mtu.training.data.flow`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, MtuError
from mtu.runtime.scenes import SCENE_THRESHOLD, SceneDetector
from mtu.runtime.video import Frame, ReadOptions, Segment, open_reader
from mtu.training.data.camera import add_noise, compressed, to_linear, to_srgb
from mtu.training.data.flow import motion_between
from mtu.training.data.photographs import files_of_split
from mtu.training.data.scene import Clip
from mtu.training.data.textures import Array, Split, log_uniform, roughness

SUFFIXES = frozenset(
    (
        *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m"),
    )
)
"""Of files that are looked at; what is in them does not matter."""

SMALL = 1.25
"""Pixels between two frames up to which their mean shows no double edges."""

LARGE = 24.0
"""Pixels between two frames from which on what lies between them cannot be made."""

KNOWN = 0.7
"""Share of the pixels whose motion has to be known."""

STRIDES = (1, 2, 3, 4, 6)
"""Frames of the footage from one frame of a clip to the next."""

TRIES = 100
"""Places of the footage that are tried for a clip: so many that a long run does not end because few are of use."""


@dataclass(frozen=True)
class Footage:
    """The videos that clips are cut from."""

    paths: tuple[Path, ...]


def find_footage(
    root: Path, split: Split, frames: int, side: int, say: Callable[[str], None] = lambda text: None
) -> Footage:
    """The videos of a split in `root` and the folders in it, for clips of so many frames and pixels a side.

    Split as by `find_photographs`. The beginning of every video is read; those that cannot be, or are too short or too
    small, are left out and named to `say`. Raises MissingFileError without the folder, InvalidInputError without any.
    """
    paths, least = files_of_split(root, split, "videos", SUFFIXES, say), _needed(frames, 1)
    usable = tuple(path for path in paths if _is_usable(path, least, side, say))
    if not usable:
        raise InvalidInputError(
            f"{root} has no videos for {split}: give a folder with at least two of {least} frames and {side} pixels or"
            f" more ({' '.join(sorted(SUFFIXES))}), or with the folders train/ and validation/"
        )
    return Footage(usable)


def _is_usable(path: Path, frames: int, side: int, say: Callable[[str], None]) -> bool:
    try:
        found, (height, width), _ = _read(path, 0.0, frames, lambda picture: picture[:1, :1])
    except MtuError as error:
        say(f"left out: {error}")
        return False
    if len(found) < frames:
        say(f"left out: {path} has {len(found)} frames before its first cut, fewer than the {frames} for a clip")
    elif min(height, width) < side:
        say(f"left out: {path} is {width}x{height}, smaller than {side} pixels")
    return len(found) >= frames and min(height, width) >= side


def _needed(frames: int, stride: int) -> int:
    """Frames of the footage that a clip takes; the first and the last are exposed for as long as the others."""
    return stride * (frames - 1) + 2 * math.ceil(stride / 2) + 1


Pictures = NDArray[np.uint8]


def _read(
    path: Path, start: float, most: int, part: Callable[[Pictures], Pictures]
) -> tuple[list[Pictures], tuple[int, int], float]:
    """The `part` of at most so many frames from a time in seconds on, up to a cut; height and width of the frames; and
    how long the video is, 0 if nobody knows."""
    found: list[Pictures] = []
    detector = SceneDetector(SCENE_THRESHOLD)
    with open_reader(str(path), ReadOptions(segment=Segment(start) if start else None)) as reader:
        info = reader.info
        for frame in reader:
            if isinstance(frame, Frame):
                if detector.is_cut(frame.rgb):
                    break
                found.append(part(frame.rgb).copy())
                if len(found) == most:
                    break
    if not found:
        raise InvalidInputError(f"{path} has no frame that can be decoded" + (f" after {start:.1f} s" if start else ""))
    return found, (info.height, info.width), start + float((info.frame_count or 0) / info.rate)


def footage_clip(seed: int, frames: int, height: int, width: int, footage: Footage) -> Clip:
    """A clip of `frames` frames of height x width pixels (sides of at least 8), the same for the same arguments.

    A place is drawn, how much of the picture is reduced to the clip, how many frames of the footage there are from one
    of the clip to the next, and how long the shutter is open. Raises InvalidInputError where `TRIES` places have no
    motion that is small enough to follow, or a file cannot be read.
    """
    rng = np.random.default_rng((seed, 0xF007A6E))
    for _ in range(TRIES):
        path = footage.paths[int(rng.integers(len(footage.paths)))]
        stride, shutter = int(rng.choice(STRIDES)), float(rng.uniform(0.3, 1))
        place, reduced, places = rng.random(), log_uniform(rng, 1, 3), rng.random((4, 2))
        new_part = functools.partial(_Part, height, width, reduced, places)
        found = _read_somewhere(path, place, (_needed(frames, 1), _needed(frames, stride)), new_part)
        stride = max((each for each in STRIDES if each <= stride and _needed(frames, each) <= len(found)), default=0)
        if not stride:
            continue
        pictures = np.stack(found[: _needed(frames, stride)])
        motion = motion_between(pictures)
        steps = _steps(motion)
        if steps is None:
            continue
        light = [to_linear(picture.astype(np.float32) / np.float32(255)) for picture in pictures]
        middles = [math.ceil(stride / 2) + stride * t for t in range(frames)]
        exposed = np.stack([_exposed(light, motion, middle, stride * shutter, steps) for middle in middles])
        return _developed(exposed, pictures[middles], rng)
    raise InvalidInputError(
        f"{footage.paths[0].parent}: at {TRIES} places drawn at random the frames of a scene are too few, or move more"
        f" than {LARGE:g} pixels from one to the next: use footage of a faster camera"
    )


def _read_somewhere(path: Path, place: float, wanted: tuple[int, int], new_part: Callable[[], _Part]) -> list[Pictures]:
    """As many frames as wanted, least and most, from a place in [0, 1) of a video on; from its beginning where there
    are too few before the next cut."""
    (least, most), seconds, found = wanted, _seconds(path), list[Pictures]()
    if seconds:
        with contextlib.suppress(InvalidInputError):  # how long it is was an estimate
            found, _, _ = _read(path, place * seconds, most, new_part())
    return found if len(found) >= least else _read(path, 0.0, most, new_part())[0]


@functools.lru_cache(1000)
def _seconds(path: Path) -> float:
    """How long a video is, 0 if nobody knows."""
    return _read(path, 0.0, 1, lambda picture: picture[:1, :1])[2]


class _Part:
    """Cuts the same part out of every picture, [height, width, 3]: where the first one has most texture, of several
    places drawn at random."""

    def __init__(self, height: int, width: int, reduced: float, places: NDArray[np.float64]) -> None:
        """`reduced` is how much larger the part is before it is reduced, `places` [N, 2] are in [0, 1)."""
        self._size, self._reduced, self._places = (height, width), reduced, places
        self._box: tuple[slice, slice] | None = None

    def __call__(self, picture: Pictures) -> Pictures:
        import cv2

        if self._box is None:
            self._box = self._choose(picture)
        part = np.ascontiguousarray(picture[self._box])
        if part.shape[:2] == self._size:
            return part
        reduced: Any = cv2.resize(part, self._size[::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(reduced, np.uint8)

    def _choose(self, picture: Pictures) -> tuple[slice, slice]:
        sides, times = picture.shape[:2], self._reduced
        times = min(times, *(have / want for have, want in zip(sides, self._size, strict=True)))
        part = [min(have, round(want * times)) for have, want in zip(sides, self._size, strict=True)]
        starts = (self._places * (np.array(sides) - part + 1)).astype(int)
        boxes = [(slice(y, y + part[0]), slice(x, x + part[1])) for y, x in starts.tolist()]
        return max(boxes, key=lambda box: roughness(picture[box]))


def _steps(motion: NDArray[np.float16]) -> int | None:
    """How many instants there have to be from one frame to the next; None where they cannot be made."""
    steps = 1
    for field in motion[1:]:
        known = np.isfinite(field).all(-1)
        moved = float(np.percentile(np.hypot(*field[known].astype(np.float32).T), 95)) if known.any() else LARGE
        if known.mean() < KNOWN or moved >= LARGE:
            return None
        steps = max(steps, math.ceil(moved / SMALL))
    return steps


def _exposed(light: list[Array], motion: NDArray[np.float16], middle: int, length: float, steps: int) -> Array:
    """The mean light of an exposure of so many frames around the middle one."""
    reach = min(math.floor(steps * length / 2), steps * middle, steps * (len(light) - 1 - middle))
    instants = range(steps * middle - reach, steps * middle + reach + 1)
    total = np.zeros_like(light[middle])
    for instant in instants:
        number, part = divmod(instant, steps)
        total += _between(light, motion, number, part / steps) if part else light[number]
    return total / np.float32(len(instants))


def _between(light: list[Array], motion: NDArray[np.float16], number: int, part: float) -> Array:
    """What lies between frame `number` and the next one, `part` of the way."""
    import cv2

    field = _filled(motion[number + 1])
    height, width = field.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    result: Array = np.zeros_like(light[number])
    for picture, way in ((light[number], part), (light[number + 1], part - 1)):
        weight = 1 - abs(way)
        from_x, from_y = x + np.float32(way) * field[..., 1], y + np.float32(way) * field[..., 0]
        moved: Any = cv2.remap(picture, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        result += np.float32(weight) * moved
    return result


def _filled(field: NDArray[np.float16]) -> Array:
    """A motion field [H, W, 2] whose unknown parts get the mean of what is known around them."""
    import cv2

    known: NDArray[np.bool_] = np.asarray(np.isfinite(field).all(-1))
    values = np.where(known[..., None], field, 0).astype(np.float32)
    filled, missing, reach = values.copy(), np.logical_not(known), 5
    while missing.any() and known.any():
        sums: Any = cv2.blur(values, (reach, reach))
        weights: Any = cv2.blur(known.astype(np.float32), (reach, reach))
        there = missing & (weights > 1e-6)
        filled[there] = sums[there] / weights[there][:, None]
        missing = missing & ~there
        reach = 2 * reach + 1
    return filled


def _developed(exposed: Array, sharp: Pictures, rng: np.random.Generator) -> Clip:
    """A clip of linear light [T, H, W, 3] and sharp pictures: with noise, as sRGB, some of it compressed."""
    noise = float(rng.uniform(0, 1.5))
    crf = int(rng.integers(16, 31)) if rng.random() < 0.2 else None
    for light in exposed:
        add_noise(light, noise, rng)
    blurred = np.rint(255 * to_srgb(exposed)).astype(np.uint8)
    return Clip(blurred if crf is None else compressed(blurred, crf), sharp, motion_between(sharp))
