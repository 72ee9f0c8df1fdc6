"""A container (or yuv4mpeg from stdin) opened: its packets in their order, and the pictures of one of its streams.

Reads only its source. Damage ends in no traceback: it is counted.
"""

from __future__ import annotations

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
from mtu.runtime.video.containers.table import demuxer_of
from mtu.runtime.video.damage import CountedPipe, Damage
from mtu.runtime.video.source import is_inner

_Y4M = "yuv4mpegpipe"
# Demuxers that take text or anything at all for a video.
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf"}


class Decoder:
    """Iterating gives decoded pictures, and packets of the other streams. Close it."""

    damage: Damage
    ended = False
    """Set it where no more pictures are wanted."""

    def __init__(self, source: str, number: int | None, form: str | None) -> None:
        """`number` is that of the video stream, None for the usual one; `form` FFmpeg's name of the format, where the
        name of the file would mislead. Raises InvalidInputError."""
        self._source, self._number, self._form = source, number, form
        self.covers: dict[int, av.Packet[Any]] = {}
        self._open()

    def _open(self) -> None:
        self.damage = Damage()
        piped = self._source == "-"
        if piped and sys.stdin is None:
            raise InvalidInputError("stdin is closed: pipe in the output of ffmpeg -i VIDEO -f yuv4mpegpipe -")
        # In a relative name FFmpeg takes what stands before a colon for a protocol.
        named = self._source if "://" in self._source else str(Path(self._source).absolute())
        self._pipe = CountedPipe(sys.stdin.buffer) if piped else None
        source: Any = self._pipe or named
        try:
            self.container = av.open(source, "r", format=_Y4M if piped else self._form, metadata_errors="replace")
        except av.FFmpegError as error:
            raise InvalidInputError(self._why_not(error)) from None
        try:
            self.stream, self.choice = self._choose()
        except BaseException:
            self.close()
            raise
        self.stream.thread_type = "AUTO"
        self.row = demuxer_of(self.container.format.name)
        self.time_base = self.stream.time_base or Fraction(1, 1000)
        self.rate: Fraction | None = self.stream.average_rate or self.stream.guessed_rate or None
        whole, own = self.stream.sample_aspect_ratio or None, self.stream.codec_context.sample_aspect_ratio or None
        self._follows_aspect = not self.row.aspect_of_track and whole == own
        self._events = self._decode_all()
        self._packet_times: deque[int] = deque()
        self._packets = 0

    def _choose(self) -> tuple[VideoStream, str]:
        """The stream that was asked for, else the one marked default, else the first, and what to say of the choice.

        Covers count only if alone.
        """
        videos = [stream for stream in self.container.streams.video if stream.codec_context is not None]
        form = self.container.format
        if form.name in _NOT_VIDEO:
            raise InvalidInputError(f"{self._source} is not a video: it reads as text ({form.long_name})")
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in self.container.streams})) or "nothing"
            raise InvalidInputError(f"{self._source} has no video stream that can be decoded (it has: {kinds})")
        moving = [stream for stream in videos if not stream.disposition & Disposition.attached_pic] or videos
        marked = [index for index, stream in enumerate(moving) if stream.disposition & Disposition.default]
        number = self._number if self._number is not None else (marked or [0])[0]
        if not 0 <= number < len(moving):
            found = [f"{index} ({stream.codec_context.name})" for index, stream in enumerate(moving)]
            raise InvalidInputError(
                f"{self._source} has no video stream {number}: choose one of {', '.join(found)} (counted from 0,"
                " without covers), or leave out --video-stream"
            )
        if len(moving) == 1:
            return moving[0], ""
        why, choose = ", the first marked default," if marked else ", the first,", "; --video-stream chooses"
        if self._number is not None:
            why = choose = ""
        said = f"{len(moving)} video streams: number {number}{why} is processed, the others are copied{choose}"
        return moving[number], said

    def _why_not(self, error: av.FFmpegError) -> str:
        reason = error.strerror or str(error)
        if self._source == "-":
            return f"stdin is not yuv4mpeg ({reason}): pipe in the output of ffmpeg -i VIDEO -f yuv4mpegpipe -"
        if "://" in self._source:
            return f"{self._source} cannot be read ({reason}): check the address and the network, or download it first"
        if isinstance(error, PermissionError):
            return f"{self._source} cannot be read ({reason}): you may not read it; ask its owner, or change its mode"
        hint = "it is not a video, or it is damaged at its beginning"
        if Path(self._source).suffix.lower() in {".mp4", ".mov", ".m4v", ".3gp"}:
            hint = "it is not a video, or it was cut off before its index (moov) was written"
        return f"{self._source} cannot be read ({reason}): {hint}"

    def __iter__(self) -> Iterator[av.VideoFrame | av.Packet[Any]]:
        return self._events

    def _decode_all(self) -> Iterator[av.VideoFrame | av.Packet[Any]]:
        """From where the demuxer stands."""
        for packet in self._demux():
            if packet.stream_index != self.stream.index:
                yield packet
            elif not self.ended:
                yield from self._decode(packet)
            if self.damage.hopeless:
                return
        if not self.ended:
            yield from self._decode(None)

    def _demux(self) -> Iterator[av.Packet[Any]]:
        packets: Iterator[av.Packet[Any]] = self.container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                self.damage.fail(error)
                if self.damage.hopeless:
                    return
                packets = self.container.demux()
                continue
            own = packet.stream_index == self.stream.index
            self._packets += own and packet.dts is not None
            # An empty packet would end the decoding: PyAV's flush packets, and AVI's "same picture again".
            if packet.size and not own and packet.stream.disposition & Disposition.attached_pic:
                # Demuxers give them once, at the very beginning, whatever their time.
                self.covers.setdefault(packet.stream_index, packet)
            elif packet.size and not is_inner(packet.stream):
                self.damage.packet(packet)
                yield packet

    def _decode(self, packet: av.Packet[Any] | None) -> list[av.VideoFrame]:
        if self.row.packets_are_timed and packet is not None and packet.dts is not None:
            self._packet_times.append(packet.dts)
        try:
            pictures = self.stream.decode(packet)
        except (av.FFmpegError, OSError) as error:
            self.damage.fail(error)
            if self._packet_times:
                self._packet_times.popleft()
            return []
        for picture in pictures:
            self.damage.decoded()
            if self.row.packets_are_timed:
                picture.pts = self._packet_times.popleft() if self._packet_times else None
        return pictures

    def first_picture(self) -> av.VideoFrame:
        """Read up to the first picture; what was read stays for the iteration. Raises InvalidInputError."""
        read = []
        for event in self._events:
            read.append(event)
            if isinstance(event, av.VideoFrame):
                self._events = chain(read, self._events)
                return event
        why = self.damage.reason or "its video stream is empty"
        raise InvalidInputError(f"{self._source}: not one picture could be decoded ({why})")

    def time_of(self, picture: av.VideoFrame) -> Fraction:
        """Seconds on the source's clock."""
        return (picture.pts or 0) * self.time_base

    def seek(self, time: Fraction) -> None:
        """Go to a key picture at or before `time`; where that cannot be done, to the beginning."""
        self.damage = Damage()
        try:
            self.container.seek(int(time / self.time_base), stream=self.stream)
            self._events = self._decode_all()
            self._packet_times.clear()
            picture = self.first_picture()
            if picture.pts is not None and self.time_of(picture) <= time:
                return
        except (av.FFmpegError, InvalidInputError):
            pass
        self.close()
        self._open()
        self.first_picture()

    @property
    def aspect(self) -> Fraction | None:
        """The aspect of the pixels of the last picture, None where the container's holds for all."""
        return (self.stream.codec_context.sample_aspect_ratio or None) if self._follows_aspect else None

    @property
    def length(self) -> Fraction | None:
        """Seconds of the stream, None if unknown."""
        if self.stream.duration:
            return self.stream.duration * self.time_base
        # Matroska has the length of a stream in its tags only.
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))
        length = None if tag is None else int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
        if length is None and self.container.duration:
            length = Fraction(self.container.duration, av.time_base)
        late = self.stream.start_time and self.stream.start_time * self.time_base
        if length is not None and late and not self._begin:
            length = length - late if length > late else length
        return length

    @property
    def _begin(self) -> Fraction:
        """The time from which the container's duration counts."""
        return Fraction(0 if self.row.lasts_from_zero else self.container.start_time or 0, av.time_base)

    def lost(self, *, whole: bool) -> list[str]:
        """What could not be read, in words, when the iteration has ended; `whole` says that all was wanted."""
        lost = self.damage.lost()
        if self.row.packets_are_timed and whole and self._packets < self.stream.frames:
            lost.append(f"{self.stream.frames - self._packets} of {self.stream.frames} pictures are missing")
        elif not self.ended and self.container.duration and self._source != "-":
            end = self._begin + Fraction(self.container.duration, av.time_base)
            lost += self.damage.early_end(end, self.rate)
        container, path = self.container.format.name, Path(self._source)
        if container == _Y4M and not self.ended and (self._pipe or path.is_file()):
            lost += self.damage.cut_off(self._pipe.count if self._pipe else path.stat().st_size)
        elif self._source != "-" and "://" not in self._source:
            lost += self.damage.broken(path, container, whole=whole)
        return lost

    def close(self) -> None:
        """Close the source. May be called twice."""
        self.container.close()
