"""Finds the pictures of the data sets for defocus deblurring. Reads only, imports numpy, av.

A picture has no neighbours in time; what it may have is other views of the same moment, from a dual-pixel sensor.
Sources: Abuolaim and Brown 2020 (DPDD: dd_dp_dataset_png) and Lee et al. 2021 (RealDOF), and the released loaders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mtu.calib.datasets import common_size, subfolders
from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.runtime.video.pictures.files import list_pictures

PictureLayout = Literal["dpdd", "realdof"]
PictureSplit = Literal["train", "val", "test"]

PICTURE_LAYOUTS: tuple[PictureLayout, ...] = get_args(PictureLayout)

FOLDERS: Mapping[PictureLayout, Mapping[str, str]] = {
    "dpdd": {
        "sharp": "{split}_c/target",
        "image": "{split}_c/source",
        "right": "{split}_r/source",
        "left": "{split}_l/source",
    },
    "realdof": {"sharp": "target", "image": "source"},
}
"""Where the sharp pictures are, and those of each stream."""
TREES: Mapping[PictureLayout, str] = {
    "dpdd": """\
  test_c/source/1P0A0917.png   blurred
  test_c/target/1P0A0916.png   sharp
  test_l/source/ and test_r/source/   the views of the left and the right half of each pixel, for models that read them
  and the same with train_ and val_ for test_""",
    "realdof": """\
  source/001.png   blurred
  target/001.png   sharp""",
}
"""What a folder of each layout looks like, for messages."""


@dataclass(frozen=True)
class Still:
    """A picture of which the sharp one is known."""

    name: str
    """File name of the blurred one, without its ending."""
    sharp: Path
    streams: Mapping[str, Path]
    """What a model reads, by name of the stream."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files, the sharp one first."""
        return (self.sharp, *self.streams.values())


def find_stills(
    layout: PictureLayout, root: str | Path, split: PictureSplit = "test", streams: Sequence[str] = ("image",)
) -> list[Still]:
    """The pictures of a split with these streams, in order of their names; `root` is the folder of the set or the one
    that holds it.

    Which belong together is said by that order, as in the released loaders: in DPDD a sharp picture has another name
    than the blurred one. RealDOF is all for testing. No picture is opened. Raises MissingFileError without the folder;
    InvalidInputError if it has another layout, if there are not as many pictures of each kind, or for a stream that the
    set has not.
    """
    root = Path(root)
    if not root.is_dir():
        reason = "is a file" if root.exists() else "does not exist"
        raise MissingFileError(f"{root} {reason}: give the folder that the {layout} data set was unpacked to")
    if lacking := [stream for stream in streams if stream not in FOLDERS[layout]]:
        has = ", ".join(name for name in FOLDERS[layout] if name != "sharp")
        raise InvalidInputError(
            f"the model reads {', '.join(streams)}, and {layout} has no {' and no '.join(lacking)} (it has {has}): use"
            " another data set, or a model that reads one picture"
        )
    tree = f"This is how {layout} is laid out:\n{TREES[layout]}"
    below = {kind: FOLDERS[layout][kind].format(split=split) for kind in ("sharp", *streams)}
    for other in PICTURE_LAYOUTS:  # a part of DPDD is laid out as RealDOF is
        if other != layout and (root / FOLDERS[other]["image"].format(split=split)).is_dir():
            raise InvalidInputError(f"{root} looks like {other}, and not like {layout}: give that layout. {tree}")
    homes = [
        each
        for each in (root, *subfolders(root))
        if (each / below["sharp"]).is_dir() or (each / below["image"]).is_dir()
    ]
    if not homes or (len(homes) > 1 and homes[0] != root):
        what = f"holds several folders with {layout}" if homes else f"does not hold the {split} pictures of {layout}"
        raise InvalidInputError(f"{root} {what}. Give another folder. {tree}")
    found = {kind: _pictures(homes[0] / folder) for kind, folder in below.items()}
    counts = {kind: len(paths) for kind, paths in found.items()}
    if not all(counts.values()) or len(set(counts.values())) > 1:
        said = ", ".join(f"{below[kind]} {count}" for kind, count in counts.items())
        raise InvalidInputError(
            f"{homes[0]} has not as many pictures of each kind: {said}. They belong together by their order, so none"
            f" may lack: unpack the archive again. {tree}"
        )
    return [
        Still(found["image"][number].stem, sharp, {stream: found[stream][number] for stream in streams})
        for number, sharp in enumerate(found["sharp"])
    ]


def sizes_of_stills(stills: Iterable[Still]) -> list[tuple[int, int]]:
    """Height and width of each picture, by the headers of its files; no picture is decoded.

    Raises InvalidInputError if its files differ in size, or a header is damaged.
    """
    return [common_size(still.paths, "a picture, its views and the sharp one") for still in stills]


def _pictures(folder: Path) -> list[Path]:
    return list_pictures(folder) if folder.is_dir() else []
