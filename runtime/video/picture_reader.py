"""Reading pictures as a video: a directory of them in natural order, or a single one.

Reads only the files it is given and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mtu.models.errors import InvalidInputError
from mtu.runtime.video.colour import colour_of
from mtu.runtime.video.images import decode_image
from mtu.runtime.video.reader import Frame, Reader, ReadOptions, picture_notes

PICTURE_RATE = Fraction(25)
"""Pictures per second of a directory of images, which has no timing of its own."""


class PictureReader(Reader):
    """A directory of pictures, or one picture, as a video of `PICTURE_RATE` frames per second."""

    def __init__(self, source: str, paths: list[Path], options: ReadOptions) -> None:
        self.source, self.segment = source, options.segment
        segment = options.segment
        if options.video_stream:
            raise InvalidInputError(f"{source} is made of pictures and has no video streams: leave out --video-stream")
        self.time_base, self.average_rate = 1 / PICTURE_RATE, PICTURE_RATE
        paths = [path for index, path in enumerate(paths) if segment is None or segment.holds(index / PICTURE_RATE)]
        if not paths:
            raise InvalidInputError(f"{source} has no pictures in segment {segment} (at {PICTURE_RATE} per second)")
        self._paths = paths
        stems = tuple(path.stem for path in paths)
        self.stems = stems if len(set(stems)) == len(stems) else tuple(path.name for path in paths)
        self.frame_count = len(paths)
        self.remarks, self.covers = [], {}
        picture, self._first = decode_image(paths[0])
        self.height, self.width = self._first.shape[:2]
        self.colour, notes = colour_of(picture)
        self.notes = picture_notes(picture, notes)
        self.pix_fmt = picture.format.name

    def __iter__(self) -> Iterator[Frame]:
        """The pictures. Raises InvalidInputError if one has another size or cannot be read."""
        for index, path in enumerate(self._paths):
            rgb = self._first if index == 0 else decode_image(path)[1]
            if rgb.shape[:2] != (self.height, self.width):
                raise InvalidInputError(
                    f"{path} is {rgb.shape[1]}x{rgb.shape[0]}, but {self._paths[0].name} is "
                    f"{self.width}x{self.height}: all pictures of a directory must have one size"
                )
            yield Frame(rgb, index, self.time_base, 1)
