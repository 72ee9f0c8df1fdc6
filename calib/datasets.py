"""Finds the frame pairs of the data sets for video deblurring and reads clips of them. Reads only, imports numpy, av.

The layouts are those of the unpacked archives, and for DVD and GoPro also the one of the paper's authors.
Sources: Su et al. 2017 (DVD), Nah et al. 2017 (GoPro: GOPRO_Large), Nah et al. 2019 (REDS) and the pages of the sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, MissingFileError, some
from mtu.runtime.video import read_picture
from mtu.runtime.video.pictures.files import list_pictures, natural_key
from mtu.runtime.video.pictures.header import read_header

Layout = Literal["dvd", "gopro", "reds"]
Split = Literal["train", "test"]
Crop = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)

DVD_TEST = frozenset(
    (
        *("720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031"),
        *("IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049"),
    )
)
"""The videos of DVD that are for testing, of which its archive says nothing. Source: the list of its authors."""

TREES: dict[Layout, str] = {
    "dvd": """\
  quantitative_datasets/IMG_0003/input/00000.jpg   blurred
  quantitative_datasets/IMG_0003/GT/00000.jpg      sharp
  or, already divided, train/ and test/ (or train_DVD/ and test_DVD/) instead of quantitative_datasets/""",
    "gopro": """\
  train/GOPR0372_07_00/blur_gamma/000047.png   blurred
  train/GOPR0372_07_00/sharp/000047.png        sharp
  and the same in test/ (train_nah/ and test_nah/ will do too); blur/, without gamma, is not used""",
    "reds": """\
  train/train_blur/000/00000000.png    blurred
  train/train_sharp/000/00000000.png   sharp
  and the same in val/val_blur/ and val/val_sharp/; each of the four may also lie in the folder itself""",
}
"""What a folder of each layout looks like, for messages."""

FRAMES = "all frames of a video, blurred and sharp,"
"""What must have one size, for messages."""

Folders = dict[str, tuple[Path, Path]]
"""The folders of blurred and of sharp frames of each video, by its name. One of the two may not exist."""


@dataclass(frozen=True)
class VideoPair:
    """A video twice: `blurred[i]` and `sharp[i]` are the files of the same frame, in order of time."""

    name: str
    blurred: tuple[Path, ...]
    sharp: tuple[Path, ...]


def find_pairs(
    layout: Layout, root: str | Path, split: Split, *, shortest: int = 1, option: str = "{layout}:{root}"
) -> list[VideoPair]:
    """The videos of a split in natural order of their names; `root` is the folder of the set or the one that holds it.

    For testing are the ten videos of DVD's published list, GoPro's test folder and the validation folder of REDS (the
    test folder of REDS has no sharp frames). The blurred frames of GoPro are those of blur_gamma, as in the paper.
    Frames belong together if their file names agree, endings aside; hidden files and files that are no pictures are
    ignored. No picture is opened. `option` is how a layout is asked for, for messages.

    Raises MissingFileError without the folder; InvalidInputError if it has another layout or holds several sets, has no
    videos of the split, a frame has no counterpart, or a video has fewer than `shortest` frames.
    """
    root = Path(root)
    if not root.exists():
        raise MissingFileError(f"{root} does not exist: give the folder that the {layout} data set was unpacked to")
    if not root.is_dir():
        raise InvalidInputError(f"{root} is a file: give the folder that the {layout} data set was unpacked to")
    folders = _locate(layout, root, split)
    if not folders:
        raise InvalidInputError(_why_none(layout, root, split, option))
    pairs = []
    single: list[Path] = []
    for name in sorted(folders, key=natural_key):
        blurred, sharp = (_frames(folder) for folder in folders[name])
        single += [path for stem, path in blurred.items() if stem not in sharp]
        single += [path for stem, path in sharp.items() if stem not in blurred]
        both = [stem for stem in blurred if stem in sharp]
        pairs.append(VideoPair(name, tuple(blurred[stem] for stem in both), tuple(sharp[stem] for stem in both)))
    if single:
        absent = [str(folder) for pair in folders.values() for folder in pair if not folder.is_dir()]
        why = f"; these folders are not there: {some(absent)}" if absent else ""
        raise InvalidInputError(
            f"{root}: {len(single)} frames have no counterpart: {some(map(str, single))}{why}. Unpack the archive"
            f" again or remove these frames; each must be there blurred and sharp, under one name:\n{TREES[layout]}"
        )
    short = [f"{pair.name} ({len(pair.sharp)})" for pair in pairs if len(pair.sharp) < shortest]
    if short:
        raise InvalidInputError(
            f"{root}: {len(short)} of {len(pairs)} videos have fewer than {shortest} frames, as many as are"
            f" needed: {some(short)}. Ask for shorter clips or remove these videos"
        )
    return pairs


def sizes_of(pairs: Iterable[VideoPair]) -> list[tuple[int, int]]:
    """Height and width of each video, by the headers of all its frames; no picture is decoded.

    Raises InvalidInputError if the frames of a video differ in size, or a header is damaged.
    """
    return [common_size((*pair.blurred, *pair.sharp), FRAMES) for pair in pairs]


def common_size(paths: Sequence[Path], together: str) -> tuple[int, int]:
    """Height and width of pictures that belong together, by their headers; `together` says for messages what they are.

    Raises InvalidInputError if they differ in size, or a header is damaged.
    """
    found = [(header.height, header.width) for header in map(read_header, paths)]
    for path, size in zip(paths, found, strict=True):
        if size != found[0]:
            raise InvalidInputError(_differs(path, size, paths[0], found[0], together))
    return found[0]


def read_clip(
    pair: VideoPair, start: int, frames: int, *, crop: Crop | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames `start` to `start + frames - 1`, blurred and sharp, each uint8 [frames, h, w, 3], RGB.

    `crop` is the part to keep, the whole picture without. Raises MissingFileError or InvalidInputError for a picture
    that cannot be read, pictures of different sizes, and frames or a crop that the video does not have.
    """
    if frames < 1 or not 0 <= start <= len(pair.sharp) - frames:
        raise InvalidInputError(
            f"{pair.name} has frames 0 to {len(pair.sharp) - 1}, asked for {frames} from frame {start} on"
        )
    size: tuple[int, int] | None = None
    parts = []
    for path in (*pair.blurred[start : start + frames], *pair.sharp[start : start + frames]):
        picture = read_picture(path)
        height, width = picture.shape[:2]
        size = size or (height, width)
        if size != (height, width):
            raise InvalidInputError(_differs(path, (height, width), pair.blurred[start], size, FRAMES))
        top, left, h, w = crop or (0, 0, height, width)
        if min(top, left) < 0 or min(h, w) < 1 or top + h > height or left + w > width:
            raise InvalidInputError(
                f"{path} is {width}x{height}: it has no part of {w}x{h} pixels at x {left}, y {top}; use a smaller crop"
            )
        parts.append(picture[top : top + h, left : left + w])
    return np.stack(parts[:frames]), np.stack(parts[frames:])


