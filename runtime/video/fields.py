"""Interlaced pictures: which field comes first, marking results the same way, and deinterlacing.

PyAV shows of a picture only that it is interlaced; the rest goes through FFmpeg's filters. Opens no files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Literal

import av
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext

Fields = Literal["progressive", "tff", "bff"]
"""Both fields of a picture are of one time, or its top or bottom field comes first."""
_ORDERS: tuple[Fields, ...] = ("progressive", "tff", "bff")


class _Filter:
    """Filters of one kind with any number of outputs, set up anew for each size and format of pictures."""

    def __init__(self, name: str, arguments: str, outputs: int = 1) -> None:
        self._name, self._arguments, self._outputs = name, arguments, outputs
        self._key: tuple[Any, ...] = ()

    def fits(self, picture: av.VideoFrame) -> bool:
        """Whether the filter that is set up takes a picture."""
        return self._key == (picture.width, picture.height, picture.format.name)

    def push(self, picture: av.VideoFrame | None) -> None:
        """Give it a picture, or the end."""
        if picture is not None and not self.fits(picture):
            self._key = picture.width, picture.height, picture.format.name
            # The graph has to be kept: its parts do not keep it.
            self._graph = Graph()
            # The clock does not matter: times are carried past the filter.
            self._source = self._graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1),
            )
            work = self._graph.add(self._name, self._arguments)
            self._sinks = [self._graph.add("buffersink", name=f"out{index}") for index in range(self._outputs)]
            self._source.link_to(work)
            for index, sink in enumerate(self._sinks):
                work.link_to(sink, index)
            self._graph.configure()
        self._source.push(picture)

    def pull(self) -> tuple[int, av.VideoFrame] | None:
        """The next picture and the number of its output, None where the filter has to get more first."""
        for index, sink in enumerate(self._sinks):
            try:
                picture = sink.pull()
            except (av.BlockingIOError, av.EOFError):
                continue
            assert isinstance(picture, av.VideoFrame)
            return index, picture
        return None


class FieldOrder:
    """Tells which field of a picture comes first. Not for two threads at once."""

    def __init__(self) -> None:
        self._filter = _Filter("select", "1+interlace_type:n=3", 3)

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
        self._filters = {order: _Filter("setfield", order[:4]) for order in _ORDERS}

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
        self._filter = _Filter("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._waiting: deque[av.VideoFrame] = deque()

    def __call__(self, events: Iterable[Any]) -> Iterator[Any]:
        """The pictures of a stream, deinterlaced; everything else passes."""
        for event in events:
            if not isinstance(event, av.VideoFrame):
                yield event
                continue
            self.count += event.interlaced_frame
            if self._waiting and not self._filter.fits(event):
                yield from self._end()
            self._waiting.append(event)
            self._filter.push(event)
            yield from self._ready()
        if self._waiting:
            yield from self._end()

    def _end(self) -> Iterator[av.VideoFrame]:
        self._filter.push(None)
        yield from self._ready()
        self._filter = _Filter("bwdif", "mode=send_frame:parity=auto:deint=interlaced")

    def _ready(self) -> Iterator[av.VideoFrame]:
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
