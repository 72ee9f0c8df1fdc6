"""Reading a container (or yuv4mpeg from stdin): demuxing, decoding, segments, and what to do with damage.

Reads only its source. Damage never ends in a traceback: what decodes is given, and `damage` says what was lost.
"""

from __future__ import annotations

import math
import re
import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition
from av.video.stream import VideoStream

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import quarter_turn
from mtu.runtime.video.containers.table import demuxer_of
from mtu.runtime.video.damage import CountedPipe, Damage
from mtu.runtime.video.fields import Deinterlacer, FieldOrder
from mtu.runtime.video.normalise import Normaliser
from mtu.runtime.video.properties import display_matrix, hidden_border, picture_notes, property_notes, stereo_mode
from mtu.runtime.video.reader import Frame, Reader, ReadOptions, is_inner
from mtu.runtime.video.subtitles import showing_at
from mtu.runtime.video.timing import Clock, Segment

_Y4M = "yuv4mpegpipe"
# Demuxers that take text or anything at all for a video.
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf"}


class VideoReader(Reader):
    """A container that PyAV can read."""

    def __init__(self, source: str, options: ReadOptions, form: str | None = None) -> None:
        """`form` is FFmpeg's name of the format, where the name of the file would mislead."""
        self.source, self.segment, self._form = source, options.segment, form
        if options.rate is not None:
            raise InvalidInputError(f"--rate is for pictures, which have no times; {source} has its own: leave it out")
        self._options, segment = options, options.segment
        self.notes, self.remarks, self.covers = [], [], {}
        self._damage, self._given, self._several = Damage(), 0, ""
        self._deinterlacer = Deinterlacer() if options.deinterlace else None
        self._field_order = FieldOrder()
        self._past_end = False
        try:
            self._open()
            first = self._first_picture()
            self._zero = self._stamp_of(first)
            if segment is not None and segment.begin > 1 and source != "-":
                self._seek(self._zero + segment.begin)
            self._describe(first)
            pictures = chain(self._ahead, self._raw)
            self._events = self._keep(pictures if self._deinterlacer is None else self._deinterlacer(pictures))
            self._ready: list[Frame | av.Packet[Any]] = []
            for event in self._events:
                self._ready.append(event)
                if isinstance(event, Frame):
                    break
            else:
                raise InvalidInputError(f"{source} has no pictures in segment {segment}: it lasts {self._lasts()}")
            if segment is not None and source != "-" and self.container is not None:
                self._ready[:0] = showing_at(self.container, form, event.pts * self.time_base)
            self._ready[:0] = self.covers.values()
            self._set_origin(event)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        piped = self.source == "-"
        if piped and sys.stdin is None:
            raise InvalidInputError("stdin is closed: pipe in the output of ffmpeg -i VIDEO -f yuv4mpegpipe -")
        # In a relative name FFmpeg takes what stands before a colon for a protocol.
        named = self.source if "://" in self.source else str(Path(self.source).absolute())
        self._pipe = CountedPipe(sys.stdin.buffer) if piped else None
        source: Any = self._pipe or named
        try:
            container = av.open(source, "r", format=_Y4M if piped else self._form, metadata_errors="replace")
        except av.FFmpegError as error:
            raise InvalidInputError(self._why_not(error)) from None
        self.container = container
        videos = [stream for stream in container.streams.video if stream.codec_context is not None]
        if container.format.name in _NOT_VIDEO:
            raise InvalidInputError(f"{self.source} is not a video: it reads as text ({container.format.long_name})")
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise InvalidInputError(f"{self.source} has no video stream that can be decoded (it has: {kinds})")
        self.stream = stream = self._choose(videos)
        self._index = stream.index
        stream.thread_type = "AUTO"
        self._row = demuxer_of(container.format.name)
        whole, own = stream.sample_aspect_ratio or None, stream.codec_context.sample_aspect_ratio or None
        self._follows_aspect = not self._row.aspect_of_track and whole == own
        self.time_base = stream.time_base or Fraction(1, 1000)
        self.average_rate = stream.average_rate or stream.guessed_rate or None
        self._clock = Clock(self.time_base, self.average_rate)
        self._raw = self._decode_all(stream)
        self._ahead: deque[av.VideoFrame | av.Packet[Any]] = deque()
        self._packet_times: deque[int] = deque()
        self._packets = 0

    def _choose(self, videos: list[VideoStream]) -> VideoStream:
        """The stream that was asked for, else the one marked default, else the first. Covers count only if alone."""
        moving = [stream for stream in videos if not stream.disposition & Disposition.attached_pic] or videos
        marked = [index for index, stream in enumerate(moving) if stream.disposition & Disposition.default]
        wanted = self._options.video_stream
        number = wanted if wanted is not None else (marked or [0])[0]
        if not 0 <= number < len(moving):
            found = [f"{index} ({stream.codec_context.name})" for index, stream in enumerate(moving)]
            raise InvalidInputError(
                f"{self.source} has no video stream {number}: choose one of {', '.join(found)} (counted from 0, without"
                " covers), or leave out --video-stream"
            )
        if len(moving) > 1:
            why = "" if wanted is not None else ", the first marked default," if marked else ", the first,"
            choose = "" if wanted is not None else "; --video-stream chooses"
            self._several = (
                f"{len(moving)} video streams: number {number}{why} is processed, the others are copied{choose}"
            )
        return moving[number]

    def _why_not(self, error: av.FFmpegError) -> str:
        reason = error.strerror or str(error)
        if self.source == "-":
            return f"stdin is not yuv4mpeg ({reason}): pipe in the output of ffmpeg -i VIDEO -f yuv4mpegpipe -"
        if "://" in self.source:
            return f"{self.source} cannot be read ({reason}): check the address and the network, or download it first"
        hint = "it is not a video, or it is damaged at its beginning"
        if Path(self.source).suffix.lower() in {".mp4", ".mov", ".m4v", ".3gp"}:
            hint = "it is not a video, or it was cut off before its index (moov) was written"
        return f"{self.source} cannot be read ({reason}): {hint}"

    def _decode_all(self, stream: VideoStream) -> Iterator[av.VideoFrame | av.Packet[Any]]:
        """Decoded pictures, and packets of the other streams, from where the demuxer stands."""
        for packet in self._demux():
            if packet.stream_index != self._index:
                yield packet
            elif not self._past_end:
                yield from self._decode(stream, packet)
            if self._damage.hopeless:
                return
        if not self._past_end:
            yield from self._decode(stream, None)

    def _demux(self) -> Iterator[av.Packet[Any]]:
        assert self.container is not None
        packets: Iterator[av.Packet[Any]] = self.container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                self._damage.fail(error)
                if self._damage.hopeless:
                    return
                packets = self.container.demux()
                continue
            self._packets += packet.stream_index == self._index and packet.dts is not None
            # An empty packet would end the decoding: PyAV's flush packets, and AVI's "same picture again".
            if (
                packet.size
                and packet.stream.index != self._index
                and packet.stream.disposition & Disposition.attached_pic
            ):
                # Demuxers give them once, at the very beginning, whatever their time.
                self.covers.setdefault(packet.stream.index, packet)
            elif packet.size and not is_inner(packet.stream):
                self._damage.packet(packet)
                yield packet

    def _decode(self, stream: VideoStream, packet: av.Packet[Any] | None) -> list[av.VideoFrame]:
        if self._row.packets_are_timed and packet is not None and packet.dts is not None:
            self._packet_times.append(packet.dts)
        try:
            pictures = stream.decode(packet)
        except (av.FFmpegError, OSError) as error:
            self._damage.fail(error)
            if self._packet_times:
                self._packet_times.popleft()
            return []
        for picture in pictures:
            self._damage.decoded()
            if self._row.packets_are_timed:
                picture.pts = self._packet_times.popleft() if self._packet_times else None
        return pictures

    def _first_picture(self) -> av.VideoFrame:
        """Read up to the first picture; what was read stays for the iteration."""
        for event in self._raw:
            self._ahead.append(event)
            if isinstance(event, av.VideoFrame):
                return event
        why = self._damage.reason or "its video stream is empty"
        raise InvalidInputError(f"{self.source}: not one picture could be decoded ({why})")

    def _stamp_of(self, picture: av.VideoFrame) -> Fraction:
        return (picture.pts or 0) * self.time_base

    def _seek(self, time: Fraction) -> None:
        """Go to a key picture at or before `time`; where that cannot be done, everything before it is decoded."""
        assert self.container is not None and self.stream is not None
        self._damage = Damage()
        try:
            self.container.seek(int(time / self.time_base), stream=self.stream)
            self._raw = self._decode_all(self.stream)
            self._ahead.clear()
            self._packet_times.clear()
            picture = self._first_picture()
            if picture.pts is not None and self._stamp_of(picture) <= time:
                return
        except (av.FFmpegError, InvalidInputError):
            pass
        self._damage = Damage()
        self.close()
        self._open()
        self._first_picture()

    def _describe(self, picture: av.VideoFrame) -> None:
        assert self.stream is not None and self.container is not None
        stop = self._options.on_size_change == "stop"
        self._coded_height = picture.height
        self._normalise = Normaliser(self.source, picture, hidden_border(self.stream), stop=stop)
        self.width, self.height, self.pix_fmt = self._normalise.width, self._normalise.height, picture.format.name
        self.colour = self._normalise.colour
        self.notes = picture_notes(picture, self._normalise.notes) + property_notes(picture, self.stream)
        self.stereo_mode = stereo_mode(picture, self.stream)
        self.sample_aspect_ratio = self._aspect() if self._follows_aspect else self.stream.sample_aspect_ratio or None
        matrix = display_matrix(picture)
        if matrix is not None and not quarter_turn(matrix):
            self.notes.append("the display matrix is no turn by 90 degrees: it is kept where the target can hold it")
        self.display_matrix = matrix
        if self._deinterlacer is None:
            self.fields = self._field_order(picture)
        if self.fields != "progressive":
            self.notes.append(
                "the source is interlaced: its frames are processed as they are; --deinterlace makes them progressive"
            )
        if picture.pts is None:
            rate = float(self.average_rate or 1 / self._clock.step / self.time_base)
            self.notes.append(f"the source has no timestamps: {rate:g} pictures per second are assumed")
        if self._several:
            self.notes.append(self._several)
        length = self._length()
        count = self.stream.frames or None
        if count is None and length is not None and self.average_rate:
            count = max(1, round(length * self.average_rate))
        if self.segment is not None and length is not None and self.average_rate:
            end = length if self.segment.until is None else min(length, self.segment.until)
            count = max(1, math.ceil((end - self.segment.begin) * self.average_rate))
        self.frame_count = count

    def _length(self) -> Fraction | None:
        assert self.stream is not None and self.container is not None
        if self.stream.duration:
            return self.stream.duration * self.time_base
        # Matroska has the length of a stream in its tags only.
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))
        length = None if tag is None else int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
        if length is None and self.container.duration:
            length = Fraction(self.container.duration, av.time_base)
        late = self.stream.start_time and self.stream.start_time * self.time_base
        if length is not None and late and not self._begin():
            length = length - late if length > late else length
        return length

    def _begin(self) -> Fraction:
        """The time from which the container's duration counts."""
        assert self.container is not None
        if self._row.lasts_from_zero:
            return Fraction(0)
        return Fraction(self.container.start_time or 0, av.time_base)

    def _lasts(self) -> str:
        length = self._length()
        return "an unknown time" if length is None else f"{float(length):g} s"

    def _set_origin(self, first: Frame) -> None:
        assert self.container is not None
        self.start = first.pts * self.time_base
        if self.segment is not None:
            self.origin = self.start
            return
        if self._row.free_clock and self.container.start_time is not None:
            self.origin = Fraction(self.container.start_time, av.time_base)
        if self.start < self.origin or self.start < 0:
            self.origin = self.start
            self.notes.append(f"the first picture is at {float(self.start):g} s: all streams are moved to begin at 0")

    def _keep(self, events: Iterator[av.VideoFrame | av.Packet[Any]]) -> Iterator[Frame | av.Packet[Any]]:
        """What lies in the segment; pictures become frames. Stops soon after the segment's end."""
        segment = self.segment or Segment()
        assert self.container is not None
        running = {stream.index for stream in self.container.streams.audio}
        for event in events:
            if isinstance(event, av.VideoFrame):
                pts, duration = self._clock.stamp(event.pts, event.duration)
                time = pts * self.time_base - self._zero
                if segment.holds(time):
                    self._given += 1
                    self._damage.picture(event)
                    # The fields of a picture that is scaled in height are mixed.
                    fields = self._field_order(event) if event.height == self._coded_height else "progressive"
                    rgb = self._normalise(event, self._aspect())
                    yield Frame(rgb, pts, self.time_base, duration, fields)
                self._past_end = segment.past(time)
            else:
                ticks = event.pts if event.pts is not None else event.dts
                if ticks is None:
                    if self.segment is None:
                        yield event
                    continue
                time = ticks * event.time_base - self._zero
                # Of another video, what its first picture in the segment needs comes before that.
                if (
                    self.segment is None
                    or segment.holds(time)
                    or (event.stream.type == "video" and time < segment.begin)
                ):
                    yield event
                elif segment.past(time):
                    running.discard(event.stream_index)
            # Audio lies at most some seconds after its pictures; later on nothing of the segment comes.
            if self._past_end and (not running or segment.past(time - 10)):
                return

    def __iter__(self) -> Iterator[Frame | av.Packet[Any]]:
        """Pictures and other packets. Raises InvalidInputError where pictures change their size."""
        while self._ready:
            yield self._ready.pop(0)
        yield from self._events
        if self._deinterlacer is not None:
            count = self._deinterlacer.count
            remark = f"{count} pictures were interlaced and made progressive" if count else "nothing was interlaced"
            self.remarks.append(remark)
        self.remarks += self._normalise.remarks() + self._clock.remarks("pictures")
        self.damage = self._what_was_lost()

    def _aspect(self) -> Fraction | None:
        """The aspect of the pixels of the last picture, None where the container's holds for all."""
        assert self.stream is not None
        own = self.stream.codec_context.sample_aspect_ratio or None
        return own if self._follows_aspect else None

    def _what_was_lost(self) -> str | None:
        assert self.container is not None and self.stream is not None
        lost = self._damage.lost()
        if self._row.packets_are_timed and self.segment is None and self._packets < self.stream.frames:
            lost.append(f"{self.stream.frames - self._packets} of {self.stream.frames} pictures are missing")
        elif not self._past_end and self.container.duration and self.source != "-":
            end = self._begin() + Fraction(self.container.duration, av.time_base)
            lost += self._damage.early_end(end, self.average_rate)
        container, path = self.container.format.name, Path(self.source)
        if container == _Y4M and not self._past_end and (self._pipe or path.is_file()):
            lost += self._damage.cut_off(self._pipe.count if self._pipe else path.stat().st_size)
        elif self.source != "-" and "://" not in self.source:
            lost += self._damage.broken(path, container, whole=self.segment is None)
        return f"{self.source}: after {self._given} pictures: {'; '.join(lost)}" if lost else None

    def close(self) -> None:
        """Close the source. May be called twice."""
        if self.container is not None:
            self.container.close()
