"""Reading pictures as a video: a directory of them in natural order, or a single one.

The headers of all of them are read before the first is decoded, and each is decoded once. Reads only the files it is
given and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av

from mtu.core.errors import InvalidInputError, MtuError, some
from mtu.runtime.video.colour import Pixels, colour_of
from mtu.runtime.video.pictures.files import decode_picture
from mtu.runtime.video.pictures.header import Header, read_header
from mtu.runtime.video.properties import carried_by, picture_notes
from mtu.runtime.video.source import USUAL_RATE, Frame, Reader, ReadOptions, SourceInfo


class PictureReader(Reader):
    """A directory of pictures, or one picture, as a video of `ReadOptions.rate` pictures per second."""

    def __init__(self, source: str, paths: list[Path], options: ReadOptions) -> None:
        self._source, segment = source, options.segment
        if options.deinterlace:
            raise InvalidInputError(f"{source} is made of pictures, which are not interlaced: leave out --deinterlace")
        if options.video_stream:
            raise InvalidInputError(f"{source} is made of pictures and has no video streams: leave out --video-stream")
        rate = options.rate or USUAL_RATE
        self._time_base = 1 / rate
        late = [] if segment is None else segment.notes((len(paths) - 1) / rate, self._time_base)
        paths = [path for index, path in enumerate(paths) if segment is None or segment.holds(index / rate)]
        if not paths:
            raise InvalidInputError(f"{source} has no pictures in segment {segment} (at {float(rate):g} per second)")
        self._paths = paths
        stems = tuple(path.stem for path in paths)
        self.remarks = []
        self._partly: list[str] = []
        self._left_out: list[str] = []
        self._headers = _checked(source, paths)
        self._pictures = self._decode_all()
        first = next(self._pictures, None)
        if first is None:
            raise InvalidInputError(f"{source}: not one picture could be decoded ({self._left_out[0]})")
        self._first, picture = first
        height, width = self._first.rgb.shape[:2]
        self.info = SourceInfo(
            name=source,
            width=width,
            height=height,
            time_base=self._time_base,
            average_rate=rate,
            frame_count=len(paths),
            colour=colour_of(picture)[0],
            pix_fmt=picture.format.name,
            segment=segment,
            notes=(*_pages(paths, self._headers), *self.remarks, *late),
            stems=stems if len(set(stems)) == len(stems) else tuple(path.name for path in paths),
        )
        self.remarks = []

    def _decode_all(self) -> Iterator[tuple[Frame, av.VideoFrame]]:
        """Frames with their pictures as decoded; what is new of a picture is added to the remarks."""
        known: set[str] = set()
        for index, (path, header) in enumerate(zip(self._paths, self._headers, strict=True)):
            found = self._decode(path)
            if found is None:
                continue
            picture, rgb = found
            notes = [note for note in _notes(picture, header) if note not in known]
            self.remarks += [f"{path.name}: {note}" if known or index else note for note in notes]
            known.update(notes)
            yield Frame(rgb, index, self._time_base, 1), picture

    def _decode(self, path: Path) -> tuple[av.VideoFrame, Pixels] | None:
        """A picture, as far as it can be had; None if it cannot."""
        try:
            return decode_picture(path)
        except MtuError as error:  # MissingFileError: it was there a moment ago
            try:
                partly = decode_picture(path, damaged=True)
            except MtuError:
                self._left_out.append(str(error))
                return None
            self._partly.append(path.name)
            return partly

    def __iter__(self) -> Iterator[Frame]:
        """The pictures that can be decoded. Raises InvalidInputError if one has not the size that its header says."""
        yield self._first
        for frame, _ in self._pictures:
            if frame.rgb.shape != self._first.rgb.shape:
                height, width = frame.rgb.shape[:2]
                other = [(self._paths[frame.pts], (width, height))]
                raise InvalidInputError(_sizes_differ(other, self._paths[0], (self.info.width, self.info.height)))
            yield frame
        lost = []
        if self._left_out:
            lost.append(f"{len(self._left_out)} of {len(self._paths)} pictures are left out: {some(self._left_out)}")
        if self._partly:
            lost.append(f"{len(self._partly)} pictures are damaged, and kept as far as they go: {some(self._partly)}")
        if lost:
            self.damage = f"{self._source}: {'; '.join(lost)}"


def _checked(source: str, paths: list[Path]) -> list[Header]:
    """The headers of all pictures. Raises InvalidInputError naming those that are damaged or of another size."""
    headers, bad = [], []
    for path in paths:
        try:
            headers.append(read_header(path))
        except MtuError as error:
            bad.append(str(error))
    if bad:
        count = f"{len(bad)} of {len(paths)} pictures cannot be read: " if len(paths) > 1 else ""
        raise InvalidInputError(f"{count}{some(bad)}{'; remove or replace them' if count else ''}")
    if animated := [path.name for path, header in zip(paths, headers, strict=True) if header.animated]:
        raise InvalidInputError(f"{source} holds animations ({some(animated)}): give each by itself, as a video")
    size = headers[0].width, headers[0].height
    pairs = [(path, (header.width, header.height)) for path, header in zip(paths, headers, strict=True)]
    if other := [pair for pair in pairs if pair[1] != size]:
        raise InvalidInputError(_sizes_differ(other, paths[0], size))
    return headers


def _sizes_differ(other: list[tuple[Path, tuple[int, int]]], first: Path, size: tuple[int, int]) -> str:
    named = some([f"{path.name} is {width}x{height}" for path, (width, height) in other])
    return (
        f"{first.parent}: {named}, but {first.name} is {size[0]}x{size[1]}: all pictures of a directory must have "
        "one size; scale or remove the others"
    )


def _notes(picture: av.VideoFrame, header: Header) -> list[str]:
    # FFmpeg gives CMYK as RGB with an alpha channel that hides nothing.
    notes = picture_notes(picture, colour_of(picture)[1], carried_by(picture), alpha=not header.cmyk)
    if header.cmyk:
        notes.append("the source is CMYK: converted to RGB without its colour profile")
    return notes


def _pages(paths: list[Path], headers: list[Header]) -> list[str]:
    several = [f"{path.name} ({header.pages})" for path, header in zip(paths, headers, strict=True) if header.pages > 1]
    if not several:
        return []
    return [f"files with several pages or pictures, of which only the first is read: {some(several)}"]
