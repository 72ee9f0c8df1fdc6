"""Reading animated WebP, of which FFmpeg (8.1) decodes no frame: its file is taken apart here, its frames by FFmpeg.

Reads only the file it is given, whole, and writes nothing. Source: RFC 9649, sections 2.5 to 2.7.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import Pixels, ToRGB, colour_of
from mtu.runtime.video.pictures.files import decode_data
from mtu.runtime.video.pictures.header import Header, webp_chunks
from mtu.runtime.video.properties import carried_by, has_alpha, picture_notes
from mtu.runtime.video.source import Frame, Reader, ReadOptions, SourceInfo
from mtu.runtime.video.timing import Segment

_TICK = Fraction(1, 1000)
_SHORTEST, _INSTEAD = 10, 100
"""A frame of at most so many milliseconds is shown for 100, as in browsers."""


@dataclass(frozen=True)
class _Part:
    """A frame of the file: a picture for a part of the canvas."""

    left: int
    top: int
    time: int
    """Milliseconds."""
    duration: int
    over: bool
    """Whether it is laid over what is there by its alpha, instead of replacing it."""
    cleared: bool
    """Whether its part of the canvas is cleared after it was shown."""
    data: bytes
    """A still WebP file."""


class AnimatedWebPReader(Reader):
    """An animated WebP. Its frames are laid over each other, on black where nothing is."""

    def __init__(self, source: str, header: Header, options: ReadOptions) -> None:
        self._source, self._segment, self.remarks = source, options.segment or Segment(), []
        if options.rate is not None:
            raise InvalidInputError(f"--rate is for pictures, which have no times; {source} has its own: leave it out")
        if options.deinterlace:
            raise InvalidInputError(f"{source} is not interlaced: leave out --deinterlace")
        if options.video_stream:
            raise InvalidInputError(f"{source} has one video stream: leave out --video-stream")
        # RGB and how much of it can be seen.
        self._canvas = np.zeros((header.height, header.width, 4), np.uint8)
        self._broken = 0
        self._parts, self._cut = _parts(Path(source).read_bytes())
        length = sum(part.duration for part in self._parts)
        count = sum(self._segment.holds(part.time * _TICK) for part in self._parts)
        frames = self._compose()
        first = next(frames, None)
        if first is None and count:
            raise InvalidInputError(f"{source}: not one picture could be decoded ({self._broken} are damaged)")
        if first is None:
            lasts = f"it lasts {length / 1000:g} s"
            raise InvalidInputError(f"{source} has no pictures in segment {options.segment}: {lasts}")
        self._frames = chain([first], frames)
        # Frames often have an alpha channel where nothing can be seen through.
        colour, notes = colour_of(self._opening)
        notes = picture_notes(self._opening, notes, carried_by(self._opening), alpha=False) + self.remarks
        last = self._parts[-1]
        notes += self._segment.notes(last.time * _TICK, last.duration * _TICK)
        self.remarks = []
        self.info = SourceInfo(
            name=source,
            width=header.width,
            height=header.height,
            time_base=_TICK,
            average_rate=Fraction(len(self._parts) * 1000, length) if self._parts else None,
            frame_count=count,
            colour=colour,
            pix_fmt=self._opening.format.name,
            origin=first.pts * _TICK if options.segment is not None else Fraction(0),
            segment=options.segment,
            notes=tuple(notes),
            loops=header.loops,
        )

    def _compose(self) -> Iterator[Frame]:
        opened = transparent = False
        for part in self._parts:
            if self._segment.past(part.time * _TICK):
                return
            try:
                picture = decode_data("webp", part.data)
                rgb, alpha = _pixels(picture)
                area = self._canvas[part.top : part.top + rgb.shape[0], part.left : part.left + rgb.shape[1]]
                _lay(area, rgb, alpha, part.over)
            except (av.FFmpegError, ValueError):
                self._broken += 1
                continue
            if not opened:
                self._opening, opened = picture, True
            if not transparent and self._canvas[..., 3].min() < 255:
                transparent = True
                self.remarks.append("transparent parts are shown on black")
            if self._segment.holds(part.time * _TICK):
                yield Frame(self._canvas[..., :3].copy(), part.time, _TICK, part.duration)
            if part.cleared:
                area[:] = 0

    def __iter__(self) -> Iterator[Frame]:
        yield from self._frames
        lost = [f"{self._broken} pictures were damaged and are left out"] if self._broken else []
        lost += ["the file was cut off"] if self._cut else []
        if lost:
            self.damage = f"{self._source}: {'; '.join(lost)}"


def _parts(data: bytes) -> tuple[list[_Part], bool]:
    """The frames of a file, and whether its end is missing."""
    parts: list[_Part] = []
    time, file = 0, io.BytesIO(data)
    for name, size in webp_chunks(file):
        if name != b"ANMF":
            continue
        content = file.read(size)
        left, top, width, height, duration = (int.from_bytes(content[at : at + 3], "little") for at in range(0, 15, 3))
        duration = duration if duration > _SHORTEST else _INSTEAD
        flags = content[15] if len(content) > 15 else 0
        still = _still(content[16:], width, height)
        parts.append(_Part(2 * left, 2 * top, time, duration, not flags & 2, bool(flags & 1), still))
        time += duration
    return parts, len(data) < int.from_bytes(data[4:8], "little") + 8


def _still(content: bytes, width: int, height: int) -> bytes:
    """A frame's chunks as a file of their own; the sides are one less than they are, as WebP stores them."""
    sides = width.to_bytes(3, "little") + height.to_bytes(3, "little")
    extended = b"VP8X\x0a\0\0\0\x10\0\0\0" + sides if content.startswith(b"ALPH") else b""
    body = b"WEBP" + extended + content
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _pixels(picture: av.VideoFrame) -> tuple[Pixels, Pixels | None]:
    """RGB, and alpha [H, W, 1] if there is any."""
    rgb = ToRGB(colour_of(picture)[0])(picture)
    if not has_alpha(picture):
        return rgb, None
    return rgb, np.ascontiguousarray(picture.reformat(format="rgba").to_ndarray()[:, :, 3:])


def _lay(area: Pixels, rgb: Pixels, alpha: Pixels | None, over: bool) -> None:
    """Lays a picture onto its place of the canvas, whose colours are those over black."""
    if alpha is None:
        area[..., :3], area[..., 3] = rgb, 255
        return
    share = alpha.astype(np.uint16)
    opaque = np.concatenate((rgb, np.full_like(alpha, 255)), 2)
    area[:] = (opaque * share + (area * (255 - share) if over else 0) + 127) // 255
