"""Finds the photographs in a user's folder for made clips. Reads only; imports numpy and av."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError
from mtu.runtime.video import read_picture
from mtu.runtime.video.pictures.files import PICTURE_SUFFIXES, is_named_as_picture, natural_key
from mtu.training.data.textures import Photographs, Split

SHARE = 0.8
"""Of the textures that are parts of photographs, where a user gives some."""

SMALLEST = 256
"""Pictures with a shorter side in pixels are left out: little of them would be left of the same sharpness."""

HELD_OUT = 10
"""One in so many photographs is for validation, where the folder is not divided."""


def find_photographs(root: Path, split: Split, say: Callable[[str], None] = lambda text: None) -> Photographs:
    """The photographs of a split in `root` and the folders in it, in natural order of their paths.

    A folder with `train/` and `validation/` is divided already; of any other, every tenth is for validation, the first
    one among them. Hidden files and folders are ignored. Every file is read once; those that cannot be read or are too
    small are left out and named to `say`. Raises MissingFileError without the folder, InvalidInputError without
    photographs or if the folder may not be entered.
    """
    paths = files_of_split(root, split, "photographs", PICTURE_SUFFIXES, say)
    paths = [path for path in paths if _is_usable(path, say)]
    if not paths:
        raise InvalidInputError(
            f"{root} has no photographs for {split}: give a folder with at least two pictures of {SMALLEST} pixels or"
            f" more ({' '.join(sorted(PICTURE_SUFFIXES))}), or with the folders train/ and validation/"
        )
    return Photographs(tuple(paths), SHARE)


def files_of_split(
    root: Path, split: Split, what: str, suffixes: Collection[str], say: Callable[[str], None]
) -> list[Path]:
    """See `find_photographs`: the files with one of these endings, `what` in words. Raises MissingFileError."""
    try:
        if not root.is_dir():
            reason = "is a file" if root.exists() else "does not exist"
            raise MissingFileError(f"{root} {reason}: give the folder with the {what}")
        divided = (root / "train").is_dir() and (root / "validation").is_dir()
    except PermissionError as error:
        raise InvalidInputError(f"{error.filename} cannot be read: {error.strerror}") from None

    def unreadable(error: OSError) -> None:
        say(f"left out: {error.filename} cannot be read: {error.strerror}")

    found = list[Path]()
    for folder, folders, names in os.walk(root / split if divided else root, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in names if is_named_as_picture(path := Path(folder) / name, suffixes)]
    found.sort(key=lambda path: (natural_key(str(path)), path))
    if divided:
        return found
    return [path for number, path in enumerate(found) if (number % HELD_OUT == 0) == (split == "validation")]


def _is_usable(path: Path, say: Callable[[str], None]) -> bool:
    # Its header would say the size, but not the damage behind it, at which a training would end.
    try:
        height, width = read_picture(path).shape[:2]
    except MtuError as error:
        say(f"left out: {error}")
        return False
    if min(height, width) < SMALLEST:
        say(f"left out: {path} is {width}x{height}, smaller than {SMALLEST} pixels")
        return False
    return True
