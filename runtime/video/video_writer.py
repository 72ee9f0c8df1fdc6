"""Writing a video file: the pictures encoded, the other streams copied.

Everything that can fail is tried before the first frame: the encoder is opened, and the container's header is written
with all streams that it takes. Writes only the target and its temporary file beside it.
"""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec import Codec
from av.container import OutputContainer
from av.video.stream import VideoStream

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import Pixels, swaps_sides
from mtu.runtime.video.containers.muxer_options import add_options, discard, kept_options
from mtu.runtime.video.containers.table import container_of
from mtu.runtime.video.copying import Copier, timecode_of
from mtu.runtime.video.encoding import NO_TIMESTAMPS, Encoding, choose_encoding, with_fields
from mtu.runtime.video.fields import FieldMarker
from mtu.runtime.video.source import USUAL_RATE, Frame
from mtu.runtime.video.tags import kept_metadata, lost_of_stream, lost_tags, set_tag, stream_metadata
from mtu.runtime.video.timing import Drift
from mtu.runtime.video.trial import Refused, Sample, reason_of, rehearse
from mtu.runtime.video.writer import Target, Writer, write_failed

# Codecs that hold the aspect ratio of their pixels; PyAV cannot write Matroska's own.
_KEEPS_ASPECT = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"}


