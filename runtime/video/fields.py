"""Interlaced pictures: which field comes first, marking results the same way, and deinterlacing.

PyAV shows of a picture only that it is interlaced; the rest goes through FFmpeg's filters. Opens no files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import av
from av.video.codeccontext import VideoCodecContext

from mtu.runtime.video.filters import Filter

Fields = Literal["progressive", "tff", "bff"]
"""Both fields of a picture are of one time, or its top or bottom field comes first."""
_ORDERS: tuple[Fields, ...] = ("progressive", "tff", "bff")


class FieldOrder:
    """Tells which field of a picture comes first. Not for two threads at once."""

    def __init__(self) -> None:
        self._filter = Filter("select", "1+interlace_type:n=3", 3)

    def __call__(self, picture: av.VideoFrame) -> Fields:
        """The order of a picture's fields."""
        if not picture.interlaced_frame:
            return "progressive"
        self._filter.push(picture)
        found = self._filter.pull()
        return "progressive" if found is None else _ORDERS[found[0]]


class FieldMarker:
    """Marks pictures as interlaced. Not for two threads at once."""

    def __init__(self) -> None:
        self._filters = {order: Filter("setfield", order[:4]) for order in _ORDERS}

    def __call__(self, picture: av.VideoFrame, fields: Fields) -> av.VideoFrame:
        """The picture, marked; its times and pixels are the same."""
        work = self._filters[fields]
        work.push(picture)
        found = work.pull()
        assert found is not None
        return _timed_as(found[1], picture)


class Deinterlacer:
    """Makes interlaced pictures progressive with bwdif: one in, one out. `count` says how many there were."""

    def __init__(self) -> None:
        self.count = 0
        self._filter = Filter("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._waiting: deque[av.VideoFrame] = deque()

    def __call__(self, events: Iterable[Any]) -> Iterator[Any]:
        """The pictures of a stream, deinterlaced; everything else passes."""
        for event in events:
            if not isinstance(event, av.VideoFrame):
                yield event
                continue
            self.count += event.interlaced_frame
            if self._waiting and not self._filter.fits(event):
                yield from self._ready(None)
            self._waiting.append(event)
            yield from self._ready(event)
        if self._waiting:
            yield from self._ready(None)

    def _ready(self, picture: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """What the filter gives when it gets a picture, or the end."""
        self._filter.push(picture)
        while (found := self._filter.pull()) is not None:
            yield _timed_as(found[1], self._waiting.popleft())


def _timed_as(picture: av.VideoFrame, source: av.VideoFrame) -> av.VideoFrame:
    """The picture with the times and the colour tags of another: a filter may have dropped them."""
    picture.pts, picture.duration = source.pts, source.duration
    if source.time_base is not None:
        picture.time_base = source.time_base
    if not picture.format.is_rgb:
        picture.colorspace, picture.color_range = source.colorspace, source.color_range
        picture.color_primaries, picture.color_trc = source.color_primaries, source.color_trc
    return picture


def marks_fields(encoder: VideoCodecContext, fields: Fields) -> bool:
    """Whether an encoder, set up but not open, keeps the mark of an interlaced picture: tried with a black one."""
    picture = av.VideoFrame(encoder.width, encoder.height, encoder.pix_fmt or "yuv420p")
    for plane in picture.planes:
        plane.update(bytes(plane.buffer_size))
    picture.pts, picture.time_base = 0, encoder.time_base
    try:
        picture = FieldMarker()(picture, fields)
        packets = encoder.encode(picture) + encoder.encode(None)
        decoder = av.CodecContext.create(encoder.codec.canonical_name, "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.extradata, decoder.width, decoder.height = encoder.extradata, encoder.width, encoder.height
        decoded = [found for packet in [*packets, None] for found in decoder.decode(packet)]
    except (av.FFmpegError, ValueError):
        return False
    return bool(decoded) and FieldOrder()(decoded[0]) == fields
