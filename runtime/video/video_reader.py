"""Reading a video: what it is (`probe`), and its pictures and packets, of a segment if one is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import Any

import av

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import quarter_turn
from mtu.runtime.video.decoder import Decoder
from mtu.runtime.video.fields import Deinterlacer, FieldOrder, Fields
from mtu.runtime.video.normalise import Normaliser
from mtu.runtime.video.properties import carried_by, hidden_border, picture_notes, stream_notes
from mtu.runtime.video.source import Frame, Reader, ReadOptions, SourceInfo
from mtu.runtime.video.subtitles import showing_at
from mtu.runtime.video.timing import Clock, Segment


class VideoReader(Reader):
    """A container that PyAV can read."""

    def __init__(self, source: str, options: ReadOptions, form: str | None = None, loops: int | None = None) -> None:
        """`form` is FFmpeg's name of the format, where the name of the file would mislead; `loops` as in
        `SourceInfo`."""
        if options.rate is not None:
            raise InvalidInputError(f"--rate is for pictures, which have no times; {source} has its own: leave it out")
        self._segment, self.remarks, self._given = options.segment, [], 0
        self._last = Fraction(0), Fraction(0)
        self._deinterlacer = Deinterlacer() if options.deinterlace else None
        self._field_order = FieldOrder()
        self._decoder = decoder = Decoder(source, options.video_stream, form)
        try:
            first = decoder.first_picture()
            self._zero = decoder.time_of(first)
            if self._segment is not None and self._segment.begin > 1 and source != "-":
                decoder.seek(self._zero + self._segment.begin)
            self._clock = Clock(decoder.time_base, decoder.rate)
            stop = options.on_size_change == "stop"
            self._normalise = Normaliser(source, first, hidden_border(decoder.stream), stop=stop)
            self._coded_height = first.height
            fields: Fields = "progressive" if options.deinterlace else self._field_order(first)
            info = probe(source, decoder, first, self._normalise, fields, options)
            kept = self._keep(decoder if self._deinterlacer is None else self._deinterlacer(decoder))
            read: list[Frame | av.Packet[Any]] = []
            for event in kept:
                read.append(event)
                if isinstance(event, Frame):
                    break
            else:
                lasts = "an unknown time" if decoder.length is None else f"{float(decoder.length):g} s"
                raise InvalidInputError(f"{source} has no pictures in segment {self._segment}: it lasts {lasts}")
            start = event.pts * info.time_base
            showing = showing_at(decoder.container, form, start) if self._segment is not None and source != "-" else []
            self._events = chain(decoder.covers.values(), showing, read, kept)
            self.info = replace(_with_origin(info, start, decoder), loops=loops)
        except BaseException:
            self.close()
            raise

    def _keep(self, events: Any) -> Iterator[Frame | av.Packet[Any]]:
        """What lies in the segment; pictures become frames. Stops soon after the segment's end."""
        decoder, segment = self._decoder, self._segment or Segment()
        running = {stream.index for stream in decoder.container.streams.audio}
        for event in events:
            if isinstance(event, av.VideoFrame):
                pts, duration = self._clock.stamp(event.pts, event.duration)
                time = pts * decoder.time_base - self._zero
                if segment.holds(time):
                    self._given += 1
                    self._last = time, duration * decoder.time_base
                    decoder.damage.picture(event)
                    # The fields of a picture that is scaled in height are mixed.
                    fields = self._field_order(event) if event.height == self._coded_height else "progressive"
                    rgb = self._normalise(event, decoder.aspect)
                    yield Frame(rgb, pts, decoder.time_base, duration, fields)
                decoder.ended = decoder.ended or segment.past(time)
            else:
                ticks = event.pts if event.pts is not None else event.dts
                if ticks is None:
                    if self._segment is None:
                        yield event
                    continue
                time = ticks * event.time_base - self._zero
                # Of another video, what its first picture in the segment needs comes before that.
                early = event.stream.type == "video" and time < segment.begin
                if self._segment is None or segment.holds(time) or early:
                    yield event
                elif segment.past(time):
                    running.discard(event.stream_index)
            # Audio lies at most some seconds after its pictures; later on nothing of the segment comes.
            if self._segment is not None and decoder.ended and (not running or segment.past(time - 10)):
                return

    def __iter__(self) -> Iterator[Frame | av.Packet[Any]]:
        yield from self._events
        if self._deinterlacer is not None:
            count = self._deinterlacer.count
            remark = f"{count} pictures were interlaced and made progressive" if count else "nothing was interlaced"
            self.remarks.append(remark)
        if self._segment is not None:
            self.remarks += self._segment.notes(*self._last)
        self.remarks += self._normalise.remarks() + self._clock.remarks("pictures")
        if lost := self._decoder.lost(whole=self._segment is None):
            self.damage = f"{self.info.name}: after {self._given} pictures: {'; '.join(lost)}"

    def others(self) -> Iterator[av.Packet[Any]]:
        """See `Reader.others`."""
        self._decoder.ended = True
        return (event for event in self._events if not isinstance(event, Frame))

    def close(self) -> None:
        """Close the source. May be called twice."""
        self._decoder.close()


def probe(
    source: str, decoder: Decoder, picture: av.VideoFrame, shown: Normaliser, fields: Fields, options: ReadOptions
) -> SourceInfo:
    """What is known of a video by its container and its first picture, but for its beginning."""
    stream, segment, rate = decoder.stream, options.segment, decoder.rate
    carried = carried_by(picture, stream)
    notes = picture_notes(picture, shown.notes, carried) + stream_notes(picture, stream, carried)
    if carried.matrix is not None and not quarter_turn(carried.matrix):
        notes.append("the display matrix is no turn by 90 degrees: it is kept where the target can hold it")
    if fields != "progressive":
        notes.append(
            "the source is interlaced: its frames are processed as they are; --deinterlace makes them progressive"
        )
    if picture.pts is None:
        step = Clock(decoder.time_base, rate).step
        assumed = float(rate or 1 / step / decoder.time_base)
        notes.append(f"the source has no timestamps: {assumed:g} pictures per second are assumed")
    if decoder.choice:
        notes.append(decoder.choice)
    length, count = decoder.length, stream.frames or None
    if length is not None and rate:
        if segment is not None:
            end = length if segment.until is None else min(length, segment.until)
            count = max(1, math.ceil((end - segment.begin) * rate))
        elif count is None:
            count = max(1, round(length * rate))
    return SourceInfo(
        name=source,
        width=shown.width,
        height=shown.height,
        time_base=decoder.time_base,
        average_rate=rate,
        frame_count=count,
        colour=shown.colour,
        pix_fmt=picture.format.name,
        sample_aspect_ratio=decoder.aspect or stream.sample_aspect_ratio or None,
        display_matrix=carried.matrix,
        fields=fields,
        stereo_mode=carried.stereo,
        segment=segment,
        notes=tuple(notes),
        container=decoder.container,
        stream=stream,
        covers=decoder.covers,
    )


def _with_origin(info: SourceInfo, start: Fraction, decoder: Decoder) -> SourceInfo:
    """The description with where the first picture lies, `start`, and what becomes time 0."""
    if info.segment is not None:
        return replace(info, origin=start)
    clock = decoder.container.start_time if decoder.row.free_clock else None
    origin = Fraction(0 if clock is None else clock, av.time_base)
    if start >= origin and start >= 0:
        return replace(info, origin=origin)
    note = f"the first picture is at {float(start):g} s: all streams are moved to begin at 0"
    return replace(info, origin=start, notes=(*info.notes, note))