class VideoWriter(Writer):
    """A video file in any container that PyAV can write."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._last: int | None = None
        self._end = Fraction(0)
        self._moved = self._written = self._count = self._otherwise = 0
        self._refused: list[Exception] = []
        self._drift, self._mark = Drift(), FieldMarker()
        self._copier: Copier | None = None
        self._is_empty = False
        """Whether the container has begun, and has no packet."""
        suffix = self._path.suffix
        try:
            # A relative name with a colon would be a protocol to FFmpeg.
            self._container = av.open(str(self._temporary.absolute()), "w")
        except ValueError:
            raise InvalidInputError(
                f"no video format has the ending '{suffix}': name the output .mp4, .mkv, .mov or .webm, or give a "
                "name without ending for a directory of pictures"
            ) from None
        if self._container.format.no_file:
            raise InvalidInputError(f"{suffix} is not one file but several: name the output .mp4, .mkv, .mov or .webm")
        self._name, self._timeless = self._container.format.name, bool(self._container.format.flags & NO_TIMESTAMPS)
        self._row = container_of(self._name)
        try:
            self._keep_orientation()
            self._encoding = self._choose_encoding()
            self._from_rgb = self._encoding.from_rgb()
            self._add_streams()
            self._create()
            self._container.start_encoding()
            self._is_empty = True
        except BaseException as error:
            self.close()
            if isinstance(error, InvalidInputError) or not isinstance(error, (av.FFmpegError, ValueError)):
                raise
            if isinstance(error, OSError):
                raise write_failed(self._path, error) from None
            raise InvalidInputError(f"{suffix} cannot hold this video: {error}") from None

    @property
    def encoding(self) -> Encoding:
        """The settings of the encoder."""
        return self._encoding

    @property
    def header(self) -> str:
        """What the encoder has for the header of the container, hexadecimal."""
        return (self._stream.codec_context.extradata or b"").hex()

    def _keep_orientation(self) -> None:
        """By a display matrix, where the container has one."""
        if self._turn and self._row.matrix and hasattr(VideoStream, "set_display_matrix"):
            self._turn = None
        elif self._turn:
            self.notes.append(f"{self._name} holds no orientation: the pictures are turned upright")

    def _choose_encoding(self) -> Encoding:
        """The settings of the encoder; says what the encoded stream does not tell of the source."""
        source, name = self._target.source, self._name
        turned = self._turn is not None and swaps_sides(self._turn)
        encoding, notes = choose_encoding(self._container, self._target, turned=turned)
        self.notes += notes
        if source.fields != "progressive" and self._turn is not None:
            self.notes.append("pictures that are turned cannot be interlaced: they are marked as progressive")
        elif source.fields != "progressive":
            encoding, notes = with_fields(encoding, source.fields)
            self.notes += notes
        lost = self._row.matroska and Codec(encoding.codec, "w").canonical_name not in _KEEPS_ASPECT
        if lost and encoding.sample_aspect_ratio not in (None, 1):
            self.notes.append(f"the aspect ratio of {encoding.codec} is lost in {name}: use .mp4")
        if source.stems is not None and source.average_rate == USUAL_RATE:
            self.notes.append(f"pictures have no timing: written at {USUAL_RATE} per second (--rate)")
        if source.loops not in (None, 1) and self._row.loops is None:
            times = f"{source.loops} times" if source.loops else "for ever"
            self.notes.append(f"{name} does not say how often it is played: the source is, {times}")
        return encoding

    def _add_streams(self) -> None:
        """To the container, with its options; says what it does not hold."""
        source, container, wanted = self._target.source, self._container, self._target.options.muxer_options
        if source.container is not None:
            container.metadata.update(kept_metadata(source.container.metadata))
        container.container_options.update(kept_options(self._name, source))
        black = self._picture(np.zeros((self._encoding.height, self._encoding.width, 3), np.uint8), 0, 1)
        sample, tags = self._try(black)
        if wanted:
            add_options(container, wanted, sample.add)
            sample, tags = self._try(black)
        self._stream = self._add_pictures(container)
        self._say_what_is_lost(tags)
        if source.container is not None and self._target.copy_streams:
            self._copier = Copier(source, container, sample, self._mux)
            self.notes += self._copier.notes

    def _try(self, picture: av.VideoFrame) -> tuple[Sample, list[tuple[str, str]]]:
        try:
            return rehearse(self._container, self._add_pictures, picture)
        except Refused as error:
            raise InvalidInputError(
                f"{self._path.suffix} cannot hold this video as {self._encoding.codec} ({reason_of(error)}): name the "
                "output .mp4 or .mkv"
            ) from None

    def _say_what_is_lost(self, tags: list[tuple[str, str]]) -> None:
        """Compare what was to be written with the tags that the container gave back."""
        stereo = self._target.source.stereo_mode
        if stereo is not None and not self._row.keeps_stereo(stereo):
            self.notes.append(f"{self._name} is not told of the stereo 3D ({stereo}) of the pictures; .mkv is")
        timecode = timecode_of(self._target.source)
        if timecode is not None and "timecode" not in {key.lower() for key, _ in tags}:
            self.notes.append(f"{self._name} cannot hold the timecode {timecode} of this video: dropped")
        if tags_lost := [tag for tag in lost_tags(self._container.metadata, tags) if tag != "timecode"]:
            keep = "; --mux use_metadata_tags would, where few programs look" if self._row.quicktime else ""
            self.notes.append(f"{self._name} cannot hold these tags: {', '.join(tags_lost)}{keep}")
        names = {key: value for key, value in self._stream.metadata.items() if key != "language"}
        if name_lost := lost_of_stream(names, tags):
            self.notes.append(f"{self._name} cannot hold of the video stream: {name_lost}")

    def _add_pictures(self, output: OutputContainer) -> VideoStream:
        encoding, source = self._encoding, self._target.source
        stream = output.add_stream(encoding.codec, rate=encoding.rate)
        assert isinstance(stream, VideoStream)
        encoding.apply(stream.codec_context)
        stream.time_base = encoding.time_base
        set_tag(stream, output.format.name)
        if source.display_matrix is not None and self._turn is None and hasattr(stream, "set_display_matrix"):
            stream.set_display_matrix(source.display_matrix)
        if source.stream is not None:
            stream.metadata.update(stream_metadata(source.stream.metadata, output.format.name, encoded=True))
            stream.disposition = source.stream.disposition
        if source.stereo_mode is not None and self._row.keeps_stereo(source.stereo_mode):
            stream.metadata["stereo_mode"] = source.stereo_mode
        if (timecode := timecode_of(source)) is not None:
            stream.metadata["timecode"] = timecode
        return stream

    def _write(self, picture: Pixels, frame: Frame) -> None:
        converted = self._picture(picture, *self._place(frame))
        if self._encoding.fields != "progressive" and frame.fields != "progressive":
            converted = self._mark(converted, frame.fields)
        self._encode(converted)

    def _place(self, frame: Frame) -> tuple[int, int]:
        """When the picture of the next frame is shown, and how long, in ticks of the encoder."""
        base = self._encoding.time_base
        ticks = round((frame.pts * frame.time_base - self._target.source.origin) / base)
        if self._last is not None and ticks <= self._last:
            ticks = self._last + 1
            self._moved += 1
        self._last = ticks
        duration = max(1, round(frame.duration * frame.time_base / base))
        self._see_times(frame, ticks)
        self._end = (ticks + duration) * base
        self._otherwise += (frame.fields == "progressive") != (self._target.source.fields == "progressive")
        return ticks, duration

    def _see_times(self, frame: Frame, ticks: int) -> None:
        """Compare the time that the container will hold with the source's."""
        if self._timeless:
            written = self._count / self._target.source.rate
        else:
            base = self._stream.time_base or self._encoding.time_base
            written = round(ticks * self._encoding.time_base / base) * base
        self._count += 1
        self._drift.see(frame.pts * frame.time_base, written)

    def _picture(self, rgb: Pixels, ticks: int, duration: int) -> av.VideoFrame:
        picture = self._from_rgb(rgb)
        picture.pts, picture.time_base, picture.duration = ticks, self._encoding.time_base, duration
        return picture

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            packets = self._stream.encode(picture)
            if picture is None and self._count <= 2:
                # libx265 never sets the decode times of clips this short; nothing is reordered in them.
                for packet in packets:
                    packet.dts = packet.pts
        except (av.FFmpegError, OSError) as error:
            raise write_failed(self._path, error) from None
        for packet in packets:
            self._mux(packet)
            self._written += 1

    def _mux(self, packet: av.Packet[Any]) -> None:
        """Write a packet of any stream. A muxer reports late what it refuses, so that need not be this one."""
        self._is_empty = False
        try:
            self._container.mux(packet)
        except (av.FFmpegError, OSError, ValueError) as error:
            self._keep_refusal(error)

    def _keep_refusal(self, error: Exception) -> None:
        """Of packets. Raises OutputError where the muxer says something else, such as that the disk is full."""
        if isinstance(error, (OSError, MemoryError)):
            raise write_failed(self._path, error) from None
        self._refused.append(error)

    def copy(self, packet: av.Packet[Any]) -> None:
        """Write another stream's packet, unchanged; those the container cannot hold are dropped."""
        if self._copier is not None:
            self._copier.copy(packet)

    def commit(self) -> None:
        """Finish the file and give it its final name. Raises OutputError."""
        self._encode(None)
        if self._copier is not None:
            self._copier.finish(self._end)
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            self._keep_refusal(error)
        if self._refused:
            # Reported late, so that only the file tells whose packets they were.
            lost = self._lost()
            if self._written and lost == self._written:
                raise write_failed(self._path, self._refused[-1])
            packets = f"{len(self._refused)} packets{f' and {lost} pictures' if lost > 0 else ''}"
            self.remarks.append(f"{self._name} refused {packets} ({reason_of(self._refused[-1])})")
        self._publish()
        if self._otherwise and self._target.source.fields == "progressive":
            self.remarks.append(f"{self._otherwise} pictures are interlaced, but marked as progressive like the first")
        elif self._otherwise and self._encoding.fields != "progressive":
            self.remarks.append(f"{self._otherwise} pictures are progressive, but may be marked as interlaced")
        if self._moved:
            self.remarks.append(f"{self._moved} pictures lie too close for the time base: moved by its smallest step")
        self.remarks += self._drift.remarks(self._name)
        if self._copier is not None:
            self.remarks += self._copier.remarks()

    def _lost(self) -> int:
        """How many of the pictures are not in the finished file, by reading it."""
        try:
            with av.open(str(self._temporary.absolute())) as file:
                return self._written - sum(packet.size > 0 for packet in file.demux(file.streams[0]))
        except (av.FFmpegError, IndexError):
            return self._written

    def close(self) -> None:
        """Remove what was not committed. May be called twice."""
        if self._is_empty:
            discard(self._container, self._stream)
            self._is_empty = False
        with suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()
        if self._copier is not None:
            self._copier.close()
        super().close()