def _differs(path: Path, size: tuple[int, int], first: Path, wanted: tuple[int, int], together: str) -> str:
    return (
        f"{path} is {size[1]}x{size[0]}, but {first} is {wanted[1]}x{wanted[0]}: {together} must have one size;"
        " unpack the archive again"
    )


def _locate(layout: Layout, root: Path, split: Split) -> Folders:
    """The videos of a split in `root` or in the one folder in it that has some; empty if there are none."""
    find = {"dvd": _dvd, "gopro": _gopro, "reds": _reds}[layout]
    if videos := find(root, split):
        return videos
    inner = {folder.name: videos for folder in subfolders(root) if (videos := find(folder, split))}
    if len(inner) > 1:
        raise InvalidInputError(f"{root} holds several folders with {layout} videos: {some(inner)}. Give one of them")
    return next(iter(inner.values()), {})


def _dvd(root: Path, split: Split) -> Folders:
    for divided in (split, f"{split}_DVD"):
        if videos := _videos(root / divided, "input", "GT"):
            return videos
    videos = _videos(root / "quantitative_datasets", "input", "GT") or _videos(root, "input", "GT")
    return {name: pair for name, pair in videos.items() if (name in DVD_TEST) == (split == "test")}


def _gopro(root: Path, split: Split) -> Folders:
    return _videos(root / split, "blur_gamma", "sharp") or _videos(root / f"{split}_nah", "blur_gamma", "sharp")


def _reds(root: Path, split: Split) -> Folders:
    part = "train" if split == "train" else "val"
    # As the archives are unpacked in one folder, each in one of its own, or put side by side.
    candidates = [
        [root / part / name, root / name / part / name, root / name] for name in (f"{part}_blur", f"{part}_sharp")
    ]
    blurred, sharp = (next(filter(subfolders, choice), choice[0]) for choice in candidates)
    names = {folder.name for kind in (blurred, sharp) for folder in subfolders(kind)}
    return {name: (blurred / name, sharp / name) for name in names}


def _videos(folder: Path, blurred: str, sharp: str) -> Folders:
    """The subfolders that hold at least one of the folders `blurred` and `sharp`."""
    pairs = {video.name: (video / blurred, video / sharp) for video in subfolders(folder)}
    return {name: pair for name, pair in pairs.items() if pair[0].is_dir() or pair[1].is_dir()}


def subfolders(folder: Path) -> list[Path]:
    """Its folders by name, without hidden ones; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _frames(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name without ending, in natural order; none if it is not there."""
    paths = list_pictures(folder) if folder.is_dir() else []
    frames = {path.stem: path for path in paths}
    if len(frames) < len(paths):
        twice = [path.name for path in paths if frames[path.stem] != path]
        raise InvalidInputError(f"{folder} holds frames twice, with different endings: {some(twice)}. Keep one of each")
    return frames


def _why_none(layout: Layout, root: Path, split: Split, option: str) -> str:
    """What to say of a folder without videos of the split."""
    splits: tuple[Split, Split] = ("train", "test") if split == "train" else ("test", "train")
    tree = f"This is how {layout} is laid out:\n{TREES[layout]}"
    if _locate(layout, root, splits[1]):
        here = f"{root} has {layout} videos of the {splits[1]} split, but none of the {split} split"
        return f"{here}. Unpack those too. {tree}"
    alike = [each for each in LAYOUTS if each != layout and any(_locate(each, root, part) for part in splits)]
    hint = "Give another folder"
    if alike:
        hint = f"It looks like {' and '.join(alike)}: say {option.format(layout=alike[0], root=root)}"
    return f"{root} does not hold the data set {layout}. {hint}. {tree}"
